//! The ways to try to make a split brain (the list of ten that GlusterFS's users found), one test each.

use super::client::{Client, Kind, create, register};
use super::world::{World, ms};
use crate::fop::{Bucket, Errno, Fop, Gfid, Reply, SetAttr, XATTR_FENCE};
use crate::heal::{ExactAttr, HealStore};
use crate::replica::{BrickId, ReplicaError};
use crate::store::BrickStore;
use rand::Rng;
use std::time::Duration;

fn gfid(n: u8) -> Gfid {
    Gfid::in_bucket(Bucket(0), [n; 14])
}

fn mkdir(parent: Gfid, name: &str, gfid: Gfid) -> Fop {
    Fop::MkDir { parent, name: name.to_owned().into(), gfid, mode: 0o755, uid: 0, gid: 0 }
}

fn lookup(parent: Gfid, name: &str) -> Fop {
    Fop::Lookup { parent, name: name.to_owned().into() }
}

/// A settled group with idle clients and the registers made.
fn world(bricks: u64, clients: usize) -> World {
    let mut w = World::new(42, bricks);
    for n in 0..clients {
        w.clients.push(Client::new(n, bricks, Kind::Setup));
        w.wake(n, ms(10));
        w.run_until("setup", Duration::from_secs(30), |w| w.clients.iter().all(Client::is_idle));
    }
    w.run_until("in sync", Duration::from_secs(30), |w| w.all_in_sync());
    w.run_for(Duration::from_secs(8));
    w
}

/// Lets a client do something, and waits for the answer.
fn act(w: &mut World, client: usize, fop: Fop) -> Result<Reply, ReplicaError> {
    begin(w, client, fop);
    w.run_until("an answer", Duration::from_secs(30), |w| w.clients[client].is_idle());
    w.clients[client].results.last().unwrap().clone()
}

fn begin(w: &mut World, client: usize, fop: Fop) {
    w.clients[client].then(fop);
    w.wake(client, ms(1));
}

fn write(n: usize) -> Fop {
    Fop::Write { gfid: register(n), offset: 0 }
}

fn sync(n: usize) -> Fop {
    Fop::Fsync { gfid: register(n), data_only: false }
}

/// The content of register `n`, which must be the same on all bricks.
fn content(w: &mut World, n: usize) -> Vec<u8> {
    w.settle();
    w.assert_equal();
    w.picture(1)[&format!("/r{n}")].1.to_vec()
}

/// The payload of a client's write is its op number: the last one.
fn wrote(w: &World, client: usize) -> Vec<u8> {
    w.clients[client].last_payload.to_vec()
}

#[test]
fn recipe_1_kill_write_swap_write() {
    let mut w = world(2, 1);
    w.crash(2);
    act(&mut w, 0, write(0)).unwrap();
    w.start(2);
    w.crash(1);
    // Brick 2 lacks the write: it must not serve until brick 1 is back.
    begin(&mut w, 0, write(0));
    w.run_for(Duration::from_secs(10));
    assert!(!w.clients[0].is_idle(), "a brick that was behind took a write");
    w.start(1);
    w.run_until("the write", Duration::from_secs(20), |w| w.clients[0].is_idle());
    let last = wrote(&w, 0);
    assert_eq!(content(&mut w, 0), last);
}

#[test]
fn recipe_2_each_client_sees_another_brick() {
    let mut w = world(2, 2);
    w.client_cut.extend([(0, 1), (1, 2)]);
    begin(&mut w, 0, write(0));
    begin(&mut w, 1, write(0));
    w.run_for(Duration::from_secs(5));
    let done: Vec<_> = (0..2).filter(|&c| w.clients[c].is_idle()).collect();
    assert_eq!(done.len(), 1, "the client that sees the primary is served, the other is not");
    w.client_cut.clear();
    w.run_until("both", Duration::from_secs(20), |w| w.clients.iter().all(Client::is_idle));
    let (later, content) = (1 - done[0], content(&mut w, 0));
    assert_eq!(content, wrote(&w, later));
}

