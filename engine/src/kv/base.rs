//! The file as the last checkpoint left it, open for reading. It stays as it is while somebody holds it.

use super::codec::{Current, Logged, META, META_HISTORY, META_MEMBERSHIP, META_STATE, PLAIN_TABLES, Rev, State, damaged, tables_of};
use super::current::{self, Found, Keys};
use super::error::StoreError;
use super::history::{Account, History};
use super::keys::KeyHash;
use super::known::Known;
use super::read::{Numbers, Span};
use super::runs::{OldVersion, OldVersions};
use super::types::Keyspace;
use bytes::Bytes;
use redb::{Database, ReadOnlyTable, ReadTransaction, ReadableDatabase as _, ReadableTable};
use std::cmp::Ordering;
use std::sync::Arc;

pub(super) type ReadTable = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// All tables at the last checkpoint.
pub(super) struct Base {
    pub keyspaces: [BaseKeyspace; 2],
    /// In the order of [`PLAIN_TABLES`].
    pub plain: [ReadTable; PLAIN_TABLES.len()],
    /// What they were opened in. A new one, opened in the midst of a checkpoint, would show a part of that.
    pub txn: Arc<ReadTransaction>,
    /// For as long as somebody holds `txn`, what its tables tell of stays there.
    pub history: Arc<History>,
}

impl std::fmt::Debug for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Base").field("revisions", &self.keyspaces.each_ref().map(|k| k.revision)).finish()
    }
}

/// One key space's tables.
pub(super) struct BaseKeyspace {
    current: ReadTable,
    log: ReadTable,
    /// What `log` tells of.
    history: Arc<History>,
    index: ReadTable,
    /// The last revision in them.
    pub revision: u64,
    /// Some of what is in them.
    pub known: Known,
}

pub(super) fn read_state(meta: &impl ReadableTable<&'static [u8], &'static [u8]>) -> Result<Option<(State, Option<Bytes>)>, StoreError> {
    let Some(state) = meta.get(META_STATE)? else { return Ok(None) };
    let state = State::decode(state.value())?;
    let membership = meta.get(META_MEMBERSHIP)?.map(|m| Bytes::copy_from_slice(m.value()));
    Ok(Some((state, membership)))
}

/// What is where in the history files.
pub(super) fn read_account(meta: &impl ReadableTable<&'static [u8], &'static [u8]>) -> Result<Account, StoreError> {
    meta.get(META_HISTORY)?.map_or(Ok(Account::default()), |account| Account::decode(account.value()))
}

pub(super) fn read_state_of(txn: &ReadTransaction) -> Result<(State, Option<Bytes>), StoreError> {
    read_state(&txn.open_table(META)?)?.ok_or_else(|| damaged("meta", "state", &[]))
}

impl Base {
    /// `known`: what is known of each key space's file.
    pub(super) fn open(db: &Database, history: &Arc<History>, known: [Known; 2]) -> Result<Self, StoreError> {
        let txn = db.begin_read()?;
        let (state, _) = read_state_of(&txn)?;
        let keyspace = |keyspace: Keyspace, known| -> Result<BaseKeyspace, StoreError> {
            let [current, log, index] = tables_of(keyspace);
            let revision = state.revision(keyspace).0;
            Ok(BaseKeyspace {
                current: txn.open_table(current)?,
                log: txn.open_table(log)?,
                history: Arc::clone(history),
                index: txn.open_table(index)?,
                revision,
                known,
            })
        };
        let [user, system] = known;
        let keyspaces = [keyspace(Keyspace::User, user)?, keyspace(Keyspace::System, system)?];
        let mut plain = Vec::new();
        for table in PLAIN_TABLES {
            plain.push(txn.open_table(table)?);
        }
        let plain = plain.try_into().map_err(|_| damaged("meta", "count of tables", &[]))?;
        Ok(Self { keyspaces, plain, txn: Arc::new(txn), history: Arc::clone(history) })
    }
}

#[cfg(test)]
impl Base {
    /// Where all blocks outside lie.
    pub(super) fn extents(&self) -> Vec<std::ops::Range<u64>> {
        let mut extents = Vec::new();
        for table in self.keyspaces.iter().flat_map(|keyspace| [&keyspace.log, &keyspace.index]) {
            for row in table.iter().unwrap() {
                extents.extend(super::history::extent_of(row.unwrap().1.value()));
            }
        }
        extents
    }
}

