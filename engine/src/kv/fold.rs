//! The checkpoint: what was applied in memory goes into the file, in key order, in one durable transaction,
//! together with the removal of some of what compaction made unreachable.

use super::block;
use super::codec::{
    FORMAT_VERSION, META, META_HISTORY, META_MEMBERSHIP, META_STATE, PLAIN_TABLES, Rev, State, damaged, index_value, tables_of,
    write_index_key,
};
use super::current::Merger;
use super::error::StoreError;
use super::history::{self, Appender, Committed, History, Ledger};
use super::known::Written;
use super::overlay::{Change, Overlay, Recent};
use super::runs::{self, RUNS_MERGED, RunCursor, RunSizes};
use super::types::Keyspace;
use bytes::Bytes;
use redb::{Database, Durability, ReadableTable, Table, WriteTransaction};
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// Runs of more blocks than this are not merged, so that merging takes little memory and time. (That many
/// are some 150,000 superseded versions.)
const MERGED_BLOCKS_MAX: usize = 512;

/// Pages that one step of a checkpoint dirties, about. The engine buffers 32 MiB of them: beyond that it would write
/// pages out, read them back to sum them up, and write them again.
const STEP_BYTES_MAX: usize = if cfg!(test) { 8 << 10 } else { 16 << 20 };
/// Keys that are written, with what they supersede, before a look at [`STEP_BYTES_MAX`], and at the pace: mostly well below a millisecond's work.
const STEP_KEYS: usize = if cfg!(test) { 3 } else { 256 };
/// Changes of the log, the same.
const STEP_CHANGES: usize = if cfg!(test) { 3 } else { 1024 };
/// What a block that lies outside takes in its table, about.
const ROW_BYTES: usize = 64;
/// redb's pages.
pub(super) const PAGE_BYTES: usize = 4096;

/// What a record is taken to cost besides its bytes.
pub(super) const RECORD_OVERHEAD_BYTES: u64 = 16;

pub(super) type FileTable<'t> = Table<'t, &'static [u8], &'static [u8]>;

/// One key space's tables, open for writing, and the count of bytes in use.
struct Tables<'t, 'u> {
    current: FileTable<'t>,
    log: FileTable<'t>,
    index: FileTable<'t>,
    used: &'u mut u64,
    sizes: &'u mut RunSizes,
    appender: &'u mut Appender,
}

/// What checkpoints know, from one to the next.
#[derive(Debug, Default)]
pub(super) struct Folding {
    /// Of both key spaces' indices.
    pub sizes: [RunSizes; 2],
    pub ledger: Ledger,
}

/// What a checkpoint did.
pub(super) struct Folded {
    /// As it stands in the file: with garbage collected, and all bytes counted.
    pub state: State,
    pub committed: Committed,
    /// The keys of both key spaces.
    pub written: [Option<Written>; 2],
}

/// A checkpoint's transactions: all but the last are held in memory, to become durable with the last, or not at all.
///
/// Nobody reads the file meanwhile but through [`super::base::Base`], which stays at the checkpoint before.
struct Steps<'d> {
    db: &'d Database,
    /// `None` before the first, and between two.
    txn: Option<WriteTransaction>,
    bytes: usize,
    /// Keys and changes that are written, and all of them.
    done: usize,
    all: usize,
    pace: Pace<'d>,
}

impl<'d> Steps<'d> {
    fn new(db: &'d Database, overlay: &Overlay, pace: Pace<'d>) -> Self {
        let all = overlay.keyspaces.iter().map(|recent| recent.keys() + recent.changes()).sum();
        Self { db, txn: None, bytes: 0, done: 0, all, pace }
    }

    /// The transaction under way.
    fn txn(&mut self) -> Result<&WriteTransaction, StoreError> {
        Ok(match &mut self.txn {
            Some(txn) => txn,
            none => none.insert(self.db.begin_write()?),
        })
    }

    /// After work on some keys or changes, which dirtied so many bytes of pages: ends the step if it has done enough.
    fn worked(&mut self, count: usize, bytes: usize) -> Result<(), StoreError> {
        self.done += count;
        (self.pace)(self.done as f64 / self.all.max(1) as f64);
        self.bytes += bytes;
        if self.bytes >= STEP_BYTES_MAX
            && let Some(mut txn) = self.txn.take()
        {
            txn.set_durability(Durability::None)?;
            txn.commit()?;
            self.bytes = 0;
        }
        Ok(())
    }