#[test]
fn recipe_3_the_bricks_are_cut_from_each_other() {
    for separate in [false, true] {
        let mut w = world(2, 2);
        w.cut(1, 2);
        if separate {
            w.client_cut.extend([(0, 1), (1, 2)]);
        }
        begin(&mut w, 0, write(0));
        begin(&mut w, 1, write(0));
        w.run_for(Duration::from_secs(6));
        assert_eq!(w.config.in_sync.len(), 1);
        assert!(w.clients.iter().any(Client::is_idle));
        if separate {
            assert!(w.clients.iter().any(|c| !c.is_idle()), "both sides served");
        }
        w.mend_all();
        w.run_until("both", Duration::from_secs(20), |w| w.clients.iter().all(Client::is_idle));
        content(&mut w, 0);
    }
}

#[test]
fn recipe_4_power_cut_of_both_and_only_the_one_behind_starts() {
    let mut w = world(2, 1);
    let primary = w.config.primary;
    let behind = 3 - primary;
    w.cut(1, 2);
    act(&mut w, 0, write(0)).unwrap();
    act(&mut w, 0, sync(0)).unwrap();
    let synced = wrote(&w, 0);
    w.power_cut(1);
    w.power_cut(2);
    w.cut.clear();
    w.start(behind);
    begin(&mut w, 0, Fop::Read { gfid: register(0), offset: 0, len: 8 });
    w.run_for(Duration::from_secs(15));
    assert!(!w.clients[0].is_idle(), "the brick that was behind served");
    w.start(primary);
    w.run_until("the read", Duration::from_secs(20), |w| w.clients[0].is_idle());
    assert_eq!(content(&mut w, 0), synced);
}

#[test]
fn recipe_5_an_old_copy_is_put_back() {
    for both_stopped in [false, true] {
        let mut w = world(2, 1);
        act(&mut w, 0, write(0)).unwrap();
        w.crash(2);
        let old = w.nodes[&2].disk.clone().unwrap();
        w.start(2);
        w.settle();
        act(&mut w, 0, write(0)).unwrap();
        act(&mut w, 0, create(Gfid::ROOT, "new", gfid(1))).unwrap();
        w.run_for(Duration::from_secs(5));
        act(&mut w, 0, write(1)).unwrap();
        if both_stopped {
            // Both are in sync; brick 2 is primary or not: its copy must not win.
            act(&mut w, 0, sync(1)).unwrap();
            act(&mut w, 0, Fop::Fsync { gfid: Gfid::ROOT, data_only: false }).unwrap();
            w.power_cut(1);
            w.power_cut(2);
            w.nodes.get_mut(&2).unwrap().disk = Some(old);
            w.start(2);
            begin(&mut w, 0, lookup(Gfid::ROOT, "new"));
            w.run_for(Duration::from_secs(10));
            assert!(!w.clients[0].is_idle(), "the old copy served");
            w.start(1);
            w.run_until("an answer", Duration::from_secs(30), |w| w.clients[0].is_idle());
        } else {
            w.crash(2);
            w.nodes.get_mut(&2).unwrap().disk = Some(old);
            w.start(2);
        }
        let last = wrote(&w, 0);
        assert_eq!(content(&mut w, 1), last);
        assert!(w.picture(2).contains_key("/new"));
    }
}

#[test]
fn recipe_6_an_empty_disk_under_the_same_path() {
    for running in [false, true] {
        for victim in [1, 2] {
            let mut w = world(2, 1);
            act(&mut w, 0, write(0)).unwrap();
            if running {
                w.nodes.get_mut(&victim).unwrap().core.as_mut().unwrap().store().wipe();
            } else {
                w.crash(victim);
                let meta = w.nodes[&victim].disk.as_ref().unwrap().meta();
                let empty = crate::store::BrickMeta { volume: meta.volume, brick: meta.brick, ..Default::default() };
                w.nodes.get_mut(&victim).unwrap().disk = Some(crate::store::SimStore::new(empty));
                w.start(victim);
            }
            w.run_for(Duration::from_secs(3));
            assert!(matches!(act(&mut w, 0, lookup(Gfid::ROOT, "r0")), Ok(Reply::Attr(_))), "running {running}, victim {victim}");
            let last = wrote(&w, 0);
            assert_eq!(content(&mut w, 0), last);
        }
    }
}

