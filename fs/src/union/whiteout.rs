//! Whiteouts and opaque directories, as they are written.
//!
//! Everything rests on one rule of the search: an object wins over a `.wh.` name beside it. So a whiteout can be made before what it shall
//! hide goes away, and removed after what it hid came back; a crash in between shows nothing of it.

use super::branch::{At, Handle, New};
use super::core::Union;
use super::names::{OPAQUE, WHITEOUT_BASE, WHITEOUT_NAME_BYTES_MAX, XATTR_IMPURE, XATTR_OVERLAY_OPAQUE, whiteout};
use super::node::{DirState, Layer, Marks};
use super::slot::{OURS, Slot};
use super::{Layout, Res};
use crate::fop::{Errno, FileKind, RENAME_EXCHANGE, SetAttr};
use std::sync::Arc;

/// overlayfs's whiteout.
const DEVICE: New<'static> = New { kind: FileKind::CharDevice, mode: 0, ..OURS };

impl Union {
    /// Hides the name in lower branches, once what has it here is gone.
    pub(super) fn make_whiteout(&self, slot: &Slot, dir: &Handle, name: &[u8]) -> Res<()> {
        if name.len() > WHITEOUT_NAME_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let hidden = whiteout(name);
        let linked = if slot.perm().no_link_whiteouts {
            Err(Errno::EMLINK)
        } else {
            let base = At::Name(&slot.root, WHITEOUT_BASE);
            match slot.branch.link(base, dir, &hidden) {
                Err(Errno::EMLINK | Errno::ENOENT) => slot.renew_base().and_then(|()| slot.branch.link(base, dir, &hidden)),
                other => other,
            }
        };
        match linked {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(_) => match slot.branch.make(dir, &hidden, &New { kind: FileKind::File, mode: 0o444, ..OURS }) {
                Ok(_) | Err(Errno::EEXIST) => Ok(()),
                Err(e) => Err(e),
            },
        }
    }

    /// Removes a `.wh.` name, if there is one.
    pub(super) fn drop_whiteout(&self, slot: &Slot, dir: &Handle, name: &[u8]) -> Res<()> {
        if name.len() > WHITEOUT_NAME_BYTES_MAX {
            return Ok(());
        }
        match slot.branch.unlink(dir, &whiteout(name)) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Takes the object of a name away, in one step, and leaves a whiteout if `hide`. A directory may still hold whiteouts.
    pub(super) fn remove_object(&self, slot: &Arc<Slot>, dir: &Handle, name: &[u8], kind: FileKind, hide: bool) -> Res<()> {
        let branch = &slot.branch;
        let is_dir = kind == FileKind::Dir;
        if hide && self.config.layout == Layout::Overlay {
            return self.replace_by_device(slot, dir, name, is_dir);
        }
        if hide {
            self.make_whiteout(slot, dir, name)?;
        }
        if !is_dir {
            return branch.unlink(dir, name);
        }
        match branch.rmdir(dir, name) {
            Err(Errno::ENOTEMPTY) => {}
            other => return other,
        }
        let own = slot.own()?;
        let temp = own.temp_name();
        branch.rename(dir, name, &own.work, &temp, 0)?;
        leftovers(slot.delete_tree(&own.work, &temp));
        Ok(())
    }

    /// The same in overlayfs's layout, where the whiteout takes the object's very name.
    fn replace_by_device(&self, slot: &Arc<Slot>, dir: &Handle, name: &[u8], is_dir: bool) -> Res<()> {
        let (branch, own) = (&slot.branch, slot.own()?);
        let temp = own.temp_name();
        branch.make(&own.work, &temp, &DEVICE)?;
        let flags = if is_dir { RENAME_EXCHANGE } else { 0 };
        let moved = branch.rename(&own.work, &temp, dir, name, flags);
        if moved.is_err() || is_dir {
            leftovers(slot.delete_tree(&own.work, &temp));
        }
        moved
    }

    /// Hides a name that has no object in this branch.
    pub(super) fn hide(&self, slot: &Slot, dir: &Handle, name: &[u8]) -> Res<()> {
        match self.config.layout {
            Layout::Aufs => self.make_whiteout(slot, dir, name),
            Layout::Overlay => match slot.branch.make(dir, name, &DEVICE) {
                Ok(_) | Err(Errno::EEXIST) => Ok(()),
                Err(e) => Err(e),
            },
        }
    }

    /// Hides what lower branches have in a directory.
    pub(super) fn make_opaque(&self, slot: &Slot, dir: &Handle) -> Res<()> {
        match self.config.layout {
            Layout::Aufs => match slot.branch.make(dir, OPAQUE, &New { kind: FileKind::File, mode: 0o444, ..OURS }) {
                Ok(_) | Err(Errno::EEXIST) => Ok(()),
                Err(e) => Err(e),
            },
            Layout::Overlay => slot.branch.set_xattr(At::Open(dir), XATTR_OVERLAY_OPAQUE, b"y", 0),
        }
    }

    /// Makes a directory that only whiteouts fill physically empty, so that a rename can replace it; what it shows stays the same.
    pub(super) fn make_bare(&self, slot: &Slot, dir: &Handle, lower: bool) -> Res<()> {
        let names = slot.names(dir)?;
        if names.is_empty() {
            return Ok(());
        }
        if lower {
            // An attribute hides the lower directory without filling this one.
            slot.branch.set_xattr(At::Open(dir), XATTR_OVERLAY_OPAQUE, b"y", 0)?;
        }
        names.iter().try_for_each(|name| slot.delete_tree(dir, name))
    }

    /// Notes that objects in a directory may carry numbers.
    pub(super) fn mark_impure(&self, state: &mut DirState, slot: &Arc<Slot>) -> Res<()> {
        let Some(layer) = state.layers.iter_mut().find(|l| Arc::ptr_eq(&l.slot, slot)) else { return Err(Errno::ESTALE) };
        mark_layer_impure(layer)
    }
}

pub(super) fn mark_layer_impure(layer: &mut Layer) -> Res<()> {
    if layer.marks.impure {
        return Ok(());
    }
    match layer.slot.branch.set_xattr(At::Open(&layer.dir), XATTR_IMPURE, b"y", 0) {
        Ok(()) | Err(Errno::EOPNOTSUPP) => {}
        Err(e) => return Err(e),
    }
    layer.marks = Arc::new(Marks { impure: true, ..Marks::clone(&layer.marks) });
    Ok(())
}

/// Runs `change` on a directory whose times shall not show it.
pub(super) fn keeping_times<T>(slot: &Slot, dir: &Handle, change: impl FnOnce() -> Res<T>) -> Res<T> {
    let before = slot.branch.stat(At::Open(dir))?;
    let done = change()?;
    let set = SetAttr { atime: Some(before.atime), mtime: Some(before.mtime), ..SetAttr::default() };
    if let Err(e) = slot.branch.set_attr(At::Open(dir), &set) {
        tracing::debug!(error = %e, "the times of a directory could not be put back");
    }
    Ok(done)
}

/// What could not be swept now is swept at the next mount.
pub(super) fn leftovers(swept: Res<()>) {
    if let Err(e) = swept {
        tracing::warn!(error = %e, "something stays in the work directory until the next mount");
    }
}
