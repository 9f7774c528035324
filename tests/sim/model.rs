//! What is known of the files: of every block the values that it was given, in order, and how far down it may be.

use crate::work::Intent;
use brickraft_fs::fop::Gfid;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// A block is a sector, which no disk tears.
pub const BLOCK: usize = 512;
/// Blocks of a file.
pub const BLOCKS: usize = 24;

/// One block. It has one writer, so its values have an order.
#[derive(Clone, Debug)]
pub struct Register {
    pub history: Vec<u64>,
    /// Places in `history`: written for certain, seen by somebody, certainly durable.
    pub acked: usize,
    pub seen: usize,
    pub synced: usize,
}

impl Default for Register {
    fn default() -> Self {
        Self { history: vec![0], acked: 0, seen: 0, synced: 0 }
    }
}

impl Register {
    /// What a read that begins now must at least see.
    pub fn floor(&self) -> usize {
        self.acked.max(self.seen)
    }

    /// The earliest place from `floor` on at which the block had `value`: zeros come more than once, and a late answer may be old.
    pub fn place(&self, value: u64, floor: usize) -> Option<usize> {
        (floor..self.history.len()).find(|&p| self.history[p] == value)
    }

    pub fn attempt(&mut self, value: u64) -> usize {
        self.history.push(value);
        self.history.len() - 1
    }
}

/// A name: in the subdirectory or not, and which.
pub type Name = (bool, u8);

/// A file. Its owner alone changes it; everybody reads it.
#[derive(Clone, Debug, Default)]
pub struct File {
    pub owner: usize,
    pub blocks: Vec<Register>,
    /// Once it was synced: the names under which it must be found, if it must.
    pub names: BTreeSet<Name>,
    /// An unlink was tried since it was synced, or it never was.
    pub may_be_gone: bool,
    /// It was taken away for certain, or is not made yet.
    pub gone: bool,
}

/// All files there ever were.
#[derive(Default)]
pub struct Files {
    pub files: BTreeMap<Gfid, File>,
    pub values: u64,
}

impl Files {
    pub fn make(&mut self, gfid: Gfid, owner: usize) {
        let blocks = vec![Register::default(); BLOCKS];
        self.files.insert(gfid, File { owner, blocks, names: BTreeSet::new(), may_be_gone: true, gone: false });
    }

    pub fn value(&mut self) -> u64 {
        self.values += 1;
        self.values
    }

    /// What was not synced may be lost from now on.
    pub fn power_lost(&mut self) {
        for file in self.files.values_mut() {
            file.gone = false;
            for block in &mut file.blocks {
                (block.acked, block.seen) = (block.synced, block.synced);
            }
        }
    }

    /// A change by name was under way when something was lost. What was at the name then is not known: whatever
    /// could be there may have been taken away, or moved.
    pub fn changed_in_doubt(&mut self, owner: usize, intent: &Intent) {
        let (from, to) = match intent {
            Intent::Unlink(name) => (None, *name),
            Intent::Rename(from, to) => (Some(*from), *to),
            _ => return,
        };
        for file in self.files.values_mut().filter(|f| f.owner == owner) {
            file.may_be_gone |= file.names.contains(&to);
            if from.is_some_and(|from| file.names.contains(&from)) {
                file.names.insert(to);
            }
        }
    }

    pub fn floors(&self, gfid: Gfid) -> Vec<usize> {
        self.files.get(&gfid).map(|f| f.blocks.iter().map(Register::floor).collect()).unwrap_or_default()
    }
}

/// The bytes of a block with a value.
pub fn block(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(BLOCK / 8)
}

/// The values in a file's content. What lies past its end counts as zeros.
pub fn values(content: &Bytes) -> Result<Vec<u64>, String> {
    let mut values = vec![0; BLOCKS];
    if content.len() > BLOCKS * BLOCK || !content.len().is_multiple_of(BLOCK) {
        return Err(format!("the file has {} bytes", content.len()));
    }
    for (i, chunk) in content.chunks(BLOCK).enumerate() {
        let value = u64::from_le_bytes(chunk[..8].try_into().expect("8 bytes"));
        if chunk != block(value) {
            return Err(format!("block {i} is torn: it begins with value {value}"));
        }
        values[i] = value;
    }
    Ok(values)
}
