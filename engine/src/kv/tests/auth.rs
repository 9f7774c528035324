//! Users, roles, permissions: changes and their refusals, and what commands are allowed.

use super::super::auth::{AuthCommand, AuthError, Identity, Permission, PermissionKind, ROOT};
use super::*;

fn auth(store: &Store, command: AuthCommand) -> Result<(), AuthError> {
    outcome(run(store, Command::Auth(command)))
}

fn outcome(outcome: ApplyOutcome) -> Result<(), AuthError> {
    match outcome.applied.result {
        Ok(_) => Ok(()),
        Err(KvError::Auth(e)) => Err(e),
        Err(e) => panic!("{e}"),
    }
}

fn user_add(name: &str) -> AuthCommand {
    AuthCommand::UserAdd { name: name.into(), password_hash: Some("hash".into()) }
}

fn grant_role(user: &str, role: &str) -> AuthCommand {
    AuthCommand::UserGrantRole { user: user.into(), role: role.into() }
}

fn role_add(name: &str) -> AuthCommand {
    AuthCommand::RoleAdd { name: name.into() }
}

fn permit(role: &str, kind: PermissionKind, key: &str, range_end: &str) -> AuthCommand {
    AuthCommand::RoleGrantPermission { role: role.into(), permission: Permission { kind, key: b(key), range_end: b(range_end) } }
}

fn enable() -> AuthCommand {
    AuthCommand::Enable { token_key: b("key") }
}

/// As `user` (empty: nobody), with the auth revision of now.
fn try_as(store: &Store, user: &str, command: Command) -> Result<(), AuthError> {
    let who = (!user.is_empty()).then(|| Identity { user: user.into(), revision: store.auth().revision() });
    outcome(run(store, Command::As { who, command: Box::new(command) }))
}

/// Root; and `reader`, `writer`, `both` with `a/*` to read, `b/*` to write, and `c` for both.
fn closed() -> Store {
    let store = memory();
    for name in [ROOT, "reader", "writer", "both", "none"] {
        auth(&store, user_add(name)).unwrap();
    }
    for (role, kind, key, end) in [
        ("reader", PermissionKind::Read, "a/", "a0"),
        ("writer", PermissionKind::Write, "b/", "b0"),
        ("both", PermissionKind::ReadWrite, "c", ""),
    ] {
        auth(&store, role_add(role)).unwrap();
        auth(&store, permit(role, kind, key, end)).unwrap();
        auth(&store, grant_role(role, role)).unwrap();
    }
    auth(&store, grant_role(ROOT, ROOT)).unwrap();
    auth(&store, enable()).unwrap();
    store
}

#[test]
fn enabling_needs_root_and_its_role() {
    let store = memory();
    assert_eq!((store.auth_mark(), store.auth().revision()), (0, 1));
    assert_eq!(auth(&store, enable()), Err(AuthError::RootUserNotExist));
    auth(&store, user_add(ROOT)).unwrap();
    assert_eq!(auth(&store, enable()), Err(AuthError::RootRoleNotExist));
    auth(&store, grant_role(ROOT, ROOT)).unwrap();
    auth(&store, enable()).unwrap();
    assert_eq!((store.auth_mark(), store.auth().revision()), (3, 3));
    assert_eq!(store.auth().token_key(), b"key");
    // Now only root may change anything, and root cannot lock itself out.
    assert_eq!(try_as(&store, "", Command::Auth(user_add("x"))), Err(AuthError::UserEmpty));
    assert_eq!(try_as(&store, "x", Command::Auth(user_add("x"))), Err(AuthError::UserNotFound));
    for locked in [
        AuthCommand::UserDelete { name: ROOT.into() },
        AuthCommand::RoleDelete { name: ROOT.into() },
        AuthCommand::UserRevokeRole { user: ROOT.into(), role: ROOT.into() },
    ] {
        assert_eq!(try_as(&store, ROOT, Command::Auth(locked)), Err(AuthError::InvalidManagement));
    }
    try_as(&store, ROOT, Command::Auth(user_add("x"))).unwrap();
    assert_eq!(try_as(&store, "x", Command::Auth(AuthCommand::Disable)), Err(AuthError::PermissionDenied));
    try_as(&store, ROOT, Command::Auth(AuthCommand::Disable)).unwrap();
    assert_eq!((store.auth_mark(), store.auth().revision()), (0, 5));
    assert!(store.auth().token_key().is_empty());
    auth(&store, AuthCommand::UserDelete { name: ROOT.into() }).unwrap();
}

