//! The order of a heal: units of the plan side by side (a bucket's files first, then its directories), what they brought up
//! besides, removals, and last the times of directories.

use super::calls::{ExactAttr, HealCall, OBJECTS_MAX, ObjectInfo};
use super::cx::Cx;
use super::healer::HealItem;
use super::loss::restore;
use super::object::{attr_differs, finish_object, heal_file};
use super::tree::{ensure_dir, heal_entries, remove};
use super::wire::{self, Side, Window};
use crate::fop::{Bucket, Errno, FileKind, Gfid};
use std::collections::{BTreeMap, VecDeque};

/// Buckets, or groups of single objects, under way.
const UNITS_MAX: usize = 16;
/// Objects of one unit under way.
const OBJECTS_IN_FLIGHT_MAX: usize = 8;
/// Single objects in one unit.
const ITEMS_MAX: usize = 64;
/// Directories to be finished that are remembered.
const TOUCHED_MAX: usize = 1 << 16;
/// How often what turned up besides may bring up more before the heal gives up on it.
const ROUNDS_MAX: usize = 64;

pub(super) async fn run(cx: Cx) -> Result<(), Errno> {
    let cx = &cx;
    // What an interrupted heal left.
    for dir in wire::gfids(cx.tell(HealCall::Limbo).await?)? {
        cx.look_at(dir, false);
    }
    let mut items: Vec<_> = cx.plan.items.iter().filter(|(g, _)| !cx.planned(**g)).map(|(g, i)| (*g, i.clone())).collect();
    items.extend(cx.plan.nameless.iter().map(|g| (*g, HealItem::whole())));
    cx.counts().units_left = (cx.plan.buckets.len() + items.len().div_ceil(ITEMS_MAX)) as u64;
    let mut units = Window::new(UNITS_MAX);
    for bucket in &cx.plan.buckets {
        units.push(heal_bucket(cx, *bucket)).await?;
        if cx.state().touched.len() > TOUCHED_MAX {
            finish_dirs(cx).await?;
        }
    }
    for part in items.chunks(ITEMS_MAX) {
        units.push(heal_items(cx, part.to_vec(), true)).await?;
    }
    units.drain().await?;
    settle(cx).await?;
    finish_dirs(cx).await
}

/// What the source lost, what turned up besides the plan, then removals, until there is nothing left of any.
async fn settle(cx: &Cx) -> Result<(), Errno> {
    for _ in 0..ROUNDS_MAX {
        restore(cx).await?;
        let extra = std::mem::take(&mut cx.state().extra);
        if !extra.is_empty() {
            let items: Vec<_> =
                extra.into_iter().map(|(g, whole)| (g, if whole { HealItem::whole() } else { HealItem::default() })).collect();
            for part in items.chunks(ITEMS_MAX) {
                heal_items(cx, part.to_vec(), false).await?;
            }
            continue;
        }
        let gone = std::mem::take(&mut cx.state().gone);
        let mut named = Vec::new();
        for gfid in &gone {
            match remove(cx, *gfid).await {
                // Its names may lie in a directory that goes too, later.
                Err(Errno::ENOTEMPTY) => named.push(*gfid),
                other => cx.tolerate(other)?,
            }
        }
        if named.len() < gone.len() {
            cx.state().gone.extend(named);
        } else if !gone.is_empty() {
            cx.counts().unresolved += named.len() as u64;
        }
        if gone.is_empty() {
            let limbo = wire::gfids(cx.tell(HealCall::Limbo).await?)?;
            if limbo.is_empty() {
                return Ok(());
            }
            limbo.into_iter().for_each(|g| cx.look_at(g, false));
        }
    }
    cx.counts().unresolved += 1;
    Ok(())
}

/// Restores the times (and owners and modes) of directories whose names changed.
async fn finish_dirs(cx: &Cx) -> Result<(), Errno> {
    let touched: Vec<_> = std::mem::take(&mut cx.state().touched).into_iter().collect();
    for part in touched.chunks(ITEMS_MAX) {
        let source = cx.stats(cx.source, part.to_vec()).await?;
        let target = cx.stats(cx.target, part.to_vec()).await?;
        for (s, t) in source.iter().zip(&target) {
            if let (Some(s), Some(t)) = (s, t)
                && attr_differs(&s.attr, &t.attr)
            {
                let call = HealCall::SetAttr { gfid: s.attr.gfid, attr: ExactAttr::from(&s.attr) };
                let set = cx.tell(call).await.map(drop);
                cx.tolerate(set)?;
            }
        }
    }
    Ok(())
}

type Listed = (Gfid, Option<ObjectInfo>);

/// A bucket's objects on one side, page by page.
pub(super) struct Lister<'a> {
    cx: &'a Cx,
    side: Side,
    bucket: Bucket,
    page: VecDeque<Listed>,
    after: Option<Gfid>,
    end: bool,
}

impl<'a> Lister<'a> {
    pub const fn new(cx: &'a Cx, side: Side, bucket: Bucket) -> Self {
        Self { cx, side, bucket, page: VecDeque::new(), after: None, end: false }
    }

    pub async fn peek(&mut self) -> Result<Option<Gfid>, Errno> {
        while self.page.is_empty() && !self.end {
            let call = HealCall::Objects { bucket: self.bucket, after: self.after, max: OBJECTS_MAX as u32 };
            let (objects, after) = wire::objects(self.cx.wire.call(self.side, call).await?)?;
            if after.is_some() && after <= self.after {
                return Err(wire::PROTOCOL);
            }
            (self.after, self.end) = (after, after.is_none());
            self.page.extend(objects);
        }
        Ok(self.page.front().map(|(g, _)| *g))
    }

