//! A change at the primary: applied here first (names, attributes) or at once everywhere (data).

use super::flight::Launch;
use super::order::Ticket;
use super::primary::keys;
use super::sessions::Known;
use super::types::{ClientRequest, RepOp, ReplicaError};
use super::{Disk, ReplicaCore, Task};
use crate::fop::{Attr, Errno, FileKind, Fop, Gfid, RENAME_EXCHANGE, Reply};
use crate::store::{DataOp, OpCtx};
use bytes::Bytes;

impl<S: Disk> ReplicaCore<S> {
    pub(super) fn start_change(&mut self, ticket: Ticket, r: ClientRequest, confirmed: bool) {
        match self.sessions.known(r.session, r.op) {
            Known::New => {}
            known => {
                // Answered while this copy of it waited: it must not be done after its answer.
                self.order.done(ticket);
                self.p.by_op.remove(&(r.session, r.op));
                if let Known::Done(result) = known {
                    self.reply(r.conn, r.request, result.map_err(ReplicaError::Errno), Bytes::new());
                }
                return;
            }
        }
        let behind = self.objects_behind(&r.fop);
        for attr in &behind {
            if self.order.blocked(ticket, attr.gfid) {
                self.tasks.insert(ticket, Task::Change(r, confirmed));
                return;
            }
        }
        if let Err(e) = self.check_fence(&r) {
            self.order.done(ticket);
            return self.refused(&r, e, confirmed);
        }
        match r.fop {
            Fop::Write { gfid, offset } => self.start_write(ticket, r, confirmed, gfid, offset),
            Fop::Fsync { gfid, data_only } => self.start_fsync(ticket, r, confirmed, gfid, data_only),
            _ => {
                self.change_names(&r, &behind, confirmed);
                self.order.done(ticket);
            }
        }
    }

    /// The objects behind the names that a change takes away or moves.
    fn objects_behind(&mut self, fop: &Fop) -> Vec<Attr> {
        let names: Vec<(Gfid, Bytes)> = match fop {
            Fop::Unlink { parent, name } | Fop::RmDir { parent, name } => vec![(*parent, name.clone())],
            Fop::Rename { parent, name, new_parent, new_name, .. } => {
                vec![(*parent, name.clone()), (*new_parent, new_name.clone())]
            }
            _ => return Vec::new(),
        };
        let look = |(parent, name)| match self.store.query(&Fop::Lookup { parent, name }) {
            Ok(Reply::Attr(attr)) => Some(attr),
            _ => None,
        };
        names.into_iter().filter_map(look).collect()
    }

    fn change_names(&mut self, r: &ClientRequest, behind: &[Attr], confirmed: bool) {
        let keep = self.files_to_keep(&r.fop, behind);
        for &gfid in &keep {
            if let Err(e) = self.store.keep_orphan(gfid, true) {
                return self.refused(r, e, confirmed);
            }
        }
        let time = self.op_time();
        let mut touches: Vec<Gfid> = keys(&r.fop).into_iter().map(|k| k.0).collect();
        touches.extend(behind.iter().map(|a| a.gfid));
        touches.sort_unstable();
        touches.dedup();
        match self.store.apply(&r.fop, &OpCtx { time }) {
            Ok(reply) => {
                if let (Fop::Create { open: true, .. }, Reply::Attr(attr)) = (&r.fop, &reply) {
                    self.sessions.open(r.session, attr.gfid);
                }
                self.launch(Launch {
                    session: r.session,
                    op: r.op,
                    acked: r.acked,
                    time,
                    touches,
                    rep: RepOp::Fop { fop: r.fop.clone(), keep },
                    payload: Bytes::new(),
                    client: Some((r.conn, r.request)),
                    local: Some(Ok(reply)),
                });
            }
            Err(e) => {
                for &gfid in keep.iter().filter(|&&g| !self.sessions.is_open(g)).collect::<Vec<_>>() {
                    let _ = self.store.keep_orphan(gfid, false);
                }
                self.refused(r, e, confirmed);
            }
        }
    }

    /// Files that this change may take the last name of, while somebody has them open (or may have).
    fn files_to_keep(&self, fop: &Fop, behind: &[Attr]) -> Vec<Gfid> {
        let victim = match fop {
            Fop::Unlink { .. } => behind.first(),
            // Two names: the first may lack its object, and both may have the same one.
            Fop::Rename { flags, .. } if flags & RENAME_EXCHANGE == 0 && behind.len() == 2 && behind[0].gfid != behind[1].gfid => behind.get(1),
            _ => None,
        };
        let open = |a: &&Attr| self.sessions.is_open(a.gfid) || self.now < self.p.grace_until;
        victim.filter(|a| a.kind == FileKind::File && a.nlink <= 1).filter(open).map(|a| a.gfid).into_iter().collect()
    }

