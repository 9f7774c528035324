//! Directories: their places, their names, and the removal of what the source does not have.
//!
//! A directory gets its place only after all its ancestors have theirs (as the source has them), so whatever order renames
//! come up in, a move never goes into what it moves; what is in the way goes to limbo and is looked at again at the end.
//! Moves happen one at a time.

use super::calls::{ENTRIES_MAX, HealCall, NameEntry, Place, STRANGER};
use super::cx::Cx;
use super::loss::{bring_back, bring_back_dir, is_lost, remember};
use super::wire::{self, Side, Window};
use crate::fop::{Errno, Gfid};
use bytes::Bytes;
use std::collections::BTreeMap;

/// The deepest path.
const DEPTH_MAX: usize = 4096;
/// How often a name that is in the way is moved out of it.
const TRIES_MAX: usize = 4;
/// Names under way for one directory.
const LINKS_MAX: usize = 8;

/// Brings a directory and all above it to their places. False: the source has no such directory (any more).
pub(super) async fn ensure_dir(cx: &Cx, dir: Gfid) -> Result<bool, Errno> {
    cx.wire.exclusively(ensure_chain(cx, dir)).await
}

async fn ensure_chain(cx: &Cx, dir: Gfid) -> Result<bool, Errno> {
    let mut chain = Vec::new();
    let mut at = dir;
    while at != Gfid::ROOT && !cx.state().verified.contains(&at) {
        let place = cx.stat(cx.source, at).await?.and_then(|o| o.place);
        match place {
            Some(Place::At { parent, name }) if chain.len() < DEPTH_MAX => {
                chain.push((at, parent, name));
                at = parent;
            }
            // Above it, the parent may belong to another replica group: the store knows what to do.
            None if at != dir => break,
            _ => return Ok(false),
        }
    }
    for (at, parent, name) in chain.into_iter().rev() {
        let wanted = Place::At { parent, name };
        let found = cx.stat(cx.target, at).await?.and_then(|o| o.place);
        if found.as_ref() != Some(&wanted) {
            let Place::At { parent, name } = wanted else { continue };
            place(cx, at, parent, name).await?;
        }
        cx.verified(at);
    }
    Ok(true)
}

async fn place(cx: &Cx, dir: Gfid, parent: Gfid, name: Bytes) -> Result<(), Errno> {
    cx.touch(parent);
    for _ in 0..TRIES_MAX {
        match cx.tell(HealCall::PlaceDir { gfid: dir, parent, name: name.clone() }).await {
            Ok(r) => {
                let before = wire::moved(r)?;
                cx.touch_place(before.as_ref());
                cx.touch(dir);
                cx.healed();
                if before.is_none() && !cx.planned(dir) {
                    cx.look_at(dir, true);
                }
                return Ok(());
            }
            Err(Errno::EEXIST) => {
                if let Some(found) = wire::entry(cx.tell(HealCall::Lookup { parent, name: name.clone() }).await?)? {
                    out_of_the_way(cx, parent, &found).await?;
                }
            }
            Err(Errno::EINVAL) => to_limbo(cx, parent).await?,
            Err(e) => return Err(e),
        }
    }
    Err(Errno::EEXIST)
}

async fn to_limbo(cx: &Cx, dir: Gfid) -> Result<(), Errno> {
    cx.state().verified.remove(&dir);
    let before = wire::moved(cx.tell(HealCall::ToLimbo { gfid: dir }).await?)?;
    cx.touch_place(before.as_ref());
    cx.look_at(dir, false);
    Ok(())
}

async fn out_of_the_way(cx: &Cx, parent: Gfid, found: &NameEntry) -> Result<(), Errno> {
    cx.touch(parent);
    if found.is_dir && found.gfid != STRANGER {
        return to_limbo(cx, found.gfid).await;
    }
    wire::done(cx.tell(HealCall::Unlink { parent, name: found.name.clone() }).await?)?;
    cx.look_at(found.gfid, false);
    Ok(())
}

pub(super) async fn entries(cx: &Cx, side: Side, dir: Gfid) -> Result<BTreeMap<Bytes, NameEntry>, Errno> {
    let (mut all, mut cookie) = (BTreeMap::new(), 0);
    loop {
        let call = HealCall::Entries { dir, cookie, max: ENTRIES_MAX as u32 };
        let (entries, next) = wire::entries(cx.wire.call(side, call).await?)?;
        all.extend(entries.into_iter().map(|e| (e.name.clone(), e)));
        if next == 0 {
            return Ok(all);
        }
        if next == cookie {
            return Err(wire::PROTOCOL);
        }
        cookie = next;
    }
}

