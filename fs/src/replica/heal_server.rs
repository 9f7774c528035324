//! The far end of a heal: executes each call once, and answers a repeated one from memory.

use super::types::{BrickId, HealTag, PeerMsg};
use super::{Disk, ReplicaCore, Role};
use crate::fop::Errno;
use crate::heal::{HealCall, HealResult, HealReturn, SPREAD_MAX};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Answers are kept of calls up to this far below the newest; a healer waits for all that are older.
const ANSWERS_MAX: u64 = 2 * SPREAD_MAX;

/// Heals that are remembered: those in hand, and one that ended just now.
const HEALS_MAX: usize = 4;

#[derive(Default)]
pub(super) struct HealServer {
    /// The answers given, by (epoch, heal) and call.
    heals: BTreeMap<(u64, u64), BTreeMap<u64, Bytes>>,
    /// Heals below this one are over.
    floor: (u64, u64),
    /// Others that were forgotten to make room, so are over too.
    forgotten: BTreeSet<(u64, u64)>,
}

impl HealServer {
    /// The answers of a heal; `None`: it is over.
    fn of(&mut self, heal: (u64, u64)) -> Option<&mut BTreeMap<u64, Bytes>> {
        if !self.heals.contains_key(&heal) && self.heals.len() >= HEALS_MAX {
            // Not the one at the floor: that one is in hand, and may last (a scrub, with repairs beside it).
            let oldest = self.heals.keys().copied().find(|h| *h != self.floor)?;
            self.heals.remove(&oldest);
            self.forgotten.insert(oldest);
        }
        (heal >= self.floor && !self.forgotten.contains(&heal)).then(|| self.heals.entry(heal).or_default())
    }

    /// Heals below `floor` are over. **Invariant**: nothing of a heal that was given up is executed after anything that
    /// its primary did later, so it cannot bring back what a later change took away.
    pub fn over(&mut self, floor: (u64, u64)) {
        if floor > self.floor {
            self.floor = floor;
            self.heals = self.heals.split_off(&floor);
            self.forgotten = self.forgotten.split_off(&floor);
        }
    }
}

impl<S: Disk> ReplicaCore<S> {
    pub(super) fn on_heal(&mut self, from: BrickId, tag: HealTag, payload: &Bytes) {
        let attempt = match self.role {
            Role::Outsider => self.o.attempt,
            Role::Secondary => 0,
            Role::Primary => return,
        };
        if tag.attempt != attempt {
            return;
        }
        self.heals.over((tag.epoch, tag.floor));
        let Some(answers) = self.heals.of((tag.epoch, tag.heal)) else { return };
        if let Some(answer) = answers.get(&tag.id) {
            let answer = answer.clone();
            return self.send_with(from, PeerMsg::HealReturn(tag), answer);
        }
        let newest = answers.last_key_value().map_or(0, |(&id, _)| id);
        if tag.id + ANSWERS_MAX <= newest {
            // Executed long ago, and its answer was had.
            return;
        }
        // It is the other brick that says what is to be here.
        let _ = self.store.heal_swept(false);
        let result: HealResult = match postcard::from_bytes::<HealCall>(payload) {
            Ok(call) => crate::heal::execute(&mut self.store, &call),
            Err(_) => Err(Errno::EINVAL),
        };
        let answer = Bytes::from(postcard::to_allocvec(&result).unwrap_or_default());
        if let Some(answers) = self.heals.of((tag.epoch, tag.heal)) {
            answers.insert(tag.id, answer.clone());
            *answers = answers.split_off(&newest.max(tag.id).saturating_sub(ANSWERS_MAX));
        }
        self.send_with(from, PeerMsg::HealReturn(tag), answer);
    }

    pub(super) fn on_heal_return(&mut self, from: BrickId, tag: HealTag, payload: &Bytes) {
        let result: HealResult = postcard::from_bytes(payload).unwrap_or(Err::<HealReturn, _>(Errno::EIO));
        let _ = self.take_over_return(from, tag, &result) || self.repair_return(from, tag, &result) || self.scrub_return(from, tag, &result) || self.join_return(from, tag, &result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_heal_that_was_given_up_is_executed() {
        let mut server = HealServer::default();
        let answer = Bytes::from_static(b"done");
        server.of((4, 1)).expect("in hand").insert(1, answer.clone());
        server.over((4, 2));
        assert!(server.of((4, 1)).is_none(), "a late call of heal 1, although its answers were remembered");
        server.of((4, 2)).expect("in hand").insert(1, answer.clone());
        server.over((4, 1));
        assert_eq!(server.of((4, 2)).expect("a lower floor comes late").get(&1), Some(&answer));
        for heal in 3..=2 + HEALS_MAX as u64 {
            assert!(server.of((4, heal)).is_some());
        }
        assert!(server.of((4, 2)).is_some(), "the one at the floor is in hand");
        assert!(server.of((4, 3)).is_none(), "forgotten, so over");
        assert!(server.of((5, 1)).is_some(), "a new epoch counts anew");
    }
}