impl BaseKeyspace {
    /// The living version of a key.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Found<'_>>, StoreError> {
        current::get(&self.current, key)
    }

    /// The numbers of a key's living version.
    pub(super) fn numbers(&self, key: &[u8], hash: KeyHash) -> Result<Option<Numbers>, StoreError> {
        if let Some(numbers) = self.known.get(key, hash) {
            return Ok(numbers);
        }
        let Some(found) = self.get(key)? else { return Ok(None) };
        let Current { rev, create, version, lease, .. } = Current::decode(found.record())?;
        Ok(Some(Numbers { rev, create, version, lease }))
    }

    /// As [`super::overlay::Recent::warm`].
    pub(super) fn warm(&self, hashes: &[KeyHash]) {
        self.known.warm(hashes);
    }

    /// The change of exactly this revision; `None` when it has been collected.
    pub(super) fn logged<R>(&self, rev: Rev, f: impl FnOnce(&Logged<'_>) -> R) -> Result<Option<R>, StoreError> {
        self.history.logged(&self.log, rev, f)
    }

    /// Shows `f` the changes from `from` on, below `to`, until it returns false; then this returns false too.
    pub(super) fn for_each_logged(
        &self,
        from: Rev,
        to: Rev,
        f: impl FnMut(Rev, &Logged<'_>) -> Result<bool, StoreError>,
    ) -> Result<bool, StoreError> {
        self.history.for_each(&self.log, from, to, f)
    }

    /// Walks the keys as of revision `at`. In reverse only when nothing in here is later than `at`.
    pub(super) fn walk(&self, span: Span<'_>, at: u64, reverse: bool) -> Result<Walk<'_>, StoreError> {
        let new = Keys::new(&self.current, span, reverse)?;
        let olds = if at < self.revision { Some(OldVersions::new(&self.index, &self.history, span, at)?) } else { None };
        let mut walk = Walk { new, olds, old: None, at };
        walk.read_old()?;
        Ok(walk)
    }
}

/// A version that [`Walk`] came upon.
pub(super) enum Seen<'w> {
    /// Of `current`.
    Current(Current<'w>),
    /// Superseded since.
    Old(Rev),
}

/// A merge of `current`, which knows keys untouched since a revision, with `index`, which knows superseded
/// versions and deletions.
pub(super) struct Walk<'t> {
    new: Keys<'t>,
    /// `None` when all of `current` is visible.
    olds: Option<OldVersions<'t>>,
    old: Option<OldVersion>,
    at: u64,
}

impl Walk<'_> {
    fn read_old(&mut self) -> Result<(), StoreError> {
        if let Some(olds) = &mut self.olds {
            self.old = olds.next()?;
        }
        Ok(())
    }

    /// The next key, whether it is visible or not; `None` at the end.
    pub(super) fn key(&self) -> Option<&[u8]> {
        match (self.new.key(), &self.old) {
            (None, None) => None,
            (Some(key), None) => Some(key),
            (None, Some(old)) => Some(&old.key),
            (Some(key), Some(old)) => Some(key.min(&old.key)),
        }
    }

    /// What is visible of that key.
    pub(super) fn seen(&self) -> Result<Option<Seen<'_>>, StoreError> {
        let order = self.order();
        if let Some(record) = self.new.record().filter(|_| order.is_ge()) {
            let record = Current::decode(record)?;
            if record.rev.main <= self.at {
                return Ok(Some(Seen::Current(record)));
            }
        }
        Ok(self.old.as_ref().filter(|_| order.is_le()).and_then(|old| old.visible).map(Seen::Old))
    }

    /// Of the old version's key to the new one's.
    fn order(&self) -> Ordering {
        match (&self.old, self.new.key()) {
            (None, _) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(old), Some(key)) => old.key[..].cmp(key),
        }
    }

    /// Goes on to the next key.
    pub(super) fn advance(&mut self) -> Result<(), StoreError> {
        let order = self.order();
        if order.is_ge() {
            self.new.advance()?;
        }
        if order.is_le() {
            self.read_old()?;
        }
        Ok(())
    }
}