    /// Makes all of it durable.
    fn commit(mut self) -> Result<(), StoreError> {
        self.txn()?;
        let Some(mut txn) = self.txn.take() else { return Ok(()) };
        txn.set_durability(Durability::Immediate)?;
        // Saves which pages are free, so that opening after a crash need not walk the whole file.
        txn.set_quick_repair(true);
        Ok(txn.commit()?)
    }
}

/// Is told from time to time how much of a checkpoint is done, from 0 to 1, and takes the time that it wants others to have. (Only
/// the caller has a clock.)
pub(super) type Pace<'p> = &'p dyn Fn(f64);

/// Writes the overlay, and the state that it led to; looks at about `garbage_max` changes for garbage.
pub(super) fn fold(
    (db, history): (&Database, &Arc<History>),
    overlay: &Overlay,
    mut state: State,
    membership: Option<&Bytes>,
    folding: &mut Folding,
    garbage_max: usize,
    pace: Pace<'_>,
) -> Result<Folded, StoreError> {
    let mut appender = Appender::new(history, &mut folding.ledger);
    let mut steps = Steps::new(db, overlay, pace);
    for (changes, table) in overlay.plain.iter().zip(PLAIN_TABLES) {
        if changes.is_empty() {
            continue;
        }
        let mut table = steps.txn()?.open_table(table)?;
        for (key, value) in changes {
            match value {
                Some(value) => table.insert(&key[..], &value[..])?,
                None => table.remove(&key[..])?,
            };
        }
    }
    let mut left = garbage_max;
    let mut written = [const { None }; 2];
    for keyspace in [Keyspace::User, Keyspace::System] {
        let sizes = &mut folding.sizes[keyspace as usize];
        written[keyspace as usize] =
            fold_keyspace(&mut steps, keyspace, overlay.keyspace(keyspace), &mut state, sizes, &mut appender, &mut left)?;
    }
    let committed = appender.finish()?;
    {
        let mut meta = steps.txn()?.open_table(META)?;
        meta.insert(META_STATE, &state.encode(FORMAT_VERSION)[..])?;
        meta.insert(META_HISTORY, &committed.account().encode()[..])?;
        if let Some(membership) = membership {
            meta.insert(META_MEMBERSHIP, &membership[..])?;
        }
    }
    steps.commit()?;
    Ok(Folded { state, committed, written })
}

fn fold_keyspace(
    steps: &mut Steps<'_>,
    keyspace: Keyspace,
    recent: &Recent,
    state: &mut State,
    sizes: &mut RunSizes,
    appender: &mut Appender,
    left: &mut usize,
) -> Result<Option<Written>, StoreError> {
    let numbers = &mut state.keyspaces[keyspace as usize];
    if recent.last().is_none() && numbers.collected >= numbers.compact {
        return Ok(None);
    }
    let used = &mut state.used_bytes;
    let keys = recent.in_order();
    let mut superseded = Superseded::new(recent);
    for some in keys.chunks(STEP_KEYS) {
        let mut tables = Tables::open(steps.txn()?, keyspace, used, sizes, appender)?;
        let last = recent.last_of_all(some);
        let dirtied = Merger::new(&mut tables.current, tables.used).merge(&last)?;
        let indexed = superseded.write(&mut tables, recent, &last)?;
        drop(tables);
        steps.worked(some.len(), dirtied + indexed)?;
    }
    superseded.finish(&mut Tables::open(steps.txn()?, keyspace, used, sizes, appender)?)?;
    let mut block = Tables::open(steps.txn()?, keyspace, used, sizes, appender)?.last_block()?;
    for some in recent.log_pieces().flat_map(|piece| piece.chunks(STEP_CHANGES)) {
        let dirtied = Tables::open(steps.txn()?, keyspace, used, sizes, appender)?.write_log(&mut block, some)?;
        steps.worked(some.len(), dirtied)?;
    }
    let mut tables = Tables::open(steps.txn()?, keyspace, used, sizes, appender)?;
    tables.keep_block(&block)?;
    if numbers.collected < numbers.compact {
        tables.drop_runs(numbers.compact)?;
    }
    tables.merge_runs()?;
    while *left > 0 && numbers.collected < numbers.compact {
        let (looked, collected) = tables.collect_some(numbers.collected, numbers.compact, *left)?;
        *left = left.saturating_sub(looked.max(1));
        numbers.collected = collected;
    }
    Ok(Some(Written::new(recent)))
}

