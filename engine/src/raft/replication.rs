//! Entries from the leader to its followers, and the commit index.

use super::core::{Outbox, RaftCore, State};
use super::log::{Log, entry_is_sound};
use super::membership::Membership;
use super::message::Body;
use super::output::RaftConfig;
use super::progress::{Peer, ProgressState};
use super::quorum;
use crate::types::{Entry, Index, NodeId, Term, Time};
use std::collections::BTreeMap;

/// The follower's side.
impl RaftCore {
    pub(super) fn on_append(&mut self, from: NodeId, prev: Index, prev_term: Term, commit: Index, mut entries: Vec<Entry>) {
        if let Err(reason) = check_append(self.term, prev, prev_term, &entries) {
            return self.ignore(reason);
        }
        let end = Index(prev.0 + entries.len() as u64);
        // What is committed here is the same there: only the rest needs a look.
        let (mut prev, mut prev_term) = (prev, prev_term);
        let known = self.log.commit();
        if prev < known {
            if end <= known {
                return self.promise(from, known, Body::AppendOk { matched: known });
            }
            let skipped = (known.0 - prev.0) as usize;
            prev_term = entries[skipped - 1].term;
            prev = known;
            entries.drain(..skipped);
        }
        if self.log.term_at(prev) != Some(prev_term) {
            if prev <= known {
                return self.ignore("append that contradicts committed entries");
            }
            let hint = self.log.find(prev.min(self.log.last()), prev_term);
            let Some(hint_term) = self.log.term_at(hint) else {
                return self.ignore("append of a term older than the snapshot");
            };
            return self.out.send(self.term, from, Body::AppendRefused { prev, hint, hint_term });
        }
        for entry in entries {
            match self.log.term_at(entry.index) {
                Some(term) if term == entry.term => continue,
                Some(_) => self.log.truncate(entry.index),
                None => {}
            }
            self.log.append(entry);
        }
        self.log.commit_to(commit.min(end));
        self.promise(from, end, Body::AppendOk { matched: end });
    }

    /// A commit index that the leader has capped at what this node is known to hold.
    pub(super) fn follow_commit(&mut self, commit: Index) {
        if commit > self.log.last() {
            return self.ignore("commit index past the end of the log");
        }
        self.log.commit_to(commit);
    }
}

/// Whether an append makes sense by itself.
fn check_append(term: Term, prev: Index, prev_term: Term, entries: &[Entry]) -> Result<(), &'static str> {
    if prev.0.checked_add(entries.len() as u64 + 1).is_none() {
        return Err("append past the last index");
    }
    let (mut index, mut last_term) = (prev, prev_term);
    for entry in entries {
        if entry.index != index.next() {
            return Err("append with a gap");
        }
        if entry.term < last_term || entry.term > term {
            return Err("append with impossible terms");
        }
        if !entry_is_sound(entry) {
            return Err("membership change that cannot be decoded");
        }
        (index, last_term) = (entry.index, entry.term);
    }
    Ok(())
}

/// The leader's side.
impl RaftCore {
    pub(super) fn on_append_ok(&mut self, from: NodeId, matched: Index) {
        if matched > self.log.last() {
            return self.ignore("acknowledgement of what was never sent");
        }
        let (base, now) = (self.log.base(), self.now);
        let Some(peer) = self.peer(from) else { return };
        peer.heard = Some(now);
        let agrees = matched.next() >= peer.next;
        peer.advance(matched);
        match peer.state {
            ProgressState::Probe if agrees => peer.become_replicate(),
            ProgressState::Snapshot if matched >= base => peer.become_replicate(),
            _ => {}
        }
    }

    pub(super) fn on_append_refused(&mut self, from: NodeId, prev: Index, hint: Index, hint_term: Term) {
        if prev == Index(0) {
            return self.ignore("refusal of the empty log");
        }
        let agreed = self.log.find(hint.min(Index(prev.0 - 1)), hint_term);
        let now = self.now;
        let Some(peer) = self.peer(from) else { return };
        peer.heard = Some(now);
        let stale = match peer.state {
            ProgressState::Snapshot => true,
            ProgressState::Replicate => prev <= peer.matched,
            ProgressState::Probe => prev != Index(peer.next.0 - 1),
        };
        if !stale {
            peer.become_probe(agreed.next());
        }
    }

