//! The Maintenance service.

use super::pb::etcdserverpb as pb;
use super::status::ApiError;
use super::{Api, convert};
use brickraft_engine::kv::types::Keyspace;
use brickraft_engine::member::MemberError;
use brickraft_engine::types::NodeId;
use pb::maintenance_server::Maintenance;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Maintenance for Api {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        if request.into_inner().action() == pb::alarm_request::AlarmAction::Activate {
            return Err(ApiError::Unsupported("raising an alarm by hand").into());
        }
        // No quota, so no alarm is ever raised, and there is none to list or to take back.
        Ok(Response::new(pb::AlarmResponse { header: Some(self.header_now()), alarms: Vec::new() }))
    }

    async fn status(&self, _request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let status = self.handle().status().await.map_err(ApiError::from)?;
        let sizes = self.handle().store().sizes();
        let mut errors = Vec::new();
        if status.leader.is_none() {
            errors.push(MemberError::NoLeader.to_string());
        }
        Ok(Response::new(pb::StatusResponse {
            header: Some(self.header(status.revision)),
            version: self.settings().version.clone(),
            db_size: convert::signed(sizes.file_bytes),
            leader: status.leader.map_or(0, |l| l.0),
            raft_index: status.committed.0,
            raft_term: status.term.0,
            raft_applied_index: status.applied.0,
            errors,
            db_size_in_use: convert::signed(sizes.in_use_bytes),
            is_learner: status.is_learner,
            storage_version: String::new(),
            db_size_quota: 0,
            downgrade_info: None,
        }))
    }

    async fn defragment(&self, _request: Request<pb::DefragmentRequest>) -> Result<Response<pb::DefragmentResponse>, Status> {
        // The store reuses free space as it goes: nothing to do, and nothing to stop the world for.
        Ok(Response::new(pb::DefragmentResponse { header: Some(self.header_now()) }))
    }

    async fn hash(&self, _request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        // etcd hashes its file; ours differ between members by design. HashKV is what compares members.
        Err(ApiError::Unsupported("Hash (use HashKV)").into())
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        let revision = convert::revision(request.into_inner().revision);
        let store = self.handle().store().clone();
        let hashed = tokio::task::spawn_blocking(move || store.hash_kv(Keyspace::User, revision)).await;
        let hashed = hashed.map_err(|_| ApiError::Internal("hashing was given up"))?;
        let (hash, compact_revision, hash_revision) = hashed.map_err(MemberError::from).map_err(ApiError::from)?;
        Ok(Response::new(pb::HashKvResponse {
            header: Some(self.header_now()),
            hash,
            compact_revision: convert::signed(compact_revision.0),
            hash_revision: convert::signed(hash_revision.0),
        }))
    }

    type SnapshotStream = ReceiverStream<Result<pb::SnapshotResponse, Status>>;

    async fn snapshot(&self, _request: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(ApiError::Unsupported("Snapshot").into())
    }

    async fn move_leader(&self, request: Request<pb::MoveLeaderRequest>) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.handle().move_leader(NodeId(request.into_inner().target_id)).await.map_err(ApiError::from)?;
        Ok(Response::new(pb::MoveLeaderResponse { header: Some(self.header_now()) }))
    }

    async fn downgrade(&self, _request: Request<pb::DowngradeRequest>) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(ApiError::Unsupported("Downgrade").into())
    }
}