#[test]
fn recipe_7_a_clock_goes_wrong_and_a_process_stops() {
    let mut w = world(2, 1);
    let primary = w.config.primary;
    w.nodes.get_mut(&primary).unwrap().skew_s = -3600;
    act(&mut w, 0, write(0)).unwrap();
    let until = w.now.after(Duration::from_secs(60));
    w.nodes.get_mut(&primary).unwrap().paused = until;
    act(&mut w, 0, write(0)).unwrap();
    assert_ne!(w.config.primary, primary);
    let last = wrote(&w, 0);
    w.run_for(Duration::from_secs(61));
    assert_eq!(content(&mut w, 0), last);
}

#[test]
fn recipe_8_the_same_name_on_both_sides() {
    let mut w = world(2, 2);
    w.cut(1, 2);
    w.client_cut.extend([(0, 1), (1, 2)]);
    begin(&mut w, 0, create(Gfid::ROOT, "x", gfid(1)));
    begin(&mut w, 1, mkdir(Gfid::ROOT, "x", gfid(2)));
    w.run_for(Duration::from_secs(6));
    w.mend_all();
    w.run_until("both", Duration::from_secs(20), |w| w.clients.iter().all(Client::is_idle));
    let results: Vec<_> = w.clients.iter().map(|c| c.results.last().unwrap().clone()).collect();
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert!(results.contains(&Err(ReplicaError::Errno(Errno::EEXIST))));
    content(&mut w, 0);
}

#[test]
fn recipe_9_a_directory_is_renamed_while_files_are_made_in_it() {
    let mut w = world(2, 2);
    act(&mut w, 0, mkdir(Gfid::ROOT, "a", gfid(9))).unwrap();
    w.cut(1, 2);
    w.client_cut.extend([(0, 1), (1, 2)]);
    let rename = Fop::Rename { parent: Gfid::ROOT, name: "a".into(), new_parent: Gfid::ROOT, new_name: "b".into(), flags: 0 };
    begin(&mut w, 0, rename);
    begin(&mut w, 1, create(gfid(9), "f", gfid(10)));
    w.run_for(Duration::from_secs(6));
    w.mend_all();
    w.run_until("both", Duration::from_secs(20), |w| w.clients.iter().all(Client::is_idle));
    content(&mut w, 0);
    assert!(w.picture(1).contains_key("/b/f"));
}

#[test]
fn recipe_10_one_disk_is_full() {
    for victim in [1, 2] {
        let mut w = world(2, 1);
        w.nodes.get_mut(&victim).unwrap().core.as_mut().unwrap().store().set_full(true);
        act(&mut w, 0, write(0)).unwrap();
        act(&mut w, 0, write(0)).unwrap();
        assert_eq!(w.config.in_sync, [3 - victim]);
        w.nodes.get_mut(&victim).unwrap().core.as_mut().unwrap().store().set_full(false);
        let last = wrote(&w, 0);
        assert_eq!(content(&mut w, 0), last);
    }
}

#[test]
fn a_file_removed_behind_our_back_comes_back() {
    for victim in [1, 2] {
        let mut w = world(2, 1);
        let time = w.wall(victim);
        let store = w.nodes.get_mut(&victim).unwrap().core.as_mut().unwrap().store();
        store.damage_remove(Gfid::ROOT, b"r0").unwrap();
        // As the kernel does when somebody removes a name.
        let (root, _) = store.heal_stat(Gfid::ROOT).unwrap();
        store.heal_set_attr(Gfid::ROOT, &ExactAttr { mtime: time, ..ExactAttr::from(&root) }).unwrap();
        assert!(matches!(act(&mut w, 0, lookup(Gfid::ROOT, "r0")), Ok(Reply::Attr(_))), "victim {victim}");
        let list = Fop::ReadDir { gfid: Gfid::ROOT, cookie: 0, bytes: 1 << 20, plus: false };
        let Ok(Reply::Entries { entries, .. }) = act(&mut w, 0, list) else { panic!() };
        assert!(entries.iter().any(|e| &e.name[..] == b"r0"));
        w.settle();
        w.assert_equal();
    }
}

