//! Changes of the branches of a live union.

use super::core::{Union, check_apart};
use super::node::lock;
use super::slot::Slot;
use super::{BRANCHES_MAX, BranchChange, BranchConfig, UnionError};
use std::sync::Arc;

impl Union {
    /// Changes the branches of the live union. Afterwards the front end drops what the kernel caches (see [`Union::live`]).
    ///
    /// # Errors
    /// Says which branch, and why not. A branch in which something lies that was unlinked and is still open is busy.
    pub fn change(&self, change: BranchChange) -> Result<(), UnionError> {
        let _changing = lock(&self.changing);
        let mut slots = self.view().slots.clone();
        match change {
            BranchChange::Append(config) => slots.push(self.new_slot(&slots, &config)?),
            BranchChange::Prepend(config) => slots.insert(0, self.new_slot(&slots, &config)?),
            BranchChange::Insert(at, config) => {
                let slot = self.new_slot(&slots, &config)?;
                slots.insert(at.min(slots.len()), slot);
            }
            BranchChange::Modify { label, perm } => {
                let slot = named(&slots, &label)?;
                let _none = self.lazy.none_comes();
                if perm.writable() && !slot.writable() {
                    // What is written to it would show in what was not copied up from it.
                    self.check_not_needed(&slot)?;
                    slot.prepare(&self.config, self.instance)?;
                }
                self.lazy.flush_all();
                slot.set_perm(perm);
                // Descriptors that can write shall not outlive the permission.
                lock(&self.files).clear();
            }
            BranchChange::Delete { label } => {
                let slot = named(&slots, &label)?;
                if slots.len() == 1 {
                    return Err(UnionError::NoBranches);
                }
                let _none = self.lazy.none_comes();
                self.check_idle(&slot)?;
                self.check_not_needed(&slot)?;
                self.lazy.flush_all();
                slots.retain(|s| !Arc::ptr_eq(s, &slot));
                self.set_slots(slots)?;
                slot.set_gone();
                self.scout.clear();
                lock(&self.files).clear();
                // What was written since: the branch may come again.
                self.lazy.flush_all();
                self.lazy.close_lowers();
                slot.close(&self.config);
                return Ok(());
            }
            BranchChange::LazyCopyUp(bytes) => {
                if bytes.is_some() {
                    self.config.goes_with_lazy()?;
                }
                self.lazy.set_cpup(bytes);
                return Ok(());
            }
        }
        let before = self.view();
        self.set_slots(slots.clone()).inspect_err(|_| {
            // One that did not come.
            slots.iter().filter(|s| !before.slots.iter().any(|b| Arc::ptr_eq(b, s))).for_each(|s| s.close(&self.config));
        })?;
        self.scout.clear();
        Ok(())
    }

    fn new_slot(&self, slots: &[Arc<Slot>], config: &BranchConfig) -> Result<Arc<Slot>, UnionError> {
        if slots.len() >= BRANCHES_MAX {
            return Err(UnionError::TooManyBranches);
        }
        for slot in slots {
            check_apart(&config.source, &slot.source)?;
        }
        Slot::ready(config, &self.config, self.instance)
    }

    /// Refuses to change a branch from which not all was copied up of some file.
    fn check_not_needed(&self, slot: &Arc<Slot>) -> Result<(), UnionError> {
        match self.needed(slot).map_err(slot.failed("find out whether lazily copied files need it"))? {
            None => Ok(()),
            Some((files, example)) => Err(UnionError::Needed { branch: slot.source.label(), files, example }),
        }
    }

    /// Refuses to take away what somebody still has open and nobody could find again.
    fn check_idle(&self, slot: &Arc<Slot>) -> Result<(), UnionError> {
        for node in self.table.live() {
            let held = node.file().is_ok_and(|f| Arc::ptr_eq(&f.slot, slot) && matches!(f.spot, super::node::Spot::Open(_)));
            if held && self.table.is_referred(node.ino) {
                let user = format!("the open file number {}", node.ino);
                return Err(UnionError::Busy { branch: slot.source.label(), user });
            }
        }
        Ok(())
    }
}

fn named(slots: &[Arc<Slot>], label: &str) -> Result<Arc<Slot>, UnionError> {
    let bare = |text: &str| text.trim_end_matches('/').to_owned();
    slots.iter().find(|s| bare(&s.source.label()) == bare(label)).cloned().ok_or_else(|| UnionError::NotABranch { branch: label.into() })
}
