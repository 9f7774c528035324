//! The far end of a heal: one call, executed on a brick's store.

use super::calls::{
    CALL_BYTES_MAX, CHUNK_BYTES, ENTRIES_MAX, ExactAttr, HealCall, HealResult, HealReturn, OBJECTS_MAX, ObjectInfo, SUM_BYTES_MAX,
};
use super::scrub::{chunk_sum, signature};
use super::store::HealStore;
use crate::fop::{Errno, FileKind, Gfid};
use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

/// Most calls in one batch.
pub const BATCH_CALLS_MAX: usize = 64;

/// Executes one call of a heal on this brick.
///
/// # Errors
/// As [`HealCall`] says for each; `EINVAL` for a call that breaks a bound (it came from another machine).
pub fn execute<S: HealStore + ?Sized>(store: &mut S, call: &HealCall) -> HealResult {
    match call {
        HealCall::Batch(calls) => batch(store, calls),
        HealCall::Objects { .. }
        | HealCall::Stat { .. }
        | HealCall::Entries { .. }
        | HealCall::Lookup { .. }
        | HealCall::Xattrs { .. }
        | HealCall::Sums { .. }
        | HealCall::Read { .. }
        | HealCall::Limbo
        | HealCall::Lost { .. }
        | HealCall::Signature { .. } => query(store, call),
        HealCall::PlaceDir { gfid, parent, name } => store.heal_place_dir(*gfid, *parent, name).map(HealReturn::Moved),
        HealCall::ToLimbo { gfid } => store.heal_to_limbo(*gfid).map(HealReturn::Moved),
        _ => change(store, call).map(|()| HealReturn::Done),
    }
}

fn batch<S: HealStore + ?Sized>(store: &mut S, calls: &[HealCall]) -> HealResult {
    if calls.len() > BATCH_CALLS_MAX || calls.iter().any(|c| matches!(c, HealCall::Batch(_))) {
        return Err(Errno::EINVAL);
    }
    let mut returns = Vec::with_capacity(calls.len());
    for call in calls {
        match execute(store, call) {
            Ok(r) => returns.push(r),
            Err(e) => return Ok(HealReturn::Batch { returns, failed: Some(e) }),
        }
    }
    Ok(HealReturn::Batch { returns, failed: None })
}

fn query<S: HealStore + ?Sized>(store: &mut S, call: &HealCall) -> HealResult {
    Ok(match call {
        HealCall::Objects { bucket, after, max } => {
            let max = (*max as usize).clamp(1, OBJECTS_MAX);
            let gfids = store.heal_objects(*bucket, *after, max)?;
            let end = gfids.len() < max;
            let after = gfids.last().copied();
            let mut objects = Vec::with_capacity(gfids.len());
            for gfid in gfids {
                objects.push((gfid, stat(store, gfid)?));
            }
            HealReturn::Objects { objects, after: if end { None } else { after } }
        }
        HealCall::Stat { gfids } if gfids.len() <= OBJECTS_MAX => {
            HealReturn::Stats(gfids.iter().map(|g| stat(store, *g)).collect::<Result<_, _>>()?)
        }
        HealCall::Entries { dir, cookie, max } => {
            let (entries, next) = store.heal_entries(*dir, *cookie, (*max as usize).clamp(1, ENTRIES_MAX))?;
            HealReturn::Entries { entries, next }
        }
        HealCall::Lookup { parent, name } => HealReturn::Entry(store.heal_lookup(*parent, name)?),
        HealCall::Xattrs { gfid } => HealReturn::Xattrs(store.heal_xattrs(*gfid)?),
        HealCall::Sums { gfid, offset, end } => sums(store, *gfid, *offset, *end)?,
        HealCall::Read { gfid, offset, len } if *len as usize <= CALL_BYTES_MAX => {
            HealReturn::Data { extents: extents(store, *gfid, *offset, offset.saturating_add(u64::from(*len)))? }
        }
        HealCall::Limbo => HealReturn::Gfids(store.heal_limbo()?),
        HealCall::Lost { gfids, named } if gfids.len() <= OBJECTS_MAX => {
            let mut lost = Vec::new();
            for gfid in gfids {
                if store.heal_lost(*gfid, *named)? {
                    lost.push(*gfid);
                }
            }
            HealReturn::Gfids(lost)
        }
        HealCall::Signature { gfid } => HealReturn::Signature(store.heal_signature(*gfid)?.and_then(|b| signature::decode(&b))),
        _ => return Err(Errno::EINVAL),
    })
}