/// Makes the names of a directory equal: first takes away, then adds. `merge`: only adds.
pub(super) async fn heal_entries(cx: &Cx, dir: Gfid, merge: bool) -> Result<(), Errno> {
    let wanted = entries(cx, cx.source, dir).await?;
    let found = entries(cx, cx.target, dir).await?;
    let mut changed = false;
    for (name, t) in &found {
        match wanted.get(name) {
            Some(s) if s == t && t.gfid != STRANGER => continue,
            // The source itself is damaged there: nothing to learn from it.
            Some(s) if s.gfid == STRANGER => cx.tolerate(Err(Errno::ESTALE))?,
            _ if merge => {}
            _ => {
                if is_lost(cx, dir, t).await? {
                    if !wanted.contains_key(name) {
                        remember(cx, dir, t);
                        continue;
                    }
                    // Its name is another's by now: it must have one before it loses this one.
                    let back = bring_back(cx, dir, t).await.map(drop);
                    cx.tolerate(back)?;
                }
                changed = true;
                cx.tolerate(take_away(cx, dir, t).await)?;
            }
        }
    }
    let mut links = Window::new(LINKS_MAX);
    for (name, s) in &wanted {
        let taken = merge && found.get(name).is_some_and(|t| t.gfid != STRANGER);
        if s.gfid == STRANGER || taken || found.get(name) == Some(s) {
            continue;
        }
        changed = true;
        if s.is_dir {
            let there = ensure_dir(cx, s.gfid).await;
            cx.tolerate(there.map(drop))?;
        } else {
            links.push(async move { cx.tolerate(link(cx, dir, name, s.gfid).await) }).await?;
        }
    }
    links.drain().await?;
    if changed {
        cx.touch(dir);
        cx.healed();
    }
    Ok(())
}

/// A name that the source does not have here: a directory goes to where the source has it, or to limbo.
pub(super) async fn take_away(cx: &Cx, dir: Gfid, found: &NameEntry) -> Result<(), Errno> {
    if found.is_dir && found.gfid != STRANGER && ensure_dir(cx, found.gfid).await? {
        // It may be that it stays: it came back here since the source was listed.
        return Ok(());
    }
    match cx.wire.exclusively(out_of_the_way(cx, dir, found)).await {
        // Since the listing, a directory of the source was put there, and the name that was in its way is gone.
        Err(Errno::EISDIR) => Ok(()),
        other => other,
    }
}

pub(super) async fn link(cx: &Cx, parent: Gfid, name: &Bytes, gfid: Gfid) -> Result<(), Errno> {
    for _ in 0..TRIES_MAX {
        match cx.tell(HealCall::Link { parent, name: name.clone(), gfid }).await {
            Ok(r) => return wire::done(r),
            Err(Errno::ENOENT) => {
                let source = cx.stat(cx.source, gfid).await?.ok_or(Errno::ENOENT)?;
                if cx.stat(cx.target, parent).await?.is_none() {
                    return Err(Errno::ENOENT);
                }
                let make = HealCall::Make { gfid, kind: source.attr.kind, rdev: source.attr.rdev, target: source.target.clone() };
                wire::done(cx.tell(make).await?)?;
                // One that the plan has passed already appeared since: the change set knows it. One that it has not
                // reached yet is filled in its turn.
                cx.look_at(gfid, true);
            }
            Err(Errno::EEXIST) => {
                let found = wire::entry(cx.tell(HealCall::Lookup { parent, name: name.clone() }).await?)?;
                if let Some(found) = found {
                    cx.wire.exclusively(out_of_the_way(cx, parent, &found)).await?;
                }
            }
            Err(e) => return Err(e),
        }
    }
    Err(Errno::EEXIST)
}

/// Removes an object that the source does not have, with what is left below it.
pub(super) async fn remove(cx: &Cx, gfid: Gfid) -> Result<(), Errno> {
    if cx.stat(cx.source, gfid).await?.is_some() {
        cx.look_at(gfid, true);
        return Ok(());
    }
    let target = cx.stat(cx.target, gfid).await?;
    if target.as_ref().is_some_and(|t| t.place.is_some()) && bring_back_dir(cx, gfid).await? {
        return Ok(());
    }
    if target.as_ref().is_some_and(|t| t.place.is_some()) {
        cx.wire.exclusively(to_limbo(cx, gfid)).await?;
        cx.state().extra.remove(&gfid);
        for found in entries(cx, cx.target, gfid).await?.values() {
            // What the source lost comes back elsewhere, since it does not have this directory.
            if is_lost(cx, gfid, found).await? {
                bring_back(cx, gfid, found).await?;
            }
            take_away(cx, gfid, found).await?;
        }
    }
    wire::done(cx.tell(HealCall::Remove { gfid }).await?)?;
    {
        let mut state = cx.state();
        state.touched.remove(&gfid);
        state.verified.remove(&gfid);
    }
    if target.is_some() {
        cx.counts().objects_removed += 1;
    }
    Ok(())
}
