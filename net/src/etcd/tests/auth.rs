//! Users, roles and tokens, as clients see them.

use super::*;
use crate::etcd::auth::with_cert;
use crate::etcd::pb::authpb;
use crate::etcd::pb::v3lockpb::{LockRequest, lock_client::LockClient};
use authpb::permission::Type;
use brickraft_engine::kv::auth::AuthError;
use pb::auth_client::AuthClient;
use pb::cluster_client::ClusterClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_client::WatchClient;
use tonic::Request;

fn auth(s: &Server) -> AuthClient<Channel> {
    AuthClient::new(s.channel.clone())
}

/// The request in the name of the token's user; an empty one says no name.
fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("token", token.parse().expect("a token"));
    }
    request
}

async fn user(s: &Server, token: &str, name: &str, password: &str) -> Result<(), Status> {
    let request = pb::AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() };
    auth(s).user_add(by(token, request)).await.map(drop)
}

async fn grant_role(s: &Server, token: &str, user: &str, role: &str) -> Result<(), Status> {
    let request = pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
    auth(s).user_grant_role(by(token, request)).await.map(drop)
}

async fn permit(s: &Server, token: &str, role: &str, kind: Type, key: &'static str, end: &'static str) -> Result<(), Status> {
    let perm = authpb::Permission { perm_type: kind.into(), key: key.into(), range_end: end.into() };
    let request = pb::AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) };
    auth(s).role_grant_permission(by(token, request)).await.map(drop)
}

async fn log_in(s: &Server, name: &str, password: &str) -> Result<String, Status> {
    let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
    auth(s).authenticate(request).await.map(|r| r.into_inner().token)
}

/// Root with "rootpw"; `reader` reads `a/*`, `writer` writes `b/*`. Authentication is on. Returns root's token.
pub(super) async fn closed(s: &Server) -> String {
    user(s, "", "root", "rootpw").await.expect("root");
    grant_role(s, "", "root", "root").await.expect("root's role");
    for (name, kind, key, end) in [("reader", Type::Read, "a/", "a0"), ("writer", Type::Write, "b/", "b0")] {
        user(s, "", name, name).await.expect("user");
        auth(s).role_add(pb::AuthRoleAddRequest { name: name.into() }).await.expect("role");
        permit(s, "", name, kind, key, end).await.expect("permission");
        grant_role(s, "", name, name).await.expect("grant");
    }
    auth(s).auth_enable(pb::AuthEnableRequest {}).await.expect("enable");
    log_in(s, "root", "rootpw").await.expect("log in")
}

async fn put(s: &Server, token: &str, key: &'static str) -> Result<(), Status> {
    let request = pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() };
    s.kv().put(by(token, request)).await.map(drop)
}

async fn get(s: &Server, token: &str, key: &'static str, end: &'static str, serializable: bool) -> Result<usize, Status> {
    let request = pb::RangeRequest { key: key.into(), range_end: end.into(), serializable, ..Default::default() };
    s.kv().range(by(token, request)).await.map(|r| r.into_inner().kvs.len())
}

const DENIED: &str = "etcdserver: permission denied";
const NOBODY: &str = "etcdserver: user name is empty";
const INVALID: &str = "etcdserver: invalid auth token";

