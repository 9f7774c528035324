//! What goes to and comes from each peer, counted.

use brickraft_engine::types::NodeId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One peer's.
#[derive(Debug, Default)]
pub struct PeerTraffic {
    /// Bytes written to it, TLS excluded.
    pub sent_bytes: AtomicU64,
    /// Bytes that came from it, TLS excluded.
    pub received_bytes: AtomicU64,
    /// The connection to it stands.
    pub connected: AtomicBool,
}

impl PeerTraffic {
    pub(crate) fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// All peers'. The lock is taken when connections are made and figures are asked for.
#[derive(Debug, Default)]
pub struct Traffic(Mutex<BTreeMap<NodeId, Arc<PeerTraffic>>>);

impl Traffic {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<PeerTraffic>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a peer is counted.
    pub(crate) fn of(&self, peer: NodeId) -> Arc<PeerTraffic> {
        self.lock().entry(peer).or_default().clone()
    }

    /// Forgets peers that are no members any more.
    pub(crate) fn retain(&self, member: impl Fn(NodeId) -> bool) {
        self.lock().retain(|peer, _| member(*peer));
    }

    /// All that there are.
    #[must_use]
    pub fn peers(&self) -> Vec<(NodeId, Arc<PeerTraffic>)> {
        self.lock().iter().map(|(peer, traffic)| (*peer, traffic.clone())).collect()
    }
}
