//! Authentication switched on and off and permissions changed under load, while members lose their power or are restored
//! from snapshots: the auth stores must be the same in the end, and every write must have been let through or refused
//! alike everywhere.

use super::cluster::{Cluster, put};
use crate::kv::auth::{AuthCommand, AuthError, Identity, Permission, PermissionKind, ROOT};
use crate::kv::types::{Applied, Command, Keyspace, KvError};
use crate::member::{MemberReply, MemberRequest};
use crate::types::{NodeId, Revision};
use rand::Rng as _;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn permission(c: &mut Cluster) -> Permission {
    let key = format!("key{}", c.rng.random_range(0..4));
    let range_end = if c.rng.random_bool(0.5) { String::new() } else { format!("{key}~") };
    let kind = [PermissionKind::Read, PermissionKind::Write, PermissionKind::ReadWrite][c.rng.random_range(0..3)];
    Permission { kind, key: key.into(), range_end: range_end.into() }
}

fn change(c: &mut Cluster) -> AuthCommand {
    let user = format!("user{}", c.rng.random_range(0..3));
    let role = format!("role{}", c.rng.random_range(0..3));
    match c.rng.random_range(0..14) {
        0..=1 => AuthCommand::Enable { token_key: vec![c.rng.random::<u8>(); 32].into() },
        2 => AuthCommand::Disable,
        3 => AuthCommand::UserAdd { name: user, password_hash: Some("hash".into()) },
        4 => AuthCommand::UserDelete { name: user },
        5 => AuthCommand::UserChangePassword { name: user, password_hash: "other".into() },
        6..=7 => AuthCommand::UserGrantRole { user, role },
        8 => AuthCommand::UserRevokeRole { user, role },
        9 => AuthCommand::RoleAdd { name: role },
        10 => AuthCommand::RoleDelete { name: role },
        11..=12 => AuthCommand::RoleGrantPermission { role, permission: permission(c) },
        _ => {
            let permission = permission(c);
            AuthCommand::RoleRevokePermission { role, key: permission.key, range_end: permission.range_end }
        }
    }
}

#[derive(Default)]
struct Load {
    writes: BTreeMap<u64, String>,
    changes: BTreeSet<u64>,
    next_key: u64,
}

impl Load {
    fn issue(&mut self, c: &mut Cluster) {
        let Some(id) = c.any_alive() else { return };
        let mark = c.core(id).store().auth_mark();
        let identity = |user: &str| Some(Identity { user: user.into(), revision: mark });
        if c.rng.random_bool(0.3) {
            let who = identity(ROOT);
            let command = Command::Auth(change(c));
            let request = MemberRequest::Propose(Command::As { who, command: Box::new(command) });
            self.changes.insert(c.request(id, request));
            return;
        }
        self.next_key += 1;
        let key = format!("key{}/{:06}", c.rng.random_range(0..4), self.next_key);
        let command = put(&key, "x");
        let user = c.rng.random_range(0..5);
        // As the services do: bare where this member believes that authentication is off.
        let command = match (mark, user) {
            (0, _) => command,
            (_, 0) => Command::As { who: None, command: Box::new(command) },
            (_, 1) => Command::As { who: identity(ROOT), command: Box::new(command) },
            (_, n) => Command::As { who: identity(&format!("user{}", n - 2)), command: Box::new(command) },
        };
        self.writes.insert(c.request(id, MemberRequest::Propose(command)), key);
    }

    /// Every write with a known outcome is there, once, on all members, or on none.
    fn verify(&self, c: &Cluster) -> [usize; 4] {
        let mut counts = [0; 4];
        for (request, key) in &self.writes {
            let found: BTreeSet<_> = c.ids().into_iter().map(|id| c.get(id, key).map(|(_, version)| version)).collect();
            assert_eq!(found.len(), 1, "{key} differs between members: {found:?}");
            let there = found.first() == Some(&Some(1));
            let Some(Ok(MemberReply::Applied(Applied { result, .. }))) = c.outcomes.get(request) else { continue };
            assert_eq!(there, result.is_ok(), "{key}: {result:?}");
            let which = match result {
                Ok(_) => 0,
                Err(KvError::Auth(AuthError::PermissionDenied)) => 1,
                Err(KvError::Auth(AuthError::OldRevision)) => 2,
                Err(KvError::Auth(AuthError::UserEmpty)) => 3,
                Err(e) => panic!("{key}: {e}"),
            };
            counts[which] += 1;
        }
        counts
    }
}

