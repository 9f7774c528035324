//! Watchers.
//!
//! A watcher in step gets changes as they are applied, through its own bounded queue. One that starts in the
//! past, or whose queue is full, lags: it reads the history out of the store, in bounded portions shared with
//! the others that lag. So a slow client costs the memory of one queue, never more, and loses nothing unless
//! compaction overtakes it, which it is told.

use super::error::{ReadError, StoreError};
use super::lookup::Lookup;
use super::store::{Store, Wanted};
use super::types::{Event, Keyspace};
use crate::types::Revision;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A watcher's number in its hub; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub u64);

/// What to watch: etcd `WatchCreateRequest`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchRequest {
    /// The key, or the start of a range.
    pub key: Bytes,
    /// As in [`super::types::RangeRequest`].
    pub range_end: Bytes,
    /// The first revision wanted; 0 for what comes next.
    pub start_revision: Revision,
    /// Leave out puts.
    pub no_put: bool,
    /// Leave out deletions.
    pub no_delete: bool,
    /// Give the previous pair with each event.
    pub prev_kv: bool,
}

/// What a watcher gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchOutput {
    /// Changes in order: whole revisions, never part of one.
    Events {
        /// The revision of the last of them.
        revision: Revision,
        /// The changes.
        events: Vec<Event>,
    },
    /// Everything up to this revision has been delivered.
    Progress {
        /// The store's revision.
        revision: Revision,
    },
    /// The history it needs is gone; the watcher does not exist any more.
    Compacted {
        /// Where history starts.
        compact_revision: Revision,
    },
}

/// Bounds of the hub.
#[derive(Clone, Copy, Debug)]
pub struct WatchConfig {
    /// Events waiting in one watcher's queue; beyond it the watcher falls back to reading the store. Only a
    /// single revision that is larger by itself exceeds it.
    pub queue_events_max: usize,
    /// Bytes of keys and values waiting in one watcher's queue, likewise.
    pub queue_bytes_max: usize,
    /// Events read from the store in one step of catching up.
    pub catch_up_events_max: usize,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self { queue_events_max: 1024, queue_bytes_max: 4 << 20, catch_up_events_max: 1024 }
    }
}

/// How a watcher gets its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// From [`WatchHub::on_events`].
    Synced,
    /// From [`WatchHub::catch_up`].
    Behind,
    /// From `catch_up`, once its queue has room again.
    Parked,
}

#[derive(Debug)]
struct Watcher {
    keyspace: Keyspace,
    request: WatchRequest,
    mode: Mode,
    /// No event below it is wanted any more. While in step, what the hub has seen counts as well.
    next: Revision,
    queue: VecDeque<Arc<Event>>,
    queued_bytes: usize,
    /// The consumer knows that there is output, or will be told: no need to tell again.
    announced: bool,
    progress_due: bool,
    compacted: Option<Revision>,
}

fn event_bytes(event: &Event) -> usize {
    let prev = event.prev_kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
    event.kv.key.len() + event.kv.value.len() + prev
}

impl Watcher {
    /// Queues an event if it is wanted; false when the queue is full. Then nothing of the event's revision
    /// is in the queue, and `next` is that revision.
    fn offer(&mut self, event: &Arc<Event>, config: &WatchConfig) -> bool {
        let revision = event.kv.mod_revision;
        let filtered = if event.delete { self.request.no_delete } else { self.request.no_put };
        if filtered || revision < self.next {
            return true;
        }
        let full = self.queue.len() >= config.queue_events_max || self.queued_bytes >= config.queue_bytes_max;
        if full && self.queue.front().is_some_and(|first| first.kv.mod_revision != revision) {
            while self.queue.back().is_some_and(|last| last.kv.mod_revision == revision) {
                self.queued_bytes -= self.queue.pop_back().map_or(0, |last| event_bytes(&last));
            }
            self.next = revision;
            return false;
        }
        self.queued_bytes += event_bytes(event);
        self.queue.push_back(Arc::clone(event));
        true
    }

