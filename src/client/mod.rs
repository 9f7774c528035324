//! The client of a volume: sends each operation to the brick that is primary, and again when that changes.
//!
//! Worker threads of the FUSE session call in and block. Each call takes an idle connection to the primary
//! or opens one, so that a lone caller has one connection and no thread lies between it and the socket.

mod session;
mod view;

use crate::management::VolumeView;
use crate::wire::{ClientHello, ClientMessage, ServerMessage};
use brickraft_fs::fop::{Errno, Fop, Reply};
use brickraft_fs::replica::{BrickId, ReplicaError};
use brickraft_fs::volume::Volume;
use brickraft_net::client::Connection;
use brickraft_net::frame::Preface;
use bytes::Bytes;
use session::Session;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use view::{Route, View};

pub use view::OpenError;

/// How a client behaves.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// An operation that no server could carry out for so long fails with `ENOTCONN`.
    pub op_timeout: Duration,
    /// How long opening a connection may take.
    pub connect_timeout: Duration,
    /// A call that waits for longer asks whether its brick is still the primary.
    pub patience: Duration,
    /// Idle connections that are kept.
    pub idle_max: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            op_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_millis(700),
            patience: Duration::from_millis(600),
            idle_max: 16,
        }
    }
}

/// Between two questions of a call whose patience is over.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Waits between two attempts.
const RETRY_WAIT: Duration = Duration::from_millis(20);

/// See the module's text.
#[derive(Debug)]
pub struct VolumeClient {
    options: ClientOptions,
    session: Session,
    view: View,
    idle: Mutex<Vec<(BrickId, Connection)>>,
}

/// One operation on its way.
struct Asked<'a> {
    op: u64,
    retry: bool,
    fence: u64,
    fop: &'a Fop,
}

/// How one attempt ended, when not with the operation's outcome.
enum Again {
    /// The primary is another one, or the epoch moved on.
    Rerouted,
    /// In a moment.
    Later,
    /// The connection broke: the operation may have been carried out.
    Broken,
}

impl VolumeClient {
    /// Learns of `volume` from one of `servers` (`host:port`).
    ///
    /// # Errors
    /// No server answers, or there is no such volume, or it is not started.
    pub fn open(servers: &[String], volume: &str, options: ClientOptions) -> Result<Self, OpenError> {
        Ok(Self { options, session: Session::new(), view: View::open(servers, volume)?, idle: Mutex::default() })
    }

    /// What the client knows of the volume.
    #[must_use]
    pub fn volume(&self) -> VolumeView {
        self.view.current()
    }

    fn carry_out(&self, fop: &Fop, payload: &[u8], fence: u64) -> Result<(Reply, Bytes), Errno> {
        let ticket = self.session.begin();
        let deadline = Instant::now() + self.options.op_timeout;
        let mut retry = false;
        loop {
            let route = self.view.route();
            if let Err(again) = self.reopen(&route, deadline) {
                self.prepare_retry(&again, &route);
            } else {
                match self.attempt(&route, Asked { op: ticket.op, retry, fence, fop }, payload, deadline) {
                    Ok(outcome) => return outcome,
                    Err(again) => {
                        retry |= matches!(again, Again::Broken);
                        self.prepare_retry(&again, &route);
                    }
                }
            }
            if Instant::now() >= deadline {
                tracing::error!(?fop, "no server carried out the operation in time");
                return Err(Errno::ENOTCONN);
            }
        }
    }

    fn prepare_retry(&self, again: &Again, route: &Route) {
        match again {
            Again::Rerouted => {}
            Again::Later => std::thread::sleep(RETRY_WAIT),
            Again::Broken => {
                self.view.refresh(route.version);
                if self.view.route().version == route.version {
                    std::thread::sleep(RETRY_WAIT);
                }
            }
        }
    }

