//! The KV service.

use super::pb::etcdserverpb as pb;
use super::status::ApiError;
use super::{Api, check, convert};
use brickraft_engine::kv::types::{Command, CommandResponse, Keyspace, KvError, OpResponse, RangeRequest, RangeResponse};
use brickraft_engine::member::MemberError;
use brickraft_engine::types::Revision;
use pb::kv_server::Kv;
use tonic::{Request, Response, Status};

const MISMATCH: ApiError = ApiError::Internal("the answer does not fit the request");

impl Api {
    /// Reads a range. One key is read in place; a range may hold any number of them, and must not stall the thread
    /// that serves everybody else.
    pub(super) async fn range(&self, request: RangeRequest, serializable: bool) -> Result<(RangeResponse, Revision), ApiError> {
        if request.range_end.is_empty() {
            return Ok(self.handle().range(Keyspace::User, &request, serializable).await?);
        }
        if !serializable {
            self.handle().read_index().await?;
        }
        let store = self.handle().store().clone();
        let read = tokio::task::spawn_blocking(move || store.range(Keyspace::User, &request));
        let read = read.await.map_err(|_| ApiError::Internal("a read was given up"))?;
        Ok(read.map_err(MemberError::from)?)
    }
}

#[tonic::async_trait]
impl Kv for Api {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        self.require_leader(request.metadata())?;
        let request = request.into_inner();
        check::range(&request)?;
        let serializable = request.serializable;
        let (response, revision) = Api::range(self, convert::range(request), serializable).await?;
        Ok(Response::new(convert::range_response(response, self.header(revision))))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        self.require_leader(request.metadata())?;
        let request = request.into_inner();
        self.settings().limits.size(&request)?;
        let command = Command::Put(Keyspace::User, convert::put(request));
        match self.propose(command).await? {
            (CommandResponse::Op(OpResponse::Put { prev_kv }), revision) => {
                Ok(Response::new(pb::PutResponse { header: Some(self.header(revision)), prev_kv: prev_kv.map(convert::key_value) }))
            }
            _ => Err(MISMATCH.into()),
        }
    }

    async fn delete_range(&self, request: Request<pb::DeleteRangeRequest>) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        self.require_leader(request.metadata())?;
        let request = request.into_inner();
        self.settings().limits.size(&request)?;
        let command = Command::DeleteRange(Keyspace::User, convert::delete_range(request));
        match self.propose(command).await? {
            (CommandResponse::Op(OpResponse::DeleteRange { deleted, prev_kvs }), revision) => Ok(Response::new(pb::DeleteRangeResponse {
                header: Some(self.header(revision)),
                deleted: convert::signed(deleted),
                prev_kvs: prev_kvs.into_iter().map(convert::key_value).collect(),
            })),
            _ => Err(MISMATCH.into()),
        }
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        self.require_leader(request.metadata())?;
        let request = request.into_inner();
        self.settings().limits.size(&request)?;
        let command = Command::Txn(Keyspace::User, convert::txn(request)?);
        match self.propose(command).await? {
            (CommandResponse::Op(OpResponse::Txn { succeeded, responses }), revision) => Ok(Response::new(pb::TxnResponse {
                header: Some(self.header(revision)),
                succeeded,
                responses: convert::txn_responses(responses, revision),
            })),
            _ => Err(MISMATCH.into()),
        }
    }

    async fn compact(&self, request: Request<pb::CompactionRequest>) -> Result<Response<pb::CompactionResponse>, Status> {
        let request = request.into_inner();
        if request.revision < 0 {
            return Err(ApiError::from(KvError::Compacted).into());
        }
        let command = Command::Compact { keyspace: Keyspace::User, revision: convert::revision(request.revision) };
        let (_, revision) = self.propose(command).await?;
        // History below the revision is out of reach as soon as the command is applied; `physical` asks to wait until it
        // is out of this member's tables as well.
        while request.physical && self.handle().store().collected_revision(Keyspace::User) < convert::revision(request.revision) {
            if self.handle().last_status().stopped.is_some() {
                return Err(ApiError::from(brickraft_engine::member::MemberError::Stopped).into());
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Ok(Response::new(pb::CompactionResponse { header: Some(self.header(revision)) }))
    }
}
