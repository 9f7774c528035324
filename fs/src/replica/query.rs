//! A query at the primary: answered from the own disk, shown when nothing in it can be undone.

use super::order::Ticket;
use super::types::{ClientRequest, ReplicaError};
use super::{DataTask, Disk, ReplicaCore, Task};
use crate::fop::{Errno, Fop, FopResult, Gfid, Reply};
use crate::store::{DataDone, DataOp};
use bytes::Bytes;

/// A client's query that waits for its turn.
pub(super) struct Query {
    pub request: ClientRequest,
    /// Other bricks were asked already.
    pub confirmed: bool,
}

impl<S: Disk> ReplicaCore<S> {
    pub(super) fn start_query(&mut self, ticket: Ticket, query: Query) {
        if let Fop::Read { gfid, offset, len } = query.request.fop {
            self.tasks.insert(ticket, Task::Query(query));
            return self.submit(DataTask::Query(ticket), DataOp::Read { gfid, offset, len });
        }
        let result = self.store.query(&query.request.fop);
        self.order.done(ticket);
        self.answer(query, result, Bytes::new());
    }

    pub(super) fn read_done(&mut self, ticket: Ticket, done: DataDone) {
        self.order.done(ticket);
        let Some(Task::Query(query)) = self.tasks.remove(&ticket) else { return };
        let (result, payload) = match done {
            DataDone::Read(Ok(data)) => (Ok(Reply::Payload), data),
            DataDone::Read(Err(e)) => (Err(e), Bytes::new()),
            _ => (Err(Errno::EIO), Bytes::new()),
        };
        self.answer(query, result, payload);
    }

    fn answer(&mut self, query: Query, result: FopResult, payload: Bytes) {
        if matches!(result, Err(Errno::EIO)) && !self.others().is_empty() {
            self.note_damage(format!("the disk cannot answer {:?}", query.request.fop));
            self.p.failed = Some(self.others());
            return self.refuse(&query.request, ReplicaError::Busy);
        }
        if !query.confirmed && self.confirm_query(&query.request, &result) {
            return;
        }
        self.show(&query.request, result, payload);
    }

    /// Sends a query's answer, once what it shows is on all bricks.
    pub(super) fn show(&mut self, r: &ClientRequest, result: FopResult, payload: Bytes) {
        let mut keys: Vec<Gfid> = super::primary::keys(&r.fop).into_iter().map(|k| k.0).collect();
        match &result {
            Ok(Reply::Attr(attr)) => keys.push(attr.gfid),
            Ok(Reply::Entries { entries, .. }) if !self.p.touch.is_empty() => keys.extend(entries.iter().map(|e| e.gfid)),
            _ => {}
        }
        if let (Fop::Open { gfid, .. }, Ok(_)) = (&r.fop, &result) {
            self.sessions.open(r.session, *gfid);
            self.sessions.remember(r.session, r.op, result.clone());
        }
        self.reply_after((r.conn, r.request), &keys, result.map_err(ReplicaError::Errno), payload);
    }
}
