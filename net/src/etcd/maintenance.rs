//! The Maintenance service.

use super::auth::Caller;
use super::pb::etcdserverpb as pb;
use super::status::ApiError;
use super::{Api, convert};
use brickraft_engine::kv::types::{Command, CommandResponse, Keyspace};
use brickraft_engine::kv::{Alarm, AlarmType, Backup, StoreError};
use brickraft_engine::member::MemberError;
use brickraft_engine::types::NodeId;
use pb::alarm_request::AlarmAction;
use pb::downgrade_request::DowngradeAction;
use pb::maintenance_server::Maintenance;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Portions of a snapshot that wait for a slow client.
const SNAPSHOT_QUEUE_MAX: usize = 4;

fn alarm_member(alarm: Alarm) -> pb::AlarmMember {
    pb::AlarmMember { member_id: alarm.member.0, alarm: i32::from(alarm.kind as u8) }
}

fn alarm_type(number: i32) -> Option<AlarmType> {
    AlarmType::from_number(u8::try_from(number).ok()?)
}

/// An alarm as etcd's Status names it.
fn alarm_text(alarm: Alarm) -> String {
    format!("memberID:{} alarm:{} ", alarm.member.0, alarm.kind.name())
}

impl Api {
    /// Refuses what would add to a store that is at its quota, after raising NOSPACE at all members. What counts is the
    /// bytes in use, since space that compaction frees is used again without defragmentation.
    pub(super) async fn check_quota(&self, command: &Command) -> Result<(), ApiError> {
        if self.has_room(command) {
            return Ok(());
        }
        let quota = self.settings().quota_bytes;
        let alarm = Alarm { member: NodeId(self.0.member_id), kind: AlarmType::NoSpace };
        if !self.handle().store().alarms().contains(&alarm) {
            tracing::warn!(quota, "the store is at --quota-backend-bytes: raising NOSPACE");
            self.handle().propose(Command::Alarm { activate: true, alarm }).await?;
        }
        Err(brickraft_engine::kv::types::KvError::NoSpace.into())
    }
}

impl Api {
    /// Whether a command leaves the store within its quota.
    pub(super) fn has_room(&self, command: &Command) -> bool {
        let quota = self.settings().quota_bytes;
        quota == 0
            || !brickraft_engine::kv::adds(command)
            || self.handle().store().sizes().in_use_bytes.saturating_add(cost(command)) <= quota
    }
}

impl Caller {
    async fn change_alarm(&self, activate: bool, member: u64, kind: AlarmType) -> Result<Vec<pb::AlarmMember>, ApiError> {
        let alarm = Alarm { member: NodeId(member), kind };
        match self.propose(Command::Alarm { activate, alarm }).await? {
            (CommandResponse::Alarms(alarms), _) => Ok(alarms.into_iter().map(alarm_member).collect()),
            _ => Err(ApiError::Internal("an answer that does not fit the request")),
        }
    }
}

/// What a command adds at most, by its own size (etcd counts alike).
fn cost(command: &Command) -> u64 {
    const RECORD_BYTES: u64 = 256;
    use brickraft_engine::kv::types::{TxnOp, TxnRequest};
    fn txn_cost(txn: &TxnRequest) -> u64 {
        let sum = |ops: &[TxnOp]| {
            ops.iter()
                .map(|op| match op {
                    TxnOp::Put(put) => RECORD_BYTES + (put.key.len() + put.value.len()) as u64,
                    TxnOp::Txn(inner) => txn_cost(inner),
                    TxnOp::Range(_) | TxnOp::DeleteRange(_) => 0,
                })
                .sum::<u64>()
        };
        sum(&txn.success).max(sum(&txn.failure))
    }
    match command {
        Command::Put(_, put) => RECORD_BYTES + (put.key.len() + put.value.len()) as u64,
        Command::Txn(_, txn) => txn_cost(txn),
        Command::LeaseGrant { .. } => 64 + 16,
        _ => 0,
    }
}

/// The minor version below `version`, which is the only one that a downgrade may aim at.
fn downgrade_target(version: &str) -> Option<(u64, u64)> {
    let (major, minor) = parse_version(version)?;
    Some((major, minor.checked_sub(1)?))
}

/// `3.4` or `3.4.0`.
fn parse_version(version: &str) -> Option<(u64, u64)> {
    let parts: Vec<u64> = version.split('.').map(|p| p.parse().ok()).collect::<Option<_>>()?;
    match parts[..] {
        [major, minor] | [major, minor, _] => Some((major, minor)),
        _ => None,
    }
}