    pub(super) fn on_heartbeat_reply(&mut self, from: NodeId, round: u64) {
        let (now, heartbeat) = (self.now, self.config.heartbeat);
        let (log, term) = (&self.log, self.term);
        let State::Leader(lead) = &mut self.state else { return };
        let latest = lead.reads.round;
        let Some(peer) = lead.peers.get_mut(&from) else { return };
        peer.heard = Some(now);
        peer.round = peer.round.max(round.min(latest));
        if let Some((sent, at)) = peer.ping.filter(|(sent, _)| *sent <= round) {
            peer.ping = None;
            // An answer to a later one says that this one's was lost.
            if sent == round {
                self.out.round_trips.push((from, now.since(at)));
            }
        }
        // Appends may have been lost. Not at every reply: rounds of reads make many.
        if now < peer.probed_at.after(heartbeat) {
            return;
        }
        peer.probed_at = now;
        peer.probing = false;
        let prev = Index(peer.next.0 - 1);
        if peer.state != ProgressState::Replicate || peer.matched >= prev {
            return;
        }
        let Some(prev_term) = log.term_at(prev) else {
            // Compacted while the window was full.
            return peer.become_probe(peer.matched.next());
        };
        let body = Body::Append { prev, prev_term, commit: log.commit(), entries: Vec::new() };
        self.out.send(term, from, body);
    }

    /// Messages to `to` get lost: stop sending ahead of the answers.
    pub fn report_unreachable(&mut self, to: NodeId) {
        if let Some(peer) = self.peer(to)
            && peer.state == ProgressState::Replicate
        {
            peer.become_probe(peer.matched.next());
        }
    }

    /// A follower's clients wait for `index`: send it the entries up to there at once, and tell it at once when they are
    /// committed. (Others hear of it with the next entries, or after [`RaftConfig::commit_delay`].) Does nothing on a node that does not lead.
    pub fn expect_commit(&mut self, to: NodeId, index: Index) {
        if let Some(peer) = self.peer(to) {
            peer.awaits = peer.awaits.max(index);
        }
    }

    pub(super) fn peer(&mut self, id: NodeId) -> Option<&mut Peer> {
        match &mut self.state {
            State::Leader(lead) => lead.peers.get_mut(&id),
            _ => None,
        }
    }

    /// Does everything that a leader does for a batch of inputs at once.
    pub(super) fn flush(&mut self) {
        if !matches!(self.state, State::Leader(_)) {
            return;
        }
        self.advance_commit();
        self.start_reads();
        self.finish_reads();
        let State::Leader(lead) = &mut self.state else { return };
        choose_spares(&self.config, self.log.membership().1, self.now, &mut lead.peers);
        let sender = Sender { config: &self.config, term: self.term, log: &self.log, now: self.now };
        for (id, peer) in &mut lead.peers {
            send_appends(&sender, *id, peer, &mut self.out);
        }
        let told = |p: &Peer| p.leaving.is_some_and(|at| p.commit_sent >= at && p.matched >= at);
        lead.peers.retain(|_, peer| !told(peer));
        self.ask_transfer();
        self.leave_if_removed();
    }

    /// An entry is committed when a majority holds it durably and it is of the own term (paper, 5.4.2). The
    /// leader counts itself like any other, by what its disk has.
    fn advance_commit(&mut self) {
        let (me, log) = (self.config.id, &mut self.log);
        let State::Leader(lead) = &mut self.state else { return };
        let matched = |id| if id == me { log.stable().0 } else { lead.peers.get(&id).map_or(0, |p| p.matched.0) };
        let agreed = Index(quorum::agreed(log.membership().1, matched));
        if agreed > log.commit() && log.term_at(agreed) == Some(self.term) {
            let bytes = log.bytes_between(log.commit(), agreed);
            lead.uncommitted_bytes = lead.uncommitted_bytes.saturating_sub(bytes);
            log.commit_to(agreed);
        }
    }

    fn ask_transfer(&mut self) {
        let last = self.log.last();
        let State::Leader(lead) = &mut self.state else { return };
        if let Some(transfer) = &mut lead.transfer
            && !transfer.asked
            && lead.peers.get(&transfer.to).is_some_and(|p| p.matched == last)
        {
            transfer.asked = true;
            self.out.send(self.term, transfer.to, Body::TimeoutNow);
        }
    }
}