/// Puts records that come in order into blocks of a table.
#[derive(Default)]
struct Packer {
    key: Vec<u8>,
    block: Vec<u8>,
    /// Blocks that are in the table.
    written: usize,
}

impl Packer {
    /// `block_key` makes the table's key of a block that begins with this record.
    fn push(
        &mut self,
        to: (&mut FileTable<'_>, &mut Appender),
        block_key: impl FnOnce() -> Vec<u8>,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), StoreError> {
        if !block::has_room(&self.block, key, value) {
            self.flush(to)?;
        }
        if self.block.is_empty() {
            self.key = block_key();
        }
        block::push(&mut self.block, key, value);
        Ok(())
    }

    fn flush(&mut self, (table, appender): (&mut FileTable<'_>, &mut Appender)) -> Result<(), StoreError> {
        if !self.block.is_empty() {
            table.insert(&self.key[..], &appender.append(&self.block)?[..])?;
            self.block.clear();
            self.written += 1;
        }
        Ok(())
    }
}

/// The run of superseded versions, and deletions, by key, that a checkpoint adds to the index.
struct Superseded {
    /// The last revision that it is about.
    upto: u64,
    packer: Packer,
    key: Vec<u8>,
}

impl Superseded {
    fn new(recent: &Recent) -> Self {
        Self { upto: recent.last().map_or(0, |change| change.rev.main), packer: Packer::default(), key: Vec::new() }
    }

    /// Those of some keys, which come in order, given their last changes; says how many bytes of pages that dirtied, about.
    fn write(&mut self, tables: &mut Tables<'_, '_>, recent: &Recent, last: &[&Change]) -> Result<usize, StoreError> {
        let before = self.packer.written;
        let mut add = |key: &[u8], rev: Rev, tombstone: bool| {
            write_index_key(key, rev.main, &mut self.key);
            let (key, value) = (&self.key[..], index_value(rev.sub, tombstone));
            *tables.used += record_bytes(key, &value);
            self.packer.push((&mut tables.index, tables.appender), || runs::block_key(self.upto, key), key, &value)
        };
        recent.warm_before(last);
        let mut changes = Vec::new();
        for &last in last {
            changes.extend([last].into_iter().chain(recent.before(last)).map(|change| (change.rev, change.prev, change.delete)));
            // All have the same key; only that of the last one was just read.
            for (rev, prev, delete) in changes.drain(..).rev() {
                if prev != Rev::NONE {
                    add(&last.key, prev, false)?;
                }
                if delete {
                    add(&last.key, rev, true)?;
                }
            }
        }
        Ok((self.packer.written - before) * ROW_BYTES)
    }

    fn finish(mut self, tables: &mut Tables<'_, '_>) -> Result<(), StoreError> {
        self.packer.flush((&mut tables.index, tables.appender))?;
        if self.packer.written > 0 {
            tables.sizes.insert(self.upto, self.packer.written);
        }
        Ok(())
    }
}

fn record_bytes(key: &[u8], value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64 + RECORD_OVERHEAD_BYTES
}

/// The last block of the history, with the key that it has in the table.
#[derive(Default)]
struct LastBlock {
    key: Vec<u8>,
    block: Vec<u8>,
}

impl<'t, 'u> Tables<'t, 'u> {
    fn open(
        txn: &'t WriteTransaction,
        keyspace: Keyspace,
        used: &'u mut u64,
        sizes: &'u mut RunSizes,
        appender: &'u mut Appender,
    ) -> Result<Self, StoreError> {
        let [current, log, index] = tables_of(keyspace);
        Ok(Self { current: txn.open_table(current)?, log: txn.open_table(log)?, index: txn.open_table(index)?, used, sizes, appender })
    }

    /// The last block, if it has room for more.
    fn last_block(&self) -> Result<LastBlock, StoreError> {
        let Some((key, value)) = self.log.last()? else { return Ok(LastBlock::default()) };
        let (key, value) = (key.value(), value.value());
        let has_room = !history::is_outside(value) && value.len() < history::BLOCK_BYTES;
        Ok(if has_room { LastBlock { key: key.to_vec(), block: value.to_vec() } } else { LastBlock::default() })
    }

    /// The history, behind what there is: full blocks outside. Says how many bytes of pages that dirtied, about.
    fn write_log(&mut self, last: &mut LastBlock, changes: &[Change]) -> Result<usize, StoreError> {
        let mut dirtied = 0;
        for change in changes {
            let (key, logged) = (change.rev.key(), change.logged());
            *self.used += (key.len() + logged.len()) as u64 + RECORD_OVERHEAD_BYTES;
            if history::is_full(last.block.len(), block::RECORD_HEADER_LEN + key.len() + logged.len()) {
                let value = self.appender.append(&last.block)?;
                self.log.insert(&last.key[..], &value[..])?;
                dirtied += ROW_BYTES.max(value.len());
                last.block.clear();
            }
            if last.block.is_empty() {
                last.key.clear();
                last.key.extend_from_slice(&key);
            }
            block::begin(&mut last.block, &key, logged.len());
            logged.encode(&mut last.block);
        }
        Ok(dirtied)
    }

    /// The last block stands in the table until it is full, or too large for it.
    fn keep_block(&mut self, last: &LastBlock) -> Result<(), StoreError> {
        match last.block.len() {
            0 => {}
            1..history::BLOCK_BYTES => drop(self.log.insert(&last.key[..], &last.block[..])?),
            _ => drop(self.log.insert(&last.key[..], &self.appender.append(&last.block)?[..])?),
        }
        Ok(())
    }

    /// Merges the latest runs while there are many of about one size. So each record is written again once for
    /// each size class only. The merged run is about the same last revision as the latest of them.
    fn merge_runs(&mut self) -> Result<(), StoreError> {
        loop {
            let class = |blocks: usize| blocks.max(1).ilog(RUNS_MERGED);
            let (mut merged, mut size) = (Vec::new(), None);
            let mut below = u64::MAX.to_be_bytes();
            while merged.len() < RUNS_MERGED {
                let Some(last) = self.index.range::<&[u8]>(..&below[..])?.next_back().transpose()? else { return Ok(()) };
                let Some(upto) = last.0.value().first_chunk::<8>().copied() else { return Err(damaged("index", "key", last.0.value())) };
                let run = u64::from_be_bytes(upto);
                let blocks = match self.sizes.entry(run) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(unknown) => {
                        *unknown.insert(self.index.range::<&[u8]>(&upto[..]..&below[..])?.take(MERGED_BLOCKS_MAX).count())
                    }
                };
                if blocks >= MERGED_BLOCKS_MAX || class(blocks) > *size.get_or_insert(class(blocks)) {
                    return Ok(());
                }
                merged.push(run);
                below = upto;
            }
            self.merge(&merged)?;
        }
    }

    /// Latest first.
    fn merge(&mut self, merged: &[u64]) -> Result<(), StoreError> {
        let Some(&last) = merged.first() else { return Ok(()) };
        type Record = (Vec<u8>, Vec<u8>);
        // Of the table: key, and the block or where it lies.
        let mut rows: Vec<Record> = Vec::new();
        let history = self.appender.history()?;
        {
            // Each run with its next record.
            let mut heads: Vec<(Record, RunCursor<'_>)> = Vec::new();
            for upto in merged {
                let mut head = (Record::default(), RunCursor::new((&self.index, &*history), *upto, Vec::new(), None)?);
                if head.1.next_into(&mut head.0)? {
                    heads.push(head);
                }
            }
            // The one with the lowest record is the last in here.
            let mut order: Vec<usize> = (0..heads.len()).collect();
            order.sort_unstable_by(|&a, &b| heads[b].0.cmp(&heads[a].0));
            let mut block = Record::default();
            while let Some(&lowest) = order.last() {
                let ((key, value), _) = &heads[lowest];
                if !block::has_room(&block.1, key, value) {
                    rows.push((std::mem::take(&mut block.0), self.appender.append(&block.1)?.into_owned()));
                    block.1.clear();
                }
                if block.1.is_empty() {
                    block.0 = runs::block_key(last, key);
                }
                block::push(&mut block.1, key, value);
                let (record, cursor) = &mut heads[lowest];
                if !cursor.next_into(record)? {
                    order.pop();
                    continue;
                }
                let mut at = order.len() - 1;
                while at > 0 && heads[order[at - 1]].0 < heads[order[at]].0 {
                    order.swap(at - 1, at);
                    at -= 1;
                }
            }
            rows.push((block.0, self.appender.append(&block.1)?.into_owned()));
        }
        for upto in merged {
            self.drop_run(*upto)?;
        }
        self.sizes.insert(last, rows.len());
        for (key, row) in rows {
            self.index.insert(&key[..], &row[..])?;
        }
        Ok(())
    }

    fn drop_run(&mut self, upto: u64) -> Result<(), StoreError> {
        let (from, to) = (upto.to_be_bytes(), upto.saturating_add(1).to_be_bytes());
        let mut blocks = Vec::new();
        self.index.retain_in::<&[u8], _>(&from[..]..&to[..], |_, value| {
            blocks.extend(history::is_outside(value).then(|| value.to_vec()));
            false
        })?;
        self.sizes.remove(&upto);
        blocks.iter().try_for_each(|block| self.appender.free(block))
    }

    /// Removes the runs that no revision from `compact` on looks at.
    fn drop_runs(&mut self, compact: u64) -> Result<(), StoreError> {
        while let Some(upto) = runs::next_run(&self.index, 0)?.filter(|upto| *upto <= compact) {
            let history = self.appender.history()?;
            let mut cursor = RunCursor::new((&self.index, &*history), upto, Vec::new(), None)?;
            let mut freed = 0;
            while let Some(bytes) = cursor.next_raw(record_bytes)? {
                freed += bytes;
            }
            drop(cursor);
            *self.used = self.used.saturating_sub(freed);
            self.drop_run(upto)?;
        }
        Ok(())
    }

    /// Removes history that no revision from `compact` on can reach: each change up to it makes its predecessor
    /// garbage, and a deletion below it itself (one at it is still an event for who watches from there). Looks at about
    /// `changes_max` changes from `collected` on, whole revisions, each change once or twice in its life. Returns
    /// how many, and up to where.
    fn collect_some(&mut self, collected: u64, compact: u64, changes_max: usize) -> Result<(usize, u64), StoreError> {
        let mut garbage = Vec::new();
        let (mut looked, mut main, mut done) = (0, collected, compact);
        // The changes of the compaction revision itself supersede as well; they are looked at again with the next one.
        let end = Rev { main: compact.saturating_add(1), sub: 0 };
        self.appender.history()?.for_each(&self.log, Rev { main: collected, sub: 0 }, end, |rev, logged| {
            if looked >= changes_max && rev.main > main && rev.main < compact {
                done = rev.main;
                return Ok(false);
            }
            main = rev.main;
            looked += 1;
            garbage.extend(Some(logged.prev).filter(|prev| *prev != Rev::NONE));
            garbage.extend((logged.delete && rev.main < compact).then_some(rev));
            Ok(true)
        })?;
        garbage.sort_unstable();
        let mut left = &garbage[..];
        while let Some(first) = left.first() {
            let found = self.log.range::<&[u8]>(..=&first.key()[..])?.next_back().transpose()?;
            let Some((key, value)) = found.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())) else {
                left = &left[1..];
                continue;
            };
            left = self.filter_block(&key, &value, left)?;
        }
        Ok((looked, done))
    }

    /// Takes garbage out of one block; returns what of it lies behind the block.
    fn filter_block<'g>(&mut self, key: &[u8], value: &[u8], garbage: &'g [Rev]) -> Result<&'g [Rev], StoreError> {
        let block = self.appender.block(value)?;
        let (mut kept, mut last) = (Vec::with_capacity(block.len()), garbage[0]);
        for record in block::records("log", &block) {
            let (rev, value) = record?;
            let at = Rev::from_key(rev)?;
            last = last.max(at);
            if garbage.binary_search(&at).is_ok() {
                *self.used = self.used.saturating_sub(record_bytes(rev, value));
            } else {
                block::push(&mut kept, rev, value);
            }
        }
        if kept.len() < block.len() {
            self.appender.free(value)?;
            match kept.len() {
                0 => drop(self.log.remove(key)?),
                _ => drop(self.log.insert(key, &self.appender.append(&kept)?[..])?),
            }
        }
        Ok(&garbage[garbage.partition_point(|rev| *rev <= last)..])
    }
}