fn trouble(c: &mut Cluster) {
    let ids = c.ids();
    let id = ids[c.rng.random_range(0..ids.len())];
    match c.rng.random_range(0..8) {
        0..=2 if c.alive(id) => c.power_cut(id),
        3 => c.isolate(id),
        4 => c.cut.clear(),
        5 => c.loss = c.rng.random_range(0.0..0.2),
        _ if !c.alive(id) => c.start(id),
        _ => {}
    }
}

fn auth_hashes(c: &Cluster) -> BTreeSet<(u64, u64)> {
    c.ids().into_iter().map(|id| c.core(id).store()).map(|store| (store.hash_auth().expect("hash"), store.auth().revision())).collect()
}

fn converge(c: &mut Cluster) {
    // What `Cluster::converge` writes must be let in.
    c.cut.clear();
    (c.loss, c.twice) = (0.0, 0.0);
    for id in c.ids() {
        if !c.alive(id) {
            c.start(id);
        }
    }
    for _ in 0..20 {
        let leader = c.wait_leader();
        let who = Some(Identity { user: ROOT.into(), revision: u64::MAX });
        let off = Command::As { who, command: Box::new(Command::Auth(AuthCommand::Disable)) };
        if matches!(c.ask(leader, MemberRequest::Propose(off)), Ok(MemberReply::Applied(Applied { result: Ok(_), .. }))) {
            break;
        }
    }
    c.converge();
}

fn set_up(c: &mut Cluster) -> NodeId {
    let leader = c.wait_leader();
    for command in [
        AuthCommand::UserAdd { name: ROOT.into(), password_hash: Some("hash".into()) },
        AuthCommand::UserGrantRole { user: ROOT.into(), role: ROOT.into() },
        AuthCommand::Enable { token_key: vec![1; 32].into() },
    ] {
        c.ask(leader, MemberRequest::Propose(Command::Auth(command))).expect("set up");
    }
    leader
}

fn run(seed: u64) -> [usize; 4] {
    let mut c = Cluster::new(3, seed);
    let mut load = Load::default();
    set_up(&mut c);
    for _ in 0..120 {
        for _ in 0..c.rng.random_range(0..8) {
            load.issue(&mut c);
        }
        for _ in 0..c.rng.random_range(1..120) {
            c.step();
        }
        if c.rng.random_bool(0.3) {
            trouble(&mut c);
        }
    }
    converge(&mut c);
    c.run(Duration::from_secs(8));
    assert_eq!(auth_hashes(&c).len(), 1, "the auth stores differ");
    load.verify(&c)
}

#[test]
fn auth_changes_under_load_and_crashes_leave_all_members_equal() {
    let seeds = std::env::var("BRICKRAFT_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(15);
    let first: u64 = std::env::var("BRICKRAFT_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(3000);
    let mut total = [0; 4];
    for seed in first..first + seeds {
        eprintln!("seed {seed}");
        for (sum, n) in total.iter_mut().zip(run(seed)) {
            *sum += n;
        }
    }
    eprintln!("done {}, denied {}, old {}, nobody {}", total[0], total[1], total[2], total[3]);
    assert!(total.iter().all(|n| *n > 10), "every outcome should be common: {total:?}");
}

/// A member that was away while the auth store was rebuilt, and is brought up by a snapshot.
#[test]
fn a_snapshot_brings_the_auth_store_along() {
    let mut c = Cluster::new(3, 77);
    let leader = set_up(&mut c);
    let away = c.ids().into_iter().find(|id| *id != leader).expect("a follower");
    c.power_cut(away);
    let by_root = |c: &mut Cluster, command: Command| {
        let revision = c.core(leader).store().auth().revision();
        let who = Some(Identity { user: ROOT.into(), revision });
        let done = c.ask(leader, MemberRequest::Propose(Command::As { who, command: Box::new(command) }));
        assert!(matches!(done, Ok(MemberReply::Applied(Applied { result: Ok(_), .. }))), "{done:?}");
    };
    for i in 0..40 {
        by_root(&mut c, Command::Auth(AuthCommand::UserAdd { name: format!("u{i}"), password_hash: None }));
        by_root(&mut c, put(&format!("k{i}"), &"x".repeat(600)));
    }
    c.run(Duration::from_secs(12));
    c.start(away);
    let goal = c.core(leader).store().auth_mark();
    c.until("the auth store to arrive", |c| c.core(away).store().auth_mark() == goal);
    assert!(c.core(away).raft().compacted().0 > 40, "it came by a snapshot");
    assert_eq!(auth_hashes(&c).len(), 1, "the auth stores differ");
    assert!(c.core(away).store().revision(Keyspace::User) > Revision(1));
}