#[test]
fn users_and_roles_are_refused_in_etcds_words() {
    let store = memory();
    for (command, error) in [
        (user_add(""), AuthError::UserEmpty),
        (AuthCommand::UserDelete { name: "u".into() }, AuthError::UserNotFound),
        (AuthCommand::UserChangePassword { name: "u".into(), password_hash: String::new() }, AuthError::UserNotFound),
        (grant_role("u", "r"), AuthError::UserNotFound),
        (role_add(""), AuthError::RoleEmpty),
        (AuthCommand::RoleDelete { name: "r".into() }, AuthError::RoleNotFound),
        (permit("r", PermissionKind::Read, "k", ""), AuthError::RoleNotFound),
        (permit("r", PermissionKind::Read, "", ""), AuthError::InvalidManagement),
        (permit("r", PermissionKind::Read, "b", "a"), AuthError::InvalidManagement),
        (AuthCommand::RoleRevokePermission { role: "r".into(), key: b("k"), range_end: b("") }, AuthError::RoleNotFound),
    ] {
        assert_eq!(auth(&store, command.clone()), Err(error), "{command:?}");
    }
    assert_eq!(store.auth().revision(), 1, "a refusal changes nothing");
    auth(&store, user_add("u")).unwrap();
    assert_eq!(auth(&store, user_add("u")), Err(AuthError::UserExists));
    assert_eq!(auth(&store, grant_role("u", "r")), Err(AuthError::RoleNotFound));
    auth(&store, role_add("r")).unwrap();
    assert_eq!(auth(&store, role_add("r")), Err(AuthError::RoleExists));
    let revoke = AuthCommand::UserRevokeRole { user: "u".into(), role: "r".into() };
    assert_eq!(auth(&store, revoke.clone()), Err(AuthError::RoleNotGranted));
    auth(&store, grant_role("u", "r")).unwrap();
    let before = store.auth().revision();
    auth(&store, grant_role("u", "r")).unwrap();
    assert_eq!(store.auth().revision(), before, "granting twice changes nothing");
    auth(&store, revoke).unwrap();
    auth(&store, grant_role("u", "r")).unwrap();
    // The same range again changes its kind.
    auth(&store, permit("r", PermissionKind::Read, "k", "\0")).unwrap();
    auth(&store, permit("r", PermissionKind::Write, "k", "\0")).unwrap();
    let expected = Permission { kind: PermissionKind::Write, key: b("k"), range_end: b("\0") };
    assert_eq!(store.auth().role("r").unwrap().permissions, [expected]);
    let revoke = AuthCommand::RoleRevokePermission { role: "r".into(), key: b("k"), range_end: b("") };
    assert_eq!(auth(&store, revoke), Err(AuthError::PermissionNotGranted));
    auth(&store, AuthCommand::RoleDelete { name: "r".into() }).unwrap();
    assert!(store.auth().user("u").unwrap().roles.is_empty(), "a role that is gone is nobody's");
    // A password keeps its user without one, and dates the tokens.
    auth(&store, AuthCommand::UserAdd { name: "cert".into(), password_hash: None }).unwrap();
    let since = store.auth().user("cert").unwrap().since;
    auth(&store, AuthCommand::UserChangePassword { name: "cert".into(), password_hash: "x".into() }).unwrap();
    let user = store.auth().user("cert").unwrap().clone();
    assert_eq!((user.password_hash, user.since > since), (None, true));
}

#[test]
fn keys_are_for_those_they_are_granted_to() {
    let store = closed();
    let prev = |key: &str| Command::Put(U, PutRequest { key: b(key), prev_kv: true, ..Default::default() });
    let denied = Err(AuthError::PermissionDenied);
    assert_eq!(try_as(&store, "", put("c", "1")), Err(AuthError::UserEmpty));
    assert_eq!(outcome(run(&store, put("c", "1"))), Err(AuthError::UserEmpty), "one that came while authentication was off");
    assert_eq!(try_as(&store, "nobody", put("c", "1")), denied);
    assert_eq!(try_as(&store, "none", put("c", "1")), denied);
    assert_eq!(try_as(&store, "reader", put("a/1", "1")), denied);
    assert_eq!(try_as(&store, "writer", put("a/1", "1")), denied);
    assert_eq!(try_as(&store, "writer", prev("b/1")), denied, "the previous value is to be read");
    assert_eq!(
        try_as(&store, "writer", Command::DeleteRange(U, DeleteRangeRequest { key: b("b"), range_end: b("b1"), prev_kv: false })),
        denied
    );
    assert_eq!(try_as(&store, "writer", delete("b/", "b0")), denied, "it asks for what was there");
    assert_eq!(store.revision(U), Revision(1), "nothing of it happened");
    try_as(&store, "both", prev("c")).unwrap();
    try_as(&store, "writer", put("b/1", "1")).unwrap();
    try_as(&store, "writer", Command::DeleteRange(U, DeleteRangeRequest { key: b("b/"), range_end: b("b0"), prev_kv: false })).unwrap();
    try_as(&store, ROOT, put("anything", "1")).unwrap();
    // The cluster's own records are not the users' affair.
    let own = Command::Put(Keyspace::System, PutRequest { key: b("node/1"), ..Default::default() });
    outcome(run(&store, own)).unwrap();
}

