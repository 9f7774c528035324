//! The store's public face.

use super::alarm::{Alarm, Alarms};
use super::apply::{Wants, Writer, lease_keys};
use super::auth::AuthState;
use super::backend::{make_file, open_backend, open_file};
use super::backup::Refound;
use super::base::{Base, read_account, read_state, read_state_of};
use super::codec::{
    ALARMS, ATTACHED, AUTH, Def, FORMAT_VERSION, LEASES, Logged, MEMBERS, META, META_STATE, PLAIN_TABLES, Rev, SNAPSHOT_TABLES, State,
    damaged,
};
use super::error::{ReadError, StoreError};
use super::fold::{Folded, Folding, Pace, fold};
use super::history::{Account, Committed, History, Ledger};
use super::known::Known;
use super::overlay::{Changes, Overlay};
use super::read::{Layer, View};
use super::segments::{OneFile, SegmentFiles, Storage};
use super::snapshot::{RestoreWriter, SnapshotReader};
use super::table::{OwnedRows, Rows};
use super::tally::Tally;
use super::types::{Applied, Command, Event, KeyValue, Keyspace, RangeRequest, RangeResponse};
use crate::types::{Index, NodeId, Revision, Term};
use bytes::Bytes;
use redb::{Database, TableHandle as _, WriteTransaction};
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use xxhash_rust::xxh3::Xxh3;

/// A page of history holds about so many bytes of keys and values, unless one revision alone has more.
const EVENT_PAGE_BYTES_MAX: usize = 1 << 20;
/// Changes that one checkpoint looks at for garbage.
const COLLECT_PER_CHECKPOINT_MAX: usize = 100_000;

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

/// What somebody wants to know of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nobody asks.
    Nothing,
    /// The event.
    Event,
    /// The event, with the pair before the change.
    EventAndPrev,
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
    /// The changes, all of revision `applied.revision`, in order, as far as they were wanted.
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
    /// Length of the file and of the blocks of history beside it (`db_size`).
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

/// What was applied, as layers: later ones lie over earlier ones.
#[derive(Clone, Debug)]
struct Layers {
    /// Since the last checkpoint began. Locked for writing over each batch.
    recent: Arc<RwLock<Overlay>>,
    /// What a checkpoint is folding into the file: changes no more.
    frozen: Option<Arc<RwLock<Overlay>>>,
    /// The file as of the last checkpoint.
    base: Arc<Base>,
    /// The numbers as of the last batch. Versions in `recent` that are later belong to a batch under way.
    state: State,
    alarms: Alarms,
    auth: Arc<AuthState>,
    membership: Option<Bytes>,
}

/// What [`Store`] and a [`RestoreWriter`] share.
///
/// Locks are taken in the order of the fields, `layers` for moments only.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) db: Database,
    pub(super) history: Arc<History>,
    file_bytes: Arc<AtomicU64>,
    /// [`AuthState::mark`] of the users, for a look without a lock.
    auth_mark: AtomicU64,
    /// Held over each checkpoint.
    folding: Mutex<Folding>,
    /// Those who wait for it: then a checkpoint does not take its time.
    awaited: AtomicUsize,
    /// Held over each batch, and while layers are exchanged.
    writer: Mutex<()>,
    layers: Mutex<Layers>,
    /// Memory that `recent` and `frozen` take.
    recent_bytes: AtomicUsize,
    frozen_bytes: AtomicUsize,
    /// Of the user's key space.
    tally: Tally<AtomicU64>,
    pub(super) restoring: AtomicBool,
    /// A batch, checkpoint or restore failed half-way.
    pub(super) broken: AtomicBool,
}

/// A value that is always whole: a thread that panics over it leaves the old or the new one.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same of an overlay: versions of a batch that a panic cut short are above the revision that readers see.
pub(super) fn read_lock<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write_lock<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// The file was replaced by other content, and nothing was applied over it.
    pub(super) fn replace(
        &self,
        state: State,
        membership: Option<Bytes>,
        alarms: Alarms,
        auth: Arc<AuthState>,
        committed: Committed,
    ) -> Result<(), StoreError> {
        let mut folding = lock(&self.folding);
        let base = Arc::new(Base::open(&self.db, &self.history, <[Known; 2]>::default())?);
        folding.ledger.committed(&self.history, committed, &lock(&self.layers).base.txn);
        let _turn = lock(&self.writer);
        self.auth_mark.store(auth.mark(), Ordering::Release);
        *lock(&self.layers) = Layers { recent: Arc::default(), frozen: None, base, state, alarms, auth, membership };
        self.recent_bytes.store(0, Ordering::Relaxed);
        Ok(())
    }
}