    /// Takes whole revisions off the queue until there are `events_max` events.
    fn take(&mut self, events_max: usize) -> Option<WatchOutput> {
        let mut revision = self.queue.front()?.kv.mod_revision;
        let mut events = Vec::new();
        while let Some(first) = self.queue.front() {
            if first.kv.mod_revision != revision && events.len() >= events_max {
                break;
            }
            revision = first.kv.mod_revision;
            if let Some(event) = self.queue.pop_front() {
                self.queued_bytes -= event_bytes(&event);
                let prev_kv = event.prev_kv.as_ref().filter(|_| self.request.prev_kv).cloned();
                events.push(Event { delete: event.delete, kv: event.kv.clone(), prev_kv });
            }
        }
        Some(WatchOutput::Events { revision, events })
    }

    fn has_output(&self) -> bool {
        !self.queue.is_empty() || self.compacted.is_some() || (self.progress_due && self.mode == Mode::Synced)
    }
}

/// How many watchers a key space has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchCounts {
    /// All.
    pub watchers: usize,
    /// Those of them that lag.
    pub slow: usize,
    /// Events in their queues.
    pub pending_events: usize,
}

impl WatchCounts {
    /// [`Watcher::offer`], counted.
    fn offer(&mut self, watcher: &mut Watcher, event: &Arc<Event>, config: &WatchConfig) -> bool {
        let before = watcher.queue.len();
        let fits = watcher.offer(event, config);
        self.pending_events = self.pending_events + watcher.queue.len() - before;
        fits
    }
}

/// One key space's side of the hub.
#[derive(Debug, Default)]
struct Side {
    /// The last revision that `on_events` told of.
    seen: Revision,
    synced: Lookup,
    /// Those behind, parked ones too.
    lagging: Lookup,
    /// Those behind that may be served.
    behind: BTreeSet<WatchId>,
    counts: WatchCounts,
}

/// All watchers of a member.
///
/// The caller tells it of every applied command ([`Self::on_events`]), gives it time to read history while
/// [`Self::needs_catch_up`] ([`Self::catch_up`]), and carries output away ([`Self::next_ready`],
/// [`Self::poll`]).
#[derive(Debug)]
pub struct WatchHub {
    config: WatchConfig,
    sides: [Side; 2],
    /// In boxes, since the tree keeps half of its room free.
    watchers: BTreeMap<WatchId, Box<Watcher>>,
    /// Watchers that want the pair before each change.
    prev_kvs: usize,
    last_id: u64,
    ready: VecDeque<WatchId>,
    /// Spared allocations.
    interested: Vec<WatchId>,
}

impl WatchHub {
    /// A hub over a store as it is now: it is to be told of every command applied from here on.
    #[must_use]
    pub fn new(config: WatchConfig, store: &Store) -> Self {
        let side = |keyspace| Side { seen: store.revision(keyspace), ..Side::default() };
        Self {
            config,
            sides: [side(Keyspace::User), side(Keyspace::System)],
            watchers: BTreeMap::new(),
            prev_kvs: 0,
            last_id: 0,
            ready: VecDeque::new(),
            interested: Vec::new(),
        }
    }

    /// Adds a watcher. When it starts below the compaction revision, that shows as its only output, after
    /// the next [`Self::catch_up`].
    pub fn create(&mut self, keyspace: Keyspace, request: WatchRequest) -> WatchId {
        self.last_id += 1;
        let id = WatchId(self.last_id);
        let side = &mut self.sides[keyspace as usize];
        let next = if request.start_revision.0 == 0 { side.seen.next() } else { request.start_revision };
        let mode = if next > side.seen { Mode::Synced } else { Mode::Behind };
        if mode == Mode::Synced {
            side.synced.insert(id, &request);
        } else {
            side.lagging.insert(id, &request);
            side.behind.insert(id);
            side.counts.slow += 1;
        }
        side.counts.watchers += 1;
        self.prev_kvs += usize::from(request.prev_kv);
        let watcher = Watcher {
            keyspace,
            request,
            mode,
            next,
            queue: VecDeque::new(),
            queued_bytes: 0,
            announced: false,
            progress_due: false,
            compacted: None,
        };
        self.watchers.insert(id, Box::new(watcher));
        id
    }

    /// Removes a watcher; false when there is none of that number.
    pub fn cancel(&mut self, id: WatchId) -> bool {
        let Some(watcher) = self.watchers.remove(&id) else { return false };
        self.prev_kvs -= usize::from(watcher.request.prev_kv);
        let side = &mut self.sides[watcher.keyspace as usize];
        side.synced.remove(id, &watcher.request);
        side.lagging.remove(id, &watcher.request);
        side.behind.remove(&id);
        side.counts.watchers -= 1;
        side.counts.slow -= usize::from(watcher.mode != Mode::Synced);
        side.counts.pending_events -= watcher.queue.len();
        true
    }