#[test]
fn every_part_of_a_transaction_is_looked_at() {
    let store = closed();
    let range = |key: &str| TxnOp::Range(RangeRequest { key: b(key), ..Default::default() });
    let write = |key: &str| TxnOp::Put(PutRequest { key: b(key), ..Default::default() });
    let compare = |key: &str| Compare { key: b(key), range_end: b(""), op: CompareOp::Equal, target: CompareTarget::Version(0) };
    let txn = |compare, success, failure| Command::Txn(U, TxnRequest { compare, success, failure });
    let nested = |op| TxnOp::Txn(TxnRequest { compare: vec![], success: vec![], failure: vec![op] });
    let denied = Err(AuthError::PermissionDenied);
    for forbidden in [
        txn(vec![compare("x")], vec![], vec![]),
        txn(vec![], vec![range("x")], vec![]),
        txn(vec![], vec![], vec![range("x")]),
        txn(vec![], vec![write("x")], vec![]),
        txn(vec![], vec![], vec![write("x")]),
        txn(vec![], vec![nested(write("x"))], vec![]),
        txn(vec![], vec![nested(range("x"))], vec![]),
        txn(vec![], vec![nested(nested(range("x")))], vec![]),
        txn(vec![], vec![TxnOp::DeleteRange(DeleteRangeRequest { key: b("c"), range_end: b("d"), prev_kv: false })], vec![]),
    ] {
        assert_eq!(try_as(&store, "both", forbidden.clone()), denied, "{forbidden:?}");
    }
    try_as(&store, "both", txn(vec![compare("c")], vec![write("c")], vec![nested(range("c"))])).unwrap();
}

#[test]
fn leases_are_guarded_by_their_keys() {
    let store = closed();
    assert_eq!(try_as(&store, "", Command::LeaseGrant { id: 1, ttl_s: 10 }), Err(AuthError::UserEmpty));
    try_as(&store, "none", Command::LeaseGrant { id: 1, ttl_s: 10 }).unwrap();
    let with_lease = |key: &str| Command::Put(U, PutRequest { key: b(key), lease: 1, ..Default::default() });
    try_as(&store, "writer", with_lease("b/1")).unwrap();
    let denied = Err(AuthError::PermissionDenied);
    assert_eq!(try_as(&store, "both", with_lease("c")), denied, "whoever cannot revoke a lease cannot use it");
    assert_eq!(try_as(&store, "both", Command::LeaseRevoke { id: 1 }), denied);
    assert_eq!(try_as(&store, "", Command::LeaseRevoke { id: 1 }), Err(AuthError::UserEmpty));
    try_as(&store, "writer", Command::LeaseRevoke { id: 1 }).unwrap();
    try_as(&store, ROOT, Command::LeaseGrant { id: 2, ttl_s: 10 }).unwrap();
    outcome(run(&store, Command::LeaseRevoke { id: 2 })).unwrap();
}

#[test]
fn what_was_established_before_a_change_is_refused() {
    let store = closed();
    let old = Identity { user: "both".into(), revision: store.auth().revision() };
    let late = || Command::As { who: Some(old.clone()), command: Box::new(put("c", "1")) };
    outcome(run(&store, late())).unwrap();
    let revoke = AuthCommand::RoleRevokePermission { role: "both".into(), key: b("c"), range_end: b("") };
    try_as(&store, ROOT, Command::Auth(revoke)).unwrap();
    assert_eq!(outcome(run(&store, late())), Err(AuthError::OldRevision));
    assert_eq!(try_as(&store, "both", put("c", "1")), Err(AuthError::PermissionDenied));
    let twice = Command::As { who: None, command: Box::new(late()) };
    assert_eq!(outcome(run(&store, twice)), Err(AuthError::InvalidManagement));
}

/// The state in memory is what the table holds: after a restart, a snapshot, a refused batch.
#[test]
fn the_table_holds_it_all() {
    let store = closed();
    try_as(&store, ROOT, Command::Auth(AuthCommand::UserDelete { name: "none".into() })).unwrap();
    let chunks: Vec<_> = store.snapshot().unwrap().map(Result::unwrap).collect();
    let other = memory();
    auth(&other, user_add("somebody else")).unwrap();
    assert_ne!(other.hash_auth().unwrap(), store.hash_auth().unwrap());
    other.restore(chunks.into_iter()).unwrap();
    assert_eq!(other.hash_auth().unwrap(), store.hash_auth().unwrap());
    assert_eq!(other.auth_mark(), store.auth_mark());
    let (ours, theirs) = (store.auth(), other.auth());
    assert_eq!(ours.user_names().collect::<Vec<_>>(), ["both", "reader", "root", "writer"]);
    assert!(ours.user_names().eq(theirs.user_names()) && ours.role_names().eq(theirs.role_names()));
    assert_eq!(ours.user("both"), theirs.user("both"));
    assert_eq!(try_as(&other, "reader", put("c", "1")), Err(AuthError::PermissionDenied));
    try_as(&other, "both", put("c", "1")).unwrap();
}