#[test]
fn etcds_words_and_codes() {
    with_server(|s| async move {
        assert_refused(log_in(&s, "root", "x").await, Code::FailedPrecondition, "etcdserver: authentication is not enabled");
        let enable = || async { auth(&s).auth_enable(pb::AuthEnableRequest {}).await };
        assert_refused(enable().await, Code::FailedPrecondition, "etcdserver: root user does not exist");
        user(&s, "", "root", "pw").await.expect("root");
        assert_refused(enable().await, Code::FailedPrecondition, "etcdserver: root user does not have root role");
        assert_refused(user(&s, "", "root", "pw").await, Code::FailedPrecondition, "etcdserver: user name already exists");
        assert_refused(user(&s, "", "", "pw").await, Code::InvalidArgument, NOBODY);
        assert_refused(user(&s, "", "long", &"x".repeat(73)).await, Code::Unknown, "bcrypt: password length exceeds 72 bytes");
        assert_refused(grant_role(&s, "", "nobody", "root").await, Code::FailedPrecondition, "etcdserver: user name not found");
        assert_refused(grant_role(&s, "", "root", "none").await, Code::FailedPrecondition, "etcdserver: role name not found");
        let added = auth(&s).role_add(pb::AuthRoleAddRequest { name: String::new() }).await;
        assert_refused(added, Code::InvalidArgument, "etcdserver: role name is empty");
        auth(&s).role_add(pb::AuthRoleAddRequest { name: "r".into() }).await.expect("role");
        let added = auth(&s).role_add(pb::AuthRoleAddRequest { name: "r".into() }).await;
        assert_refused(added, Code::FailedPrecondition, "etcdserver: role name already exists");
        let none = auth(&s).role_grant_permission(pb::AuthRoleGrantPermissionRequest { name: "r".into(), perm: None }).await;
        assert_refused(none, Code::InvalidArgument, "etcdserver: permission not given");
        assert_refused(permit(&s, "", "r", Type::Read, "b", "a").await, Code::InvalidArgument, "etcdserver: invalid auth management");
        let revoke = pb::AuthRoleRevokePermissionRequest { role: "r".into(), key: "k".into(), ..Default::default() };
        let revoked = auth(&s).role_revoke_permission(revoke).await;
        assert_refused(revoked, Code::FailedPrecondition, "etcdserver: permission is not granted to the role");
        let revoked = auth(&s).user_revoke_role(pb::AuthUserRevokeRoleRequest { name: "root".into(), role: "r".into() }).await;
        assert_refused(revoked, Code::FailedPrecondition, "etcdserver: role is not granted to the user");
        grant_role(&s, "", "root", "root").await.expect("root's role");
        enable().await.expect("enable");
        assert_refused(log_in(&s, "root", "wrong").await, Code::InvalidArgument, &AuthError::AuthFailed.to_string());
        assert_refused(log_in(&s, "nobody", "pw").await, Code::InvalidArgument, &AuthError::AuthFailed.to_string());
        let root = log_in(&s, "root", "pw").await.expect("log in");
        let deleted = auth(&s).user_delete(by(&root, pb::AuthUserDeleteRequest { name: "root".into() })).await;
        assert_refused(deleted, Code::InvalidArgument, "etcdserver: invalid auth management");
        let status = auth(&s).auth_status(by(&root, pb::AuthStatusRequest {})).await.expect("status").into_inner();
        assert!(status.enabled && status.auth_revision > 3, "{status:?}");
    });
}