#[test]
fn scrub_finds_a_bit_that_rotted() {
    for victim in [1, 2] {
        let mut w = world(2, 1);
        act(&mut w, 0, write(0)).unwrap();
        let primary = w.config.primary;
        // The first scrub signs what agrees; the second finds what differs from its signature.
        for round in 0..2 {
            w.give(primary, crate::replica::ReplicaEvent::Admin { id: 1, request: crate::replica::AdminRequest::Scrub });
            w.run_until("scrubbed", Duration::from_secs(120), |w| w.nodes[&primary].core.as_ref().unwrap().info().heals.is_empty());
            if round == 0 {
                w.nodes.get_mut(&victim).unwrap().core.as_mut().unwrap().store().damage_flip(register(0), 3, 1).unwrap();
            }
        }
        let last = wrote(&w, 0);
        assert_eq!(content(&mut w, 0), last, "victim {victim}");
    }
}

/// Lets the primary compare everything, and waits for the end.
fn scrub(w: &mut World, request: crate::replica::AdminRequest) {
    let primary = w.config.primary;
    w.give(primary, crate::replica::ReplicaEvent::Admin { id: 1, request });
    w.run_until("scrubbed", Duration::from_secs(120), |w| w.nodes[&primary].core.as_ref().unwrap().info().heals.is_empty());
    // What the mtimes decide is repaired after.
    w.run_for(Duration::from_secs(2));
}

#[test]
fn names_that_one_brick_lost_come_back_with_a_full_heal() {
    for bricks in [2, 3] {
        for victim in [1, 2] {
            let mut w = world(bricks, 1);
            act(&mut w, 0, mkdir(Gfid::ROOT, "dir", gfid(1))).unwrap();
            act(&mut w, 0, mkdir(gfid(1), "sub", gfid(2))).unwrap();
            act(&mut w, 0, create(gfid(2), "file", gfid(3))).unwrap();
            act(&mut w, 0, write(0)).unwrap();
            let (last, everything) = (wrote(&w, 0), w.picture(3 - victim).len());
            let store = w.nodes.get_mut(&victim).unwrap().core.as_mut().unwrap().store();
            for name in ["dir", "r0", "r1"] {
                store.damage_remove(Gfid::ROOT, name.as_bytes()).unwrap();
            }
            scrub(&mut w, crate::replica::AdminRequest::HealFull);
            assert_eq!(content(&mut w, 0), last);
            assert_eq!(w.picture(victim).len(), everything, "{bricks} bricks, victim {victim}");
        }
    }
}

#[test]
fn a_file_that_somebody_wrote_to_is_judged_by_its_time() {
    for victim in [1, 2] {
        let mut w = world(2, 1);
        act(&mut w, 0, write(0)).unwrap();
        let last = wrote(&w, 0);
        w.run_for(Duration::from_secs(5));
        let mtime = w.wall(victim);
        let store = w.nodes.get_mut(&victim).unwrap().core.as_mut().unwrap().store();
        store.damage_flip(register(0), 0, 3).unwrap();
        let (attr, _) = store.heal_stat(register(0)).unwrap();
        store.heal_set_attr(register(0), &ExactAttr { mtime, ..ExactAttr::from(&attr) }).unwrap();
        scrub(&mut w, crate::replica::AdminRequest::Scrub);
        assert_eq!(content(&mut w, 0), last, "victim {victim}");
        // Nothing stands still afterwards.
        act(&mut w, 0, write(0)).unwrap();
    }
}

