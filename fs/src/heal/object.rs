//! One object made equal: existence, data, attributes, extended attributes, in this order.
//!
//! Attributes come after the data because writing moves the mtime and drops set-id bits; extended attributes come
//! after the owner because changing the owner drops `security.capability`.

use super::calls::{CALL_BYTES_MAX, CHUNK_BYTES, ExactAttr, HealCall, HealReturn, ObjectInfo};
use super::cx::Cx;
use super::wire::{self, Window};
use crate::fop::{Attr, Errno, FileKind, Gfid};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Copies under way for one file.
const COPIES_MAX: usize = 4;

/// Whether the target's attributes must be set. Access times are the brick's own affair.
pub(super) fn attr_differs(source: &Attr, target: &Attr) -> bool {
    let key = |a: &Attr| (a.mode, a.uid, a.gid, a.mtime);
    key(source) != key(target)
}

/// Makes a non-directory equal.
pub(super) async fn heal_file(
    cx: &Cx,
    source: &ObjectInfo,
    target: Option<&ObjectInfo>,
    data: &[(u64, u64)],
) -> Result<(), Errno> {
    let gfid = source.attr.gfid;
    let Some(target) = target else {
        cx.healed();
        return make_file(cx, source).await;
    };
    let (s, t) = (&source.attr, &target.attr);
    if (s.kind, s.rdev, &source.target) != (t.kind, t.rdev, &target.target) {
        return Err(Errno::EEXIST); // a gfid is never used again, so this is not ours to mend
    }
    let mut changed = false;
    if s.kind == FileKind::File {
        if s.size != t.size {
            cx.tell(HealCall::Truncate { gfid, size: s.size }).await?;
            changed = true;
        }
        for (start, end) in data {
            changed |= heal_data(cx, gfid, *start, *end, false).await?;
        }
    }
    finish_object(cx, source, Some(target), changed).await
}

async fn make_file(cx: &Cx, source: &ObjectInfo) -> Result<(), Errno> {
    let (gfid, attr) = (source.attr.gfid, &source.attr);
    let make = HealCall::Make { gfid, kind: attr.kind, rdev: attr.rdev, target: source.target.clone() };
    let mut calls = vec![make];
    let is_file = attr.kind == FileKind::File;
    if is_file && attr.size > CALL_BYTES_MAX as u64 {
        calls.push(HealCall::Truncate { gfid, size: attr.size });
        batch(cx, calls).await?;
        heal_data(cx, gfid, 0, u64::MAX, true).await?;
        return finish_object(cx, source, None, true).await;
    }
    if is_file && attr.size > 0 {
        let read = HealCall::Read { gfid, offset: 0, len: attr.size as u32 };
        let extents = wire::data(cx.ask(read).await?)?;
        cx.counts().bytes_sent += extents.iter().map(|(_, d)| d.len() as u64).sum::<u64>();
        calls.push(HealCall::Truncate { gfid, size: attr.size });
        calls.push(HealCall::Write { gfid, hole: None, extents });
    }
    calls.push(HealCall::SetAttr { gfid, attr: ExactAttr::from(attr) });
    batch(cx, calls).await?;
    if source.xattr_sum == 0 { Ok(()) } else { heal_xattrs(cx, gfid, false).await.map(drop) }
}

async fn batch(cx: &Cx, calls: Vec<HealCall>) -> Result<(), Errno> {
    match cx.tell(HealCall::Batch(calls)).await? {
        HealReturn::Batch { failed: None, .. } => Ok(()),
        HealReturn::Batch { failed: Some(e), .. } => Err(e),
        _ => Err(wire::PROTOCOL),
    }
}

/// Attributes and extended attributes of any object, after `changed` or where they differ. (A directory's times are set
/// again at the end of the heal.)
pub(super) async fn finish_object(
    cx: &Cx,
    source: &ObjectInfo,
    target: Option<&ObjectInfo>,
    mut changed: bool,
) -> Result<(), Errno> {
    let gfid = source.attr.gfid;
    if changed || target.is_none_or(|t| attr_differs(&source.attr, &t.attr)) {
        cx.tell(HealCall::SetAttr { gfid, attr: ExactAttr::from(&source.attr) }).await?;
        changed = true;
    }
    let sum = target.map_or(0, |t| t.xattr_sum);
    if (changed && source.xattr_sum != 0) || source.xattr_sum != sum {
        changed |= heal_xattrs(cx, gfid, target.is_some()).await?;
    }
    if changed && target.is_some() {
        cx.healed();
    }
    Ok(())
}

