//! How a copy that waits without a name gets its place, and what is left when it does not.

use super::{put, sim_branch, union_of, walk};
use crate::fop::{Errno, FileKind};
use crate::union::branch::{At, Branch, Open, SimBranch};
use crate::union::names::{PLINKS, WORK};
use crate::union::{Perm, Union};
use std::sync::Arc;

/// Two names of one file below, and a file by itself.
fn union() -> (Arc<SimBranch>, Union) {
    let (upper, lower) = (Arc::new(SimBranch::new(1)), Arc::new(SimBranch::new(2)));
    put(&*lower, "a", FileKind::File, b"below");
    lower.link(At::Name(&lower.root(), b"a"), &lower.root(), b"b").expect("link");
    put(&*lower, "single", FileKind::File, b"below");
    let union = union_of(vec![sim_branch("upper", &upper, Perm::RW), sim_branch("lower", &lower, Perm::RO)]);
    (upper, union)
}

fn names(branch: &SimBranch, path: &[&[u8]]) -> Vec<String> {
    let dir = path.iter().fold(branch.root(), |dir, name| branch.open(At::Name(&dir, name), Open::Path).expect("a directory"));
    let mut names = Vec::new();
    branch.list(&dir, &mut |e| names.push(String::from_utf8_lossy(e.name).into_owned())).expect("list");
    names
}

fn write(union: &Union, name: &str) -> Result<(), Errno> {
    union.write(walk(union, name).expect("its name"), 0, b"ABOVE", false)
}

fn content(union: &Union, name: &str) -> Vec<u8> {
    super::content(union, walk(union, name).expect("its name")).expect("read")
}

#[test]
fn what_does_not_get_its_place_is_not_kept_for_its_other_names() {
    let (upper, union) = union();
    // The first link keeps it for all its names, the second one is its place.
    upper.fail_links([None, Some(Errno::ENOSPC)]);
    assert_eq!(write(&union, "a"), Err(Errno::ENOSPC));
    assert!(names(&upper, &[PLINKS]).is_empty());
    assert_eq!(content(&union, "b"), b"below");
    write(&union, "a").expect("there is room again");
    assert_eq!((content(&union, "a"), content(&union, "b")), (b"ABOVE".to_vec(), b"ABOVE".to_vec()));
}

#[test]
fn a_place_that_was_taken_meanwhile_is_looked_for_again() {
    let (upper, union) = union();
    upper.fail_links([None, Some(Errno::EEXIST)]);
    write(&union, "a").expect("the second time");
    assert_eq!(content(&union, "b"), b"ABOVE");
    assert_eq!(names(&upper, &[PLINKS]).len(), 1);
}

#[test]
fn where_it_can_have_no_name_it_is_made_with_one() {
    let (upper, union) = union();
    upper.fail_links([Some(Errno::EXDEV)]);
    write(&union, "single").expect("by the work directory");
    assert_eq!(content(&union, "single"), b"ABOVE");
    // And the others at once; nothing stays in the work directory.
    write(&union, "a").expect("by the work directory");
    let work = names(&upper, &[WORK]).remove(0);
    assert!(names(&upper, &[WORK, work.as_bytes()]).is_empty());
}
