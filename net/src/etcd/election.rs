//! The v3election service.

use super::answers::{Answers, Outlet};
use super::auth::Caller;
use super::concurrency::{prefix, prefix_end};
use super::pb::v3electionpb as pb;
use super::status::ApiError;
use super::{Api, convert};
use brickraft_engine::kv::types::{Event, Keyspace};
use brickraft_engine::kv::{WatchOutput, WatchRequest};
use brickraft_engine::member::{MemberError, WatchStream};
use brickraft_engine::types::Revision;
use bytes::Bytes;
use pb::election_server::Election;
use std::convert::Infallible;
use tonic::{Request, Response, Status};

type Answer = Result<pb::LeaderResponse, Status>;

/// The next changes, with their revision; `None` when history is gone and the observer must look anew.
async fn next_events(watch: &mut WatchStream) -> Result<Option<(Revision, Vec<Event>)>, ApiError> {
    loop {
        match watch.next().await {
            Some(WatchOutput::Events { revision, events }) => return Ok(Some((revision, events))),
            Some(WatchOutput::Progress { .. }) => {}
            Some(WatchOutput::Compacted { .. }) => return Ok(None),
            None => return Err(MemberError::Stopped.into()),
        }
    }
}

impl Caller {
    /// Tells of every leader, and of everything it proclaims. Returns only with an error.
    async fn observe_leaders(&self, name: &[u8], answers: &Outlet<Answer>) -> Result<Infallible, ApiError> {
        let prefix = prefix(name);
        loop {
            let (leader, revision) = self.holder(&prefix).await?;
            let Some(leader) = leader else {
                let request = WatchRequest {
                    key: prefix.clone(),
                    range_end: prefix_end(&prefix),
                    start_revision: revision.next(),
                    no_delete: true,
                    ..Default::default()
                };
                let mut watch = self.handle().watch(Keyspace::User, request).await?;
                next_events(&mut watch).await?;
                continue;
            };
            let request = WatchRequest { key: leader.key.clone(), start_revision: revision.next(), ..Default::default() };
            let mut watch = self.handle().watch(Keyspace::User, request).await?;
            let told = pb::LeaderResponse { header: Some(self.header(revision)), kv: Some(convert::key_value(leader)) };
            answers.send(Ok(told)).await;
            'reign: while let Some((revision, events)) = next_events(&mut watch).await? {
                for event in events {
                    if event.delete {
                        break 'reign;
                    }
                    let told = pb::LeaderResponse { header: Some(self.header(revision)), kv: Some(convert::key_value(event.kv)) };
                    answers.send(Ok(told)).await;
                }
            }
        }
    }

    async fn observe_until_the_end(self, name: Bytes, answers: Outlet<Answer>) {
        let end = tokio::select! {
            Err(e) = self.observe_leaders(&name, &answers) => e,
            e = self.stream_end(self.leader_required()) => e,
        };
        answers.send(Err(end.into())).await;
    }
}

#[tonic::async_trait]
impl Election for Api {
    async fn campaign(&self, request: Request<pb::CampaignRequest>) -> Result<Response<pb::CampaignResponse>, Status> {
        let (caller, request) = self.caller(request);
        self.settings().limits.size(&request)?;
        let turn = caller.take_turn(request.name.clone(), request.lease, request.value).await?;
        let leader = pb::LeaderKey { name: request.name, rev: turn.created(), lease: turn.lease, key: turn.key };
        Ok(Response::new(pb::CampaignResponse { header: Some(self.header(turn.revision)), leader: Some(leader) }))
    }

    async fn proclaim(&self, request: Request<pb::ProclaimRequest>) -> Result<Response<pb::ProclaimResponse>, Status> {
        let (caller, request) = self.caller(request);
        self.settings().limits.size(&request)?;
        let leader = request.leader.ok_or(ApiError::MissingLeaderKey)?;
        let revision = caller.proclaim(&leader.key, convert::revision(leader.rev), leader.lease, request.value).await?;
        Ok(Response::new(pb::ProclaimResponse { header: Some(self.header(revision)) }))
    }

    async fn leader(&self, request: Request<pb::LeaderRequest>) -> Result<Response<pb::LeaderResponse>, Status> {
        let (caller, request) = self.caller(request);
        let (leader, revision) = caller.holder(&prefix(&request.name)).await?;
        let leader = leader.ok_or(ApiError::ElectionNoLeader)?;
        Ok(Response::new(pb::LeaderResponse { header: Some(self.header(revision)), kv: Some(convert::key_value(leader)) }))
    }

    type ObserveStream = Answers<Answer>;

    async fn observe(&self, request: Request<pb::LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let (caller, request) = self.caller(request);
        caller.require_a_leader()?;
        Ok(Response::new(Answers::of(|answers| caller.observe_until_the_end(request.name, answers))))
    }

    async fn resign(&self, request: Request<pb::ResignRequest>) -> Result<Response<pb::ResignResponse>, Status> {
        let (caller, request) = self.caller(request);
        let leader = request.leader.ok_or(ApiError::MissingLeaderKey)?;
        let revision = caller.withdraw(&leader.key, convert::revision(leader.rev)).await?;
        Ok(Response::new(pb::ResignResponse { header: Some(self.header(revision)) }))
    }
}
