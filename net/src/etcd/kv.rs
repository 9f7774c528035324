//! The KV service.

use super::pb::etcdserverpb as pb;
use super::status::ApiError;
use super::{Api, convert};
use brickraft_engine::kv::types::{Command, CommandResponse, Keyspace, KvError, OpResponse};
use pb::kv_server::Kv;
use tonic::{Request, Response, Status};

const MISMATCH: ApiError = ApiError::Internal("the answer does not fit the request");

#[tonic::async_trait]
impl Kv for Api {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        self.require_leader(request.metadata())?;
        let (caller, request) = self.caller(request);
        let (response, revision) = caller.checked_range(request).await?;
        Ok(Response::new(convert::range_response(response, self.header(revision))))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        self.require_leader(request.metadata())?;
        let (caller, request) = self.caller(request);
        self.settings().limits.size(&request)?;
        let command = Command::Put(Keyspace::User, convert::put(request));
        match caller.propose(command).await? {
            (CommandResponse::Op(OpResponse::Put { prev_kv }), revision) => {
                Ok(Response::new(pb::PutResponse { header: Some(self.header(revision)), prev_kv: prev_kv.map(convert::key_value) }))
            }
            _ => Err(MISMATCH.into()),
        }
    }

    async fn delete_range(&self, request: Request<pb::DeleteRangeRequest>) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        self.require_leader(request.metadata())?;
        let (caller, request) = self.caller(request);
        self.settings().limits.size(&request)?;
        let command = Command::DeleteRange(Keyspace::User, convert::delete_range(request));
        match caller.propose(command).await? {
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
        let (caller, request) = self.caller(request);
        self.settings().limits.size(&request)?;
        let command = Command::Txn(Keyspace::User, convert::txn(request)?);
        match caller.propose(command).await? {
            (CommandResponse::Op(OpResponse::Txn { succeeded, responses }), revision) => Ok(Response::new(pb::TxnResponse {
                header: Some(self.header(revision)),
                succeeded,
                responses: convert::txn_responses(responses, revision),
            })),
            _ => Err(MISMATCH.into()),
        }
    }

    async fn compact(&self, request: Request<pb::CompactionRequest>) -> Result<Response<pb::CompactionResponse>, Status> {
        let (caller, request) = self.caller(request);
        if request.revision < 0 {
            return Err(ApiError::from(KvError::Compacted).into());
        }
        let command = Command::Compact { keyspace: Keyspace::User, revision: convert::revision(request.revision) };
        let (_, revision) = caller.propose(command).await?;
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
