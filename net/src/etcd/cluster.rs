//! The Cluster service.

use super::Api;
use super::pb::etcdserverpb as pb;
use super::status::ApiError;
use brickraft_engine::member::MemberError;
use brickraft_engine::member::identity::member_id;
use brickraft_engine::raft::{ConfChange, MemberInfo, Membership};
use brickraft_engine::types::NodeId;
use pb::cluster_server::Cluster;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// How often it is tried to promote a learner that was added as a voter.
const PROMOTE_INTERVAL: Duration = Duration::from_millis(250);

fn member(id: NodeId, info: &MemberInfo, is_learner: bool) -> pb::Member {
    pb::Member { id: id.0, name: info.name.clone(), peer_ur_ls: info.peer_urls.clone(), client_ur_ls: info.client_urls.clone(), is_learner }
}

fn members(membership: &Membership) -> Vec<pb::Member> {
    let voters = membership.voters.iter().map(|(id, info)| member(*id, info, false));
    let learners = membership.learners.iter().map(|(id, info)| member(*id, info, true));
    let mut all: Vec<_> = voters.chain(learners).collect();
    all.sort_by_key(|m| m.id);
    all
}

/// `scheme://host:port` and nothing behind it, or a socket's path.
fn is_peer_url(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    match scheme {
        "unix" | "unixs" => !rest.is_empty(),
        "http" | "https" => {
            let Some((host, port)) = rest.rsplit_once(':') else { return false };
            !host.is_empty() && !host.contains(['/', ' ', '?', '#']) && port.parse::<u16>().is_ok()
        }
        _ => false,
    }
}

fn check_urls(urls: &[String]) -> Result<(), ApiError> {
    if urls.is_empty() || !urls.iter().all(|u| is_peer_url(u)) {
        return Err(ApiError::MemberBadUrls);
    }
    Ok(())
}

impl Api {
    async fn conf_change(&self, change: ConfChange) -> Result<(pb::ResponseHeader, Membership), ApiError> {
        let membership = self.handle().conf_change(change).await?;
        Ok((self.header_now(), membership))
    }

    /// Lets a learner vote as soon as it has caught up. Ends when it does, when it is no member any more, or when this
    /// member stops.
    async fn promote_in_time(self, id: NodeId) {
        loop {
            tokio::time::sleep(PROMOTE_INTERVAL).await;
            match self.handle().conf_change(ConfChange::Promote(id)).await {
                Ok(_) | Err(MemberError::NotLearner | MemberError::MemberNotFound | MemberError::Stopped) => return,
                Err(_) => {}
            }
        }
    }
}

#[tonic::async_trait]
impl Cluster for Api {
    async fn member_add(&self, request: Request<pb::MemberAddRequest>) -> Result<Response<pb::MemberAddResponse>, Status> {
        self.admit_root(&request).await?;
        let request = request.into_inner();
        check_urls(&request.peer_ur_ls)?;
        // The salt keeps the id of a member that left from being used again.
        let id = member_id(&request.peer_ur_ls, &format!("{:016x}", self.0.cluster_id), rand::random_range(1..=u64::MAX));
        let info = MemberInfo { name: String::new(), peer_urls: request.peer_ur_ls, client_urls: Vec::new() };
        let alone = self.0.status.borrow().membership.voters.len() == 1;
        let change = if request.is_learner || alone { ConfChange::AddLearner(id, info) } else { ConfChange::AddVoter(id, info) };
        let (header, membership) = self.conf_change(change).await?;
        if alone && !request.is_learner {
            // A second voter that does not run yet would take the majority from the only one that does.
            tokio::spawn(self.clone().promote_in_time(id));
        }
        let members = members(&membership);
        let added = members.iter().find(|m| m.id == id.0).cloned();
        Ok(Response::new(pb::MemberAddResponse { header: Some(header), member: added, members }))
    }

    async fn member_remove(&self, request: Request<pb::MemberRemoveRequest>) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        self.admit_root(&request).await?;
        let (header, membership) = self.conf_change(ConfChange::Remove(NodeId(request.into_inner().id))).await?;
        Ok(Response::new(pb::MemberRemoveResponse { header: Some(header), members: members(&membership) }))
    }

    async fn member_update(&self, request: Request<pb::MemberUpdateRequest>) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        self.admit_root(&request).await?;
        let request = request.into_inner();
        check_urls(&request.peer_ur_ls)?;
        let id = NodeId(request.id);
        let now = self.handle().members(true).await.map_err(ApiError::from)?;
        let known = now.voters.get(&id).or_else(|| now.learners.get(&id)).ok_or(ApiError::from(MemberError::MemberNotFound))?;
        let info = MemberInfo { peer_urls: request.peer_ur_ls, ..known.clone() };
        let (header, membership) = self.conf_change(ConfChange::Update(id, info)).await?;
        Ok(Response::new(pb::MemberUpdateResponse { header: Some(header), members: members(&membership) }))
    }

    async fn member_list(&self, request: Request<pb::MemberListRequest>) -> Result<Response<pb::MemberListResponse>, Status> {
        self.admit_user(&request).await?;
        let membership = self.handle().members(request.into_inner().linearizable).await.map_err(ApiError::from)?;
        Ok(Response::new(pb::MemberListResponse { header: Some(self.header_now()), members: members(&membership) }))
    }

    async fn member_promote(&self, request: Request<pb::MemberPromoteRequest>) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        self.admit_root(&request).await?;
        let (header, membership) = self.conf_change(ConfChange::Promote(NodeId(request.into_inner().id))).await?;
        Ok(Response::new(pb::MemberPromoteResponse { header: Some(header), members: members(&membership) }))
    }
}

#[cfg(test)]
mod tests {
    use super::is_peer_url;

    #[test]
    fn peer_urls() {
        for good in ["http://127.0.0.1:2380", "https://a.example:1", "unix:///run/x", "http://[::1]:2380"] {
            assert!(is_peer_url(good), "{good}");
        }
        for bad in ["", "127.0.0.1:2380", "ftp://a:1", "http://a", "http://a:1/x", "http://:1", "http://a/b:1", "http://a:99999"] {
            assert!(!is_peer_url(bad), "{bad}");
        }
    }
}
