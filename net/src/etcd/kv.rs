//! The KV service.
//!
//! Reached by [`super::unary`]; by tonic where a request is an unusual one, or the gateway's.

use super::auth::Caller;
use super::pb::etcdserverpb as pb;
use super::status::ApiError;
use super::{Api, convert};
use brickraft_engine::kv::types::{Command, CommandResponse, Keyspace, KvError, OpResponse};
use pb::kv_server::Kv;
use tonic::{Request, Response, Status};

const MISMATCH: ApiError = ApiError::Internal("the answer does not fit the request");

impl Caller {
    pub(super) async fn kv_range(self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        self.require_a_leader()?;
        let (response, revision) = self.checked_range(request).await?;
        Ok(convert::range_response(response, self.header(revision)))
    }

    pub(super) async fn kv_put(self, request: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        self.require_a_leader()?;
        self.settings().limits.size(&request)?;
        let command = Command::Put(Keyspace::User, convert::put(request));
        match self.propose(command).await? {
            (CommandResponse::Op(OpResponse::Put { prev_kv }), revision) => {
                Ok(pb::PutResponse { header: Some(self.header(revision)), prev_kv: prev_kv.map(convert::key_value) })
            }
            _ => Err(MISMATCH.into()),
        }
    }

    pub(super) async fn kv_delete_range(self, request: pb::DeleteRangeRequest) -> Result<pb::DeleteRangeResponse, Status> {
        self.require_a_leader()?;
        self.settings().limits.size(&request)?;
        let command = Command::DeleteRange(Keyspace::User, convert::delete_range(request));
        match self.propose(command).await? {
            (CommandResponse::Op(OpResponse::DeleteRange { deleted, prev_kvs }), revision) => Ok(pb::DeleteRangeResponse {
                header: Some(self.header(revision)),
                deleted: convert::signed(deleted),
                prev_kvs: prev_kvs.into_iter().map(convert::key_value).collect(),
            }),
            _ => Err(MISMATCH.into()),
        }
    }

    pub(super) async fn kv_txn(self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        self.require_a_leader()?;
        self.settings().limits.size(&request)?;
        let command = Command::Txn(Keyspace::User, convert::txn(request)?);
        match self.propose(command).await? {
            (CommandResponse::Op(OpResponse::Txn { succeeded, responses }), revision) => Ok(pb::TxnResponse {
                header: Some(self.header(revision)),
                succeeded,
                responses: convert::txn_responses(responses, revision),
            }),
            _ => Err(MISMATCH.into()),
        }
    }

    pub(super) async fn kv_compact(self, request: pb::CompactionRequest) -> Result<pb::CompactionResponse, Status> {
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
        Ok(pb::CompactionResponse { header: Some(self.header(revision)) })
    }
}

#[tonic::async_trait]
impl Kv for Api {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let (caller, message) = self.caller(request);
        caller.kv_range(message).await.map(Response::new)
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let (caller, message) = self.caller(request);
        caller.kv_put(message).await.map(Response::new)
    }

    async fn delete_range(&self, request: Request<pb::DeleteRangeRequest>) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let (caller, message) = self.caller(request);
        caller.kv_delete_range(message).await.map(Response::new)
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let (caller, message) = self.caller(request);
        caller.kv_txn(message).await.map(Response::new)
    }

    async fn compact(&self, request: Request<pb::CompactionRequest>) -> Result<Response<pb::CompactionResponse>, Status> {
        let (caller, message) = self.caller(request);
        caller.kv_compact(message).await.map(Response::new)
    }
}
