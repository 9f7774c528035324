//! The KV service.
//!
//! Reached by [`super::unary`]; by tonic where a request is an unusual one, or the gateway's.

use super::auth::Caller;
use super::pb::etcdserverpb as pb;
use super::status::ApiError;
use super::{Api, convert};
use brickraft_engine::kv::types::{Command, CommandResponse, Keyspace, KvError, OpResponse};
use brickraft_engine::types::Revision;
use pb::kv_server::Kv;
use prost::Message;
use tonic::{Request, Response, Status};

const MISMATCH: ApiError = ApiError::Internal("the answer does not fit the request");

impl Caller {
    pub(super) async fn kv_range(self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        self.require_a_leader()?;
        let (response, revision) = self.checked_range(request).await?;
        Ok(convert::range_response(response, self.header(revision)))
    }

    /// Begins a change of keys, so that its future need not hold the request.
    fn change<Q, F>(
        &self,
        request: Q,
        command: F,
    ) -> Result<impl Future<Output = Result<(CommandResponse, Revision), ApiError>> + Send + use<Q, F>, ApiError>
    where
        Q: Message,
        F: FnOnce(Q) -> Result<Command, ApiError>,
    {
        self.require_a_leader()?;
        self.settings().limits.size(&request)?;
        Ok(self.propose(command(request)?))
    }

    pub(super) fn kv_put(self, request: pb::PutRequest) -> impl Future<Output = Result<pb::PutResponse, Status>> + Send {
        let begun = self.change(request, |request| Ok(Command::Put(Keyspace::User, convert::put(request))));
        async move {
            match begun?.await? {
                (CommandResponse::Op(OpResponse::Put { prev_kv }), revision) => {
                    Ok(pb::PutResponse { header: Some(self.header(revision)), prev_kv: prev_kv.map(|kv| convert::key_value(*kv)) })
                }
                _ => Err(MISMATCH.into()),
            }
        }
    }

    pub(super) fn kv_delete_range(
        self,
        request: pb::DeleteRangeRequest,
    ) -> impl Future<Output = Result<pb::DeleteRangeResponse, Status>> + Send {
        let begun = self.change(request, |request| Ok(Command::DeleteRange(Keyspace::User, convert::delete_range(request))));
        async move {
            match begun?.await? {
                (CommandResponse::Op(OpResponse::DeleteRange { deleted, prev_kvs }), revision) => Ok(pb::DeleteRangeResponse {
                    header: Some(self.header(revision)),
                    deleted: convert::signed(deleted),
                    prev_kvs: prev_kvs.into_iter().map(convert::key_value).collect(),
                }),
                _ => Err(MISMATCH.into()),
            }
        }
    }

    pub(super) fn kv_txn(self, request: pb::TxnRequest) -> impl Future<Output = Result<pb::TxnResponse, Status>> + Send {
        let begun = self.change(request, |request| Ok(Command::Txn(Keyspace::User, convert::txn(request)?)));
        async move {
            match begun?.await? {
                (CommandResponse::Op(OpResponse::Txn { succeeded, responses }), revision) => Ok(pb::TxnResponse {
                    header: Some(self.header(revision)),
                    succeeded,
                    responses: convert::txn_responses(responses, revision),
                }),
                _ => Err(MISMATCH.into()),
            }
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
