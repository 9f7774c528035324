//! A read sees at least what was acknowledged, and what any earlier read saw, before it was asked for.

use crate::model::Files;
use crate::work::contents;
use brickraft_fs::fop::{Errno, Gfid};
use bytes::Bytes;

/// `floors` are those of the time of the question; `certain`: nothing was lost to a power cut since; `mine`: only the
/// reader could have taken the file away.
pub fn check(files: &mut Files, gfid: Gfid, floors: &[usize], certain: bool, mine: bool, read: &Result<Bytes, Errno>) {
    let Some(file) = files.files.get_mut(&gfid) else { return };
    let data = match read {
        Ok(data) => data,
        Err(Errno::ENOENT) if !mine || !certain => return,
        Err(e) => panic!("reading file {gfid} failed: {e}"),
    };
    for (b, value) in contents(gfid, data).into_iter().enumerate() {
        let block = &mut file.blocks[b];
        // A read that was served before a power cut may arrive after it, and what it was served from may be older than what was
        // synced in between.
        let floor = if certain { floors[b] } else { floors[b].min(block.synced) };
        let Some(place) = block.place(value, floor) else {
            panic!("a read went back: file {gfid} block {b} has value {value}, which is not in {:?} from {floor} on", block.history);
        };
        if certain {
            block.seen = block.seen.max(place);
        }
    }
}
