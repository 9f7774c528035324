//! A volume of one brick in this process, alone and under a union.

use super::*;
use crate::fop::TimeSpec;
use crate::store::conformance::{data, meta};
use crate::store::{BrickStore, DataDone, DataOp, OpCtx, SimStore};
use std::collections::HashMap;
use std::sync::Mutex;

/// A volume of one brick in this process.
struct OneBrick(Mutex<(SimStore, HashMap<Gfid, u32>, i64)>);

impl Volume for OneBrick {
    fn call(&self, fop: &Fop, payload: &[u8]) -> Result<(Reply, Bytes), Errno> {
        let mut inner = self.0.lock().unwrap();
        let (store, open, clock) = &mut *inner;
        *clock += 1;
        let ctx = OpCtx { time: TimeSpec { sec: *clock, nsec: 0 } };
        let none = Bytes::new();
        match fop {
            Fop::Read { gfid, offset, len } => match data(store, DataOp::Read { gfid: *gfid, offset: *offset, len: *len }) {
                DataDone::Read(read) => read.map(|d| (Reply::Payload, d)),
                _ => Err(Errno::EIO),
            },
            Fop::Write { gfid, offset } => {
                let op = DataOp::Write { gfid: *gfid, offset: *offset, data: Bytes::copy_from_slice(payload), time: ctx.time };
                match data(store, op) {
                    DataDone::Write(attr) => attr.map(|attr| (Reply::Written { len: payload.len() as u32, attr }, none)),
                    _ => Err(Errno::EIO),
                }
            }
            Fop::Fsync { gfid, data_only } => match data(store, DataOp::Fsync { gfid: *gfid, data_only: *data_only }) {
                DataDone::Synced(done) => done.map(|()| (Reply::Done, none)),
                _ => Err(Errno::EIO),
            },
            Fop::Open { gfid, .. } => {
                *open.entry(*gfid).or_default() += 1;
                store.keep_orphan(*gfid, true)?;
                Ok((Reply::Done, none))
            }
            Fop::Release { gfid } => {
                let count = open.get_mut(gfid).expect("it was opened");
                *count -= 1;
                if *count == 0 {
                    open.remove(gfid);
                    store.keep_orphan(*gfid, false)?;
                }
                Ok((Reply::Done, none))
            }
            fop if query(fop) => store.query(fop).map(|r| (r, none)),
            fop => store.apply(fop, &ctx).map(|r| (r, none)),
        }
    }
}

fn query(fop: &Fop) -> bool {
    matches!(
        fop,
        Fop::Lookup { .. }
            | Fop::GetAttr { .. }
            | Fop::ReadLink { .. }
            | Fop::ReadDir { .. }
            | Fop::StatFs
            | Fop::GetXattr { .. }
            | Fop::ListXattr { .. }
            | Fop::Lseek { .. }
    )
}

/// A volume of one brick in this process, empty.
pub(in crate::union) fn volume() -> Arc<dyn Volume> {
    Arc::new(OneBrick(Mutex::new((SimStore::new(meta()), HashMap::new(), 0))))
}

#[test]
fn volume_branches_conform() {
    super::super::conformance::run(&mut || Box::new(VolumeBranch::open("h:v", volume(), Path::new("")).unwrap()));
}

#[test]
fn a_union_writes_to_a_volume() {
    use crate::union::{BranchConfig, BranchSource, Caller, Perm, ROOT_INO, Union, UnionConfig};
    let lower = tempfile::tempdir().unwrap();
    std::fs::create_dir(lower.path().join("d")).unwrap();
    std::fs::write(lower.path().join("d/f"), "below").unwrap();
    let volume = volume();
    let branch = VolumeBranch::open("h:v", Arc::clone(&volume), Path::new("")).unwrap();
    branch.make(&branch.root(), b"c1", &New { kind: FileKind::Dir, mode: 0o755, rdev: 0, target: b"", uid: 0, gid: 0 }).unwrap();
    let open = || {
        let source = BranchSource::Volume { label: "h:v/c1".into(), volume: Arc::clone(&volume), subdir: "c1".into() };
        let below = BranchConfig { source: BranchSource::Dir(lower.path().to_owned()), perm: Perm::RO };
        let branches = vec![BranchConfig { source, perm: Perm::RW }, below];
        Union::open(UnionConfig { branches, ..UnionConfig::default() }).unwrap()
    };
    let union = open();
    let dir = union.lookup(ROOT_INO, b"d").unwrap().ino;
    let file = union.lookup(dir, b"f").unwrap().ino;
    union.write(file, 0, b"ABOVE", false).unwrap();
    union.rename(ROOT_INO, b"d", ROOT_INO, b"moved", 0).unwrap();
    union.mkdir(ROOT_INO, b"d", 0o755, &Caller::default()).unwrap();
    let again = open();
    let moved = again.lookup(ROOT_INO, b"moved").unwrap().ino;
    assert_eq!(moved, dir);
    let mut buf = [0; 9];
    let found = again.lookup(moved, b"f").unwrap().ino;
    assert_eq!((found, again.read(found, 0, &mut buf)), (file, Ok(5)));
    assert_eq!(&buf[..5], b"ABOVE");
    let d = again.lookup(ROOT_INO, b"d").unwrap().ino;
    assert_eq!(again.lookup(d, b"f").map(drop), Err(Errno::ENOENT));
    assert_eq!(std::fs::read(lower.path().join("d/f")).unwrap(), b"below");
}
