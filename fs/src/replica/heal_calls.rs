//! A primary's calls to the bricks that it heals, repairs or scrubs with, until their answers are there.

use super::types::{BrickId, HealTag, PeerMsg};
use super::{Disk, ReplicaCore};
use crate::heal::HealCall;
use brickraft_engine::types::Time;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;

/// Calls of one heal that are under way: what was sent, and when last. The healer bounds their number.
pub(super) type HealCalls = BTreeMap<u64, (Bytes, Time)>;

/// Where the calls of one heal go.
#[derive(Clone, Copy, Debug)]
pub(super) struct HealRoute {
    pub to: BrickId,
    /// 0 for repairs among in-sync bricks.
    pub attempt: u64,
    pub heal: u64,
}

/// Calls without an answer for so long that they are to be sent again; they count as sent now.
pub(super) fn overdue(calls: &mut HealCalls, now: Time, pause: Duration) -> Vec<(u64, Bytes)> {
    let late = calls.iter_mut().filter(|(_, (_, sent))| now.since(*sent) >= pause);
    late.map(|(&id, (call, sent))| {
        *sent = now;
        (id, call.clone())
    })
    .collect()
}

impl<S: Disk> ReplicaCore<S> {
    /// Sends a call for the first time.
    pub(super) fn send_call(&mut self, calls: &mut HealCalls, route: HealRoute, id: u64, call: &HealCall) {
        let payload = Bytes::from(postcard::to_allocvec(call).unwrap_or_default());
        calls.insert(id, (payload.clone(), self.now));
        self.send_heal(route, id, payload);
    }

    /// Sends calls, for the first time or again. The heal itself is never below the floor, also while it is taken out of
    /// [`super::primary::Primary`] to be worked on.
    pub(super) fn send_heal(&mut self, route: HealRoute, id: u64, payload: Bytes) {
        let HealRoute { to, attempt, heal } = route;
        let tag = HealTag { epoch: self.group.epoch, attempt, heal, floor: self.p.heal_floor().min(heal), id };
        self.send_with(to, PeerMsg::Heal(tag), payload);
    }
}