#[test]
fn an_open_file_outlives_its_name_on_all_bricks_and_over_a_new_primary() {
    let mut w = world(2, 2);
    act(&mut w, 0, write(0)).unwrap();
    act(&mut w, 0, Fop::Open { gfid: register(0), flags: 2 }).unwrap();
    act(&mut w, 1, Fop::Unlink { parent: Gfid::ROOT, name: "r0".into() }).unwrap();
    for b in [1, 2] {
        let orphans = w.nodes.get_mut(&b).unwrap().core.as_mut().unwrap().store().orphans().unwrap();
        assert_eq!(orphans, [register(0)], "brick {b}");
    }
    let primary = w.config.primary;
    w.crash(primary);
    act(&mut w, 0, Fop::Open { gfid: register(0), flags: 2 }).unwrap();
    w.run_for(Duration::from_secs(7));
    act(&mut w, 0, write(0)).unwrap();
    act(&mut w, 0, Fop::Release { gfid: register(0) }).unwrap();
    assert!(matches!(act(&mut w, 0, write(0)), Err(ReplicaError::Errno(Errno::ENOENT))));
    w.settle();
    w.assert_equal();
}

/// While a brick's disk is stalled, it ends nothing that it began.
fn stall(w: &mut World, brick: BrickId, stalled: bool) {
    w.nodes.get_mut(&brick).unwrap().core.as_mut().unwrap().store().set_stalled(stalled);
}

/// A write that began while its brick was in sync, and ends after the brick has left: nothing may be healed before that.
#[test]
fn a_write_that_ends_late_does_not_go_over_what_was_healed() {
    let mut w = world(2, 1);
    let (primary, other) = (w.config.primary, 3 - w.config.primary);
    stall(&mut w, other, true);
    begin(&mut w, 0, write(0));
    w.run_for(ms(50));
    w.cut(primary, other);
    w.run_until("the write", Duration::from_secs(20), |w| w.clients[0].is_idle());
    assert_eq!(w.config.in_sync, [primary]);
    w.mend_all();
    act(&mut w, 0, write(0)).unwrap();
    w.run_for(Duration::from_secs(8));
    stall(&mut w, other, false);
    let last = wrote(&w, 0);
    assert_eq!(content(&mut w, 0), last);
}

/// A primary that has begun an operation and is overtaken cannot say what became of it, and says so.
#[test]
fn a_primary_that_is_overtaken_says_that_it_does_not_know() {
    let mut w = world(2, 1);
    let primary = w.config.primary;
    w.cut(1, 2);
    w.store_cut.insert(primary);
    begin(&mut w, 0, Fop::Unlink { parent: Gfid::ROOT, name: "r0".into() });
    w.run_until("another primary", Duration::from_secs(20), |w| w.config.primary != primary);
    assert!(!w.clients[0].is_idle());
    w.store_cut.clear();
    w.run_until("an answer", Duration::from_secs(20), |w| w.clients[0].is_idle());
    assert_eq!(w.clients[0].results.last(), Some(&Ok(Reply::Done)));
    assert!(w.clients[0].abandoned > 0);
    w.settle();
    w.assert_equal();
}

/// What an open file without a name holds, on each brick that is up.
fn open_content(w: &mut World, gfid: Gfid) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for node in w.nodes.values_mut() {
        let store = node.core.as_mut().unwrap().store();
        assert_eq!(store.orphans().unwrap(), [gfid]);
        found.push(store.heal_read(gfid, 0, 100).unwrap().to_vec());
    }
    found
}

/// A file that is open on a volume and has no name is a file like others: a brick that comes back has it, as it is now.
#[test]
fn a_brick_that_joins_has_open_files_without_a_name_too() {
    for unlinked_before in [false, true] {
        let mut w = world(2, 2);
        act(&mut w, 0, write(0)).unwrap();
        act(&mut w, 0, Fop::Open { gfid: register(0), flags: 2 }).unwrap();
        let other = 3 - w.config.primary;
        let unlink = Fop::Unlink { parent: Gfid::ROOT, name: "r0".into() };
        if unlinked_before {
            act(&mut w, 1, unlink.clone()).unwrap();
        }
        w.crash(other);
        if !unlinked_before {
            act(&mut w, 1, unlink).unwrap();
        }
        act(&mut w, 0, write(0)).unwrap();
        let last = wrote(&w, 0);
        w.start(other);
        w.run_until("in sync", Duration::from_secs(30), |w| w.all_in_sync());
        w.run_for(ms(500));
        assert_eq!(open_content(&mut w, register(0)), [last.clone(), last], "unlinked before: {unlinked_before}");
        // And it lives on there.
        w.crash(3 - other);
        act(&mut w, 0, Fop::Open { gfid: register(0), flags: 2 }).unwrap();
        act(&mut w, 0, write(0)).unwrap();
        act(&mut w, 0, Fop::Release { gfid: register(0) }).unwrap();
        assert!(matches!(act(&mut w, 0, write(0)), Err(ReplicaError::Errno(Errno::ENOENT))));
        w.settle();
        w.assert_equal();
    }
}