/// The multi-version store. Share it in an `Arc`: reads work from any thread, writers take turns.
#[derive(Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

/// A checkpoint that has begun.
pub(super) struct Frozen<'s> {
    overlay: Arc<RwLock<Overlay>>,
    state: State,
    membership: Option<Bytes>,
    folding: MutexGuard<'s, Folding>,
}

/// A key space at one moment.
pub(super) struct Reading {
    layers: Layers,
    keyspace: Keyspace,
}

impl Reading {
    pub(super) fn view(&self) -> View<'_> {
        let Layers { recent, frozen, base, state, .. } = &self.layers;
        let numbers = &state.keyspaces[self.keyspace as usize];
        View {
            layers: [Some(Layer::Shared(recent, self.keyspace)), frozen.as_deref().map(|f| Layer::Shared(f, self.keyspace))],
            base: &base.keyspaces[self.keyspace as usize],
            revision: numbers.revision,
            compact: numbers.compact,
        }
    }
}

/// What [`initialise`] finds: numbers, membership, what is where in history files, alarms, users.
type Found = (State, Option<Bytes>, Account, Alarms, AuthState);

/// Makes the tables, so that readers find them, and reads the state.
fn initialise(txn: &WriteTransaction) -> Result<Found, StoreError> {
    for (_, table, _) in SNAPSHOT_TABLES {
        txn.open_table(table)?;
    }
    let alarms = Alarms::read(&txn.open_table(ALARMS)?)?;
    let auth = AuthState::load(&txn.open_table(AUTH)?)?;
    let mut meta = txn.open_table(META)?;
    if let Some((state, membership)) = read_state(&meta)? {
        return Ok((state, membership, read_account(&meta)?, alarms, auth));
    }
    meta.insert(META_STATE, &State::EMPTY.encode(FORMAT_VERSION)[..])?;
    Ok((State::EMPTY, None, Account::default(), alarms, auth))
}

