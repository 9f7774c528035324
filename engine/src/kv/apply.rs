//! Commands on the state in memory. Deterministic: no clock, no random, no hash order.
//!
//! A command is checked wholly before its first write, so that it either happens or leaves nothing behind.

use super::alarm::{Alarm, Alarms};
use super::auth::AuthState;
use super::base::Base;
use super::check::check_command;
use super::codec::{Rev, State, attached_key, damaged};
use super::error::{ReadError, StoreError};
use super::fold::RECORD_OVERHEAD_BYTES;
use super::keys::KeyHash;
use super::overlay::{self, Overlay, Recent};
use super::read::{Hit, Layer, Numbers, Span, View};
use super::store::{ApplyEntry, ApplyOutcome, MemberAttributes, Wanted};
use super::table::{Rows, Tbl};
use super::tally::Tally;
use super::types::{
    Applied, Command, CommandResponse, Compare, CompareOp, CompareTarget, DeleteRangeRequest, Event, KeyValue, Keyspace, KvError,
    OpResponse, PutRequest, TxnOp, TxnRequest,
};
use crate::types::{NodeId, Revision};
use bytes::Bytes;
use std::sync::Arc;

/// etcd's bound on a lease's time.
const LEASE_TTL_S_MAX: i64 = 9_000_000_000;
/// Puts in a batch from which on [`Writer::warm`] is worth its time.
const WARM_MIN: usize = 8;
/// What is wanted of a change of a key.
pub(super) type Wants<'t> = &'t dyn Fn(Keyspace, &Bytes) -> Wanted;

/// A request refused, or a store that failed.
pub(super) enum Stop {
    Kv(KvError),
    Store(StoreError),
}

impl<E: Into<StoreError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Store(error.into())
    }
}

impl Stop {
    fn from_read(error: ReadError) -> Self {
        match error {
            ReadError::Kv(e) => Self::Kv(e),
            ReadError::CompactedAt(_) => Self::Kv(KvError::Compacted),
            ReadError::Store(e) => Self::Store(e),
        }
    }
}

/// The changes of one command: all have the same main revision.
struct Change {
    keyspace: Keyspace,
    main: u64,
    count: u32,
    /// Those that are wanted.
    events: Vec<Event>,
}

impl Change {
    fn next_rev(&self) -> Rev {
        Rev { main: self.main, sub: self.count }
    }
}

/// A transaction's chosen branch, nested ones included.
struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

/// Everything open for writing: changes go to the overlay, over what is being folded and the file.
pub(super) struct Writer<'t> {
    pub(super) state: State,
    membership: Option<Bytes>,
    keyspaces: &'t mut [Recent; 2],
    frozen: Option<&'t Overlay>,
    base: &'t Base,
    leases: Tbl<'t>,
    pub(super) attached: Tbl<'t>,
    members: Tbl<'t>,
    alarm_table: Tbl<'t>,
    pub(super) alarms: Alarms,
    pub(super) auth_table: Tbl<'t>,
    /// What `auth_table` holds.
    pub(super) auth: Arc<AuthState>,
    wants: Wants<'t>,
    /// By key space.
    tally: [Tally; 2],
    /// Operations counted before the transaction that is under way.
    ops_before: u64,
}

/// Inserts, keeping count of the bytes in use.
pub(super) fn insert(table: &mut Tbl<'_>, used: &mut u64, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
    let replaced = table.insert(key, value)?.map(|old| old.value().len());
    match replaced {
        Some(old) => *used = used.saturating_sub(old as u64),
        None => *used += key.len() as u64 + RECORD_OVERHEAD_BYTES,
    }
    *used += value.len() as u64;
    Ok(())
}

pub(super) fn remove(table: &mut Tbl<'_>, used: &mut u64, key: &[u8]) -> Result<bool, StoreError> {
    let Some(removed) = table.remove(key)?.map(|old| old.value().len()) else { return Ok(false) };
    *used = used.saturating_sub((removed + key.len()) as u64 + RECORD_OVERHEAD_BYTES);
    Ok(true)
}

