//! The controller: runs beside the Raft leader, takes bricks of dead nodes out of their groups.
//!
//! It decides by what the leader knows (node leases) and by proven process deaths, and only ever proposes
//! by compare-and-swap, so that a controller that is no longer the leader's does no harm.
//!
//! - A node that has not been heard for a lease and a margin holds no lease any more: it counted from the
//!   moment it *sent* its last renewal, which is before the leader heard it. A new leader knows nothing of
//!   what the old one heard, so it counts from the moment it became leader. A leader that stood still itself (a machine
//!   that was paused, or starved) does not count that time: what others sent it meanwhile is still on its way in.
//! - A process that is dead beyond doubt holds no lease either; a report names the brick's incarnation, so
//!   that a report of yesterday does no harm to today's process.
//! - The last in-sync brick is never removed: it has what nobody else has.

use super::types::{BrickId, ConfigProposal, GroupConfig};
use brickraft_engine::types::{NodeId, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// A longer pause between two polls is not counted beyond this: polls come every 100 ms.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A node lease's length and what is added before the controller takes it for over.
#[derive(Clone, Copy, Debug)]
pub struct ControllerConfig {
    /// How long a node may serve after it sent a renewal that was answered.
    pub lease: Duration,
    /// Added for clock drift and scheduling.
    pub margin: Duration,
    /// A proposal whose effect is not seen is made again after this time.
    pub retry: Duration,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self { lease: Duration::from_millis(1500), margin: Duration::from_millis(300), retry: Duration::from_millis(500) }
    }
}

/// What the leader knows at one moment.
#[derive(Clone, Debug, Default)]
pub struct ControllerInput {
    /// The groups, by a name that the caller chooses (volume and number).
    pub groups: BTreeMap<String, GroupConfig>,
    /// Where each brick runs.
    pub nodes: BTreeMap<BrickId, NodeId>,
    /// When each node was last heard, by the leader's clock.
    pub last_heard: BTreeMap<NodeId, Time>,
    /// Since when this member is leader; `None`: it is not, and nothing is proposed.
    pub leader_since: Option<Time>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Controller {
    config: ControllerConfig,
    deaths: BTreeSet<(BrickId, u64)>,
    proposed: BTreeMap<String, (u64, Time)>,
    /// When it was last asked.
    polled: Option<Time>,
    /// Pauses in which it was not: when each ended, and how long it was beyond [`PAUSE_MAX`].
    pauses: VecDeque<(Time, Duration)>,
}

impl Controller {
    /// The most death reports that are kept.
    const DEATHS_MAX: usize = 4096;
    /// Pauses that are remembered.
    const PAUSES_MAX: usize = 64;

    /// A controller that knows nothing yet.
    #[must_use]
    pub fn new(config: ControllerConfig) -> Self {
        Self { config, deaths: BTreeSet::new(), proposed: BTreeMap::new(), polled: None, pauses: VecDeque::new() }
    }

    /// A peer saw that the process which ran `brick` under `incarnation` is dead beyond doubt.
    pub fn process_died(&mut self, brick: BrickId, incarnation: u64) {
        if self.deaths.len() >= Self::DEATHS_MAX {
            self.deaths.pop_first();
        }
        self.deaths.insert((brick, incarnation));
    }

    /// What to commit now. Call on every change of the groups, on every death report and at least every
    /// 100 ms.
    pub fn poll(&mut self, now: Time, input: &ControllerInput) -> Vec<(String, ConfigProposal)> {
        let Some(since) = input.leader_since else {
            self.proposed.clear();
            (self.polled, self.pauses) = (None, VecDeque::new());
            return Vec::new();
        };
        if let Some(pause) = self.polled.replace(now).map(|last| now.since(last).saturating_sub(PAUSE_MAX)).filter(|p| !p.is_zero()) {
            self.pauses.push_back((now, pause));
            if self.pauses.len() > Self::PAUSES_MAX {
                self.pauses.pop_front();
            }
        }
        let mut out = Vec::new();
        for (name, group) in &input.groups {
            let gone: Vec<_> = group.in_sync.iter().copied().filter(|&b| self.is_gone(now, since, input, group, b)).collect();
            let Some(new) = group.without(&gone) else { continue };
            let again = self.proposed.get(name).is_none_or(|&(epoch, at)| epoch != group.epoch || now.since(at) >= self.config.retry);
            if again {
                self.proposed.insert(name.clone(), (group.epoch, now));
                out.push((name.clone(), ConfigProposal { expect_epoch: group.epoch, new }));
            }
        }
        self.proposed.retain(|name, _| input.groups.contains_key(name));
        out
    }

    fn is_gone(&self, now: Time, since: Time, input: &ControllerInput, group: &GroupConfig, brick: BrickId) -> bool {
        if group.incarnations.get(&brick).is_some_and(|&i| self.deaths.contains(&(brick, i))) {
            return true;
        }
        let Some(node) = input.nodes.get(&brick) else { return false };
        let heard = input.last_heard.get(node).copied().unwrap_or(since).max(since);
        let stood_still: Duration = self.pauses.iter().filter(|(end, _)| *end > heard).map(|(_, pause)| *pause).sum();
        now.since(heard) > self.config.lease + self.config.margin + stood_still
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Time {
        Time(0).after(Duration::from_millis(n))
    }

    /// A group of two bricks; the leader heard of the first one's node a moment ago, and of the second one's at `heard`.
    fn poll(controller: &mut Controller, now: u64, heard: u64) -> bool {
        let nodes = BTreeMap::from([(1, NodeId(1)), (2, NodeId(2))]);
        let group = GroupConfig { epoch: 1, primary: 1, members: vec![1, 2], in_sync: vec![1, 2], ..GroupConfig::default() };
        let input = ControllerInput {
            groups: BTreeMap::from([("g".to_owned(), group)]),
            nodes,
            last_heard: BTreeMap::from([(NodeId(1), ms(now)), (NodeId(2), ms(heard))]),
            leader_since: Some(ms(0)),
        };
        !controller.poll(ms(now), &input).is_empty()
    }

    #[test]
    fn who_is_not_heard_for_a_lease_leaves() {
        let mut controller = Controller::new(ControllerConfig::default());
        let left: Vec<u64> = (0..4000).step_by(100).filter(|&now| poll(&mut controller, now, now.min(1000))).collect();
        assert_eq!(left, [2900, 3400, 3900], "1000 ms, a lease of 1500 ms, a margin of 300 ms, and again after 500 ms");
    }

    #[test]
    fn a_leader_that_stood_still_does_not_count_that_time() {
        let mut controller = Controller::new(ControllerConfig::default());
        assert!(!poll(&mut controller, 1000, 1000));
        // What the other node sent in these four seconds has not been read yet.
        assert!(!poll(&mut controller, 5000, 1000));
        assert!(!(5100..6400).step_by(100).any(|now| poll(&mut controller, now, 1000)));
        assert!(poll(&mut controller, 6400, 1000), "it does not come any more: 1.8 s, of which the pause counts 0.5");
        // Who was heard after the pause has no more time than others.
        let mut controller = Controller::new(ControllerConfig::default());
        let left = (0..20_000).step_by(100).find(|&now| !(1000..5000).contains(&now) && poll(&mut controller, now, now.min(5500)));
        assert_eq!(left, Some(7400));
    }

    #[test]
    fn who_is_dead_leaves_although_polls_are_slow() {
        let mut controller = Controller::new(ControllerConfig::default());
        assert!((0..10_000).step_by(700).any(|now| poll(&mut controller, now, 0)));
    }
}
