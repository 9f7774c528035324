//! The store's public face.

use super::alarm::{Alarm, Alarms};
use super::apply::{Tbl, Writer, lease_keys};
use super::auth::AuthState;
use super::backend::{make_file, open_backend, open_file};
use super::backup::Refound;
use super::codec::{
    ALARMS, ATTACHED, AUTH, Def, LEASES, Logged, MEMBERS, META, META_MEMBERSHIP, META_STATE, Rev, SNAPSHOT_TABLES, State, damaged,
    tables_of,
};
use super::error::{ReadError, StoreError};
use super::read::View;
use super::snapshot::{RestoreWriter, SnapshotReader};
use super::types::{Applied, Command, Event, KeyValue, Keyspace, RangeRequest, RangeResponse};
use crate::types::{Index, NodeId, Revision, Term};
use bytes::Bytes;
use redb::{Database, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, WriteTransaction};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::Xxh3;

/// A page of history holds about so many bytes of keys and values, unless one revision alone has more.
const EVENT_PAGE_BYTES_MAX: usize = 1 << 20;
/// Changes looked at for garbage in passing, for each entry applied and for each batch.
const COLLECT_PER_ENTRY: usize = 4;
const COLLECT_PER_BATCH: usize = 64;

/// A committed entry of the Raft log, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplyEntry {
    /// Its index: one more than the entry before it.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// The command; `None` for the empty entry of a new leader and for membership changes.
    pub command: Option<Command>,
    /// For a membership change: the membership after it, opaque to the store.
    pub membership: Option<Bytes>,
}

/// What applying one entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyOutcome {
    /// The entry's index.
    pub index: Index,
    /// The answer to the client.
    pub applied: Applied,
    /// The key space that `applied.revision` and `events` belong to.
    pub keyspace: Keyspace,
    /// The changes, all of revision `applied.revision`, in order; `prev_kv` is always filled.
    pub events: Vec<Event>,
    /// The entry had been applied before: nothing was done, and the answer is lost.
    pub skipped: bool,
}

/// A lease as granted. Its time left is known to the leader's [`super::Lessor`] alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Never 0.
    pub id: i64,
    /// Granted time in seconds, at least 1.
    pub ttl_s: i64,
}

/// What a member told about itself ([`Command::MemberAttributes`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MemberAttributes {
    /// The member's name.
    pub name: String,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
}

/// Figures for etcd's Maintenance Status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreSizes {
    /// Length of the file (`db_size`).
    pub file_bytes: u64,
    /// Bytes of records in it, history included (`db_size_in_use`).
    pub in_use_bytes: u64,
}

/// A portion of history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventPage {
    /// Whole revisions, in order, `prev_kv` filled where the previous version is not compacted away.
    pub events: Vec<Event>,
    /// Where the next portion starts; one past the last wanted revision when all was read.
    pub next: Revision,
}

/// What [`Store`] and a [`RestoreWriter`] share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) db: Database,
    file_bytes: Arc<AtomicU64>,
    /// The state that the last commit left.
    pub(super) state: Mutex<State>,
    membership: Mutex<Option<Bytes>>,
    alarms: Mutex<Alarms>,
    auth: Mutex<Arc<AuthState>>,
    /// [`AuthState::mark`] of `auth`, for a look without a lock.
    auth_mark: AtomicU64,
    /// Held over each write transaction and the update of `state` after it.
    writer: Mutex<()>,
    pub(super) restoring: AtomicBool,
}

/// A value that is always whole: a thread that panics over it leaves the old or the new one.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(super) fn install(&self, state: State, membership: Option<Option<Bytes>>, alarms: Alarms, auth: Arc<AuthState>) {
        *lock(&self.state) = state;
        *lock(&self.alarms) = alarms;
        self.auth_mark.store(auth.mark(), Ordering::Release);
        *lock(&self.auth) = auth;
        if let Some(membership) = membership {
            *lock(&self.membership) = membership;
        }
    }
}

/// The multi-version store. Share it in an `Arc`: reads work from any thread, writers take turns.
#[derive(Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

type ReadTable = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// A key space at one moment.
struct Reading {
    tables: [ReadTable; 3],
    state: State,
    keyspace: Keyspace,
}

impl Reading {
    fn view(&self) -> View<'_, ReadTable> {
        let [current, log, index] = &self.tables;
        let state = &self.state.keyspaces[self.keyspace as usize];
        View { current, log, index, revision: state.revision, compact: state.compact }
    }
}

