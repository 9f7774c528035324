//! The segment files while the log runs: preparing the next one ahead of use, recycling the dead ones.
//!
//! Order is everything here, since a power cut may come between any two steps:
//! - A fresh segment is zero-filled, synced with its size, and only then gets its header, so that a valid
//!   header means a prepared file. The directory is synced before the first batch goes in.
//! - A recycled one is renamed, the directory synced, and only then gets its new header, so that no file
//!   ever carries the header of a number that its name does not have.

use super::format::{SEGMENT_HEADER_BYTES, SegmentHeader, segment_name};
use super::types::WalError;
use crate::io::{AlignedBuf, Io, IoOp, ZERO_BYTES_MAX};
use std::collections::BTreeMap;

/// Tokens of preparation; batches use their numbers, which are far below.
pub const PREPARE_TOKEN: u64 = 1 << 62;
/// Dead segments kept for reuse; more are removed.
const RETIRED_MAX: usize = 2;

/// All segment files.
pub struct Segments<F> {
    log_id: u64,
    segment_bytes: u64,
    /// Ready to be written, or full.
    ready: BTreeMap<u64, Option<F>>,
    /// Below the durable floor, by number, with their handles and sizes.
    retired: BTreeMap<u64, Option<F>>,
    preparing: Option<Preparing<F>>,
}

struct Preparing<F> {
    segment: u64,
    file: F,
    step: Step,
}

/// The operation in flight.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Zeros up to this offset are written when it completes.
    Zero(u64),
    SyncFile,
    SyncRename,
    Header { then_dir: bool },
    SyncCreate,
}

impl<F: Copy + std::fmt::Debug + PartialEq> Segments<F> {
    /// `live` are valid segments, `retired` those that recovery does not need any more.
    pub fn new(log_id: u64, segment_bytes: u64, live: impl IntoIterator<Item = u64>, retired: impl IntoIterator<Item = u64>) -> Self {
        Self {
            log_id,
            segment_bytes,
            ready: live.into_iter().map(|s| (s, None)).collect(),
            retired: retired.into_iter().map(|s| (s, None)).collect(),
            preparing: None,
        }
    }

    /// The highest segment that can be written.
    pub fn highest(&self) -> u64 {
        self.ready.last_key_value().map_or(0, |(s, _)| *s)
    }

    /// Live segment files.
    pub fn live(&self) -> usize {
        self.ready.len()
    }

    /// The handle of `segment`, once it is ready.
    pub fn file<I: Io<File = F>>(&mut self, io: &mut I, segment: u64) -> Result<Option<F>, WalError> {
        match self.ready.get_mut(&segment) {
            None => Ok(None),
            Some(Some(file)) => Ok(Some(*file)),
            Some(slot) => {
                let name = segment_name(segment);
                let file = io.open(&name, false).map_err(WalError::io(format!("open segment {name}")))?;
                *slot = Some(file);
                Ok(Some(file))
            }
        }
    }

    /// All segments below `floor` are superfluous, durably.
    pub fn retire<I: Io<File = F>>(&mut self, io: &mut I, floor: u64) -> Result<(), WalError> {
        let live = self.ready.split_off(&floor);
        self.retired.append(&mut std::mem::replace(&mut self.ready, live));
        while self.retired.len() > RETIRED_MAX {
            // The lowest first: what is left stays contiguous, whatever part of this a power cut keeps.
            let Some((segment, file)) = self.retired.pop_first() else { break };
            if let Some(file) = file {
                io.close(file);
            }
            let name = segment_name(segment);
            io.remove(&name).map_err(WalError::io(format!("remove segment {name}")))?;
        }
        Ok(())
    }

    /// Starts preparing the segment after the highest one, if that is at or below `wanted` and nothing is
    /// being prepared.
    pub fn prepare<I: Io<File = F>>(&mut self, io: &mut I, wanted: u64) -> Result<(), WalError> {
        if self.preparing.is_some() || self.highest() >= wanted {
            return Ok(());
        }
        let segment = self.highest() + 1;
        let name = segment_name(segment);
        while let Some((old, file)) = self.retired.pop_first() {
            let old_name = segment_name(old);
            let file = match file {
                Some(file) => file,
                None => io.open(&old_name, false).map_err(WalError::io(format!("open segment {old_name}")))?,
            };
            if io.len(file).map_err(WalError::io(format!("stat segment {old_name}")))? == self.segment_bytes {
                io.rename(&old_name, &name).map_err(WalError::io(format!("rename segment {old_name} to {name}")))?;
                self.preparing = Some(Preparing { segment, file, step: Step::SyncRename });
                return self.start(io);
            }
            io.close(file);
            io.remove(&old_name).map_err(WalError::io(format!("remove segment {old_name}")))?;
        }
        let file = io.open(&name, true).map_err(WalError::io(format!("create segment {name}")))?;
        self.preparing = Some(Preparing { segment, file, step: Step::Zero(0) });
        self.advance(io)
    }

    /// Takes in that the operation in flight is done.
    pub fn completed<I: Io<File = F>>(&mut self, io: &mut I, result: std::io::Result<()>) -> Result<(), WalError> {
        let Some(preparing) = &self.preparing else { return Ok(()) };
        let name = segment_name(preparing.segment);
        result.map_err(WalError::io(format!("prepare segment {name} ({:?})", preparing.step)))?;
        self.advance(io)
    }

    /// Goes on to the next step.
    fn advance<I: Io<File = F>>(&mut self, io: &mut I) -> Result<(), WalError> {
        let Some(preparing) = &mut self.preparing else { return Ok(()) };
        preparing.step = match preparing.step {
            Step::Zero(done) if done < self.segment_bytes => Step::Zero(self.segment_bytes.min(done + ZERO_BYTES_MAX as u64)),
            Step::Zero(_) => Step::SyncFile,
            Step::SyncFile => Step::Header { then_dir: true },
            Step::SyncRename => Step::Header { then_dir: false },
            Step::Header { then_dir: true } => Step::SyncCreate,
            Step::Header { then_dir: false } | Step::SyncCreate => {
                self.ready.insert(preparing.segment, Some(preparing.file));
                self.preparing = None;
                return Ok(());
            }
        };
        self.start(io)
    }

    fn start<I: Io<File = F>>(&mut self, io: &mut I) -> Result<(), WalError> {
        let Some(Preparing { segment, file, step }) = &self.preparing else { return Ok(()) };
        let file = *file;
        let op = match *step {
            Step::Zero(end) => {
                let offset = (end - 1) / ZERO_BYTES_MAX as u64 * ZERO_BYTES_MAX as u64;
                IoOp::Zero { file, offset, len: usize::try_from(end - offset).unwrap_or(ZERO_BYTES_MAX) }
            }
            Step::SyncFile => IoOp::Fsync { file },
            Step::SyncRename | Step::SyncCreate => IoOp::SyncDir,
            Step::Header { .. } => {
                let header = SegmentHeader { log_id: self.log_id, segment: *segment, segment_bytes: self.segment_bytes };
                let mut data = AlignedBuf::with_capacity(SEGMENT_HEADER_BYTES);
                data.extend(&header.encode());
                IoOp::Write { file, offset: 0, data, durable: true }
            }
        };
        io.submit(PREPARE_TOKEN, op).map_err(WalError::io(format!("prepare segment {} ({step:?})", segment_name(*segment))))
    }
}