    /// What watchers in step may want to see of a change of this key; what [`Store::apply_with`]
    /// asks. Those that lag get it out of the history.
    #[must_use]
    pub fn wants(&self, keyspace: Keyspace, key: &Bytes) -> Wanted {
        let synced = &self.sides[keyspace as usize].synced;
        if synced.is_empty() {
            return Wanted::Nothing;
        }
        if self.prev_kvs == 0 {
            return Wanted::Event;
        }
        let mut interested = Vec::new();
        synced.find(key, &mut interested);
        let prev = interested.iter().any(|id| self.watchers.get(id).is_some_and(|watcher| watcher.request.prev_kv));
        if prev { Wanted::EventAndPrev } else { Wanted::Event }
    }

    fn announce(ready: &mut VecDeque<WatchId>, id: WatchId, watcher: &mut Watcher) {
        if !watcher.announced && watcher.has_output() {
            watcher.announced = true;
            ready.push_back(id);
        }
    }

    /// Tells of one applied command: call it for every outcome of [`Store::apply_with`] (with
    /// [`Self::wants`]) that was not skipped, in
    /// order, whether it has events or not.
    pub fn on_events(&mut self, keyspace: Keyspace, revision: Revision, events: &[Event]) {
        let side = &mut self.sides[keyspace as usize];
        if revision <= side.seen {
            return;
        }
        for event in events {
            self.interested.clear();
            side.synced.find(&event.kv.key, &mut self.interested);
            if self.interested.is_empty() {
                continue;
            }
            let shared = Arc::new(event.clone());
            for &id in &self.interested {
                let Some(watcher) = self.watchers.get_mut(&id) else { continue };
                if !side.counts.offer(watcher, &shared, &self.config) {
                    watcher.mode = Mode::Parked;
                    side.counts.slow += 1;
                    side.synced.remove(id, &watcher.request);
                    side.lagging.insert(id, &watcher.request);
                }
                Self::announce(&mut self.ready, id, watcher);
            }
        }
        side.seen = revision;
    }

    /// The store was replaced by a snapshot: every watcher goes on from where it is, out of the new history.
    pub fn on_restore(&mut self, store: &Store) {
        for keyspace in [Keyspace::User, Keyspace::System] {
            let side = &mut self.sides[keyspace as usize];
            let before = std::mem::replace(&mut side.seen, store.revision(keyspace));
            for (&id, watcher) in &mut self.watchers {
                if watcher.keyspace != keyspace || watcher.mode != Mode::Synced {
                    continue;
                }
                watcher.next = watcher.next.max(before.next());
                if watcher.next <= side.seen {
                    watcher.mode = Mode::Behind;
                    side.counts.slow += 1;
                    side.synced.remove(id, &watcher.request);
                    side.lagging.insert(id, &watcher.request);
                    side.behind.insert(id);
                }
            }
        }
    }

    /// Whether [`Self::catch_up`] has something to do.
    #[must_use]
    pub fn needs_catch_up(&self) -> bool {
        self.sides.iter().any(|side| !side.behind.is_empty())
    }

    /// Reads one bounded portion of history for those that lag and have room. True when another call would
    /// do more.
    pub fn catch_up(&mut self, store: &Store) -> Result<bool, StoreError> {
        for keyspace in [Keyspace::User, Keyspace::System] {
            let side = &self.sides[keyspace as usize];
            let next = side.behind.iter().filter_map(|id| self.watchers.get(id)).map(|w| w.next).min();
            let Some(from) = next else { continue };
            match store.events_since(keyspace, from, side.seen, self.config.catch_up_events_max) {
                Ok(page) => self.feed(keyspace, &page.events, page.next),
                Err(ReadError::CompactedAt(compact)) => self.overtaken(keyspace, compact),
                Err(ReadError::Store(error)) => return Err(error),
                // Not among the answers of `events_since`.
                Err(ReadError::Kv(_)) => {}
            }
        }
        Ok(self.needs_catch_up())
    }