pub(super) fn read_state(meta: &impl ReadableTable<&'static [u8], &'static [u8]>) -> Result<Option<(State, Option<Bytes>)>, StoreError> {
    let Some(state) = meta.get(META_STATE)? else { return Ok(None) };
    let state = State::decode(state.value())?;
    let membership = meta.get(META_MEMBERSHIP)?.map(|m| Bytes::copy_from_slice(m.value()));
    Ok(Some((state, membership)))
}

/// What [`initialise`] finds: numbers, membership, alarms, users.
type Found = (State, Option<Bytes>, Alarms, AuthState);

/// Makes the tables, so that readers find them, and reads the state.
fn initialise(txn: &WriteTransaction) -> Result<Found, StoreError> {
    for (_, table, _) in SNAPSHOT_TABLES {
        let _: Tbl<'_> = txn.open_table(table)?;
    }
    let alarms = Alarms::read(&txn.open_table(ALARMS)?)?;
    let auth = AuthState::load(&txn.open_table(AUTH)?)?;
    let mut meta = txn.open_table(META)?;
    if let Some((state, membership)) = read_state(&meta)? {
        return Ok((state, membership, alarms, auth));
    }
    meta.insert(META_STATE, &State::EMPTY.encode()[..])?;
    Ok((State::EMPTY, None, alarms, auth))
}

