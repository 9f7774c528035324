//! The cluster store as the node uses it: a view that follows the system key space, and transactions on it.

use crate::records::ClusterView;
use anyhow::{Result, anyhow, bail};
use brickraft_engine::kv::types::{
    Applied, Command, CommandResponse, Compare, CompareOp, CompareTarget, DeleteRangeRequest, Keyspace, OpResponse, PutRequest, RangeRequest, TxnOp,
    TxnRequest,
};
use brickraft_engine::kv::{WatchOutput, WatchRequest};
use brickraft_engine::member::{MemberError, MemberHandle};
use brickraft_engine::types::Revision;
use bytes::Bytes;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A precondition of a transaction.
#[derive(Clone, Debug)]
pub enum Expect {
    /// The key does not exist.
    Absent(String),
    /// The key was last changed at this revision.
    At(String, u64),
}

/// A change of a transaction.
#[derive(Clone, Debug)]
pub enum Change {
    /// Write a record.
    Put(String, Vec<u8>),
    /// Remove one.
    Delete(String),
}

impl Change {
    /// Writes `record` as JSON.
    pub fn put(key: String, record: &impl Serialize) -> Self {
        Self::Put(key, serde_json::to_vec_pretty(record).expect("plain data"))
    }
}

/// Asks for all records.
#[must_use]
pub fn all_records() -> RangeRequest {
    RangeRequest { key: Bytes::from_static(b"\0"), range_end: Bytes::from_static(b"\0"), ..RangeRequest::default() }
}

/// The cluster store.
#[derive(Clone)]
pub struct Cluster {
    member: MemberHandle,
    view: watch::Receiver<Arc<ClusterView>>,
}

impl Cluster {
    /// Starts following the store. Must be called inside a [`tokio::task::LocalSet`] or a `LocalRuntime`.
    #[must_use]
    pub fn follow(member: MemberHandle) -> Self {
        let (tx, view) = watch::channel(Arc::default());
        tokio::task::spawn_local(follow(member.clone(), tx));
        Self { member, view }
    }

    /// The member below.
    #[must_use]
    pub fn member(&self) -> &MemberHandle {
        &self.member
    }

    /// What this member last saw; may be behind.
    #[must_use]
    pub fn view(&self) -> Arc<ClusterView> {
        self.view.borrow().clone()
    }

    /// Tells of changes of the view.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.view.clone()
    }

    /// The records as they are now, everywhere.
    ///
    /// # Errors
    /// Without a majority.
    pub async fn read(&self) -> Result<ClusterView> {
        let (answer, _) = self.member.range(Keyspace::System, &all_records(), false).await.map_err(explain)?;
        Ok(build(&answer.kvs))
    }

    /// Changes records if all expectations hold; false when one did not.
    ///
    /// # Errors
    /// Without a majority; it is then unknown whether the change was made.
    pub async fn commit(&self, expect: &[Expect], changes: Vec<Change>) -> Result<bool> {
        let applied = self.member.propose(transaction(expect, changes)).await.map_err(explain)?;
        succeeded(applied)
    }
}

/// The command that makes `changes` if all of `expect` holds.
#[must_use]
pub fn transaction(expect: &[Expect], changes: Vec<Change>) -> Command {
    let compare = expect
        .iter()
        .map(|e| {
            let (key, revision) = match e {
                Expect::Absent(key) => (key, 0),
                Expect::At(key, revision) => (key, *revision),
            };
            Compare {
                key: Bytes::copy_from_slice(key.as_bytes()),
                range_end: Bytes::new(),
                op: CompareOp::Equal,
                target: CompareTarget::Mod(Revision(revision)),
            }
        })
        .collect();
    let success = changes
        .into_iter()
        .map(|c| match c {
            Change::Put(key, value) => TxnOp::Put(PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }),
            Change::Delete(key) => TxnOp::DeleteRange(DeleteRangeRequest { key: key.into(), ..DeleteRangeRequest::default() }),
        })
        .collect();
    let txn = TxnRequest { compare, success, failure: Vec::new() };
    Command::Txn(Keyspace::System, txn)
}

/// What became of a [`transaction`]: false when an expectation did not hold.
///
/// # Errors
/// The store refused it.
pub fn succeeded(applied: Applied) -> Result<bool> {
    match applied.result.map_err(|e| anyhow!("cluster store: {e}"))? {
        CommandResponse::Op(OpResponse::Txn { succeeded, .. }) => Ok(succeeded),
        other => bail!("cluster store: unexpected answer {other:?}"),
    }
}

/// Turns etcd's words into the operator's.
fn explain(e: MemberError) -> anyhow::Error {
    match e {
        MemberError::NoLeader | MemberError::Timeout | MemberError::TimeoutLeaderFail | MemberError::LeaderChanged => {
            anyhow!("the cluster has no majority at present, so nothing can be decided ({e}); see `brickraft peer status`")
        }
        e => anyhow!("cluster store: {e}"),
    }
}

/// The view that records make.
#[must_use]
pub fn build(kvs: &[brickraft_engine::kv::types::KeyValue]) -> ClusterView {
    let mut view = ClusterView::default();
    for kv in kvs {
        view.apply(&kv.key, Some(&kv.value), kv.mod_revision.0);
    }
    view
}

/// Loads the view, then applies every change; starts over when it falls behind the compaction.
async fn follow(member: MemberHandle, view: watch::Sender<Arc<ClusterView>>) {
    while !view.is_closed() {
        let Ok((answer, revision)) = member.range(Keyspace::System, &all_records(), true).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        view.send_replace(Arc::new(build(&answer.kvs)));
        let RangeRequest { key, range_end, .. } = all_records();
        let request = WatchRequest { key, range_end, start_revision: Revision(revision.0 + 1), ..WatchRequest::default() };
        let Ok(mut stream) = member.watch(Keyspace::System, request).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while let Some(update) = stream.next().await {
            let WatchOutput::Events { events, .. } = update else { continue };
            view.send_modify(|view| {
                let view = Arc::make_mut(view);
                for event in events.iter() {
                    let value = (!event.delete).then_some(&event.kv.value[..]);
                    view.apply(&event.kv.key, value, event.kv.mod_revision.0);
                }
            });
        }
        if member.last_status().stopped.is_some() {
            return;
        }
    }
}