#[test]
fn keys_are_guarded_in_every_service() {
    with_server(|s| async move {
        let root = closed(&s).await;
        let (reader, writer) = (log_in(&s, "reader", "reader").await.expect("in"), log_in(&s, "writer", "writer").await.expect("in"));
        put(&s, &root, "a/1").await.expect("root may");
        for serializable in [false, true] {
            assert_eq!(get(&s, &reader, "a/", "a0", serializable).await.expect("may"), 1);
            assert_refused(get(&s, &reader, "a", "b", serializable).await, Code::PermissionDenied, DENIED);
            assert_refused(get(&s, &writer, "a/1", "", serializable).await, Code::PermissionDenied, DENIED);
            assert_refused(get(&s, "", "a/1", "", serializable).await, Code::InvalidArgument, NOBODY);
            assert_refused(get(&s, "nonsense", "a/1", "", serializable).await, Code::Unauthenticated, INVALID);
        }
        put(&s, &writer, "b/1").await.expect("may");
        assert_refused(put(&s, &writer, "a/1").await, Code::PermissionDenied, DENIED);
        assert_refused(put(&s, &reader, "a/1").await, Code::PermissionDenied, DENIED);
        assert_refused(put(&s, "", "a/1").await, Code::InvalidArgument, NOBODY);
        // Leases: for users only, and guarded by their keys.
        let granted = s.lease().lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 7 }).await;
        assert_refused(granted, Code::InvalidArgument, NOBODY);
        s.lease().lease_grant(by(&writer, pb::LeaseGrantRequest { ttl: 60, id: 7 })).await.expect("grant");
        let attach = pb::PutRequest { key: "b/2".into(), lease: 7, ..Default::default() };
        s.kv().put(by(&writer, attach)).await.expect("attach");
        let revoked = s.lease().lease_revoke(by(&reader, pb::LeaseRevokeRequest { id: 7 })).await;
        assert_refused(revoked, Code::PermissionDenied, DENIED);
        let keys = s.lease().lease_time_to_live(by(&writer, pb::LeaseTimeToLiveRequest { id: 7, keys: true })).await;
        assert_refused(keys, Code::PermissionDenied, DENIED);
        s.lease().lease_time_to_live(by(&writer, pb::LeaseTimeToLiveRequest { id: 7, keys: false })).await.expect("time");
        assert_refused(s.lease().lease_leases(by(&reader, pb::LeaseLeasesRequest {})).await, Code::PermissionDenied, DENIED);
        // Whoever is a user keeps leases, as in etcd.
        let keep = async |token: &str| {
            let asked = by(token, tokio_stream::once(pb::LeaseKeepAliveRequest { id: 7 }));
            s.lease().lease_keep_alive(asked).await.expect("stream").into_inner().message().await
        };
        assert_refused(keep("").await, Code::InvalidArgument, NOBODY);
        for token in [&reader, &writer] {
            assert_eq!(keep(token).await.expect("kept").expect("an answer").ttl, 60);
        }
        // Locks are keys.
        let lock = |name: &'static str| LockRequest { name: name.into(), lease: 7 };
        let locked = LockClient::new(s.channel.clone()).lock(by(&reader, lock("m"))).await;
        assert_refused(locked, Code::PermissionDenied, DENIED);
        LockClient::new(s.channel.clone()).lock(by(&root, LockRequest { name: "m".into(), lease: 0 })).await.expect("root locks");
        // What is root's.
        let maintenance = || MaintenanceClient::new(s.channel.clone());
        assert_refused(maintenance().defragment(by(&reader, pb::DefragmentRequest {})).await, Code::PermissionDenied, DENIED);
        assert_refused(maintenance().hash_kv(by(&reader, pb::HashKvRequest::default())).await, Code::PermissionDenied, DENIED);
        assert_refused(maintenance().snapshot(by(&reader, pb::SnapshotRequest {})).await, Code::PermissionDenied, DENIED);
        assert_refused(maintenance().move_leader(by("", pb::MoveLeaderRequest::default())).await, Code::InvalidArgument, NOBODY);
        maintenance().defragment(by(&root, pb::DefragmentRequest {})).await.expect("root may");
        maintenance().status(by(&reader, pb::StatusRequest {})).await.expect("a user may");
        assert_refused(maintenance().status(by("", pb::StatusRequest {})).await, Code::InvalidArgument, NOBODY);
        let cluster = || ClusterClient::new(s.channel.clone());
        assert_refused(cluster().member_list(by("", pb::MemberListRequest::default())).await, Code::InvalidArgument, NOBODY);
        cluster().member_list(by(&reader, pb::MemberListRequest::default())).await.expect("a user may");
        let removed = cluster().member_remove(by(&reader, pb::MemberRemoveRequest { id: 1 })).await;
        assert_refused(removed, Code::PermissionDenied, DENIED);
        // And users' own affairs.
        let list = |token: &str| by(token, pb::AuthUserListRequest {});
        assert_refused(auth(&s).user_list(list(&reader)).await, Code::PermissionDenied, DENIED);
        assert_eq!(auth(&s).user_list(list(&root)).await.expect("list").into_inner().users, ["reader", "root", "writer"]);
        let about = |name: &str| pb::AuthUserGetRequest { name: name.into() };
        assert_eq!(auth(&s).user_get(by(&reader, about("reader"))).await.expect("self").into_inner().roles, ["reader"]);
        assert_refused(auth(&s).user_get(by(&reader, about("root"))).await, Code::PermissionDenied, DENIED);
        let role = |name: &str| pb::AuthRoleGetRequest { role: name.into() };
        assert_eq!(auth(&s).role_get(by(&reader, role("reader"))).await.expect("own").into_inner().perm.len(), 1);
        assert_refused(auth(&s).role_get(by(&reader, role("writer"))).await, Code::PermissionDenied, DENIED);
        assert_refused(user(&s, &reader, "x", "x").await, Code::PermissionDenied, DENIED);
        assert_refused(user(&s, "", "x", "x").await, Code::InvalidArgument, NOBODY);
    });
}

#[test]
fn watches_are_for_those_who_may_read() {
    with_server(|s| async move {
        let root = closed(&s).await;
        let reader = log_in(&s, "reader", "reader").await.expect("in");
        let create = |key: &'static str, end: &'static str| {
            let request = pb::WatchCreateRequest { key: key.into(), range_end: end.into(), ..Default::default() };
            pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(request)) }
        };
        for (token, key, end, reason) in [
            (&reader[..], "a/1", "\0", "rpc error: code = PermissionDenied desc = etcdserver: permission denied"),
            (&reader, "b/1", "", "rpc error: code = PermissionDenied desc = etcdserver: permission denied"),
            ("", "a/1", "", "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"),
            ("old", "a/1", "", "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"),
        ] {
            let requests = tokio_stream::StreamExt::chain(tokio_stream::once(create(key, end)), tokio_stream::pending());
            let mut answers = WatchClient::new(s.channel.clone()).watch(by(token, requests)).await.expect("stream").into_inner();
            let answer = answers.message().await.expect("an answer").expect("a message");
            assert!(answer.created && answer.canceled && answer.watch_id == -1, "{answer:?}");
            assert_eq!(answer.cancel_reason, reason);
        }
        let requests = tokio_stream::StreamExt::chain(tokio_stream::once(create("a/", "a0")), tokio_stream::pending());
        let mut answers = WatchClient::new(s.channel.clone()).watch(by(&reader, requests)).await.expect("stream").into_inner();
        assert!(!answers.message().await.expect("created").expect("a message").canceled);
        put(&s, &root, "a/1").await.expect("put");
        assert_eq!(answers.message().await.expect("event").expect("a message").events.len(), 1);
    });
}

