//! What a brick remembers of its clients' sessions: outcomes, so that a retry is recognised, and open files.

use super::types::{ReplyTable, SessionReplies};
use crate::fop::{FopResult, Gfid};
use std::collections::BTreeMap;

/// Most outcomes that are kept for one session. A client may have at most this many unanswered operations.
pub const REPLIES_MAX: usize = 1024;
/// Most sessions; beyond, the one that was idle for the longest is forgotten.
pub const SESSIONS_MAX: usize = 16_384;

#[derive(Debug, Default)]
struct Session {
    /// Refusals too, but these are known to the primary alone.
    replies: BTreeMap<u64, FopResult>,
    /// The client has the answers of everything up to this op.
    acked: u64,
    open: BTreeMap<Gfid, u32>,
    used: u64,
    /// The session has said what it acknowledges; before, nothing is known of its operations.
    seen: bool,
    /// The table was lost before this session was seen: retries up to this op may have been carried out.
    doubtful: u64,
}

/// How many ops after the first one of a session that is seen after a loss may be retries from before it.
const DOUBT_OPS: u64 = 64;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    sessions: BTreeMap<u64, Session>,
    open: BTreeMap<Gfid, u32>,
    clock: u64,
    lost: bool,
}

/// What is known of an operation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    New,
    Done(FopResult),
    Forgotten,
}

impl Sessions {
    fn session(&mut self, id: u64) -> &mut Session {
        self.clock += 1;
        if self.sessions.len() >= SESSIONS_MAX && !self.sessions.contains_key(&id) {
            let idle = self.sessions.iter().filter(|(_, s)| s.open.is_empty()).min_by_key(|(_, s)| s.used).map(|(&id, _)| id);
            if let Some(idle) = idle {
                self.sessions.remove(&idle);
            }
        }
        let s = self.sessions.entry(id).or_default();
        s.used = self.clock;
        s
    }

    /// Drops outcomes that the client has.
    pub fn ack(&mut self, session: u64, acked: u64) {
        if session == 0 {
            return;
        }
        let lost = self.lost;
        let s = self.session(session);
        if !s.seen {
            s.seen = true;
            s.doubtful = if lost { acked + DOUBT_OPS } else { 0 };
        }
        if acked > s.acked {
            s.acked = acked;
            s.replies = s.replies.split_off(&(acked + 1));
        }
    }

    /// This brick starts without the table that clients rely on.
    pub fn begin_lost(&mut self) {
        *self = Self { lost: true, ..Self::default() };
    }

    /// Whether a retry of this op may have been carried out without the table knowing.
    pub fn is_doubtful(&self, session: u64, op: u64) -> bool {
        self.sessions.get(&session).is_none_or(|s| op <= s.doubtful)
    }

    pub fn known(&self, session: u64, op: u64) -> Known {
        let Some(s) = self.sessions.get(&session) else { return Known::New };
        match s.replies.get(&op) {
            Some(reply) => Known::Done(reply.clone()),
            None if op <= s.acked => Known::Forgotten,
            None => Known::New,
        }
    }

    pub fn remember(&mut self, session: u64, op: u64, reply: FopResult) {
        if session == 0 {
            return;
        }
        let s = self.session(session);
        if op <= s.acked {
            return;
        }
        s.replies.insert(op, reply);
        if s.replies.len() > REPLIES_MAX
            && let Some((op, _)) = s.replies.pop_first()
        {
            s.acked = s.acked.max(op);
        }
    }

    /// The reply table, to be taken over by another brick.
    pub fn table(&self) -> ReplyTable {
        let seen = self.sessions.iter().filter(|(_, s)| s.seen || !s.replies.is_empty());
        let sessions = seen.map(|(&session, s)| {
            let done = s.replies.iter().filter_map(|(&op, r)| r.as_ref().ok().map(|reply| (op, reply.clone())));
            SessionReplies { session, acked: s.acked, doubtful: s.doubtful, replies: done.collect() }
        });
        ReplyTable { lost: self.lost, sessions: sessions.collect() }
    }