impl Store {
    /// Opens or makes the store in a file. `cache_bytes` bounds the memory that it uses.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        make_file(path, |new| Self::with_engine(open_file(new, cache_bytes)?).map(drop))?;
        Self::with_engine(open_file(path, cache_bytes)?)
    }

    /// The same on other storage, such as a simulated disk.
    pub fn with_backend(backend: impl redb::StorageBackend, cache_bytes: usize) -> Result<Self, StoreError> {
        Self::with_engine(open_backend(backend, Path::new("(given storage)"), cache_bytes)?)
    }

    fn with_engine((db, file_bytes): (Database, Arc<AtomicU64>)) -> Result<Self, StoreError> {
        let mut txn = db.begin_write()?;
        txn.set_quick_repair(true);
        let (state, membership, alarms, auth) = initialise(&txn)?;
        txn.commit()?;
        let inner = Inner {
            db,
            file_bytes,
            state: Mutex::new(state),
            membership: Mutex::new(membership),
            alarms: Mutex::new(alarms),
            auth_mark: AtomicU64::new(auth.mark()),
            auth: Mutex::new(Arc::new(auth)),
            writer: Mutex::new(()),
            restoring: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The last applied entry. Survives a crash only as of the last [`Self::checkpoint`].
    #[must_use]
    pub fn applied(&self) -> (Index, Term) {
        let state = lock(&self.inner.state);
        (state.applied, state.term)
    }

    /// The membership that the last membership change left, if there was one.
    #[must_use]
    pub fn membership(&self) -> Option<Bytes> {
        lock(&self.inner.membership).clone()
    }

    /// The active alarms.
    #[must_use]
    pub fn alarms(&self) -> Vec<Alarm> {
        lock(&self.inner.alarms).0.iter().copied().collect()
    }

    /// Users, roles and permissions, as of the last applied batch.
    #[must_use]
    pub fn auth(&self) -> Arc<AuthState> {
        Arc::clone(&lock(&self.inner.auth))
    }

    /// 0 while authentication is off, else the auth revision. Costs one load.
    #[must_use]
    pub fn auth_mark(&self) -> u64 {
        self.inner.auth_mark.load(Ordering::Acquire)
    }

    /// A hash over the auth store's records: equal on members that have applied the same.
    pub fn hash_auth(&self) -> Result<u64, StoreError> {
        let mut hash = Xxh3::new();
        for item in self.table(AUTH)?.range::<&[u8]>(..)? {
            let (key, value) = item?;
            for part in [key.value(), value.value()] {
                hash.update(&(part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        Ok(hash.digest())
    }

    /// What members told about themselves. Removed members' entries may linger: look up by membership.
    pub fn member_attributes(&self) -> Result<BTreeMap<NodeId, MemberAttributes>, StoreError> {
        let mut members = BTreeMap::new();
        for item in self.table(MEMBERS)?.range::<&[u8]>(..)? {
            let (key, value) = item?;
            let id = key.value().try_into().map_err(|_| damaged("members", "key", key.value()))?;
            let attributes = postcard::from_bytes(value.value()).map_err(|_| damaged("members", "record", value.value()))?;
            members.insert(NodeId(u64::from_be_bytes(id)), attributes);
        }
        Ok(members)
    }

    /// Applies a batch atomically, visible to readers at once, durable at the next [`Self::checkpoint`].
    /// Entries at or below the applied index are skipped; one outcome for each entry.
    pub fn apply(&self, batch: &[ApplyEntry]) -> Result<Vec<ApplyOutcome>, StoreError> {
        let membership = batch.iter().rev().find_map(|e| e.membership.clone().map(|m| (e.index, m)));
        let before = self.applied().0;
        self.write(|writer| {
            let outcomes = batch.iter().map(|entry| writer.apply(entry)).collect::<Result<Vec<_>, _>>()?;
            writer.collect(COLLECT_PER_BATCH + COLLECT_PER_ENTRY * batch.len())?;
            let membership = membership.filter(|(index, _)| *index > before).map(|(_, m)| Some(m));
            Ok((outcomes, membership))
        })
    }

    /// Runs `f` in one non-durable transaction.
    fn write<R>(&self, f: impl FnOnce(&mut Writer<'_>) -> Result<(R, Option<Option<Bytes>>), StoreError>) -> Result<R, StoreError> {
        let _turn = self.take_turn()?;
        let state = *lock(&self.inner.state);
        let mut txn = self.inner.db.begin_write()?;
        txn.set_durability(Durability::None)?;
        let mut writer = Writer::open(&txn, state, lock(&self.inner.alarms).clone(), self.auth())?;
        let (result, membership) = f(&mut writer)?;
        let alarms = writer.alarms.clone();
        let (state, auth) = writer.finish()?;
        txn.commit()?;
        self.inner.install(state, membership, alarms, auth);
        Ok(result)
    }

    fn take_turn(&self) -> Result<MutexGuard<'_, ()>, StoreError> {
        let turn = lock(&self.inner.writer);
        // A restore holds the engine's write transaction: beginning another would wait for it.
        if self.inner.restoring.load(Ordering::Acquire) { Err(StoreError::Restoring) } else { Ok(turn) }
    }

    /// Makes everything applied so far durable. The Raft log may drop entries up to the returned index.
    ///
    /// It waits for the disk; writers wait for it, readers do not. Call it often enough (every few thousand
    /// entries, or every few seconds) that it has little to write: space freed since the last one is not
    /// used again before.
    pub fn checkpoint(&self) -> Result<Index, StoreError> {
        let _turn = self.take_turn()?;
        let state = *lock(&self.inner.state);
        let mut txn = self.inner.db.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        // Saves which pages are free, so that opening after a crash need not walk the whole file.
        txn.set_quick_repair(true);
        txn.open_table(META)?.insert(META_STATE, &state.encode()[..])?;
        txn.commit()?;
        Ok(state.applied)
    }

    /// The key space's revision: 1 when empty.
    #[must_use]
    pub fn revision(&self, keyspace: Keyspace) -> Revision {
        lock(&self.inner.state).revision(keyspace)
    }

    /// Reads below this revision are refused; 0 before the first compaction.
    #[must_use]
    pub fn compact_revision(&self, keyspace: Keyspace) -> Revision {
        Revision(lock(&self.inner.state).keyspaces[keyspace as usize].compact)
    }

    fn table(&self, table: Def) -> Result<ReadTable, StoreError> {
        Ok(self.inner.db.begin_read()?.open_table(table)?)
    }

    fn reading(&self, keyspace: Keyspace) -> Result<Reading, StoreError> {
        let txn = self.inner.db.begin_read()?;
        let (state, _) = read_state_of(&txn)?;
        let [current, log, index] = tables_of(keyspace);
        let tables = [txn.open_table(current)?, txn.open_table(log)?, txn.open_table(index)?];
        Ok(Reading { tables, state, keyspace })
    }

    /// Answers a range, with the revision the store was at (for the response header).
    pub fn range(&self, keyspace: Keyspace, request: &RangeRequest) -> Result<(RangeResponse, Revision), ReadError> {
        super::check::check_range(request)?;
        let reading = self.reading(keyspace)?;
        Ok((reading.view().range(request)?, reading.state.revision(keyspace)))
    }

    /// One key as it is now.
    pub fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        Ok(self.reading(keyspace)?.view().get(key, true)?.map(|hit| hit.kv))
    }

    /// History in `[from, upto]`: whole revisions, about `events_max` events or 1 MiB, at least one revision.
    pub fn events_since(&self, keyspace: Keyspace, from: Revision, upto: Revision, events_max: usize) -> Result<EventPage, ReadError> {
        let reading = self.reading(keyspace)?;
        let view = reading.view();
        if from.0 < view.compact {
            return Err(ReadError::CompactedAt(Revision(view.compact)));
        }
        let end = upto.0.min(view.revision).saturating_add(1);
        let mut page = EventPage { events: Vec::new(), next: Revision(end.max(from.0)) };
        if from.0 >= end {
            return Ok(page);
        }
        let (first, last) = (Rev { main: from.0, sub: 0 }.key(), Rev { main: end, sub: 0 }.key());
        let (mut main, mut bytes) = (0, 0);
        for item in view.log.range::<&[u8]>(&first[..]..&last[..]).map_err(StoreError::from)? {
            let (key, record) = item.map_err(StoreError::from)?;
            let rev = Rev::from_key(key.value())?;
            if rev.main != main && (page.events.len() >= events_max || bytes >= EVENT_PAGE_BYTES_MAX) && main != 0 {
                page.next = Revision(rev.main);
                break;
            }
            main = rev.main;
            bytes += record.value().len();
            page.events.push(event(&view, rev, &Logged::decode(record.value())?)?);
        }
        Ok(page)
    }

    /// Removes some of what compaction made unreachable, looking at about `changes_max` changes; true when
    /// more is left. Applying does it in passing as well; call this when idle, or for a physical compaction.
    pub fn collect_garbage(&self, changes_max: usize) -> Result<bool, StoreError> {
        if lock(&self.inner.state).keyspaces.iter().all(|k| k.collected >= k.compact) {
            return Ok(false);
        }
        self.write(|writer| Ok((writer.collect(changes_max)?, None)))
    }

    /// All leases, by id.
    pub fn leases(&self) -> Result<Vec<LeaseInfo>, StoreError> {
        let mut leases = Vec::new();
        for item in self.table(LEASES)?.range::<&[u8]>(..)? {
            let (key, value) = item?;
            leases.push(lease_info(key.value(), value.value())?);
        }
        leases.sort_by_key(|lease| lease.id);
        Ok(leases)
    }

    /// One lease.
    pub fn lease(&self, id: i64) -> Result<Option<LeaseInfo>, StoreError> {
        let key = id.to_be_bytes();
        self.table(LEASES)?.get(&key[..])?.map(|value| lease_info(&key, value.value())).transpose()
    }

    /// The keys attached to a lease, in order.
    pub fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, StoreError> {
        lease_keys(&self.table(ATTACHED)?, id)
    }

    /// File and record sizes.
    #[must_use]
    pub fn sizes(&self) -> StoreSizes {
        let file_bytes = self.inner.file_bytes.load(Ordering::Relaxed);
        StoreSizes { file_bytes, in_use_bytes: lock(&self.inner.state).used_bytes }
    }

    /// A hash over what is visible at the compaction revision and the history from there to `revision` (0:
    /// now): equal on members with equal history, whatever their garbage collection got to. With the
    /// compaction revision and the revision it covers (etcd HashKV).
    pub fn hash_kv(&self, keyspace: Keyspace, revision: Revision) -> Result<(u32, Revision, Revision), ReadError> {
        let reading = self.reading(keyspace)?;
        let view = reading.view();
        view.check_revision(revision)?;
        let revision = if revision.0 == 0 { view.revision } else { revision.0 };
        let mut hash = Xxh3::new();
        view.for_each_at(view.compact, |kv| {
            hash.update(&kv.key);
            hash.update(&kv.mod_revision.0.to_le_bytes());
        })?;
        let after = |main: u64| Rev { main: main.saturating_add(1), sub: 0 }.key();
        let (first, last) = (after(view.compact), after(revision));
        for item in view.log.range::<&[u8]>(&first[..]..&last[..]).map_err(StoreError::from)? {
            let (key, record) = item.map_err(StoreError::from)?;
            hash.update(key.value());
            hash.update(record.value());
        }
        let digest = hash.digest();
        let short = u32::try_from((digest >> 32) ^ (digest & 0xffff_ffff)).unwrap_or(0);
        Ok((short, Revision(view.compact), Revision(revision)))
    }

    /// A hash over all that members agree on at one applied index: both key spaces with their history from the
    /// compaction on, leases, alarms, and what members told (etcd Hash; there over its file).
    pub fn hash_all(&self) -> Result<u32, ReadError> {
        let mut hash = Xxh3::new();
        for keyspace in [Keyspace::User, Keyspace::System] {
            let (part, compact, revision) = self.hash_kv(keyspace, Revision(0))?;
            for number in [u64::from(part), compact.0, revision.0] {
                hash.update(&number.to_le_bytes());
            }
        }
        for table in [LEASES, ATTACHED, MEMBERS, ALARMS, AUTH] {
            for item in self.table(table)?.range::<&[u8]>(..).map_err(StoreError::from)? {
                let (key, value) = item.map_err(StoreError::from)?;
                for part in [key.value(), value.value()] {
                    hash.update(&(part.len() as u64).to_le_bytes());
                    hash.update(part);
                }
            }
        }
        let digest = hash.digest();
        Ok(u32::try_from((digest >> 32) ^ (digest & 0xffff_ffff)).unwrap_or(0))
    }

    /// Makes a restored store the first state of a new cluster, one entry further and one term later than the old
    /// one's, durably: whoever starts the new cluster without the backup is behind and is sent the state. Returns
    /// the index and term that the new cluster's log begins after.
    pub fn refound(&self, refound: &Refound) -> Result<(Index, Term), StoreError> {
        let (index, term) = self.applied();
        let entry = ApplyEntry { index: index.next(), term: term.next(), command: None, membership: Some(refound.membership.clone()) };
        self.write(|writer| {
            writer.apply(&entry)?;
            writer.refound(refound.bump_revision, refound.mark_compacted)?;
            Ok(((), Some(entry.membership.clone())))
        })?;
        self.checkpoint()?;
        Ok(self.applied())
    }

    /// Up to where compacted history has been removed.
    #[must_use]
    pub fn collected_revision(&self, keyspace: Keyspace) -> Revision {
        Revision(lock(&self.inner.state).keyspaces[keyspace as usize].collected)
    }

    /// A point-in-time reader of everything. Writes go on meanwhile.
    pub fn snapshot(&self) -> Result<SnapshotReader, StoreError> {
        let txn = self.inner.db.begin_read()?;
        let (state, membership) = read_state_of(&txn)?;
        SnapshotReader::new(txn, state, membership)
    }

    /// Starts to replace everything by a snapshot that arrives in portions. Until the writer finishes or is
    /// dropped, readers see the old state and writers fail with [`StoreError::Restoring`].
    pub fn begin_restore(&self) -> Result<RestoreWriter, StoreError> {
        let _turn = self.take_turn()?;
        RestoreWriter::new(Arc::clone(&self.inner))
    }

    /// Replaces everything by a snapshot: durable, all or nothing.
    pub fn restore(&self, chunks: impl Iterator<Item = Bytes>) -> Result<(Index, Term), StoreError> {
        let mut writer = self.begin_restore()?;
        for chunk in chunks {
            writer.push(&chunk)?;
        }
        writer.finish()
    }
}

fn read_state_of(txn: &ReadTransaction) -> Result<(State, Option<Bytes>), StoreError> {
    read_state(&txn.open_table(META)?)?.ok_or_else(|| damaged("meta", "state", &[]))
}

fn lease_info(key: &[u8], value: &[u8]) -> Result<LeaseInfo, StoreError> {
    match (key.try_into(), value.try_into()) {
        (Ok(id), Ok(ttl_s)) => Ok(LeaseInfo { id: i64::from_be_bytes(id), ttl_s: i64::from_le_bytes(ttl_s) }),
        _ => Err(damaged("leases", "record", value)),
    }
}

fn event(view: &View<'_, ReadTable>, rev: Rev, logged: &Logged<'_>) -> Result<Event, StoreError> {
    let kv = KeyValue {
        key: Bytes::copy_from_slice(logged.key),
        value: Bytes::copy_from_slice(logged.value),
        create_revision: Revision(logged.create),
        mod_revision: Revision(rev.main),
        version: logged.version,
        lease: logged.lease,
    };
    // What the compaction revision superseded is gone, or about to go.
    let prev_kv = if logged.prev == Rev::NONE || rev.main <= view.compact { None } else { view.logged(logged.prev)? };
    Ok(Event { delete: logged.delete, kv, prev_kv })
}