#[test]
fn a_dead_process_costs_half_a_second_and_a_dead_node_three() {
    for (power, limit) in [(false, 500), (true, 3000)] {
        for primary_too in [false, true] {
            let mut w = world(2, 1);
            let victim = if primary_too { w.config.primary } else { 3 - w.config.primary };
            if power {
                w.power_cut(victim);
            } else {
                w.crash(victim);
            }
            let start = w.now;
            act(&mut w, 0, write(0)).unwrap();
            let took = w.now.since(start);
            // The client of this test needs 400 ms to try the other brick.
            assert!(took <= ms(limit + 450), "power {power}, primary {primary_too}: {took:?}");
        }
    }
}

#[test]
fn a_brick_leaves_before_it_stops_and_the_last_one_stays() {
    let mut w = world(2, 1);
    let primary = w.config.primary;
    w.give(primary, crate::replica::ReplicaEvent::Leave);
    w.run_until("left", Duration::from_secs(5), |w| w.nodes[&primary].left);
    assert_eq!(w.config.in_sync, [3 - primary]);
    w.crash(primary);
    act(&mut w, 0, write(0)).unwrap();
    w.give(3 - primary, crate::replica::ReplicaEvent::Leave);
    w.run_until("left", Duration::from_secs(5), |w| w.nodes[&(3 - primary)].left);
    assert_eq!(w.config.in_sync, [3 - primary]);
    let last = wrote(&w, 0);
    w.crash(3 - primary);
    let _: u32 = w.rng.random();
    assert_eq!(content(&mut w, 0), last);
}

fn raise(token: &str) -> Fop {
    Fop::SetXattr { gfid: register(0), name: XATTR_FENCE.into(), value: token.to_owned().into(), flags: 0 }
}

#[test]
fn who_was_overtaken_by_a_higher_fence_writes_no_more() {
    for lose_primary in [false, true] {
        let stale = Err(ReplicaError::Errno(Errno::ESTALE));
        let mut w = world(2, 3);
        w.clients[0].fence = 5;
        w.clients[1].fence = 7;
        act(&mut w, 0, raise("5")).unwrap();
        act(&mut w, 0, write(0)).unwrap();
        act(&mut w, 1, raise("7")).unwrap();
        act(&mut w, 1, write(0)).unwrap();
        if lose_primary {
            let primary = w.config.primary;
            w.crash(primary);
        }
        assert_eq!(act(&mut w, 0, write(0)), stale);
        let truncate = Fop::SetAttr { gfid: register(0), set: SetAttr { size: Some(0), ..SetAttr::default() } };
        assert_eq!(act(&mut w, 0, truncate), stale);
        assert_eq!(act(&mut w, 0, raise("6")), stale, "a fence only rises");
        assert_eq!(act(&mut w, 2, Fop::RemoveXattr { gfid: register(0), name: XATTR_FENCE.into() }), Err(ReplicaError::Errno(Errno::EPERM)));
        assert_eq!(act(&mut w, 2, raise("much")), Err(ReplicaError::Errno(Errno::EINVAL)));
        for brick in 1..=2 {
            if w.nodes.get(&brick).is_none_or(|n| n.core.is_none()) {
                w.start(brick);
            }
        }
        assert_eq!(content(&mut w, 0), wrote(&w, 1), "the later holder's, on both bricks");
        act(&mut w, 2, write(0)).unwrap();
        assert_eq!(content(&mut w, 0), wrote(&w, 2), "whoever has no token is not fenced");
    }
}