    /// Replaces the reply table by the primary's, with what it does not know. Open files and what clients have
    /// acknowledged stay.
    pub fn replace_table(&mut self, table: ReplyTable) {
        self.lost = table.lost;
        for s in self.sessions.values_mut() {
            s.replies.clear();
            s.seen = false;
        }
        for row in table.sessions {
            self.ack(row.session, row.acked);
            self.session(row.session).doubtful = row.doubtful;
            for (op, reply) in row.replies {
                self.remember(row.session, op, Ok(reply));
            }
        }
    }

    pub fn open(&mut self, session: u64, gfid: Gfid) {
        *self.session(session).open.entry(gfid).or_default() += 1;
        *self.open.entry(gfid).or_default() += 1;
    }

    /// Closes once; true when nobody has it open any more.
    pub fn release(&mut self, session: u64, gfid: Gfid) -> bool {
        let Some(s) = self.sessions.get_mut(&session) else { return false };
        let Some(n) = s.open.get_mut(&gfid) else { return false };
        *n -= 1;
        if *n == 0 {
            s.open.remove(&gfid);
        }
        self.close(gfid, 1)
    }

    fn close(&mut self, gfid: Gfid, times: u32) -> bool {
        let Some(n) = self.open.get_mut(&gfid) else { return false };
        *n = n.saturating_sub(times);
        let last = *n == 0;
        if last {
            self.open.remove(&gfid);
        }
        last
    }

    pub fn has_open(&self, session: u64, gfid: Gfid) -> bool {
        self.sessions.get(&session).is_some_and(|s| s.open.contains_key(&gfid))
    }

    pub fn is_open(&self, gfid: Gfid) -> bool {
        self.open.contains_key(&gfid)
    }

    /// Forgets a session; returns the files that nobody has open any more.
    pub fn gone(&mut self, session: u64) -> Vec<Gfid> {
        let Some(s) = self.sessions.remove(&session) else { return Vec::new() };
        s.open.into_iter().filter(|&(g, n)| self.close(g, n)).map(|(g, _)| g).collect()
    }

    /// Forgets who has what open: another brick is primary now.
    pub fn forget_opens(&mut self) {
        self.open.clear();
        for s in self.sessions.values_mut() {
            s.open.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fop::Reply;

    #[test]
    fn remembers_until_acknowledged() {
        let mut s = Sessions::default();
        s.remember(7, 1, Ok(Reply::Done));
        s.remember(7, 2, Ok(Reply::Offset(2)));
        assert_eq!(s.known(7, 2), Known::Done(Ok(Reply::Offset(2))));
        s.ack(7, 1);
        assert_eq!((s.known(7, 1), s.known(7, 3), s.known(8, 1)), (Known::Forgotten, Known::New, Known::New));
        assert_eq!(s.table().sessions.len(), 1, "op 2 alone is not acknowledged");
    }

    #[test]
    fn a_loss_is_handed_on_with_the_table() {
        let (mut first, mut second) = (Sessions::default(), Sessions::default());
        first.begin_lost();
        first.open(7, Gfid([9; 16]));
        first.ack(7, 100);
        first.ack(8, 5);
        assert!(first.is_doubtful(7, 101), "a session that reopened a file before its first operation is doubtful too");
        second.ack(7, 120);
        second.replace_table(first.table());
        assert!(second.is_doubtful(7, 101) && !second.is_doubtful(7, 100 + DOUBT_OPS + 1) && second.is_doubtful(8, 6));
        second.ack(9, 40);
        assert!(second.is_doubtful(9, 41) && !second.is_doubtful(9, 40 + DOUBT_OPS + 1), "one that is first seen later");
    }

    #[test]
    fn a_file_is_open_until_its_last_release() {
        let (mut s, f) = (Sessions::default(), Gfid([9; 16]));
        s.open(1, f);
        s.open(1, f);
        s.open(2, f);
        assert!(!s.release(1, f) && !s.release(2, f) && s.is_open(f));
        assert_eq!(s.gone(1), [f]);
        assert!(!s.is_open(f) && !s.release(1, f));
    }
}
