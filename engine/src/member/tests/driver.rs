//! Three members on tokio, joined by channels.

use super::cluster::{config, put};
use crate::io::sim::{SimDisk, SimIo};
use crate::kv::types::{Keyspace, RangeRequest};
use crate::kv::{Store, WatchId, WatchOutput, WatchRequest};
use crate::member::driver::{DriverError, Transport, run};
use crate::member::handle::{Call, Control, Inbox};
use crate::member::identity::{InitialMember, bootstrap};
use crate::member::{Clock, MemberConfig, MemberCore, MemberHandle, PeerMessage, Start};
use crate::raft::Membership;
use crate::types::NodeId;
use bytes::Bytes;
use redb::backends::InMemoryBackend;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

type Inputs = BTreeMap<NodeId, mpsc::Sender<(NodeId, PeerMessage)>>;

struct Member {
    handle: MemberHandle,
    task: JoinHandle<Result<(), DriverError>>,
}

/// The cluster's number and its members.
fn founders(members: usize) -> (u64, Membership) {
    let member = |i| InitialMember { name: format!("m{i}"), peer_urls: vec![format!("http://127.0.0.1:{i}")] };
    bootstrap(&(1..=members).map(member).collect::<Vec<_>>(), "tokio")
}

/// A member on an empty disk that nobody runs yet.
fn open(id: NodeId, cluster_id: u64, founders: Membership, clock: Clock) -> (MemberCore<SimIo>, MemberHandle, Inbox) {
    let config =
        MemberConfig { id, cluster_id, heartbeat: Duration::from_millis(20), election_timeout: Duration::from_millis(200), ..config() };
    let store = Arc::new(Store::with_backend(InMemoryBackend::new(), InMemoryBackend::new(), 4 << 20).expect("store"));
    let start = Start::Founder(founders);
    let core = MemberCore::open(config, start, SimDisk::new(id.0).open(), store.clone(), clock.now(), id.0).expect("open");
    let (handle, inbox) = MemberHandle::new(store, core.status(), clock);
    (core, handle, inbox)
}

fn start(local: &tokio::task::LocalSet, members: usize) -> BTreeMap<NodeId, Member> {
    let (cluster_id, founders) = founders(members);
    let clock = Clock::start();
    let mut inputs = Inputs::new();
    let mut ends = Vec::new();
    for id in founders.ids() {
        let (tx, rx) = mpsc::channel(1024);
        inputs.insert(id, tx);
        ends.push((id, rx));
    }
    let mut running = BTreeMap::new();
    for (id, incoming) in ends {
        let (core, handle, inbox) = open(id, cluster_id, founders.clone(), clock);
        let (outgoing, mut out) = mpsc::channel(1024);
        let (_never, unreachable) = mpsc::channel(1);
        let peers = inputs.clone();
        local.spawn_local(async move {
            while let Some((to, msg)) = out.recv().await {
                if let Some(peer) = peers.get(&to) {
                    let _ = peer.try_send((id, msg));
                }
            }
        });
        let task = local.spawn_local(run(core, inbox, Transport { outgoing, incoming, unreachable }));
        running.insert(id, Member { handle, task });
    }
    running
}

async fn wait_leader(members: &BTreeMap<NodeId, Member>, not: Option<NodeId>) -> NodeId {
    loop {
        for (id, member) in members {
            if Some(*id) != not && member.handle.last_status().is_leader() {
                return *id;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn three_handles_over_channels() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let local = tokio::task::LocalSet::new();
    let members = start(&local, 3);
    let test = async {
        let leader = wait_leader(&members, None).await;
        let follower = *members.keys().find(|id| **id != leader).expect("a follower");
        let handle = &members[&follower].handle;
        let all = WatchRequest { key: Bytes::from_static(b"\0"), range_end: Bytes::from_static(b"\0"), ..WatchRequest::default() };
        let mut watch = handle.watch(Keyspace::User, all).await.expect("watch");

        let mut puts = Vec::new();
        for i in 0..500 {
            let handle = members.values().nth(i % 3).expect("member").handle.clone();
            puts.push(tokio::task::spawn_local(async move { handle.propose(put(&format!("k{i:03}"), "v")).await }));
        }
        for put in puts {
            put.await.expect("task").expect("propose");
        }
        let mut seen = 0;
        while seen < 500 {
            match watch.next().await.expect("an update") {
                WatchOutput::Events { events, .. } => seen += events.len(),
                other => panic!("{other:?}"),
            }
        }
        watch.request_progress();
        assert!(matches!(watch.next().await, Some(WatchOutput::Progress { .. })));

        let everything = RangeRequest { key: Bytes::from_static(b"k"), range_end: Bytes::from_static(b"l"), ..RangeRequest::default() };
        for member in members.values() {
            let (found, revision) = member.handle.range(Keyspace::User, &everything, false).await.expect("range");
            assert_eq!((found.count, revision.0), (500, 501));
        }
        assert!(members[&leader].handle.node_alive(NodeId(4)).await.is_ok());
        let leases = members[&leader].handle.node_leases().await.expect("leases").expect("leads");
        assert!(leases.last_heard.contains_key(&NodeId(4)));
        assert_eq!(handle.members(true).await.expect("members").voters.len(), 3);

        members[&leader].handle.stop().await;
        assert!(members[&leader].handle.last_status().stopped.is_some());
        let next = wait_leader(&members, Some(leader)).await;
        members[&next].handle.propose(put("after", "v")).await.expect("propose");
        for (id, member) in &members {
            if *id != leader {
                member.handle.stop().await;
            }
        }
    };
    runtime.block_on(local.run_until(async {
        tokio::time::timeout(Duration::from_secs(30), test).await.expect("in time");
    }));
    for member in members.into_values() {
        assert!(runtime.block_on(local.run_until(member.task)).expect("task").is_ok());
    }
}

/// The driver has begun the watch, and its answer lies there when the client goes away.
#[tokio::test]
async fn a_watch_that_nobody_waits_for_any_more_is_cancelled() {
    let (cluster_id, founders) = founders(1);
    let id = founders.ids().next().expect("a member");
    let (_core, handle, mut inbox) = open(id, cluster_id, founders, Clock::start());
    let mut watches = handle.watches();
    {
        let mut create = std::pin::pin!(watches.create(Keyspace::User, WatchRequest::default()));
        assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(create.as_mut().poll(cx).is_pending())).await);
        let Some(Call::Watch { reply, .. }) = inbox.calls.recv().await else { panic!("it asks for a watch") };
        assert!(reply.send(Ok(WatchId(7))).is_ok());
    }
    assert!(matches!(inbox.control.try_recv(), Ok(Control::CancelWatch(WatchId(7)))));
    drop(watches);
    assert!(inbox.control.try_recv().is_err(), "once");
}
