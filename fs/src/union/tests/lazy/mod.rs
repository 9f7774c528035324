//! Files of which not all was copied up: one by one, at random beside a plain model, and under power cuts.

mod basic;
mod crash;
mod faults;
mod hooked;
mod random;
mod together;

use super::{content, dir_branch, sim_branch, walk};
use crate::fop::{Errno, FileKind, SetAttr};
use crate::union::branch::{At, Branch, Handle, Open, SimBranch};
use crate::union::{BranchConfig, BranchSource, LazyConfig, Perm, Res, Union, UnionConfig, names};
use std::sync::Arc;

/// Blocks of so many bytes.
const BLOCK: u64 = 16;

fn lazily(branches: Vec<BranchConfig>) -> UnionConfig {
    let lazy = LazyConfig { cpup: Some(2 * BLOCK), block_bytes: BLOCK, flush_after: None };
    UnionConfig { branches, lazy, ..UnionConfig::default() }
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|i| b'a' + (i % 23) as u8).collect()
}

fn truncate(union: &Union, ino: u64, size: u64) -> Res<()> {
    union.setattr(ino, &SetAttr { size: Some(size), ..SetAttr::default() }, false).map(drop)
}

/// The bitmaps of a branch, and the marks in it that count, by the bitmap's name.
fn on_disk(branch: &dyn Branch) -> (Vec<String>, Vec<String>) {
    let root = branch.root();
    let (mut bitmaps, mut marks) = (Vec::new(), Vec::new());
    if let Ok(dir) = branch.open(At::Name(&root, names::LAZY), Open::Path) {
        branch.list(&dir, &mut |e| bitmaps.push(String::from_utf8_lossy(e.name).into_owned())).expect("list");
    }
    marked(branch, &root, &mut marks);
    bitmaps.sort();
    marks.sort();
    marks.dedup();
    (bitmaps, marks)
}

fn marked(branch: &dyn Branch, dir: &Handle, out: &mut Vec<String>) {
    let mut entries = Vec::new();
    branch.list(dir, &mut |e| entries.push((e.name.to_vec(), e.kind))).expect("list");
    for (name, kind) in entries {
        if kind == FileKind::Dir && name != names::LAZY {
            marked(branch, &branch.open(At::Name(dir, &name), Open::Path).expect("open"), out);
        } else if let Ok(value) = branch.get_xattr(At::Name(dir, &name), names::XATTR_LAZY) {
            let numbers = String::from_utf8_lossy(&value).into_owned();
            out.push(numbers.split('.').nth(2).expect("the ID").to_owned());
        }
    }
}