    /// The info of `gfid` if it comes next.
    pub fn take(&mut self, gfid: Gfid) -> Option<Option<ObjectInfo>> {
        (self.page.front()?.0 == gfid).then(|| self.page.pop_front().and_then(|(_, info)| info))
    }
}

/// An object that is not a directory, in the index only.
fn has_no_name(o: &ObjectInfo) -> bool {
    o.attr.nlink == 0 && o.place.is_none()
}

async fn heal_bucket(cx: &Cx, bucket: Bucket) -> Result<(), Errno> {
    let (mut source, mut target) = (Lister::new(cx, cx.source, bucket), Lister::new(cx, cx.target, bucket));
    let mut dirs = Vec::new();
    let mut files = Window::new(OBJECTS_IN_FLIGHT_MAX);
    loop {
        let gfid = match (source.peek().await?, target.peek().await?) {
            (None, None) => break,
            (Some(s), Some(t)) => s.min(t),
            (s, t) => s.or(t).ok_or(wire::PROTOCOL)?,
        };
        let in_source = source.take(gfid);
        let nameless = in_source.as_ref().is_some_and(|o| o.as_ref().is_none_or(has_no_name));
        cx.counts().lost_some |= nameless;
        let s = in_source.flatten();
        let in_target = target.take(gfid);
        if nameless && in_target.is_none() {
            // Nobody would find it there.
            continue;
        }
        let stale = in_target.as_ref().is_some_and(Option::is_none);
        let t = in_target.flatten();
        if s.is_none() && stale {
            cx.state().gone.insert(gfid);
        }
        if s.as_ref().or(t.as_ref()).is_some_and(|o| o.attr.kind == FileKind::Dir) {
            dirs.push((gfid, s, t));
        } else {
            files.push(heal_pair(cx, gfid, s, t, HealItem::whole())).await?;
        }
    }
    files.drain().await?;
    for (gfid, s, t) in dirs {
        heal_pair(cx, gfid, s, t, HealItem::whole()).await?;
    }
    unit_done(cx);
    Ok(())
}

fn unit_done(cx: &Cx) {
    let mut counts = cx.counts();
    counts.units_done += 1;
    counts.units_left = counts.units_left.saturating_sub(1);
}

async fn heal_items(cx: &Cx, items: Vec<(Gfid, HealItem)>, unit: bool) -> Result<(), Errno> {
    let gfids: Vec<_> = items.iter().map(|(g, _)| *g).collect();
    let source = cx.stats(cx.source, gfids.clone()).await?;
    let target = cx.stats(cx.target, gfids).await?;
    let mut dirs = Vec::new();
    let mut files = Window::new(OBJECTS_IN_FLIGHT_MAX);
    for (((gfid, item), s), t) in items.into_iter().zip(source).zip(target) {
        if s.is_none() && t.is_none() {
            cx.state().gone.insert(gfid); // the index may still name it
        } else if s.as_ref().or(t.as_ref()).is_some_and(|o| o.attr.kind == FileKind::Dir) {
            dirs.push((gfid, s, t, item));
        } else {
            files.push(heal_pair(cx, gfid, s, t, item)).await?;
        }
    }
    files.drain().await?;
    for (gfid, s, t, item) in dirs {
        heal_pair(cx, gfid, s, t, item).await?;
    }
    if unit {
        unit_done(cx);
    }
    Ok(())
}

async fn heal_pair(
    cx: &Cx,
    gfid: Gfid,
    source: Option<ObjectInfo>,
    target: Option<ObjectInfo>,
    item: HealItem,
) -> Result<(), Errno> {
    let Some(source) = source else {
        if target.is_some() {
            cx.state().gone.insert(gfid);
        }
        return Ok(());
    };
    cx.counts().objects_checked += 1;
    let healed = if source.attr.kind == FileKind::Dir {
        heal_dir(cx, &source, target.as_ref(), &item).await
    } else {
        heal_file(cx, &source, target.as_ref(), &item.data).await
    };
    cx.tolerate(healed)
}

async fn heal_dir(cx: &Cx, source: &ObjectInfo, target: Option<&ObjectInfo>, item: &HealItem) -> Result<(), Errno> {
    let gfid = source.attr.gfid;
    if target.is_some_and(|t| t.attr.kind != FileKind::Dir) {
        return Err(Errno::EEXIST);
    }
    if !ensure_dir(cx, gfid).await? && gfid != Gfid::ROOT {
        return Err(Errno::ENOENT);
    }
    if item.names || target.is_none() {
        heal_entries(cx, gfid, item.merge && target.is_some()).await?;
    }
    if item.merge && target.is_some() {
        return Ok(());
    }
    finish_object(cx, source, target, false).await
}

/// Of items given more than once, everything that any of them names.
pub(super) fn merge_items(into: &mut BTreeMap<Gfid, HealItem>, gfid: Gfid, item: HealItem) {
    let known = into.entry(gfid).or_default();
    // A merge is less than the whole.
    known.merge = (known.merge || !known.names) && (item.merge || !item.names) && (known.merge || item.merge);
    known.names |= item.names;
    known.data.extend(item.data);
    known.data.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::with_capacity(known.data.len());
    for (start, end) in known.data.drain(..) {
        match merged.last_mut() {
            Some((_, e)) if *e >= start => *e = (*e).max(end),
            _ => merged.push((start, end)),
        }
    }
    known.data = merged;
}