/// Says of each follower whether it is spare: of the voters that take appends as they come, the quickest are as many as
/// make a majority with this node, and the others are spare; so is whoever has no vote. One that is relied on is replaced
/// when a spare one acknowledges an entry that it waited for, and that the other has had for longer, before the other
/// does. (EPaxos, SOSP 2013, calls it thrifty.)
fn choose_spares(config: &RaftConfig, members: &Membership, now: Time, peers: &mut BTreeMap<NodeId, Peer>) {
    let able =
        |peer: &Peer| peer.state == ProgressState::Replicate && peer.leaving.is_none() && peer.is_active(now, config.election_timeout);
    let needed = quorum::majority(members.voters.len()) - usize::from(members.is_voter(config.id));
    let reached = |peer: &Peer| if peer.spare { peer.matched.min(peer.waited) } else { peer.matched };
    let voters = peers.iter().filter(|(id, peer)| members.is_voter(**id) && able(peer));
    let mut quickest: Vec<_> = voters.map(|(id, peer)| (reached(peer), !peer.spare, *id)).collect();
    quickest.sort_unstable_by(|a, b| b.cmp(a));
    let enough = quickest.len() >= needed && !config.spare_delay.is_zero();
    quickest.truncate(needed);
    for (id, peer) in peers {
        peer.spare = enough && able(peer) && !quickest.iter().any(|(_, _, quick)| quick == id);
    }
}

/// What appends are made of.
struct Sender<'a> {
    config: &'a RaftConfig,
    term: Term,
    log: &'a Log,
    now: Time,
}

/// Sends a follower what it may be sent now.
fn send_appends(from: &Sender<'_>, id: NodeId, peer: &mut Peer, out: &mut Outbox) {
    let Sender { config, term, log, now } = *from;
    match peer.state {
        ProgressState::Snapshot => {}
        ProgressState::Probe => {
            let needed = peer.next <= log.last() || peer.matched.next() < peer.next;
            if needed && !peer.probing {
                peer.probing = send_append(from, id, peer, out).is_some();
            }
        }
        ProgressState::Replicate => {
            let waits = may_wait(from, peer);
            if !waits {
                if peer.behind_since.take().is_some() {
                    peer.waited = peer.next;
                }
                while peer.next <= log.last() && peer.inflight.len() < config.inflight_max {
                    let Some(end) = send_append(from, id, peer, out) else { return };
                    peer.inflight.push_back(end);
                    peer.next = end.next();
                }
            }
            let commit = log.commit().min(peer.matched);
            if commit <= peer.commit_sent {
                peer.commit_due = None;
                return;
            }
            let awaited = peer.commit_sent < peer.awaits || peer.leaving.is_some();
            if waits && !awaited {
                peer.commit_due = None; // the entries will bring it
                return;
            }
            let due = *peer.commit_due.get_or_insert(now.after(config.commit_delay));
            if now >= due || awaited {
                peer.commit_due = None;
                peer.commit_sent = commit;
                out.send(term, id, Body::Commit { commit });
            }
        }
    }
}

/// Whether the entries that a follower lacks may wait for more of them; notes since when they do.
fn may_wait(from: &Sender<'_>, peer: &mut Peer) -> bool {
    let Sender { config, log, now, .. } = *from;
    if !peer.spare || peer.next > log.last() || peer.next <= peer.awaits {
        return false;
    }
    let since = *peer.behind_since.get_or_insert(now);
    now < since.after(config.spare_delay / 2)
}

/// Sends one append from `peer.next` on, and returns the index of its end; or asks for a snapshot.
fn send_append(from: &Sender<'_>, id: NodeId, peer: &mut Peer, out: &mut Outbox) -> Option<Index> {
    let Sender { config, term, log, now } = *from;
    let prev = Index(peer.next.0 - 1);
    let Some(prev_term) = log.term_at(prev) else {
        // A silent follower could not take the stream; it is asked again when it answers a heartbeat.
        if peer.is_active(now, config.election_timeout) {
            peer.become_snapshot();
            out.send_snapshot.push(id);
        }
        return None;
    };
    let entries = log.slice(peer.next, log.last(), config.append_bytes_max);
    let end = Index(prev.0 + entries.len() as u64);
    let commit = log.commit();
    peer.commit_sent = peer.commit_sent.max(commit.min(end));
    out.send(term, id, Body::Append { prev, prev_term, commit, entries });
    Some(end)
}