impl<'t> Writer<'t> {
    pub(super) fn open(
        overlay: &'t mut Overlay,
        frozen: Option<&'t Overlay>,
        base: &'t Base,
        state: State,
        alarms: Alarms,
        auth: Arc<AuthState>,
        wants: Wants<'t>,
    ) -> Self {
        // In the order of `PLAIN_TABLES`.
        let [leases, attached, members, alarm_table, auth_table] = overlay.plain.each_mut();
        let table = |place: usize, changes| Tbl { changes, frozen: frozen.map(|f| &f.plain[place]), base: &base.plain[place] };
        Self {
            state,
            membership: None,
            keyspaces: &mut overlay.keyspaces,
            frozen,
            base,
            leases: table(0, leases),
            attached: table(1, attached),
            members: table(2, members),
            alarm_table: table(3, alarm_table),
            alarms,
            auth_table: table(4, auth_table),
            auth,
            wants,
            tally: Default::default(),
            ops_before: 0,
        }
    }

    /// What was done with the user's keys and leases.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally[Keyspace::User as usize]
    }

    /// Counts what was done since the last call as a transaction, where it is more than one operation.
    fn end_txn(&mut self, keyspace: Keyspace) {
        let tally = &mut self.tally[keyspace as usize];
        let ops = tally.ops();
        tally.txns += u64::from(ops - self.ops_before > 1);
        self.ops_before = ops;
    }

    /// What it led to, alarms, users, and the membership where that changed.
    pub(super) fn finish(self) -> (State, Alarms, Arc<AuthState>, Option<Bytes>) {
        (self.state, self.alarms, self.auth, self.membership)
    }

    /// Makes ready for the puts of many entries, where there are enough of them that it pays.
    pub(super) fn warm(&self, batch: &[ApplyEntry]) {
        let mut hashes: [Vec<KeyHash>; 2] = Default::default();
        for command in batch.iter().filter_map(|entry| entry.command.as_ref()) {
            match command.unwrapped().1 {
                Command::Put(keyspace, put) => hashes[*keyspace as usize].push(KeyHash::of(&put.key)),
                Command::Txn(keyspace, txn) => {
                    let puts = txn.success.iter().filter_map(|op| if let TxnOp::Put(put) = op { Some(&put.key) } else { None });
                    hashes[*keyspace as usize].extend(puts.map(|key| KeyHash::of(key)));
                }
                _ => {}
            }
        }
        for (keyspace, hashes) in [Keyspace::User, Keyspace::System].into_iter().zip(&hashes).filter(|(_, hashes)| hashes.len() >= WARM_MIN)
        {
            let mut left = self.keyspaces[keyspace as usize].warm(hashes);
            if let Some(frozen) = self.frozen {
                left = frozen.keyspace(keyspace).warm(&left);
            }
            self.base.keyspaces[keyspace as usize].warm(&left);
        }
    }

    /// Applies one entry, or skips it when it has been applied.
    pub(super) fn apply(&mut self, entry: &ApplyEntry) -> Result<ApplyOutcome, StoreError> {
        let keyspace = match entry.command.as_ref().map(|command| command.unwrapped().1) {
            Some(Command::Put(ks, _) | Command::DeleteRange(ks, _) | Command::Txn(ks, _) | Command::Compact { keyspace: ks, .. }) => *ks,
            _ => Keyspace::User,
        };
        let mut change = Change { keyspace, main: self.state.revision(keyspace).next().0, count: 0, events: Vec::new() };
        let mut result = Ok(CommandResponse::Done);
        let skipped = entry.index <= self.state.applied;
        if !skipped {
            if entry.index != self.state.applied.next() {
                return Err(StoreError::Gap { applied: self.state.applied, got: entry.index });
            }
            if let Some(command) = &entry.command {
                self.ops_before = self.tally[keyspace as usize].ops();
                result = match self.command(command, &mut change) {
                    Ok(response) => Ok(response),
                    Err(Stop::Kv(error)) => Err(error),
                    Err(Stop::Store(error)) => return Err(error),
                };
                self.end_txn(keyspace);
            }
            if let Some(membership) = &entry.membership {
                self.membership = Some(membership.clone());
            }
            self.state.applied = entry.index;
            self.state.term = entry.term;
            if change.count != 0 {
                self.state.keyspaces[keyspace as usize].revision = change.main;
            }
        }
        let applied = Applied { revision: self.state.revision(keyspace), result };
        Ok(ApplyOutcome { index: entry.index, applied, keyspace, events: change.events, skipped })
    }

    fn command(&mut self, command: &Command, change: &mut Change) -> Result<CommandResponse, Stop> {
        check_command(command, usize::MAX).map_err(Stop::Kv)?;
        let (who, command) = command.unwrapped();
        self.authorize(who, command)?;
        if let Some(refusal) = self.alarms.refuse(command) {
            return Err(Stop::Kv(refusal));
        }
        match command {
            Command::Put(_, put) => {
                self.check_put(put, change)?;
                self.put(put, change).map(CommandResponse::Op)
            }
            Command::DeleteRange(_, delete) => self.delete_range(delete, change).map(CommandResponse::Op),
            Command::Txn(_, txn) => {
                let path = self.choose(txn, change)?;
                if !reads_only(txn) {
                    self.end_txn(change.keyspace);
                }
                self.check_path(txn, &path, change)?;
                self.txn(txn, &path, change).map(CommandResponse::Op)
            }
            Command::Compact { keyspace, revision } => self.compact(*keyspace, *revision),
            Command::LeaseGrant { id, ttl_s } => self.lease_grant(*id, *ttl_s),
            Command::LeaseRevoke { id } => self.lease_revoke(*id, change),
            Command::MemberAttributes { id, name, client_urls } => self.member_attributes(*id, name, client_urls),
            Command::Alarm { activate, alarm } => self.alarm(*activate, *alarm),
            Command::Auth(command) => self.auth_command(command),
            // `check_command` refuses one inside another.
            Command::As { .. } => Ok(CommandResponse::Done),
        }
    }

    fn view(&self, change: &Change) -> View<'_> {
        let state = &self.state.keyspaces[change.keyspace as usize];
        let frozen = self.frozen.map(|frozen| Layer::Own(frozen.keyspace(change.keyspace)));
        View {
            layers: [Some(Layer::Own(&self.keyspaces[change.keyspace as usize])), frozen],
            base: &self.base.keyspaces[change.keyspace as usize],
            revision: if change.count == 0 { state.revision } else { change.main },
            compact: state.compact,
        }
    }

    /// What a put needs of the state: a lease to attach to, a key to take value or lease from.
    fn check_put(&self, put: &PutRequest, change: &Change) -> Result<(), Stop> {
        if put.lease != 0 {
            // Leases belong to clients; the cluster's own keys have none.
            let known = change.keyspace == Keyspace::User && self.leases.get(&put.lease.to_be_bytes()[..])?.is_some();
            if !known {
                return Err(Stop::Kv(KvError::LeaseNotFound));
            }
        }
        if (put.ignore_value || put.ignore_lease) && self.view(change).get(&put.key, false)?.is_none() {
            return Err(Stop::Kv(KvError::KeyNotFound));
        }
        Ok(())
    }

    fn put(&mut self, put: &PutRequest, change: &mut Change) -> Result<OpResponse, Stop> {
        let wanted = (self.wants)(change.keyspace, &put.key);
        let wants_prev = put.prev_kv || wanted == Wanted::EventAndPrev;
        let tally = &mut self.tally[change.keyspace as usize];
        tally.puts += 1;
        tally.ranges += u64::from(put.prev_kv || put.ignore_value || put.ignore_lease);
        let hash = KeyHash::of(&put.key);
        // Most puts need no more than numbers of what they supersede.
        let (hit, old) = if wants_prev || put.ignore_value {
            let hit = self.view(change).get(&put.key, true)?;
            let old = hit.as_ref().map(Numbers::of_hit);
            (hit, old)
        } else {
            (None, self.view(change).numbers(&put.key, hash)?)
        };
        let rev = change.next_rev();
        let kv = KeyValue {
            key: put.key.clone(),
            value: match &hit {
                Some(hit) if put.ignore_value => hit.kv.value.clone(),
                _ => put.value.clone(),
            },
            create_revision: old.map_or(Revision(rev.main), |old| Revision(old.create)),
            mod_revision: Revision(rev.main),
            version: old.map_or(1, |old| old.version.saturating_add(1)),
            lease: match old {
                Some(old) if put.ignore_lease => old.lease,
                _ => put.lease,
            },
        };
        self.attach(&kv.key, old.map_or(0, |old| old.lease), kv.lease)?;
        let prev_kv = hit.filter(|_| wants_prev).map(|hit| hit.kv);
        let response = OpResponse::Put { prev_kv: prev_kv.as_ref().filter(|_| put.prev_kv).cloned().map(Box::new) };
        if wanted != Wanted::Nothing {
            change.events.push(Event { delete: false, kv: kv.clone(), prev_kv });
        }
        change.count += 1;
        self.log(change.keyspace, rev, false, kv, old.map(|old| old.rev), hash);
        Ok(response)
    }

    /// Adds to the history.
    fn log(&mut self, ks: Keyspace, rev: Rev, delete: bool, kv: KeyValue, old: Option<Rev>, hash: KeyHash) {
        let change = overlay::Change {
            rev,
            delete,
            create: kv.create_revision.0,
            version: kv.version,
            lease: kv.lease,
            prev: old.unwrap_or(Rev::NONE),
            older: overlay::NOWHERE,
            key: kv.key,
            value: kv.value,
        };
        self.keyspaces[ks as usize].push(change, hash);
    }

    /// Moves a key from one lease to another; 0 is none.
    fn attach(&mut self, key: &[u8], from: i64, to: i64) -> Result<(), StoreError> {
        if from != to {
            let used = &mut self.state.used_bytes;
            if from != 0 {
                remove(&mut self.attached, used, &attached_key(from, key))?;
            }
            if to != 0 {
                insert(&mut self.attached, used, &attached_key(to, key), &[])?;
            }
        }
        Ok(())
    }

    fn delete(&mut self, mut old: Hit, change: &mut Change) -> Result<(), StoreError> {
        let rev = change.next_rev();
        let wanted = (self.wants)(change.keyspace, &old.kv.key);
        let wants_prev = wanted == Wanted::EventAndPrev;
        if wants_prev {
            self.view(change).load(&mut old)?;
        }
        let key = old.kv.key.clone();
        let kv = KeyValue { key, mod_revision: Revision(rev.main), ..KeyValue::default() };
        self.attach(&kv.key, old.kv.lease, 0)?;
        if wanted != Wanted::Nothing {
            change.events.push(Event { delete: true, kv: kv.clone(), prev_kv: wants_prev.then_some(old.kv) });
        }
        change.count += 1;
        let hash = KeyHash::of(&kv.key);
        self.log(change.keyspace, rev, true, kv, Some(old.rev), hash);
        Ok(())
    }

    fn delete_range(&mut self, request: &DeleteRangeRequest, change: &mut Change) -> Result<OpResponse, Stop> {
        let tally = &mut self.tally[change.keyspace as usize];
        tally.deletes += 1;
        tally.ranges += u64::from(request.prev_kv);
        let hits = self.view(change).all(Span::new(&request.key, &request.range_end), request.prev_kv)?;
        let deleted = hits.len() as u64;
        let mut prev_kvs = Vec::new();
        for hit in hits {
            if request.prev_kv {
                prev_kvs.push(hit.kv.clone());
            }
            self.delete(hit, change)?;
        }
        Ok(OpResponse::DeleteRange { deleted, prev_kvs })
    }

    /// Evaluates the comparisons, nested ones too, on the state before the transaction (as etcd does).
    fn choose(&mut self, txn: &TxnRequest, change: &Change) -> Result<Path, Stop> {
        let mut succeeded = true;
        for compare in &txn.compare {
            self.tally[change.keyspace as usize].ranges += 1;
            if !self.holds(compare, change)? {
                succeeded = false;
                break;
            }
        }
        let mut nested = Vec::new();
        for op in if succeeded { &txn.success } else { &txn.failure } {
            if let TxnOp::Txn(inner) = op {
                nested.push(self.choose(inner, change)?);
            }
        }
        Ok(Path { succeeded, nested })
    }

    fn holds(&self, compare: &Compare, change: &Change) -> Result<bool, Stop> {
        let values = matches!(compare.target, CompareTarget::Value(_));
        let hits = self.view(change).all(Span::new(&compare.key, &compare.range_end), values)?;
        if hits.is_empty() {
            // A key that is not there compares like zeros, but has no value to compare.
            return Ok(!values && compares(compare, &KeyValue::default()));
        }
        Ok(hits.iter().all(|hit| compares(compare, &hit.kv)))
    }

    fn check_path(&self, txn: &TxnRequest, path: &Path, change: &Change) -> Result<(), Stop> {
        let mut nested = path.nested.iter();
        for op in if path.succeeded { &txn.success } else { &txn.failure } {
            match op {
                TxnOp::Range(range) => self.view(change).check_revision(range.revision).map_err(Stop::Kv)?,
                TxnOp::Put(put) => self.check_put(put, change)?,
                TxnOp::DeleteRange(_) => {}
                TxnOp::Txn(inner) => {
                    if let Some(path) = nested.next() {
                        self.check_path(inner, path, change)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn txn(&mut self, txn: &TxnRequest, path: &Path, change: &mut Change) -> Result<OpResponse, Stop> {
        let mut nested = path.nested.iter();
        let ops = if path.succeeded { &txn.success } else { &txn.failure };
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops {
            responses.push(match op {
                TxnOp::Range(range) => {
                    self.tally[change.keyspace as usize].ranges += 1;
                    OpResponse::Range(self.view(change).range(range).map_err(Stop::from_read)?)
                }
                TxnOp::Put(put) => self.put(put, change)?,
                TxnOp::DeleteRange(delete) => self.delete_range(delete, change)?,
                TxnOp::Txn(inner) => match nested.next() {
                    Some(path) => self.txn(inner, path, change)?,
                    None => continue,
                },
            });
        }
        Ok(OpResponse::Txn { succeeded: path.succeeded, responses })
    }

    /// Forgets history at once for readers; the folds to come remove it from the file by and by.
    fn compact(&mut self, keyspace: Keyspace, revision: Revision) -> Result<CommandResponse, Stop> {
        let state = &mut self.state.keyspaces[keyspace as usize];
        if revision.0 <= state.compact {
            return Err(Stop::Kv(KvError::Compacted));
        }
        if revision.0 > state.revision {
            return Err(Stop::Kv(KvError::FutureRevision));
        }
        state.compact = revision.0;
        Ok(CommandResponse::Compacted)
    }

    fn lease_grant(&mut self, id: i64, ttl_s: i64) -> Result<CommandResponse, Stop> {
        if ttl_s > LEASE_TTL_S_MAX {
            return Err(Stop::Kv(KvError::LeaseTtlTooLarge));
        }
        let key = id.to_be_bytes();
        // 0 means "no lease" everywhere; a proposer replaces it by an id, and nothing else may be 0.
        if id == 0 || self.leases.get(&key[..])?.is_some() {
            return Err(Stop::Kv(KvError::LeaseExists));
        }
        let ttl_s = ttl_s.max(1);
        insert(&mut self.leases, &mut self.state.used_bytes, &key, &ttl_s.to_le_bytes())?;
        self.tally[Keyspace::User as usize].leases_granted += 1;
        Ok(CommandResponse::LeaseGranted { id, ttl_s })
    }

    fn lease_revoke(&mut self, id: i64, change: &mut Change) -> Result<CommandResponse, Stop> {
        if !remove(&mut self.leases, &mut self.state.used_bytes, &id.to_be_bytes())? {
            return Err(Stop::Kv(KvError::LeaseNotFound));
        }
        self.tally[Keyspace::User as usize].leases_revoked += 1;
        for key in lease_keys(&self.attached.rows(), id)? {
            self.tally[change.keyspace as usize].deletes += 1;
            match self.view(change).get(&key, false)? {
                Some(hit) => self.delete(hit, change)?,
                None => return Err(damaged("attached", "key that does not exist", &key).into()),
            }
        }
        Ok(CommandResponse::LeaseRevoked)
    }

    fn member_attributes(&mut self, id: NodeId, name: &str, urls: &[String]) -> Result<CommandResponse, Stop> {
        let attributes = MemberAttributes { name: name.to_owned(), client_urls: urls.to_vec() };
        let bytes =
            postcard::to_allocvec(&attributes).map_err(|e| StoreError::Damaged { table: "members", what: format!("encode: {e}") })?;
        insert(&mut self.members, &mut self.state.used_bytes, &id.0.to_be_bytes(), &bytes)?;
        Ok(CommandResponse::Done)
    }

    /// Forgets what belongs to the members of the cluster that a backup was of.
    pub(super) fn refound(&mut self, bump_revision: u64, mark_compacted: bool) -> Result<(), StoreError> {
        let used = &mut self.state.used_bytes;
        let mut keys = Vec::new();
        for item in self.members.rows().range::<&[u8]>(..)? {
            keys.push(item?.0.value().to_vec());
        }
        for key in keys {
            remove(&mut self.members, used, &key)?;
        }
        for alarm in std::mem::take(&mut self.alarms.0) {
            remove(&mut self.alarm_table, used, &alarm.key())?;
        }
        let user = &mut self.state.keyspaces[Keyspace::User as usize];
        user.revision = user.revision.saturating_add(bump_revision);
        if mark_compacted {
            user.compact = user.revision;
        }
        Ok(())
    }

    /// Answers with the alarm where it is active (again) or was taken back, as etcd does.
    fn alarm(&mut self, activate: bool, alarm: Alarm) -> Result<CommandResponse, Stop> {
        let used = &mut self.state.used_bytes;
        let changed = if activate {
            if self.alarms.0.insert(alarm) {
                insert(&mut self.alarm_table, used, &alarm.key(), &[])?;
            }
            true
        } else {
            self.alarms.0.remove(&alarm) && remove(&mut self.alarm_table, used, &alarm.key())?
        };
        Ok(CommandResponse::Alarms(if changed { vec![alarm] } else { Vec::new() }))
    }
}

/// Whether no branch of it changes anything, by itself.
fn reads_only(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).all(|op| matches!(op, TxnOp::Range(_)))
}

fn compares(compare: &Compare, kv: &KeyValue) -> bool {
    let order = match &compare.target {
        CompareTarget::Version(version) => kv.version.cmp(version),
        CompareTarget::Create(revision) => kv.create_revision.cmp(revision),
        CompareTarget::Mod(revision) => kv.mod_revision.cmp(revision),
        CompareTarget::Value(value) => kv.value.cmp(value),
        CompareTarget::Lease(lease) => kv.lease.cmp(lease),
    };
    match compare.op {
        CompareOp::Equal => order.is_eq(),
        CompareOp::Greater => order.is_gt(),
        CompareOp::Less => order.is_lt(),
        CompareOp::NotEqual => order.is_ne(),
    }
}

/// The keys attached to a lease, in order.
pub(super) fn lease_keys(attached: &Rows<'_>, id: i64) -> Result<Vec<Bytes>, StoreError> {
    let prefix = id.to_be_bytes();
    let mut keys = Vec::new();
    for item in attached.range::<&[u8]>(&prefix[..]..)? {
        let (key, _) = item?;
        match key.value().strip_prefix(&prefix[..]) {
            Some(key) => keys.push(Bytes::copy_from_slice(key)),
            None => break,
        }
    }
    Ok(keys)
}
