//! `volatile`: nothing is synced until the end, and a branch whose union had none in order is refused.

use super::{dir_branch, put, sim_branch, walk};
use crate::fop::{Errno, FileKind};
use crate::union::branch::{At, Branch, SimBranch};
use crate::union::names::VOLATILE;
use crate::union::{BranchChange, BranchConfig, Perm, Union, UnionConfig, UnionError};
use std::sync::Arc;

fn sims() -> (Arc<SimBranch>, Arc<SimBranch>) {
    let (upper, lower) = (Arc::new(SimBranch::new(1)), Arc::new(SimBranch::new(2)));
    put(&*lower, "f", FileKind::File, b"below");
    lower.settle();
    upper.settle();
    (upper, lower)
}

fn open(branches: Vec<BranchConfig>, volatile: bool) -> Result<Union, UnionError> {
    Union::open(UnionConfig { branches, volatile, ..UnionConfig::default() })
}

fn over(upper: &Arc<SimBranch>, lower: &Arc<SimBranch>, volatile: bool) -> Result<Union, UnionError> {
    open(vec![sim_branch("upper", upper, Perm::RW), sim_branch("lower", lower, Perm::RO)], volatile)
}

fn content(union: &Union) -> Vec<u8> {
    super::content(union, walk(union, "f").expect("f")).expect("read")
}

fn is_marked(branch: &SimBranch) -> bool {
    branch.stat(At::Name(&branch.root(), VOLATILE)).is_ok()
}

#[test]
fn what_was_written_is_durable_after_the_end_and_refused_without_one() {
    let (upper, lower) = sims();
    let union = over(&upper, &lower, true).expect("open");
    let f = walk(&union, "f").expect("f");
    union.write(f, 0, b"ABOVE", false).expect("write");
    union.fsync(f, false).expect("fsync says that all is well");
    let lost = upper.cut(upper.steps(), false);
    assert_eq!(lost.stat(At::Name(&lost.root(), b"f")).expect("the copy").size, 0, "nothing was synced");
    // However far it came: what is there is either as it was, or refused.
    for steps in 0..=upper.steps() {
        let cut = Arc::new(upper.cut(steps, false));
        match over(&cut, &lower, false) {
            Ok(union) => assert_eq!(content(&union), b"below", "after {steps} steps"),
            Err(e) => assert!(matches!(e, UnionError::Volatile { .. }) && is_marked(&cut), "after {steps} steps: {e}"),
        }
    }
    // A second one must not take the first one's mark away.
    assert!(matches!(over(&upper, &lower, true), Err(UnionError::Volatile { .. })) && is_marked(&upper));
    union.close();
    let settled = Arc::new(upper.cut(upper.steps(), false));
    let again = over(&settled, &lower, false).expect("it ended in order");
    assert_eq!(content(&again), b"ABOVE");
}

#[test]
fn a_copy_is_synced_without_it() {
    let (upper, lower) = sims();
    let union = over(&upper, &lower, false).expect("open");
    union.write(walk(&union, "f").expect("f"), 0, b"ABOVE", false).expect("write");
    let cut = Arc::new(upper.cut(upper.steps(), false));
    assert!(!is_marked(&cut));
    assert_eq!(content(&over(&cut, &lower, false).expect("open")), b"below");
}

#[test]
fn branches_that_come_and_go_are_marked_too() {
    let (upper, lower) = sims();
    let added = Arc::new(SimBranch::new(3));
    let union = over(&upper, &lower, true).expect("open");
    union.change(BranchChange::Insert(0, sim_branch("added", &added, Perm::RW))).expect("insert");
    assert!(is_marked(&added));
    for perm in [Perm::RO, Perm::RW] {
        union.change(BranchChange::Modify { label: "upper".into(), perm }).expect("its own mark is no reason to refuse it");
    }
    union.change(BranchChange::Delete { label: "added".into() }).expect("delete");
    assert!(!is_marked(&added) && is_marked(&upper));
    assert!(matches!(union.change(BranchChange::LazyCopyUp(Some(1))), Err(UnionError::LazyVolatile)));
    union.close();
    assert!(!is_marked(&upper));
}

#[test]
fn a_union_that_does_not_come_about_leaves_no_mark() {
    let (upper, _) = sims();
    let nowhere = std::path::Path::new("/nowhere/at/all");
    let e = open(vec![sim_branch("upper", &upper, Perm::RW), dir_branch(nowhere, Perm::RO)], true).expect_err("no such directory");
    assert!(matches!(e, UnionError::Branch { source: Errno::ENOENT, .. }), "{e}");
    assert!(!is_marked(&upper));
}
