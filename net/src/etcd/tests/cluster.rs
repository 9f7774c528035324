use super::*;
use crate::etcd::pb::etcdserverpb::auth_client::AuthClient;
use crate::etcd::pb::etcdserverpb::cluster_client::ClusterClient;
use crate::etcd::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::etcd::pb::health::{HealthCheckRequest, health_client::HealthClient};

#[test]
fn members_and_status() {
    with_server(|s| async move {
        let mut cluster = ClusterClient::new(s.channel.clone());
        let list = cluster.member_list(pb::MemberListRequest { linearizable: true }).await.expect("list").into_inner().members;
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].id, list[0].name.as_str(), list[0].is_learner), (s.handle.last_status().id.0, "one", false));
        let bad = cluster.member_add(pb::MemberAddRequest { peer_ur_ls: vec!["nonsense".into()], is_learner: false }).await;
        assert_refused(bad, Code::InvalidArgument, "etcdserver: given member URLs are invalid");
        let unknown = cluster.member_remove(pb::MemberRemoveRequest { id: 1 }).await;
        assert_refused(unknown, Code::NotFound, "etcdserver: member not found");
        let peer_ur_ls = vec!["http://127.0.0.1:2".to_owned()];
        let added = cluster.member_add(pb::MemberAddRequest { peer_ur_ls, is_learner: true }).await.expect("add").into_inner();
        let id = added.member.expect("a member").id;
        assert_eq!(added.members.len(), 2);
        let removed = cluster.member_remove(pb::MemberRemoveRequest { id }).await.expect("remove").into_inner();
        assert_eq!(removed.members.len(), 1);

        let mut maintenance = MaintenanceClient::new(s.channel.clone());
        let status = maintenance.status(pb::StatusRequest {}).await.expect("status").into_inner();
        assert_eq!((status.leader, status.version.as_str()), (list[0].id, crate::etcd::ETCD_VERSION));
        assert!(status.raft_applied_index > 0 && status.db_size > 0 && status.errors.is_empty());
        maintenance.defragment(pb::DefragmentRequest {}).await.expect("defragment");
        assert!(maintenance.alarm(pb::AlarmRequest::default()).await.expect("alarms").into_inner().alarms.is_empty());
        let moved = maintenance.move_leader(pb::MoveLeaderRequest { target_id: 1 }).await;
        assert_refused(moved, Code::FailedPrecondition, "etcdserver: bad leader transferee");
    });
}

#[test]
fn auth_says_that_it_is_off() {
    with_server(|s| async move {
        let mut auth = AuthClient::new(s.channel.clone());
        assert!(!auth.auth_status(pb::AuthStatusRequest {}).await.expect("status").into_inner().enabled);
        let token = auth.authenticate(pb::AuthenticateRequest::default()).await;
        assert_refused(token, Code::FailedPrecondition, "etcdserver: authentication is not enabled");
    });
}

#[test]
fn health() {
    with_server(|s| async move {
        let mut health = HealthClient::new(s.channel.clone());
        let up = health.check(HealthCheckRequest { service: "etcdserverpb.KV".into() }).await.expect("check").into_inner();
        assert_eq!(up.status, 1);
        assert_refused(health.check(HealthCheckRequest { service: "no".into() }).await, Code::NotFound, "unknown service");
    });
}
