//! What an acknowledged fsync covered is there after whatever happened, power cuts of all servers too.

use crate::model::{Files, Name};
use crate::work::contents;
use brickraft_fs::fop::{Errno, Gfid};
use bytes::Bytes;
use std::collections::BTreeMap;

/// What is found in a file after a power cut; from now on it is what is there.
pub fn check_content(files: &mut Files, gfid: Gfid, read: &Result<Bytes, Errno>) {
    let data = match read {
        Ok(data) => data,
        Err(e) => panic!("file {gfid} was listed after a power cut, and reading it failed: {e}"),
    };
    let Some(file) = files.files.get_mut(&gfid) else { panic!("nobody made file {gfid}") };
    for (b, value) in contents(gfid, data).into_iter().enumerate() {
        let block = &mut file.blocks[b];
        assert!(
            block.place(value, block.synced).is_some(),
            "synced content is lost: file {gfid} block {b} has value {value}, which is not in {:?} from {} on",
            block.history,
            block.synced
        );
        let place = block.attempt(value);
        (block.acked, block.seen) = (place, place);
    }
}

/// A caller's files as found after a power cut.
pub fn check_names(files: &mut Files, owner: usize, found: &BTreeMap<Name, Gfid>) {
    for (gfid, file) in files.files.iter_mut().filter(|(_, f)| f.owner == owner) {
        let at: Vec<Name> = found.iter().filter(|(_, g)| *g == gfid).map(|(n, _)| *n).collect();
        if file.may_be_gone {
            file.gone = at.is_empty();
            continue;
        }
        let right = at.iter().any(|n| file.names.contains(n));
        assert!(right, "synced file {gfid} is lost: it should be at one of {:?} of caller {owner}, and is at {at:?}", file.names);
    }
}