async fn heal_xattrs(cx: &Cx, gfid: Gfid, compare: bool) -> Result<bool, Errno> {
    let wanted: BTreeMap<Bytes, Bytes> = wire::xattrs(cx.ask(HealCall::Xattrs { gfid }).await?)?.into_iter().collect();
    let found: BTreeMap<Bytes, Bytes> =
        if compare { wire::xattrs(cx.tell(HealCall::Xattrs { gfid }).await?)?.into_iter().collect() } else { BTreeMap::new() };
    let removed = found.keys().filter(|n| !wanted.contains_key(*n)).map(|n| (n.clone(), None));
    let set = wanted.iter().filter(|(n, v)| found.get(*n) != Some(v)).map(|(n, v)| (n.clone(), Some(v.clone())));
    let calls: Vec<_> = removed.chain(set).map(|(name, value)| HealCall::SetXattr { gfid, name, value }).collect();
    let changed = !calls.is_empty();
    // A value is at most 64 KiB, so eight of them fit a message.
    for part in calls.chunks(8) {
        batch(cx, part.to_vec()).await?;
    }
    Ok(changed)
}

/// Makes the data of a range equal, chunk by chunk; returns whether anything was written. `fresh`: the target holds none.
async fn heal_data(cx: &Cx, gfid: Gfid, start: u64, end: u64, fresh: bool) -> Result<bool, Errno> {
    let end = end.checked_next_multiple_of(CHUNK_BYTES).unwrap_or(u64::MAX);
    let mut at = start / CHUNK_BYTES * CHUNK_BYTES;
    let mut changed = false;
    let mut copies = Window::new(COPIES_MAX);
    while at < end {
        let (wanted, source_next) = wire::sums(cx.ask(HealCall::Sums { gfid, offset: at, end }).await?)?;
        let until = source_next.unwrap_or(end);
        let (found, target_next) =
            if fresh { (Vec::new(), None) } else { wire::sums(cx.tell(HealCall::Sums { gfid, offset: at, end: until }).await?)? };
        let next = until.min(target_next.unwrap_or(end));
        if next <= at {
            return Err(wire::PROTOCOL);
        }
        for (from, to) in runs(&wanted, &found, next / CHUNK_BYTES) {
            changed = true;
            copies.push(copy(cx, gfid, from * CHUNK_BYTES, to * CHUNK_BYTES, fresh)).await?;
        }
        for (from, to) in holes(&wanted, &found, next / CHUNK_BYTES) {
            changed = true;
            let hole = Some((from * CHUNK_BYTES, (to - from) * CHUNK_BYTES));
            wire::done(cx.tell(HealCall::Write { gfid, hole, extents: Vec::new() }).await?)?;
        }
        at = next;
    }
    copies.drain().await?;
    Ok(changed)
}

async fn copy(cx: &Cx, gfid: Gfid, from: u64, to: u64, fresh: bool) -> Result<(), Errno> {
    let extents = wire::data(cx.ask(HealCall::Read { gfid, offset: from, len: (to - from) as u32 }).await?)?;
    let bytes: u64 = extents.iter().map(|(_, d)| d.len() as u64).sum();
    let hole = (!fresh && bytes < to - from).then_some((from, to - from));
    cx.counts().bytes_sent += bytes;
    wire::done(cx.tell(HealCall::Write { gfid, hole, extents }).await?)
}

/// Runs of chunks below `limit` that differ and hold data at the source, as (first, behind the last), each within one call.
fn runs(wanted: &[(u64, u128)], found: &[(u64, u128)], limit: u64) -> Vec<(u64, u64)> {
    let found: BTreeMap<u64, u128> = found.iter().copied().collect();
    let differ = wanted.iter().filter(|(c, sum)| *c < limit && found.get(c) != Some(sum)).map(|(c, _)| *c);
    join(differ, CALL_BYTES_MAX as u64 / CHUNK_BYTES)
}

/// Runs of chunks below `limit` that only the target has.
fn holes(wanted: &[(u64, u128)], found: &[(u64, u128)], limit: u64) -> Vec<(u64, u64)> {
    let wanted: BTreeMap<u64, u128> = wanted.iter().copied().collect();
    join(found.iter().map(|(c, _)| *c).filter(|c| *c < limit && !wanted.contains_key(c)), u64::MAX)
}

fn join(chunks: impl Iterator<Item = u64>, max: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for c in chunks {
        match runs.last_mut() {
            Some((from, to)) if *to == c && *to - *from < max => *to += 1,
            _ => runs.push((c, c + 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_chunks_are_sent_in_runs_and_the_rest_becomes_a_hole() {
        let wanted: Vec<_> = (0..20).map(|c| (c, 1)).collect();
        assert_eq!(runs(&wanted, &[], 100), [(0, 8), (8, 16), (16, 20)]);
        let found = [(0, 1), (1, 2), (2, 1), (30, 1), (31, 1), (40, 1)];
        assert_eq!(runs(&wanted, &found, 5), [(1, 2), (3, 5)]);
        assert_eq!(holes(&wanted, &found, 35), [(30, 32)]);
    }
}