impl Store {
    /// Opens or makes the store in a file. `cache_bytes` bounds the memory that it uses.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        make_file(path, |new| Self::with_engine(open_file(new, cache_bytes)?, |_| Ok(Box::new(SegmentFiles::beside(new)))).map(drop))?;
        Self::with_engine(open_file(path, cache_bytes)?, |account| {
            let files = SegmentFiles::beside(path);
            files.recover(account.end, &account.live)?;
            Ok(Box::new(files))
        })
    }

    /// The same on other storage, such as simulated disks: one for the tables, one for history.
    pub fn with_backend(
        tables: impl redb::StorageBackend,
        history: impl redb::StorageBackend,
        cache_bytes: usize,
    ) -> Result<Self, StoreError> {
        let engine = open_backend(tables, Path::new("(given storage)"), cache_bytes)?;
        Self::with_engine(engine, |_| Ok(Box::new(OneFile(history))))
    }

    fn with_engine(
        (db, file_bytes): (Database, Arc<AtomicU64>),
        storage: impl FnOnce(&Account) -> Result<Box<dyn Storage>, StoreError>,
    ) -> Result<Self, StoreError> {
        let mut txn = db.begin_write()?;
        txn.set_quick_repair(true);
        let (state, membership, account, alarms, auth) = initialise(&txn)?;
        txn.commit()?;
        let history = Arc::new(History::new(storage(&account)?, &account));
        let base = Arc::new(Base::open(&db, &history, <[Known; 2]>::default())?);
        let inner = Inner {
            db,
            history,
            file_bytes,
            auth_mark: AtomicU64::new(auth.mark()),
            folding: Mutex::new(Folding { ledger: Ledger::new(account), ..Folding::default() }),
            awaited: AtomicUsize::new(0),
            writer: Mutex::new(()),
            layers: Mutex::new(Layers { recent: Arc::default(), frozen: None, base, state, alarms, auth: Arc::new(auth), membership }),
            recent_bytes: AtomicUsize::new(0),
            frozen_bytes: AtomicUsize::new(0),
            tally: Tally::default(),
            restoring: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The last applied entry. Survives a crash only as of the last [`Self::checkpoint`].
    #[must_use]
    pub fn applied(&self) -> (Index, Term) {
        let state = self.state();
        (state.applied, state.term)
    }

    /// The membership that the last membership change left, if there was one.
    #[must_use]
    pub fn membership(&self) -> Option<Bytes> {
        lock(&self.inner.layers).membership.clone()
    }

    /// The active alarms.
    #[must_use]
    pub fn alarms(&self) -> Vec<Alarm> {
        lock(&self.inner.layers).alarms.0.iter().copied().collect()
    }

    /// Users, roles and permissions, as of the last applied batch.
    #[must_use]
    pub fn auth(&self) -> Arc<AuthState> {
        Arc::clone(&lock(&self.inner.layers).auth)
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

    fn state(&self) -> State {
        lock(&self.inner.layers).state
    }

    /// Applies a batch atomically, visible to readers at once, durable at the next [`Self::checkpoint`].
    /// Entries at or below the applied index are skipped; one outcome for each entry. All events have the pair
    /// before the change.
    pub fn apply(&self, batch: &[ApplyEntry]) -> Result<Vec<ApplyOutcome>, StoreError> {
        self.apply_with(batch, &|_, _| Wanted::EventAndPrev)
    }

    /// The same, with events, and the pairs before the changes, for those keys only for which `wants` says so: a value
    /// that nobody asks for need not be read.
    pub fn apply_with(&self, batch: &[ApplyEntry], wants: &dyn Fn(Keyspace, &Bytes) -> Wanted) -> Result<Vec<ApplyOutcome>, StoreError> {
        let mut applied = self.applied().0;
        for entry in batch {
            if entry.index > applied.next() {
                return Err(StoreError::Gap { applied, got: entry.index });
            }
            applied = applied.max(entry.index);
        }
        self.write(wants, |writer| {
            writer.warm(batch);
            batch.iter().map(|entry| writer.apply(entry)).collect()
        })
    }

    /// Runs `f` on the state in memory; what it did is seen once it is done.
    fn write<R>(&self, wants: Wants<'_>, f: impl FnOnce(&mut Writer<'_>) -> Result<R, StoreError>) -> Result<R, StoreError> {
        let _turn = self.take_turn()?;
        let layers = lock(&self.inner.layers).clone();
        let frozen = layers.frozen.as_deref().map(read_lock);
        let mut recent = write_lock(&layers.recent);
        let mut writer = Writer::open(&mut recent, frozen.as_deref(), &layers.base, layers.state, layers.alarms, layers.auth, wants);
        // Until it is done, so that an error or a panic in the midst leaves it so.
        self.inner.broken.store(true, Ordering::Release);
        let result = f(&mut writer)?;
        self.inner.tally.add(writer.tally());
        let (state, alarms, auth, membership) = writer.finish();
        let mut layers = lock(&self.inner.layers);
        layers.state = state;
        layers.alarms = alarms;
        self.inner.auth_mark.store(auth.mark(), Ordering::Release);
        layers.auth = auth;
        if membership.is_some() {
            layers.membership = membership;
        }
        self.inner.recent_bytes.store(recent.bytes(), Ordering::Relaxed);
        self.inner.broken.store(false, Ordering::Release);
        Ok(result)
    }

    fn take_turn(&self) -> Result<MutexGuard<'_, ()>, StoreError> {
        let turn = lock(&self.inner.writer);
        match () {
            () if self.inner.restoring.load(Ordering::Acquire) => Err(StoreError::Restoring),
            () if self.inner.broken.load(Ordering::Acquire) => Err(StoreError::Broken),
            () => Ok(turn),
        }
    }

    /// Makes everything durable that was applied before the call. The Raft log may drop entries up to the
    /// returned index.
    ///
    /// It waits for the disk, and for the time that writing takes; neither readers nor writers wait for it.
    /// Call it often enough that what was applied since fits into memory ([`Self::recent_bytes`]).
    pub fn checkpoint(&self) -> Result<Index, StoreError> {
        self.paced_checkpoint(&|_| {})
    }

    /// The same, telling `pace` from time to time how much is done, from 0 to 1. That may sleep, so that a checkpoint which is
    /// not urgent does not take the processor and the disk from everybody for as long as it can.
    pub fn paced_checkpoint(&self, pace: &dyn Fn(f64)) -> Result<Index, StoreError> {
        let frozen = self.freeze()?;
        self.fold_frozen(frozen, COLLECT_PER_CHECKPOINT_MAX, pace)
    }

    /// Whether somebody waits for a running checkpoint to end.
    pub(super) fn is_awaited(&self) -> bool {
        self.inner.awaited.load(Ordering::Relaxed) != 0
    }

    /// Begins a checkpoint: what was applied until now changes no more, what comes lies over it.
    pub(super) fn freeze(&self) -> Result<Frozen<'_>, StoreError> {
        self.inner.awaited.fetch_add(1, Ordering::Relaxed);
        let folding = lock(&self.inner.folding);
        self.inner.awaited.fetch_sub(1, Ordering::Relaxed);
        let _turn = self.take_turn()?;
        let mut layers = lock(&self.inner.layers);
        let overlay = std::mem::take(&mut layers.recent);
        layers.frozen = Some(Arc::clone(&overlay));
        self.inner.frozen_bytes.store(self.inner.recent_bytes.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        Ok(Frozen { overlay, state: layers.state, membership: layers.membership.clone(), folding })
    }

    /// Carries it out, and has readers use the file instead of the frozen layer.
    pub(super) fn fold_frozen(&self, frozen: Frozen<'_>, garbage_max: usize, pace: Pace<'_>) -> Result<Index, StoreError> {
        let Frozen { overlay, state, membership, mut folding } = frozen;
        // The engine makes steps durable when it is closed. One that ends half-way is never closed, so that a part of a
        // checkpoint never is: the process is to end, and the next start finds the checkpoint before.
        let open = ManuallyDrop::new(Arc::clone(&self.inner));
        let pace = |done| {
            if !self.is_awaited() {
                pace(done);
            }
        };
        let Inner { db, history, .. } = &*self.inner;
        let folded = fold((db, history), &read_lock(&overlay), state, membership.as_ref(), &mut folding, garbage_max, &pace);
        let old = self.layers().base;
        let folded = folded.and_then(|Folded { state, committed, written: [user, system] }| {
            let [known_user, known_system] = old.keyspaces.each_ref().map(|keyspace| &keyspace.known);
            let known = [known_user.and(user), known_system.and(system)];
            Ok((state, committed, Arc::new(Base::open(db, history, known)?)))
        });
        let (folded, committed, base) = folded.inspect_err(|_| self.inner.broken.store(true, Ordering::Release))?;
        drop(ManuallyDrop::into_inner(open));
        folding.ledger.committed(history, committed, &old.txn);
        drop(old);
        let _turn = lock(&self.inner.writer);
        let mut layers = lock(&self.inner.layers);
        layers.base = base;
        layers.frozen = None;
        self.inner.frozen_bytes.store(0, Ordering::Relaxed);
        // Applying went on meanwhile.
        let counted = folded.used_bytes.wrapping_sub(state.used_bytes).cast_signed();
        layers.state.used_bytes = layers.state.used_bytes.saturating_add_signed(counted);
        for (now, folded) in layers.state.keyspaces.iter_mut().zip(folded.keyspaces) {
            now.collected = folded.collected;
        }
        Ok(folded.applied)
    }

    /// What is written of the history files is what the tables say of them.
    #[cfg(test)]
    pub(super) fn check_history(&self) {
        let folding = lock(&self.inner.folding);
        let base = self.layers().base;
        let extents = base.extents();
        folding.ledger.check(&extents);
    }

    /// Whether compaction left something that checkpoints have yet to remove.
    #[must_use]
    pub fn has_garbage(&self) -> bool {
        self.state().keyspaces.iter().any(|k| k.collected < k.compact)
    }

    /// About the memory that changes take until a checkpoint has put them into the file.
    #[must_use]
    pub fn recent_bytes(&self) -> usize {
        self.inner.recent_bytes.load(Ordering::Relaxed) + self.inner.frozen_bytes.load(Ordering::Relaxed)
    }

    /// The key space's revision: 1 when empty.
    #[must_use]
    pub fn revision(&self, keyspace: Keyspace) -> Revision {
        self.state().revision(keyspace)
    }

    /// Reads below this revision are refused; 0 before the first compaction.
    #[must_use]
    pub fn compact_revision(&self, keyspace: Keyspace) -> Revision {
        Revision(self.state().keyspaces[keyspace as usize].compact)
    }

    fn layers(&self) -> Layers {
        lock(&self.inner.layers).clone()
    }

    /// Reads a table without revisions in place. Batches wait meanwhile.
    fn with_table<R>(&self, table: Def, f: impl FnOnce(&Rows<'_>) -> Result<R, StoreError>) -> Result<R, StoreError> {
        let place = place_of(table)?;
        let layers = self.layers();
        let (recent, frozen) = (read_lock(&layers.recent), layers.frozen.as_deref().map(read_lock));
        f(&Rows { layers: [Some(&recent.plain[place]), frozen.as_ref().map(|f| &f.plain[place])], base: &layers.base.plain[place] })
    }

    /// A table without revisions as it is now: copies what changed since the last checkpoint.
    fn table(&self, table: Def) -> Result<OwnedRows, StoreError> {
        let place = place_of(table)?;
        let layers = self.layers();
        let mut changes: Changes = layers.frozen.as_deref().map(|f| read_lock(f).plain[place].clone()).unwrap_or_default();
        changes.extend(read_lock(&layers.recent).plain[place].iter().map(|(key, value)| (key.clone(), value.clone())));
        Ok(OwnedRows { changes, base: layers.base, place })
    }

    pub(super) fn reading(&self, keyspace: Keyspace) -> Reading {
        Reading { layers: self.layers(), keyspace }
    }

    /// Answers a range, with the revision the store was at (for the response header).
    pub fn range(&self, keyspace: Keyspace, request: &RangeRequest) -> Result<(RangeResponse, Revision), ReadError> {
        super::check::check_range(request)?;
        if keyspace == Keyspace::User {
            self.inner.tally.ranges.fetch_add(1, Ordering::Relaxed);
        }
        let reading = self.reading(keyspace);
        Ok((reading.view().range(request)?, reading.layers.state.revision(keyspace)))
    }

    /// One key as it is now.
    pub fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        Ok(self.reading(keyspace).view().get(key, true)?.map(|hit| hit.kv))
    }

    /// History in `[from, upto]`: whole revisions, about `events_max` events or 1 MiB, at least one revision.
    pub fn events_since(&self, keyspace: Keyspace, from: Revision, upto: Revision, events_max: usize) -> Result<EventPage, ReadError> {
        let reading = self.reading(keyspace);
        let view = reading.view();
        if from.0 < view.compact {
            return Err(ReadError::CompactedAt(Revision(view.compact)));
        }
        let end = upto.0.min(view.revision).saturating_add(1);
        let mut page = EventPage { events: Vec::new(), next: Revision(end.max(from.0)) };
        if from.0 >= end {
            return Ok(page);
        }
        let (mut main, mut bytes) = (0, 0);
        view.for_each_logged(Rev { main: from.0, sub: 0 }, Rev { main: end, sub: 0 }, |rev, logged| {
            if rev.main != main && (page.events.len() >= events_max || bytes >= EVENT_PAGE_BYTES_MAX) && main != 0 {
                page.next = Revision(rev.main);
                return Ok(false);
            }
            main = rev.main;
            bytes += logged.key.len() + logged.value.len();
            page.events.push(event(&view, rev, logged)?);
            Ok(true)
        })?;
        Ok(page)
    }

    /// A checkpoint that looks at about `changes_max` changes for what compaction made unreachable, and removes
    /// it; true when more is left. Every checkpoint does some of it.
    pub fn collect_garbage(&self, changes_max: usize) -> Result<bool, StoreError> {
        if self.has_garbage() {
            self.fold_frozen(self.freeze()?, changes_max, &|_| {})?;
        }
        Ok(self.has_garbage())
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
        self.with_table(LEASES, |leases| leases.get(&key)?.map(|value| lease_info(&key, value.value())).transpose())
    }

    /// The keys attached to a lease, in order.
    pub fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, StoreError> {
        self.with_table(ATTACHED, |attached| lease_keys(attached, id))
    }

    /// File and record sizes.
    #[must_use]
    pub fn sizes(&self) -> StoreSizes {
        let file_bytes = self.inner.file_bytes.load(Ordering::Relaxed) + self.inner.history.bytes();
        StoreSizes { file_bytes, in_use_bytes: self.state().used_bytes + self.recent_bytes() as u64 }
    }

    /// How often what was done with the user's keys and leases.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.inner.tally.view()
    }

    /// A hash over what is visible at the compaction revision and the history from there to `revision` (0:
    /// now): equal on members with equal history, whatever their garbage collection got to. With the
    /// compaction revision and the revision it covers (etcd HashKV).
    pub fn hash_kv(&self, keyspace: Keyspace, revision: Revision) -> Result<(u32, Revision, Revision), ReadError> {
        let reading = self.reading(keyspace);
        let view = reading.view();
        view.check_revision(revision)?;
        let revision = if revision.0 == 0 { view.revision } else { revision.0 };
        let mut hash = Xxh3::new();
        view.for_each_at(view.compact, |kv| {
            hash.update(&kv.key);
            hash.update(&kv.mod_revision.0.to_le_bytes());
        })?;
        let after = |main: u64| Rev { main: main.saturating_add(1), sub: 0 };
        let mut record = Vec::new();
        view.for_each_logged(after(view.compact), after(revision), |rev, logged| {
            record.clear();
            logged.encode(&mut record);
            hash.update(&rev.key());
            hash.update(&record);
            Ok(true)
        })?;
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
            for item in self.table(table)?.range::<&[u8]>(..)? {
                let (key, value) = item?;
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
        self.write(&|_, _| Wanted::Nothing, |writer| {
            writer.apply(&entry)?;
            writer.refound(refound.bump_revision, refound.mark_compacted)
        })?;
        self.checkpoint()?;
        Ok(self.applied())
    }

    /// Up to where compacted history has been removed.
    #[must_use]
    pub fn collected_revision(&self, keyspace: Keyspace) -> Revision {
        Revision(self.state().keyspaces[keyspace as usize].collected)
    }

    /// A point-in-time reader of everything that was applied before the call. Takes a checkpoint, hence
    /// waits for the disk; writes go on meanwhile.
    pub fn snapshot(&self) -> Result<SnapshotReader, StoreError> {
        self.checkpoint()?;
        self.last_checkpoint()
    }

    /// The same of the last checkpoint, at once. It is what the Raft log goes on from.
    pub fn last_checkpoint(&self) -> Result<SnapshotReader, StoreError> {
        let base = self.layers().base;
        let (state, membership) = read_state_of(&base.txn)?;
        SnapshotReader::new(&base, state, membership)
    }

    /// Starts to replace everything by a snapshot that arrives in portions. Until the writer finishes or is
    /// dropped, readers see the old state and writers fail with [`StoreError::Restoring`].
    pub fn begin_restore(&self) -> Result<RestoreWriter, StoreError> {
        let mut folding = lock(&self.inner.folding);
        folding.sizes = Default::default();
        let _turn = self.take_turn()?;
        RestoreWriter::new(Arc::clone(&self.inner), &mut folding.ledger)
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

fn place_of(table: Def) -> Result<usize, StoreError> {
    let name = table.name();
    PLAIN_TABLES.iter().position(|plain| plain.name() == name).ok_or_else(|| damaged("meta", "table", name.as_bytes()))
}

fn lease_info(key: &[u8], value: &[u8]) -> Result<LeaseInfo, StoreError> {
    match (key.try_into(), value.try_into()) {
        (Ok(id), Ok(ttl_s)) => Ok(LeaseInfo { id: i64::from_be_bytes(id), ttl_s: i64::from_le_bytes(ttl_s) }),
        _ => Err(damaged("leases", "record", value)),
    }
}

fn event(view: &View<'_>, rev: Rev, logged: &Logged<'_>) -> Result<Event, StoreError> {
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
