//! The Lease service.

use super::Api;
use super::answers::{Answers, Outlet};
use super::auth::Caller;
use super::pb::etcdserverpb as pb;
use super::status::ApiError;
use brickraft_engine::kv::types::{Command, KvError};
use brickraft_engine::member::MemberError;
use pb::lease_server::Lease;
use tonic::{Request, Response, Status, Streaming};

/// Random ids tried; two in a row being taken does not happen by chance.
const RANDOM_ID_TRIES: u32 = 4;

impl Caller {
    /// Grants a lease; `id` 0 picks one. Returns the id and the time granted, in seconds.
    pub(super) async fn lease_grant(&self, id: i64, ttl_s: i64) -> Result<(i64, i64), ApiError> {
        let ttl_s = ttl_s.max(self.settings().lease_ttl_s_min);
        let mut tries = if id == 0 { RANDOM_ID_TRIES } else { 1 };
        loop {
            // Positive, as etcd's: clients print ids as hexadecimal numbers.
            let chosen = if id == 0 { rand::random_range(1..=i64::MAX) } else { id };
            tries -= 1;
            match self.propose(Command::LeaseGrant { id: chosen, ttl_s }).await {
                Ok(_) => return Ok((chosen, ttl_s)),
                Err(ApiError::Kv(KvError::LeaseExists)) if tries > 0 => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Time to live after the renewal in seconds; 0 when there is no such lease.
    async fn lease_renew(&self, id: i64) -> Result<i64, ApiError> {
        self.check_user().await?;
        match self.handle().lease_keep_alive(id).await {
            Err(MemberError::Kv(KvError::LeaseNotFound)) => Ok(0),
            other => Ok(other?),
        }
    }

    async fn keep_alives(self, mut requests: Streaming<pb::LeaseKeepAliveRequest>, answers: Outlet<Answer>) {
        let end = self.stream_end(self.leader_required());
        tokio::pin!(end);
        loop {
            let request = tokio::select! {
                request = requests.message() => request,
                e = &mut end => return answers.send(Err(e.into())).await,
            };
            // The client's end or its failure: either way nobody asks any more.
            let Ok(Some(pb::LeaseKeepAliveRequest { id })) = request else { return };
            // Taken before, so that it never claims a revision later than the renewal.
            let header = self.header_now();
            let answer = match self.lease_renew(id).await {
                Ok(ttl) => Ok(pb::LeaseKeepAliveResponse { header: Some(header), id, ttl }),
                Err(e) => Err(e.into()),
            };
            let failed = answer.is_err();
            answers.send(answer).await;
            if failed {
                return;
            }
        }
    }
}

type Answer = Result<pb::LeaseKeepAliveResponse, Status>;

#[tonic::async_trait]
impl Lease for Api {
    async fn lease_grant(&self, request: Request<pb::LeaseGrantRequest>) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let (caller, request) = self.caller(request);
        caller.require_a_leader()?;
        let (id, ttl) = caller.lease_grant(request.id, request.ttl).await?;
        Ok(Response::new(pb::LeaseGrantResponse { header: Some(self.header_now()), id, ttl, error: String::new() }))
    }

    async fn lease_revoke(&self, request: Request<pb::LeaseRevokeRequest>) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let (caller, request) = self.caller(request);
        caller.require_a_leader()?;
        let (_, revision) = caller.propose(Command::LeaseRevoke { id: request.id }).await?;
        Ok(Response::new(pb::LeaseRevokeResponse { header: Some(self.header(revision)) }))
    }

    type LeaseKeepAliveStream = Answers<Answer>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (caller, requests) = self.caller(request);
        caller.require_a_leader()?;
        Ok(Response::new(Answers::of(|answers| caller.keep_alives(requests, answers))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let (caller, request) = self.caller(request);
        caller.require_a_leader()?;
        let left = match self.handle().lease_ttl(request.id, request.keys).await {
            Err(MemberError::Kv(KvError::LeaseNotFound)) => Default::default(),
            other => other.map_err(ApiError::from)?,
        };
        caller.check_user().await?;
        if !left.keys.is_empty() {
            let grants = caller.grants().await?;
            left.keys.iter().try_for_each(|key| grants.read(key, b"")).map_err(ApiError::from)?;
        }
        // A lease that was never granted has no time left either; etcd says -1 for both.
        let known = left.granted_s > 0;
        Ok(Response::new(pb::LeaseTimeToLiveResponse {
            header: Some(self.header_now()),
            id: request.id,
            ttl: if known { left.remaining_s } else { -1 },
            granted_ttl: left.granted_s,
            keys: left.keys,
        }))
    }

    async fn lease_leases(&self, request: Request<pb::LeaseLeasesRequest>) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        self.handle().read_index().await.map_err(ApiError::from)?;
        let (caller, _) = self.caller(request);
        caller.check_user().await?;
        let leases = self.handle().store().leases().map_err(MemberError::from).map_err(ApiError::from)?;
        for lease in &leases {
            caller.check_lease(lease.id).await?;
        }
        Ok(Response::new(pb::LeaseLeasesResponse {
            header: Some(self.header_now()),
            leases: leases.into_iter().map(|l| pb::LeaseStatus { id: l.id }).collect(),
        }))
    }
}
