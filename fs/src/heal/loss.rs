//! What the source of a heal lost behind its back, and how it comes back from the target.
//!
//! A heal takes away from the target what the source does not have. That is right for what users removed while the target was
//! away, and would be the end of what somebody removed in the source's own directory meanwhile: nobody was there to ask, so
//! nobody noticed. The source's index tells one from the other. A change takes the last name and the index's entry away in
//! one, so an entry without a name (of a directory: without the directory) is none that users removed.
//!
//! While the plan's units run side by side such names are only remembered; they come back one at a time afterwards, so that
//! no unit compares a directory that is half made.

use super::calls::{ExactAttr, HealCall, HealReturn, NameEntry, Place, STRANGER};
use super::cx::Cx;
use super::object::{finish_object, heal_file};
use super::tree::{heal_entries, link, take_away};
use super::wire;
use crate::fop::{Errno, Gfid, NAME_BYTES_MAX};
use bytes::Bytes;

/// What a heal does with what its source lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loss {
    /// It is not looked for: what the source has was compared, or is the caller's decision.
    #[default]
    Ignore,
    /// The heal ends with `EUCLEAN` instead of taking such a thing away: another brick is to make the source whole first.
    Refuse,
    /// It comes back from the target, as the target has it. What the source still has of a file (its content, under the
    /// index's link) stays.
    Restore,
}

/// Whether the source lost the object.
pub(super) async fn is_lost(cx: &Cx, gfid: Gfid) -> Result<bool, Errno> {
    if cx.loss == Loss::Ignore || gfid == STRANGER {
        return Ok(false);
    }
    let lost = !wire::gfids(cx.ask(HealCall::Lost { gfids: vec![gfid] }).await?)?.is_empty();
    if lost && cx.loss == Loss::Refuse { Err(Errno::EUCLEAN) } else { Ok(lost) }
}

/// Brings back the names that were remembered, and what comes up below them.
pub(super) async fn restore(cx: &Cx) -> Result<(), Errno> {
    loop {
        let Some((dir, found)) = cx.state().lost.pop() else { return Ok(()) };
        let done = match bring_back(cx, dir, &found).await {
            Ok(true) => Ok(()),
            Ok(false) => take_away(cx, dir, &found).await,
            Err(e) => Err(e),
        };
        cx.tolerate(done)?;
    }
}

/// A name in the target that the source does not have. True: the source has it now. False: the target is to lose it, since users
/// took it away, or since the object came back elsewhere. What lies below a directory is remembered.
pub(super) async fn bring_back(cx: &Cx, dir: Gfid, found: &NameEntry) -> Result<bool, Errno> {
    let gfid = found.gfid;
    if !is_lost(cx, gfid).await? {
        // It may have come back meanwhile.
        let there = cx.ask(HealCall::Lookup { parent: dir, name: found.name.clone() }).await;
        return Ok(matches!(there, Ok(HealReturn::Entry(Some(e))) if e == *found));
    }
    let Some(there) = cx.stat(cx.target, gfid).await? else { return Ok(false) };
    let back = cx.reversed();
    if !found.is_dir && cx.stat(cx.source, gfid).await?.is_none() {
        heal_file(&back, &there, None, &[(0, u64::MAX)]).await?;
    }
    // Users may have removed the directory that it was in, or made something else of its name.
    let parent = if cx.stat(cx.source, dir).await?.is_some() { dir } else { Gfid::ROOT };
    let other = Bytes::from([&found.name[..found.name.len().min(NAME_BYTES_MAX - 33)], b".", gfid.to_string().as_bytes()].concat());
    let mut names = [found.name.clone(), other].into_iter();
    let name = loop {
        let Some(name) = names.next() else { return Ok(false) };
        match name_again(cx, parent, &name, found).await {
            Ok(()) => break name,
            Err(Errno::EEXIST) => {}
            Err(e) => return Err(e),
        }
    };
    cx.counts().objects_restored += 1;
    if found.is_dir {
        finish_object(&back, &there, None, true).await?;
        heal_entries(cx, gfid, false).await?;
    }
    let same_place = parent == dir && name == found.name;
    if !same_place && !found.is_dir {
        link(cx, parent, &name, gfid).await?;
    }
    Ok(same_place)
}

/// Gives the source's object a name; the directory's times stay.
async fn name_again(cx: &Cx, parent: Gfid, name: &Bytes, found: &NameEntry) -> Result<(), Errno> {
    let (gfid, name, back) = (found.gfid, name.clone(), cx.reversed());
    let around = cx.stat(cx.source, parent).await?.ok_or(Errno::ENOENT)?;
    let call = if found.is_dir { HealCall::PlaceDir { gfid, parent, name } } else { HealCall::Link { parent, name, gfid } };
    back.tell(call).await?;
    back.tell(HealCall::SetAttr { gfid: parent, attr: ExactAttr::from(&around.attr) }).await.map(drop)
}

/// A directory that the source does not have. True: it has it again, or remembers one above it.
pub(super) async fn bring_back_dir(cx: &Cx, gfid: Gfid) -> Result<bool, Errno> {
    if !is_lost(cx, gfid).await? {
        return Ok(false);
    }
    let (mut lost, mut name) = (gfid, Bytes::from(gfid.to_string()));
    let mut parent = Gfid::ROOT;
    // The uppermost of those that are lost, so that each comes back where it was.
    while let Some(Place::At { parent: above, name: here }) = cx.stat(cx.target, lost).await?.and_then(|o| o.place) {
        (parent, name) = (above, here);
        if cx.stat(cx.source, parent).await?.is_some() || !is_lost(cx, parent).await? {
            break;
        }
        lost = parent;
    }
    bring_back(cx, parent, &NameEntry { name, gfid: lost, is_dir: true }).await?;
    let back = cx.stat(cx.source, lost).await?.is_some();
    if back {
        cx.look_at(lost, true);
        cx.look_at(gfid, true);
    }
    Ok(back)
}