    /// One exchange with the primary.
    fn attempt(
        &self,
        route: &Route,
        asked_for: Asked<'_>,
        payload: &[u8],
        deadline: Instant,
    ) -> Result<Result<(Reply, Bytes), Errno>, Again> {
        let mut connection = self.connection(route)?;
        let Asked { op, retry, fence, fop } = asked_for;
        let message = ClientMessage::Op { op, acked: self.session.acked(), retry, epoch: route.epoch, fence, fop: fop.clone() };
        let head = postcard::to_allocvec(&message).expect("plain data");
        let mut asked = Duration::ZERO;
        let exchange = connection.call(&head, payload, &mut |waited| {
            if waited >= self.options.patience && waited - asked >= ASK_AGAIN {
                asked = waited;
                // What others have learnt meanwhile has not helped this call: ask on from there.
                self.view.refresh(self.view.route().version);
            }
            // The same primary under a new epoch still has the request and will answer it, if it is the same process.
            let current = self.view.route();
            (current.primary, current.incarnation) == (route.primary, route.incarnation) && Instant::now() < deadline
        });
        let (head, data) = exchange.map_err(|e| {
            tracing::debug!(%e, brick = route.primary, "connection lost");
            Again::Broken
        })?;
        let answer: ServerMessage = postcard::from_bytes(&head).map_err(|e| {
            tracing::error!(%e, brick = route.primary, "answer cannot be read");
            Again::Broken
        })?;
        self.keep(route.primary, connection);
        match answer {
            Ok(reply) => Ok(Ok((reply, data))),
            Err(ReplicaError::Errno(e)) => Ok(Err(e)),
            Err(ReplicaError::WrongEpoch { config } | ReplicaError::NotPrimary { config }) => {
                if self.view.learn(config) {
                    Err(Again::Rerouted)
                } else {
                    Err(Again::Later)
                }
            }
            Err(ReplicaError::Abandoned { config }) => {
                self.view.learn(config);
                Err(Again::Broken)
            }
            Err(ReplicaError::NoLease | ReplicaError::Busy) => {
                self.view.refresh_slowly(route.version);
                Err(Again::Later)
            }
            Err(ReplicaError::Forgotten) => Ok(Err(Errno::EIO)),
        }
    }

    fn connection(&self, route: &Route) -> Result<Connection, Again> {
        {
            let mut idle = self.idle.lock().expect("no panic holds it");
            // Connections to a brick that is no longer primary will not be used again.
            idle.retain(|(brick, _)| *brick == route.primary);
            if let Some((_, connection)) = idle.pop() {
                return Ok(connection);
            }
        }
        let hello = postcard::to_allocvec(&ClientHello { brick: route.primary, session: self.session.id }).expect("plain data");
        Connection::open(&route.address, Preface::Client, &hello, self.options.connect_timeout).map_err(|e| {
            tracing::debug!(%e, address = %route.address, "cannot connect");
            self.view.refresh(route.version);
            Again::Later
        })
    }

    fn keep(&self, brick: BrickId, connection: Connection) {
        let mut idle = self.idle.lock().expect("no panic holds it");
        if idle.len() < self.options.idle_max {
            idle.push((brick, connection));
        }
    }

    /// Tells a new primary which files are open here, before anything else is asked of it.
    fn reopen(&self, route: &Route, deadline: Instant) -> Result<(), Again> {
        let Some(files) = self.session.to_reopen(route.primary) else { return Ok(()) };
        for gfid in &files {
            let ticket = self.session.begin();
            match self.attempt(route, Asked { op: ticket.op, retry: false, fence: 0, fop: &Fop::Open { gfid: *gfid, flags: 0 } }, &[], deadline) {
                Ok(Ok(_)) => {}
                Ok(Err(e)) => tracing::warn!(%gfid, %e, "an open file is gone at the new primary"),
                Err(again) => return Err(again),
            }
        }
        self.session.reopened(route.primary);
        Ok(())
    }
}

impl Volume for VolumeClient {
    fn call(&self, fop: &Fop, payload: &[u8]) -> Result<(Reply, Bytes), Errno> {
        self.call_fenced(fop, payload, 0)
    }

    fn call_fenced(&self, fop: &Fop, payload: &[u8], fence: u64) -> Result<(Reply, Bytes), Errno> {
        let outcome = self.carry_out(fop, payload, fence);
        if outcome.is_ok() {
            self.session.note(fop);
        }
        outcome
    }

    fn close(&self) {
        let route = self.view.route();
        if let Ok(mut connection) = self.connection(&route) {
            let goodbye = postcard::to_allocvec(&ClientMessage::Goodbye).expect("plain data");
            // The server answers a goodbye by closing.
            let _ = connection.call(&goodbye, &[], &mut |waited| waited < self.options.connect_timeout);
        }
        self.idle.lock().expect("no panic holds it").clear();
    }
}