#[test]
fn tokens_end_with_what_they_stand_for() {
    with_server(|s| async move {
        let root = closed(&s).await;
        let reader = log_in(&s, "reader", "reader").await.expect("in");
        get(&s, &reader, "a/", "a0", false).await.expect("may");
        // A change of permissions leaves a token good, and is seen at once.
        permit(&s, &root, "reader", Type::Write, "c", "").await.expect("permit");
        put(&s, &reader, "c").await.expect("may now");
        let mut forged = reader.clone();
        forged.replace_range(0..2, if reader.starts_with("00") { "01" } else { "00" });
        assert_refused(get(&s, &forged, "a/", "a0", true).await, Code::Unauthenticated, INVALID);
        let change = pb::AuthUserChangePasswordRequest { name: "reader".into(), password: "new".into(), ..Default::default() };
        auth(&s).user_change_password(by(&root, change)).await.expect("change");
        assert_refused(get(&s, &reader, "a/", "a0", false).await, Code::Unauthenticated, INVALID);
        assert_refused(log_in(&s, "reader", "reader").await, Code::InvalidArgument, &AuthError::AuthFailed.to_string());
        let reader = log_in(&s, "reader", "new").await.expect("in");
        auth(&s).user_delete(by(&root, pb::AuthUserDeleteRequest { name: "reader".into() })).await.expect("delete");
        assert_refused(put(&s, &reader, "c").await, Code::Unauthenticated, INVALID);
        user(&s, &root, "reader", "new").await.expect("again");
        assert_refused(put(&s, &reader, "c").await, Code::Unauthenticated, INVALID);
        // Off and on again: nobody is known any more. While it is off, a token does no harm.
        auth(&s).auth_disable(by(&root, pb::AuthDisableRequest {})).await.expect("disable");
        put(&s, &root, "x").await.expect("open");
        put(&s, "nonsense", "x").await.expect("open");
        auth(&s).auth_enable(pb::AuthEnableRequest {}).await.expect("enable");
        assert_refused(put(&s, &root, "x").await, Code::Unauthenticated, INVALID);
    });
}

#[test]
fn users_without_a_password_are_known_by_their_certificate() {
    with_server(|s| async move {
        let root = closed(&s).await;
        let options = Some(authpb::UserAddOptions { no_password: true });
        let request = pb::AuthUserAddRequest { name: "cert".into(), options, ..Default::default() };
        auth(&s).user_add(by(&root, request)).await.expect("add");
        grant_role(&s, &root, "cert", "reader").await.expect("grant");
        let refused = log_in(&s, "cert", "").await;
        assert_refused(refused, Code::Unknown, "auth: authentication failed, password was given for no password user");
        // No TLS here: what the TLS layer would put into the request is put there by hand.
        let (_closing, closing) = tokio::sync::watch::channel(false);
        let api = crate::etcd::Api::new(s.handle.clone(), Settings::default(), closing);
        let range = |key: &'static str| Request::new(pb::RangeRequest { key: key.into(), ..Default::default() });
        use pb::kv_server::Kv;
        Kv::range(&api, with_cert(range("a/1"), "cert")).await.expect("may");
        assert_refused(Kv::range(&api, with_cert(range("b/1"), "cert")).await, Code::PermissionDenied, DENIED);
        assert_refused(Kv::range(&api, with_cert(range("a/1"), "stranger")).await, Code::PermissionDenied, DENIED);
        assert_refused(Kv::range(&api, with_cert(range("a/1"), "")).await, Code::InvalidArgument, NOBODY);
        let mut both = with_cert(range("b/1"), "cert");
        both.metadata_mut().insert("token", root.parse().expect("a token"));
        Kv::range(&api, both).await.expect("a token counts for more");
    });
}

/// A password that is changed, and permissions that come and go, while users work: nobody sees an old revision.
#[test]
fn clients_do_not_see_changes_of_the_auth_store() {
    with_server(|s| async move {
        let root = closed(&s).await;
        let writer = log_in(&s, "writer", "writer").await.expect("in");
        let changes = async {
            for i in 0..60 {
                let role = format!("r{i}");
                auth(&s).role_add(by(&root, pb::AuthRoleAddRequest { name: role })).await.expect("role");
            }
        };
        let work = async {
            for _ in 0..200 {
                put(&s, &writer, "b/1").await.expect("may all the time");
            }
        };
        tokio::join!(changes, work);
    });
}