    fn start_write(&mut self, ticket: Ticket, r: ClientRequest, confirmed: bool, gfid: Gfid, offset: u64) {
        if let Err(e) = self.is_file(gfid) {
            self.order.done(ticket);
            return self.refused(&r, e, confirmed);
        }
        let time = self.op_time();
        let seq = self.launch_data(&r, time, gfid);
        self.submit(Self::flight_data(seq, ticket), DataOp::Write { gfid, offset, data: r.payload, time });
    }

    fn is_file(&mut self, gfid: Gfid) -> Result<(), Errno> {
        match self.store.query(&Fop::GetAttr { gfid })? {
            Reply::Attr(a) if a.kind == FileKind::Dir => Err(Errno::EISDIR),
            Reply::Attr(a) if a.kind != FileKind::File => Err(Errno::EINVAL),
            _ => Ok(()),
        }
    }

    fn start_fsync(&mut self, ticket: Ticket, r: ClientRequest, confirmed: bool, gfid: Gfid, data_only: bool) {
        // What it is to make durable has ended, since it stood in the same queue; what follows need not wait.
        self.order.done(ticket);
        if let Err(e) = self.store.query(&Fop::GetAttr { gfid }) {
            return self.refused(&r, e, confirmed);
        }
        let time = self.op_time();
        let seq = self.launch_data(&r, time, gfid);
        self.submit(Self::flight_data(seq, 0), DataOp::Fsync { gfid, data_only });
    }

    fn launch_data(&mut self, r: &ClientRequest, time: crate::fop::TimeSpec, gfid: Gfid) -> u64 {
        self.launch(Launch {
            session: r.session,
            op: r.op,
            acked: r.acked,
            time,
            touches: vec![gfid],
            rep: RepOp::Fop { fop: r.fop.clone(), keep: Vec::new() },
            payload: r.payload.clone(),
            client: Some((r.conn, r.request)),
            local: None,
        })
    }

    /// The own disk refused a change, with nothing changed.
    pub(super) fn refused(&mut self, r: &ClientRequest, e: Errno, confirmed: bool) {
        if matches!(e, Errno::EIO | Errno::EROFS) && !self.others().is_empty() {
            // The disk's trouble, not the client's: the others go on.
            self.note_damage(format!("the disk refused a change: {e}"));
            self.p.failed = Some(self.others());
            return self.busy(r);
        }
        let happened = r.retry && self.sessions.is_doubtful(r.session, r.op) && self.has_happened(&r.fop, e);
        // While another brick is asked the op counts as under way, so that a retry does not overtake it.
        if !happened && e == Errno::ENOENT && !confirmed && self.confirm_refusal(r) {
            return;
        }
        self.p.by_op.remove(&(r.session, r.op));
        let result = if happened { Ok(Reply::Done) } else { Err(e) };
        if !matches!(r.fop, Fop::Fsync { .. }) {
            self.sessions.remember(r.session, r.op, result.clone());
        }
        let touches: Vec<Gfid> = keys(&r.fop).into_iter().map(|k| k.0).collect();
        self.reply_after((r.conn, r.request), &touches, result.map_err(ReplicaError::Errno), Bytes::new());
    }

    /// A retried change whose outcome is no longer remembered: does the state show that it was done?
    fn has_happened(&mut self, fop: &Fop, e: Errno) -> bool {
        match fop {
            Fop::Unlink { .. } | Fop::RmDir { .. } => e == Errno::ENOENT,
            Fop::Rename { new_parent, new_name, flags, .. } if e == Errno::ENOENT && flags & RENAME_EXCHANGE == 0 => {
                self.store.query(&Fop::Lookup { parent: *new_parent, name: new_name.clone() }).is_ok()
            }
            _ => false,
        }
    }

    pub(super) fn start_internal(&mut self, ticket: Ticket, op: RepOp) {
        self.order.done(ticket);
        let touches = match op {
            RepOp::DropOrphan(gfid) => {
                let named = matches!(self.store.query(&Fop::GetAttr { gfid }), Ok(Reply::Attr(a)) if a.nlink > 0);
                if self.sessions.is_open(gfid) || named {
                    return;
                }
                if let Err(e) = self.store.keep_orphan(gfid, false) {
                    return self.note_damage(format!("cannot drop the nameless file {gfid}: {e}"));
                }
                vec![gfid]
            }
            _ => Vec::new(),
        };
        let time = self.op_time();
        self.launch(Launch {
            session: 0,
            op: 0,
            acked: 0,
            time,
            touches,
            rep: op,
            payload: Bytes::new(),
            client: None,
            local: Some(Ok(Reply::Done)),
        });
    }
}
