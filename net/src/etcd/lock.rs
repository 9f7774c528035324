//! The v3lock service.

use super::Api;
use super::pb::v3lockpb as pb;
use brickraft_engine::kv::types::{Command, DeleteRangeRequest, Keyspace};
use bytes::Bytes;
use pb::lock_server::Lock;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Lock for Api {
    async fn lock(&self, request: Request<pb::LockRequest>) -> Result<Response<pb::LockResponse>, Status> {
        let (caller, request) = self.caller(request);
        self.settings().limits.size(&request)?;
        let turn = caller.take_turn(request.name, request.lease, Bytes::new()).await?;
        Ok(Response::new(pb::LockResponse { header: Some(self.header(turn.revision)), key: turn.key }))
    }

    async fn unlock(&self, request: Request<pb::UnlockRequest>) -> Result<Response<pb::UnlockResponse>, Status> {
        let (caller, request) = self.caller(request);
        let delete = DeleteRangeRequest { key: request.key, ..Default::default() };
        let (_, revision) = caller.propose(Command::DeleteRange(Keyspace::User, delete)).await?;
        Ok(Response::new(pb::UnlockResponse { header: Some(self.header(revision)) }))
    }
}