fn change<S: HealStore + ?Sized>(store: &mut S, call: &HealCall) -> Result<(), Errno> {
    match call {
        HealCall::Make { gfid, kind, rdev, target } => store.heal_make(*gfid, *kind, *rdev, target.as_deref()),
        HealCall::Link { parent, name, gfid } => store.heal_link(*parent, name, *gfid),
        HealCall::Unlink { parent, name } => store.heal_unlink(*parent, name),
        HealCall::SetAttr { gfid, attr } => store.heal_set_attr(*gfid, attr),
        HealCall::SetXattr { gfid, name, value } => store.heal_set_xattr(*gfid, name, value.as_deref()),
        HealCall::Truncate { gfid, size } => {
            store.heal_set_signature(*gfid, None)?;
            store.heal_truncate(*gfid, *size)
        }
        HealCall::Write { gfid, hole, extents } => {
            store.heal_set_signature(*gfid, None)?;
            if let Some((offset, len)) = hole {
                store.heal_punch(*gfid, *offset, *len)?;
            }
            extents.iter().try_for_each(|(offset, data)| store.heal_write(*gfid, *offset, data))
        }
        HealCall::Restore { parent, name, gfid, dir } => {
            let (around, _) = store.heal_stat(*parent)?;
            if let Some((attr, xattrs)) = dir {
                store.heal_place_dir(*gfid, *parent, name)?;
                store.heal_set_attr(*gfid, attr)?;
                xattrs.iter().try_for_each(|(name, value)| store.heal_set_xattr(*gfid, name, Some(value)))?;
            } else {
                store.heal_link(*parent, name, *gfid)?;
            }
            store.heal_set_attr(*parent, &ExactAttr::from(&around))
        }
        HealCall::Remove { gfid } if *gfid != Gfid::ROOT => store.heal_remove(*gfid),
        HealCall::Sign { gfid, signature: s } => {
            let (attr, _) = store.heal_stat(*gfid)?;
            if attr.size != s.size && attr.kind == FileKind::File || attr.mtime != s.mtime {
                return Err(Errno::ESTALE);
            }
            store.heal_set_signature(*gfid, Some(&signature::encode(s)))
        }
        _ => Err(Errno::EINVAL),
    }
}

fn stat<S: HealStore + ?Sized>(store: &mut S, gfid: Gfid) -> Result<Option<ObjectInfo>, Errno> {
    let (attr, place) = match store.heal_stat(gfid) {
        Ok(found) => found,
        Err(Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(e),
    };
    let target = if attr.kind == FileKind::Symlink { Some(store.heal_readlink(gfid)?) } else { None };
    let xattr_sum = xattr_sum(&store.heal_xattrs(gfid)?);
    Ok(Some(ObjectInfo { attr, place, target, xattr_sum }))
}

/// xxh3-128 over each name and value, each behind its length (4 bytes, little endian); 0 where there is none.
#[must_use]
pub fn xattr_sum(xattrs: &[(Bytes, Bytes)]) -> u128 {
    if xattrs.is_empty() {
        return 0;
    }
    let mut hash = Xxh3::new();
    for part in xattrs.iter().flat_map(|(name, value)| [name, value]) {
        hash.update(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
        hash.update(part);
    }
    hash.digest128()
}

/// The data in `start..end`, in order, holes left out.
fn extents<S: HealStore + ?Sized>(store: &mut S, gfid: Gfid, start: u64, end: u64) -> Result<Vec<(u64, Bytes)>, Errno> {
    let (mut at, mut found) = (start, Vec::new());
    while at < end {
        let Some((from, to)) = store.heal_next_data(gfid, at)? else { break };
        if from >= end {
            break;
        }
        let to = to.min(end);
        let data = store.heal_read(gfid, from, usize::try_from(to - from).unwrap_or(CALL_BYTES_MAX).min(CALL_BYTES_MAX))?;
        if data.is_empty() {
            break; // truncated since
        }
        at = from + data.len() as u64;
        found.push((from, data));
    }
    Ok(found)
}

/// A chunk's sum is that of its bytes with holes as zeros, cut at the end of the file.
fn sums<S: HealStore + ?Sized>(store: &mut S, gfid: Gfid, offset: u64, end: u64) -> HealResult {
    if !offset.is_multiple_of(CHUNK_BYTES) {
        return Err(Errno::EINVAL);
    }
    let (mut at, mut read, mut chunks) = (offset, 0, Vec::new());
    while at < end {
        let Some((from, _)) = store.heal_next_data(gfid, at)? else { break };
        let chunk = from / CHUNK_BYTES;
        at = chunk * CHUNK_BYTES;
        if at >= end {
            break;
        }
        if read >= SUM_BYTES_MAX {
            return Ok(HealReturn::Sums { chunks, next: Some(at) });
        }
        let data = store.heal_read(gfid, at, CHUNK_BYTES as usize)?;
        // Zeros are as good as a hole: only what they read as counts.
        if let Some(sum) = chunk_sum(&data) {
            chunks.push((chunk, sum));
        }
        read += CHUNK_BYTES;
        at += CHUNK_BYTES;
    }
    Ok(HealReturn::Sums { chunks, next: None })
}
