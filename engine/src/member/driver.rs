//! Runs a member on a tokio current-thread runtime.

use super::types::PeerMessage;
use crate::types::NodeId;
use tokio::sync::mpsc;

/// How a member reaches its peers: channels whose other ends somebody with sockets holds.
pub struct Transport {
    /// To send. Messages are dropped while it is full: everything that matters is sent again.
    pub outgoing: mpsc::Sender<(NodeId, PeerMessage)>,
    /// What came, and from whom.
    pub incoming: mpsc::Receiver<(NodeId, PeerMessage)>,
    /// Peers to which messages are lost at present; optional, it speeds up the leader's probing.
    pub unreachable: mpsc::Receiver<NodeId>,
}
