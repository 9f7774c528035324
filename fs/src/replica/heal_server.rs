//! The far end of a heal: executes each call once, and answers a repeated one from memory.

use super::types::{BrickId, HealTag, PeerMsg};
use super::{Disk, ReplicaCore, Role};
use crate::fop::Errno;
use crate::heal::{HealCall, HealResult, HealReturn};
use bytes::Bytes;
use std::collections::BTreeMap;

/// How many answers are kept; more than a healer ever has under way.
const ANSWERS_MAX: u64 = 256;

/// Heals that are remembered: those in hand, and one that ended just now.
const HEALS_MAX: usize = 4;

#[derive(Default)]
pub(super) struct HealServer {
    /// The answers given, by (epoch, heal) and call.
    heals: BTreeMap<(u64, u64), BTreeMap<u64, Bytes>>,
    /// Heals up to this one are over.
    floor: (u64, u64),
}

impl HealServer {
    /// The answers of a heal; `None`: it is over.
    fn of(&mut self, heal: (u64, u64)) -> Option<&mut BTreeMap<u64, Bytes>> {
        if heal <= self.floor {
            return None;
        }
        if !self.heals.contains_key(&heal) && self.heals.len() >= HEALS_MAX {
            let (oldest, _) = self.heals.pop_first()?;
            self.floor = oldest;
        }
        (heal > self.floor).then(|| self.heals.entry(heal).or_default())
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