#[tonic::async_trait]
impl Maintenance for Api {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let (caller, request) = self.caller(request);
        let kind = alarm_type(request.alarm);
        let alarms = match (AlarmAction::try_from(request.action), kind) {
            (Ok(AlarmAction::Get), kind) => {
                caller.check_user().await?;
                self.handle().read_index().await.map_err(ApiError::from)?;
                let active = self.handle().store().alarms().into_iter();
                active.filter(|alarm| kind.is_none_or(|kind| kind == alarm.kind)).map(alarm_member).collect()
            }
            (Ok(AlarmAction::Activate), Some(kind)) => caller.change_alarm(true, request.member_id, kind).await?,
            (Ok(AlarmAction::Deactivate), Some(kind)) => caller.change_alarm(false, request.member_id, kind).await?,
            // etcd keeps no alarm of type NONE either.
            (Ok(AlarmAction::Activate | AlarmAction::Deactivate), None) => Vec::new(),
            (Err(_), _) => return Err(ApiError::UnknownMethod.into()),
        };
        Ok(Response::new(pb::AlarmResponse { header: Some(self.header_now()), alarms }))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        self.admit_user(&request).await?;
        let status = self.handle().status().await.map_err(ApiError::from)?;
        let sizes = self.handle().store().sizes();
        let mut errors = Vec::new();
        if status.leader.is_none() {
            errors.push(MemberError::NoLeader.to_string());
        }
        errors.extend(self.handle().store().alarms().into_iter().map(alarm_text));
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
            db_size_quota: convert::signed(self.settings().quota_bytes),
            downgrade_info: None,
        }))
    }

    async fn defragment(&self, request: Request<pb::DefragmentRequest>) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.admit_root(&request).await?;
        // The store reuses free space as it goes: nothing to do, and nothing to stop the world for.
        // etcd's answer has no header, and clients' tests know that.
        Ok(Response::new(pb::DefragmentResponse { header: None }))
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        self.admit_root(&request).await?;
        // etcd hashes its file, which differs between members. Here it is what they agree on.
        let store = self.handle().store().clone();
        let hashed = tokio::task::spawn_blocking(move || store.hash_all()).await;
        let hashed = hashed.map_err(|_| ApiError::Internal("hashing was given up"))?;
        let hash = hashed.map_err(MemberError::from).map_err(ApiError::from)?;
        Ok(Response::new(pb::HashResponse { header: Some(self.header_now()), hash }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        self.admit_root(&request).await?;
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

    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        self.admit_root(&request).await?;
        let (store, member) = (self.handle().store().clone(), NodeId(self.0.member_id));
        let (cluster_id, header, version) = (self.0.cluster_id, self.header_now(), self.settings().version.clone());
        let (portions, stream) = mpsc::channel(SNAPSHOT_QUEUE_MAX);
        // Reading a large store takes its time: beside the member's thread.
        tokio::task::spawn_blocking(move || {
            let failed = |e: StoreError| Status::from(ApiError::from(MemberError::from(e)));
            let mut backup: Backup = match store.backup(cluster_id, member) {
                Ok(backup) => backup,
                Err(e) => return drop(portions.blocking_send(Err(failed(e)))),
            };
            loop {
                let portion = match backup.next_chunk() {
                    Ok(Some(blob)) => Ok(pb::SnapshotResponse {
                        header: Some(header),
                        remaining_bytes: backup.remaining_bytes(),
                        blob,
                        version: version.clone(),
                    }),
                    Ok(None) => return,
                    Err(e) => Err(failed(e)),
                };
                let last = portion.is_err();
                // A client that is gone ends it.
                if portions.blocking_send(portion).is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn move_leader(&self, request: Request<pb::MoveLeaderRequest>) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.admit_root(&request).await?;
        self.handle().move_leader(NodeId(request.into_inner().target_id)).await.map_err(ApiError::from)?;
        Ok(Response::new(pb::MoveLeaderResponse { header: Some(self.header_now()) }))
    }

    async fn downgrade(&self, request: Request<pb::DowngradeRequest>) -> Result<Response<pb::DowngradeResponse>, Status> {
        self.admit_root(&request).await?;
        let request = request.into_inner();
        let version = &self.settings().version;
        let check = || -> Result<(), ApiError> {
            let wanted = parse_version(&request.version).ok_or(ApiError::DowngradeVersionFormat)?;
            if Some(wanted) == downgrade_target(version) { Ok(()) } else { Err(ApiError::DowngradeTarget) }
        };
        match DowngradeAction::try_from(request.action) {
            Ok(DowngradeAction::Validate) => check()?,
            Ok(DowngradeAction::Enable) => {
                check()?;
                return Err(ApiError::NothingOlder.into());
            }
            Ok(DowngradeAction::Cancel) => return Err(ApiError::NoDowngrade.into()),
            Err(_) => return Err(ApiError::UnknownMethod.into()),
        }
        let version = super::cluster_version(version);
        Ok(Response::new(pb::DowngradeResponse { header: Some(self.header_now()), version }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(parse_version("3.4.0"), Some((3, 4)));
        assert_eq!(downgrade_target("3.5.21"), parse_version("3.4"));
        for bad in ["", "3", "a.b", "3.4.0.1", "3.-4"] {
            assert_eq!(parse_version(bad), None, "{bad}");
        }
    }
}
