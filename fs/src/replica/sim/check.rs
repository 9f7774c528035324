//! Linearizability of registers whose written values are all different.
//!
//! After Gibbons and Korach, "Testing shared memories" (1997): all operations on one value form a cluster, whose
//! zone lies between the earliest end and the latest start in it. The history is linearizable if no read
//! ends before its write starts, no two forward zones overlap, and no backward zone lies within a forward one.

use brickraft_engine::types::Time;
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Write(u64),
    Read(u64),
    /// Everything that was answered before it began is durable once it ended.
    Sync,
}

#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub register: usize,
    pub action: Action,
    pub start: Time,
    /// `None`: never answered.
    pub end: Option<Time>,
}

#[derive(Default)]
struct Cluster {
    write: Option<(u64, u64)>,
    first_end: u64,
    last_start: u64,
    read: bool,
}

/// A write that was under way when nobody was left who remembered outcomes (`lost`) may have taken effect twice: its value is left
/// out.
fn clusters(history: &[Span], register: usize, lost: &[Time]) -> BTreeMap<u64, Cluster> {
    let mut all: BTreeMap<u64, Cluster> = BTreeMap::new();
    all.insert(0, Cluster { write: Some((0, 0)), first_end: 0, last_start: 0, read: false });
    for s in history.iter().filter(|s| s.register == register) {
        let (value, is_read) = match s.action {
            Action::Write(v) => (v, false),
            Action::Read(v) => (v, true),
            Action::Sync => continue,
        };
        let end = s.end.map_or(u64::MAX, |t| t.0);
        if is_read && end == u64::MAX {
            continue;
        }
        let c = all.entry(value).or_insert(Cluster { write: None, first_end: u64::MAX, last_start: 0, read: false });
        c.first_end = c.first_end.min(end);
        c.last_start = c.last_start.max(s.start.0);
        c.read |= is_read;
        if !is_read {
            assert!(c.write.is_none(), "{value} was written twice by the test itself");
            c.write = Some((s.start.0, end));
        }
    }
    all.retain(|_, c| c.write.is_none_or(|(start, end)| !lost.iter().any(|t| start <= t.0 && t.0 <= end)));
    all
}

pub fn assert_linearizable(history: &[Span], registers: usize, lost: &[Time]) {
    for register in 0..registers {
        let all = clusters(history, register, lost);
        let mut forward = Vec::new();
        let mut backward = Vec::new();
        for (value, c) in &all {
            let (start, end) = c.write.unwrap_or_else(|| panic!("register {register}: {value} was read but never written"));
            assert!(start <= c.first_end, "register {register}: {value} was read before it was written");
            if end == u64::MAX && !c.read {
                continue;
            }
            if c.first_end < c.last_start {
                forward.push((c.first_end, c.last_start, *value));
            } else {
                backward.push((c.last_start, c.first_end, *value));
            }
        }
        forward.sort_unstable();
        for w in forward.windows(2) {
            assert!(w[0].1 <= w[1].0, "register {register}: values {} and {} were current by turns: {w:?}", w[0].2, w[1].2);
        }
        for b in &backward {
            for f in &forward {
                let within = f.0 < b.0 && b.1 < f.1;
                assert!(!within, "register {register}: value {} was written while {} was current before and after: {b:?} {f:?}", b.2, f.2);
            }
        }
    }
}

/// For values sorted by their first part: the least second part from each place on.
fn least_from(sorted: &[(u64, u64)]) -> Vec<u64> {
    let mut least: Vec<u64> = sorted.iter().map(|e| e.1).collect();
    for i in (1..least.len()).rev() {
        least[i - 1] = least[i - 1].min(least[i]);
    }
    least
}

/// The least second part of those whose first part is above `bound`.
fn least_above(sorted: &[(u64, u64)], least: &[u64], bound: u64) -> u64 {
    least.get(sorted.partition_point(|e| e.0 <= bound)).copied().unwrap_or(u64::MAX)
}

/// After power cuts: no read shows a value older than one that was acknowledged and then synced. A sync that came
/// after a power cut found the write there no more: that loss is allowed, also of a write whose answer was on its way then.
pub fn assert_synced_survives(history: &[Span], registers: usize, cuts: &[Time]) {
    for register in 0..registers {
        let ended = || history.iter().filter(move |s| s.register == register).filter_map(|s| s.end.map(|e| (s.action, s.start.0, e.0)));
        let mut syncs: Vec<_> = ended().filter(|s| s.0 == Action::Sync).map(|s| (s.1, s.2)).collect();
        syncs.sort_unstable();
        let sync_least = least_from(&syncs);
        // For each acknowledged write: since when it is certain to survive.
        let mut secured = Vec::new();
        let mut ends = BTreeMap::from([(0, 0)]);
        for (action, start, end) in ended() {
            let Action::Write(v) = action else { continue };
            ends.insert(v, end);
            let since = least_above(&syncs, &sync_least, end);
            if !cuts.iter().any(|c| c.0 >= start && c.0 <= since) {
                secured.push((start, since));
            }
        }
        secured.sort_unstable();
        let least = least_from(&secured);
        for (action, start, _) in ended() {
            let Action::Read(v) = action else { continue };
            let Some(&shown_end) = ends.get(&v) else { continue };
            let since = least_above(&secured, &least, shown_end);
            assert!(since >= start, "register {register}: {v} was read at {start} although a later write was secured at {since}");
        }
    }
}

#[test]
fn the_checker_sees_a_value_that_comes_back() {
    let span = |action, start, end| Span { register: 0, action, start: Time(start), end: Some(Time(end)) };
    let good = [span(Action::Write(1), 1, 4), span(Action::Read(0), 2, 3), span(Action::Read(1), 3, 5), span(Action::Write(2), 6, 7)];
    assert_linearizable(&good, 1, &[]);
    let bad = [span(Action::Write(1), 1, 2), span(Action::Write(2), 3, 4), span(Action::Read(1), 5, 6)];
    assert!(std::panic::catch_unwind(|| assert_linearizable(&bad, 1, &[])).is_err());
}
