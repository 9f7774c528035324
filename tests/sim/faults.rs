//! What goes wrong, by the seed.

use super::world::{BRICKS, CLIENTS, Event, NODES, World, note};
use brickraft_engine::types::Time;
use rand::Rng;
use rand::rngs::SmallRng;
use std::time::Duration;

/// What may go wrong in this run; not everything in each, so that some runs get far into one kind of trouble.
pub struct Faults {
    kinds: Vec<Kind>,
    pause_ms: u64,
    pub end: Time,
    cuts: Vec<(Time, usize, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    KillNode,
    KillMember,
    KillBrick,
    PowerCut,
    PowerCutAll,
    CutNodes,
    CutClient,
    Isolate,
    Loss,
    Breaks,
    Slow,
    Pause,
}

const KINDS: [Kind; 12] = [
    Kind::KillNode,
    Kind::KillMember,
    Kind::KillBrick,
    Kind::PowerCut,
    Kind::PowerCutAll,
    Kind::CutNodes,
    Kind::CutClient,
    Kind::Isolate,
    Kind::Loss,
    Kind::Breaks,
    Kind::Slow,
    Kind::Pause,
];

impl Faults {
    pub fn new(rng: &mut SmallRng) -> Self {
        let share = rng.random_range(0.15..0.8);
        let kinds: Vec<Kind> = KINDS.into_iter().filter(|_| rng.random_bool(share)).collect();
        let end = Time(1_000_000 + rng.random_range(5_000_000..14_000_000));
        Self { kinds, pause_ms: rng.random_range(300..2_500), end, cuts: Vec::new() }
    }
}

impl World {
    fn down_for(&mut self) -> Duration {
        let long = self.rng.random_bool(0.4);
        Duration::from_millis(self.rng.random_range(5..if long { 4_500 } else { 500 }))
    }

    fn restart_later(&mut self, i: usize, life: u64) {
        let after = self.down_for();
        self.post_in(after, Event::Restart { node: i, life });
    }

    fn cut(&mut self, a: usize, b: usize) {
        if a == b {
            return;
        }
        let until = self.now.after(self.down_for());
        note!(self, "hosts {a} and {b} are cut off from each other");
        self.net.set_cut(a, b);
        self.faults.cuts.push((until, a.min(b), a.max(b)));
    }

    pub(super) fn fault(&mut self) {
        let now = self.now;
        let over: Vec<_> = self.faults.cuts.iter().filter(|c| c.0 <= now).copied().collect();
        self.faults.cuts.retain(|c| c.0 > now);
        for (_, a, b) in over {
            if !self.faults.cuts.iter().any(|c| (c.1, c.2) == (a, b)) {
                self.net.cut.remove(&(a, b));
            }
        }
        if now >= self.faults.end {
            return;
        }
        let gap = Duration::from_millis(self.rng.random_range(20..self.faults.pause_ms));
        self.post_in(gap, Event::Fault);
        if self.faults.kinds.is_empty() {
            return;
        }
        let kind = self.faults.kinds[self.rng.random_range(0..self.faults.kinds.len())];
        self.do_fault(kind);
    }

    fn do_fault(&mut self, kind: Kind) {
        let i = self.rng.random_range(0..NODES);
        let up = self.nodes[i].up;
        match kind {
            Kind::KillNode | Kind::PowerCut if up => {
                self.kill_node(i, kind == Kind::PowerCut);
                self.restart_later(i, 0);
            }
            Kind::PowerCutAll if self.rng.random_bool(0.3) => {
                for i in 0..NODES {
                    if self.nodes[i].up {
                        self.kill_node(i, true);
                        self.restart_later(i, 0);
                    }
                }
            }
            Kind::KillMember if up => {
                self.kill_member(i, false);
                self.restart_later(i, self.nodes[i].life);
            }
            Kind::KillBrick if up && i < BRICKS => {
                self.kill_brick(i, false);
                if let Some(brick) = &mut self.nodes[i].brick {
                    brick.down = true;
                }
                self.restart_later(i, self.nodes[i].life);
            }
            Kind::CutNodes => {
                let other = self.rng.random_range(0..NODES);
                self.cut(i, other);
            }
            Kind::CutClient => {
                let client = NODES + self.rng.random_range(0..CLIENTS);
                self.cut(i, client);
            }
            Kind::Isolate => (0..NODES).for_each(|other| self.cut(i, other)),
            Kind::Loss => self.net.loss = if self.rng.random_bool(0.5) { 0.0 } else { self.rng.random_range(0.0..0.15) },
            Kind::Breaks => self.net.breaks = if self.rng.random_bool(0.5) { 0.0 } else { self.rng.random_range(0.0..0.02) },
            Kind::Slow => {
                self.nodes[i].slow = !self.nodes[i].slow;
                note!(self, "disks of {i} are {}", if self.nodes[i].slow { "slow" } else { "fast" });
            }
            Kind::Pause => {
                let until = self.now.after(self.down_for());
                let which = self.rng.random_range(0..3);
                note!(self, "node {i} stands still ({which}) until {until:?}");
                for thread in 0..2 {
                    if which == 2 || which == thread {
                        // Never earlier than before: what waits for the end of a pause would be overtaken.
                        self.nodes[i].paused[thread] = self.nodes[i].paused[thread].max(until);
                    }
                }
            }
            _ => {}
        }
    }

    /// Everything works from now on.
    pub(super) fn repair(&mut self) {
        note!(self, "from here on nothing goes wrong");
        self.net.cut.clear();
        self.faults.cuts.clear();
        (self.net.loss, self.net.breaks) = (0.0, 0.0);
        for i in 0..NODES {
            let node = &mut self.nodes[i];
            node.slow = false;
            if !node.up || node.member.core.is_none() || node.brick.as_ref().is_some_and(|b| b.down) {
                self.restart(i, u64::MAX);
            }
        }
    }
}
