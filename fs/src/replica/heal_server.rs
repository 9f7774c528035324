//! The far end of a heal: executes each call once, and answers a repeated one from memory.

use super::types::{BrickId, HealTag, PeerMsg};
use super::{Disk, ReplicaCore, Role};
use crate::fop::Errno;
use crate::heal::{HealCall, HealResult, HealReturn};
use bytes::Bytes;
use std::collections::BTreeMap;

/// How many answers are kept; more than a healer ever has under way.
const ANSWERS_MAX: u64 = 256;

#[derive(Default)]
pub(super) struct HealServer {
    /// (epoch, attempt, heal) of the heal in hand.
    heal: (u64, u64, u64),
    answers: BTreeMap<u64, Bytes>,
}

impl<S: Disk> ReplicaCore<S> {
    pub(super) fn on_heal(&mut self, from: BrickId, tag: HealTag, payload: &Bytes) {
        let attempt = match self.role {
            Role::Outsider => self.o.attempt,
            Role::Secondary => 0,
            Role::Primary => return,
        };
        let heal = (tag.epoch, tag.attempt, tag.heal);
        let h = &mut self.heals;
        let older = heal.0 < h.heal.0 || (heal.0 == h.heal.0 && heal.2 < h.heal.2);
        if tag.attempt != attempt || older {
            return;
        }
        if h.heal != heal {
            h.heal = heal;
            h.answers.clear();
        }
        if let Some(answer) = h.answers.get(&tag.id) {
            let answer = answer.clone();
            return self.send_with(from, PeerMsg::HealReturn(tag), answer);
        }
        let newest = h.answers.last_key_value().map_or(0, |(&id, _)| id);
        if tag.id + ANSWERS_MAX <= newest {
            // Executed long ago, and its answer was had.
            return;
        }
        let result: HealResult = match postcard::from_bytes::<HealCall>(payload) {
            Ok(call) => crate::heal::execute(&mut self.store, &call),
            Err(_) => Err(Errno::EINVAL),
        };
        let answer = Bytes::from(postcard::to_allocvec(&result).unwrap_or_default());
        let h = &mut self.heals;
        h.answers.insert(tag.id, answer.clone());
        h.answers = h.answers.split_off(&newest.max(tag.id).saturating_sub(ANSWERS_MAX));
        self.send_with(from, PeerMsg::HealReturn(tag), answer);
    }

    pub(super) fn on_heal_return(&mut self, from: BrickId, tag: HealTag, payload: &Bytes) {
        let result: HealResult = postcard::from_bytes(payload).unwrap_or(Err::<HealReturn, _>(Errno::EIO));
        let _ = self.take_over_return(from, tag, &result) || self.repair_return(from, tag, &result) || self.join_return(from, tag, &result);
    }
}
