//! An acknowledged change of names is there until its caller undoes it, whichever server crashes, and it is done once:
//! a second unlink, rename or creation, or a lost one, shows in the outcome of the next operation or in a listing.

use crate::model::Name;
use brickraft_fs::fop::{Errno, Fop, Gfid, Reply};
use bytes::Bytes;
use std::collections::BTreeMap;

type Outcome = Result<(Reply, Bytes), Errno>;

/// The caller knows its directory, so every change must succeed.
pub fn check_outcome(c: usize, fop: &Fop, outcome: &Outcome) {
    if let Err(e) = outcome {
        panic!("caller {c}: {fop:?} failed with {e}, though nobody else works there");
    }
}

pub fn check_lookup(c: usize, fop: &Fop, expected: Option<Gfid>, outcome: &Outcome) {
    let found = match outcome {
        Ok((Reply::Attr(attr), _)) => Some(attr.gfid),
        Err(Errno::ENOENT) => None,
        other => panic!("caller {c}: {fop:?}: {other:?}"),
    };
    assert_eq!(found, expected, "caller {c}: {fop:?} found the wrong object");
}

pub fn check_listing(c: usize, sub: bool, names: &BTreeMap<Name, Gfid>, subdirectory: Option<Gfid>, outcome: &Outcome) {
    let Ok((Reply::Entries { entries, end: true }, _)) = outcome else { panic!("caller {c}: a listing failed: {outcome:?}") };
    let found: BTreeMap<Bytes, Gfid> = entries.iter().map(|e| (e.name.clone(), e.gfid)).collect();
    let mut expected: BTreeMap<Bytes, Gfid> =
        names.iter().filter(|(n, _)| n.0 == sub).map(|(n, g)| (Bytes::from(format!("n{}", n.1)), *g)).collect();
    expected.extend(subdirectory.map(|g| (Bytes::from_static(b"sub"), g)));
    assert_eq!(found, expected, "caller {c}: a directory does not hold what was acknowledged");
}
