//! What a mount and a brick say to each other, and how bricks greet each other (FORMAT.md, "brick protocol").

use brickraft_fs::fop::{Fop, Reply};
use brickraft_fs::replica::{BrickId, ReplicaError};
use serde::{Deserialize, Serialize};

/// The first message of a mount's connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientHello {
    /// The brick that it wants to talk to.
    pub brick: BrickId,
    /// The mount's session: random, the same for all its connections.
    pub session: u64,
}

/// The first message of a connection between bricks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrickHello {
    /// Who speaks.
    pub from: BrickId,
    /// Whom to.
    pub to: BrickId,
}

/// What a mount says; the data of a write is the frame's payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientMessage {
    /// An operation; answered by a [`ServerMessage`].
    Op {
        /// Its number in the session, from 1; a retry has the same.
        op: u64,
        /// All ops up to this one have been answered.
        acked: u64,
        /// It may have been sent before.
        retry: bool,
        /// The group's epoch as the mount knows it.
        epoch: u64,
        /// The fencing token of the handle that it goes through; 0: none.
        fence: u64,
        /// The operation.
        fop: Fop,
    },
    /// The session is over; no answer.
    Goodbye,
}

/// The answer to an operation; the data of a read is the frame's payload.
pub type ServerMessage = Result<Reply, ReplicaError>;