    /// Gives a portion of history to those behind; whoever has reached the present is in step from now on.
    fn feed(&mut self, keyspace: Keyspace, events: &[Event], next: Revision) {
        let side = &mut self.sides[keyspace as usize];
        for event in events {
            self.interested.clear();
            side.lagging.find(&event.kv.key, &mut self.interested);
            if self.interested.is_empty() {
                continue;
            }
            let shared = Arc::new(event.clone());
            for &id in &self.interested {
                let Some(watcher) = self.watchers.get_mut(&id).filter(|w| w.mode == Mode::Behind) else { continue };
                if !side.counts.offer(watcher, &shared, &self.config) {
                    watcher.mode = Mode::Parked;
                    side.behind.remove(&id);
                }
                Self::announce(&mut self.ready, id, watcher);
            }
        }
        let (watchers, ready) = (&mut self.watchers, &mut self.ready);
        let Side { seen, synced, lagging, behind, counts } = side;
        behind.retain(|&id| {
            let Some(watcher) = watchers.get_mut(&id) else { return false };
            watcher.next = watcher.next.max(next);
            if watcher.next <= *seen {
                return true;
            }
            watcher.mode = Mode::Synced;
            counts.slow -= 1;
            lagging.remove(id, &watcher.request);
            synced.insert(id, &watcher.request);
            Self::announce(ready, id, watcher);
            false
        });
    }

    fn overtaken(&mut self, keyspace: Keyspace, compact: Revision) {
        let (watchers, ready) = (&mut self.watchers, &mut self.ready);
        let Side { lagging, behind, .. } = &mut self.sides[keyspace as usize];
        behind.retain(|&id| {
            let Some(watcher) = watchers.get_mut(&id) else { return false };
            if watcher.next >= compact {
                return true;
            }
            watcher.compacted = Some(compact);
            lagging.remove(id, &watcher.request);
            Self::announce(ready, id, watcher);
            false
        });
    }

    /// A watcher that has output. It is told once; its consumer then polls until `None`, at its own pace,
    /// after which the watcher is told again when there is more.
    pub fn next_ready(&mut self) -> Option<WatchId> {
        while let Some(id) = self.ready.pop_front() {
            if self.watchers.contains_key(&id) {
                return Some(id);
            }
        }
        None
    }

    /// Takes a watcher's next output: about `events_max` events at most, whole revisions. A consumer without
    /// room stops polling and goes on later: nothing is lost meanwhile. After [`WatchOutput::Compacted`] the
    /// watcher is gone.
    pub fn poll(&mut self, id: WatchId, events_max: usize) -> Option<WatchOutput> {
        let watcher = self.watchers.get_mut(&id)?;
        let side = &mut self.sides[watcher.keyspace as usize];
        let before = watcher.queue.len();
        let output = watcher.take(events_max);
        side.counts.pending_events -= before - watcher.queue.len();
        if watcher.mode == Mode::Parked
            && watcher.compacted.is_none()
            && watcher.queue.len() <= self.config.queue_events_max / 2
            && watcher.queued_bytes <= self.config.queue_bytes_max / 2
        {
            watcher.mode = Mode::Behind;
            side.behind.insert(id);
        }
        if output.is_some() {
            return output;
        }
        if let Some(compact_revision) = watcher.compacted {
            self.cancel(id);
            return Some(WatchOutput::Compacted { compact_revision });
        }
        if watcher.mode == Mode::Synced && std::mem::take(&mut watcher.progress_due) {
            return Some(WatchOutput::Progress { revision: side.seen });
        }
        watcher.announced = false;
        None
    }

    /// Whether [`Self::poll`] would give something.
    #[must_use]
    pub fn has_output(&self, id: WatchId) -> bool {
        self.watchers.get(&id).is_some_and(|watcher| watcher.has_output())
    }

    /// Gives [`WatchOutput::Progress`] to one watcher, as soon as it is in step (etcd WatchProgressRequest).
    pub fn request_progress(&mut self, id: WatchId) {
        if let Some(watcher) = self.watchers.get_mut(&id) {
            watcher.progress_due = true;
            Self::announce(&mut self.ready, id, watcher);
        }
    }

    /// The last revision told of.
    #[must_use]
    pub fn seen(&self, keyspace: Keyspace) -> Revision {
        self.sides[keyspace as usize].seen
    }

    /// How many watchers there are.
    #[must_use]
    pub fn counts(&self, keyspace: Keyspace) -> WatchCounts {
        self.sides[keyspace as usize].counts
    }
}
