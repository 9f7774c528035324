//! What the source of a heal lost behind its back, and how it comes back from the target.
//!
//! A heal takes away from the target what the source does not have. That is right for what users removed while the target was
//! away, and would be the end of what somebody removed in the source's own directory meanwhile: nobody was there to ask, so
//! nobody noticed. The source's index tells one from the other. A change takes the last name and the index's entry away in
//! one, so an entry without a name (of a directory: without the directory) is none that users removed.
//!
//! While the plan's units run side by side such names are only remembered, and come back one at a time afterwards; but one whose
//! name is another's by now comes back elsewhere at once, before the target's loses it. Each comes back by one call
//! ([`HealCall::Restore`]), since users change the source meanwhile.

use super::calls::{ExactAttr, HealCall, HealReturn, NameEntry, Place, STRANGER};
use super::cx::Cx;
use super::tree::{heal_entries, link, take_away};
use super::wire::{self, Part};
use crate::fop::{Errno, Gfid, NAME_BYTES_MAX};
use bytes::Bytes;

/// How often a name is tried again that something came in the way of.
const TRIES_MAX: usize = 4;

/// What a heal does with what its source lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loss {
    /// It is not looked for: what the source has was compared, or is the caller's decision.
    #[default]
    Ignore,
    /// The heal fails ([`Progress::refused`](super::Progress::refused)) instead of taking such a thing away: another brick is to
    /// make the source whole first.
    Refuse,
    /// It comes back from the target: names, and of directories the attributes. Of a file the source still has the content.
    Restore,
}

/// Whether a name in the target's directory `dir` that the source's lacks is one that the source lost.
pub(super) async fn is_lost(cx: &Cx, dir: Gfid, found: &NameEntry) -> Result<bool, Errno> {
    let gfid = found.gfid;
    if cx.loss == Loss::Ignore || gfid == STRANGER {
        return Ok(false);
    }
    // A file's other names are as lost as its first. And one whose directory was lost may have been moved out of it by hand.
    let named = {
        let state = cx.state();
        state.restored.contains(&gfid) || state.restored.contains(&dir)
    };
    let lost = !wire::gfids(cx.ask(HealCall::Lost { gfids: vec![gfid], named }).await?)?.is_empty();
    if lost && cx.loss == Loss::Refuse {
        cx.counts().refused = true;
        return Err(Errno::EBUSY);
    }
    Ok(lost)
}

/// Brings back the names that were remembered, and what comes up below them.
pub(super) async fn restore(cx: &Cx) -> Result<(), Errno> {
    loop {
        // All names of one file one after the other, so that an end of the heal hardly comes between them.
        let Some((_, dir, found)) = cx.state().lost.pop_first() else { return Ok(()) };
        let mut tries = 0;
        loop {
            tries += 1;
            let done = match bring_back(cx, dir, &found).await {
                Ok(true) => Ok(()),
                Ok(false) => take_away(cx, dir, &found).await,
                Err(e) => Err(e),
            };
            if done.is_ok() || tries == TRIES_MAX {
                cx.tolerate(done)?;
                break;
            }
        }
    }
}

/// Remembers a name that is to come back.
pub(super) fn remember(cx: &Cx, dir: Gfid, found: &NameEntry) {
    cx.state().lost.insert((found.gfid, dir, found.clone()));
}

/// A name in the target that the source does not have. True: the source has it now. False: the target is to lose it, since users
/// took it away, or since the object came back elsewhere. What lies below a directory is remembered.
pub(super) async fn bring_back(cx: &Cx, dir: Gfid, found: &NameEntry) -> Result<bool, Errno> {
    let gfid = found.gfid;
    let there = cx.ask(HealCall::Lookup { parent: dir, name: found.name.clone() }).await;
    if matches!(there, Ok(HealReturn::Entry(Some(e))) if e == *found) {
        return Ok(true);
    }
    if !is_lost(cx, dir, found).await? {
        return Ok(false);
    }
    let attrs = if found.is_dir {
        let Some(there) = cx.stat(cx.target, gfid).await? else { return Ok(false) };
        Some((ExactAttr::from(&there.attr), wire::xattrs(cx.tell(HealCall::Xattrs { gfid }).await?)?))
    } else {
        None
    };
    // Users may have removed the directory that it was in, or made something else of its name.
    let parent = if cx.stat(cx.source, dir).await?.is_some() { dir } else { Gfid::ROOT };
    let mut name = found.name.clone();
    let call = |name: &Bytes| cx.ask(HealCall::Restore { parent, name: name.clone(), gfid, dir: attrs.clone() });
    match call(&name).await {
        Err(Errno::EEXIST) => {
            let begin = &found.name[..found.name.len().min(NAME_BYTES_MAX - 33)];
            name = [begin, b".", gfid.to_string().as_bytes()].concat().into();
            wire::done(call(&name).await?)?;
        }
        done => wire::done(done?)?,
    }
    cx.counts().objects_restored += 1;
    cx.state().restored.insert(gfid);
    cx.touch(parent);
    if found.is_dir {
        names_below(cx, gfid).await?;
    }
    let same_place = parent == dir && name == found.name;
    if !same_place && !found.is_dir {
        link(cx, parent, &name, gfid).await?;
    }
    Ok(same_place)
}

/// [`heal_entries`], which comes by here.
fn names_below(cx: &Cx, dir: Gfid) -> Part<'_> {
    Box::pin(heal_entries(cx, dir, false))
}

/// A directory that the source does not have. True: it has it again, or one above it.
pub(super) async fn bring_back_dir(cx: &Cx, gfid: Gfid) -> Result<bool, Errno> {
    let (mut parent, mut found) = (Gfid::ROOT, NameEntry { name: Bytes::from(gfid.to_string()), gfid, is_dir: true });
    if !is_lost(cx, parent, &found).await? {
        return Ok(false);
    }
    // The uppermost of those that are lost, so that each comes back where it was. One in limbo has no place any more.
    while let Some(Place::At { parent: above, name }) = cx.stat(cx.target, found.gfid).await?.and_then(|o| o.place) {
        (parent, found.name) = (above, name);
        let one_above = NameEntry { name: Bytes::new(), gfid: parent, is_dir: true };
        if cx.stat(cx.source, parent).await?.is_some() || !is_lost(cx, Gfid::ROOT, &one_above).await? {
            break;
        }
        found.gfid = parent;
    }
    bring_back(cx, parent, &found).await?;
    let back = cx.stat(cx.source, found.gfid).await?.is_some();
    if back {
        cx.look_at(found.gfid, true);
        cx.look_at(gfid, true);
    }
    Ok(back)
}
