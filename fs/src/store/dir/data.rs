//! Reads, writes and syncs, on the ring.

use super::DirStore;
use super::handles::bucket_path;
use super::sys::{self, At, Res};
use crate::fop::{Attr, Errno, Gfid, PAYLOAD_BYTES_MAX, TimeSpec};
use crate::store::{DataDone, DataOp};
use brickraft_engine::io::ring::{FileDone, FileOp, FileRing};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread::JoinHandle;

const RING_ENTRIES: u32 = 256;
/// Objects whose new names are remembered until they are synced; beyond that the next fsync syncs everything.
const NAMED_MAX: usize = 65_536;

/// What an operation on the ring belongs to.
enum Job {
    Read { token: u64 },
    Write { token: u64, gfid: Gfid, file: Arc<File> },
    Sync { group: u64 },
    /// One byte in a pipe, from the thread that waits for the file system.
    SyncAll { token: u64, thread: JoinHandle<Res<()>> },
}

/// The syncs that together answer one `Fsync`.
struct SyncGroup {
    token: u64,
    left: usize,
    result: Res<()>,
}

/// The ring and what is under way on it.
pub(super) struct DataPath {
    ring: FileRing,
    jobs: BTreeMap<u64, Job>,
    groups: BTreeMap<u64, SyncGroup>,
    next: u64,
    done: Vec<(u64, DataDone)>,
    reaped: Vec<(u64, FileDone)>,
    /// Files with writes in flight: how many, and the latest of their times. Replicas whose disks finish in
    /// another order end with the same mtime.
    writing: BTreeMap<Gfid, (u32, TimeSpec)>,
    /// Names given since the object's last fsync: its directories.
    named: BTreeMap<Gfid, BTreeSet<Gfid>>,
    /// `named` overflowed.
    named_all: bool,
    /// A sync failed: what the kernel dropped will not be reported twice, so no later sync may succeed.
    latched: bool,
}

impl DataPath {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            ring: FileRing::new(RING_ENTRIES)?,
            jobs: BTreeMap::new(),
            groups: BTreeMap::new(),
            next: 0,
            done: Vec::new(),
            reaped: Vec::new(),
            writing: BTreeMap::new(),
            named: BTreeMap::new(),
            named_all: false,
            latched: false,
        })
    }

    /// `gfid` got a name in `parent` that an fsync of it has to make durable.
    pub(super) fn named(&mut self, gfid: Gfid, parent: Gfid) {
        if self.named.len() >= NAMED_MAX {
            self.named.clear();
            self.named_all = true;
        }
        self.named.entry(gfid).or_default().insert(parent);
    }

    pub(super) fn forget(&mut self, gfid: Gfid) {
        self.named.remove(&gfid);
    }

    pub(super) fn pending(&self) -> usize {
        self.jobs.len() + self.done.len()
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    fn start(&mut self, job: Job, op: FileOp) {
        self.next += 1;
        self.jobs.insert(self.next, job);
        self.ring.submit(self.next, op);
    }

    /// The directories whose syncs make the object's names durable: those that hold them and, as long as they are
    /// new themselves, those above.
    fn take_named(&mut self, gfid: Gfid) -> BTreeSet<Gfid> {
        let mut found = BTreeSet::new();
        let mut todo = vec![gfid];
        while let Some(at) = todo.pop() {
            for parent in self.named.remove(&at).unwrap_or_default() {
                if found.insert(parent) {
                    todo.push(parent);
                }
            }
        }
        found
    }

    fn sync_ended(&mut self, group: u64, result: Res<()>) {
        let Some(g) = self.groups.get_mut(&group) else { return };
        g.left -= 1;
        if let Err(e) = result {
            g.result = Err(e);
            self.latched = true;
        }
        if g.left == 0
            && let Some(g) = self.groups.remove(&group)
        {
            self.done.push((g.token, DataDone::Synced(g.result)));
        }
    }
}

impl DirStore {
    pub(super) fn start_data(&mut self, token: u64, op: DataOp) {
        let refused = match op {
            DataOp::Read { gfid, offset, len } => self.start_read(token, gfid, offset, len).err().map(|e| DataDone::Read(Err(e))),
            DataOp::Write { gfid, offset, data, time } => self.start_write(token, gfid, offset, data, time).err().map(|e| DataDone::Write(Err(e))),
            DataOp::Fsync { gfid, data_only } => self.start_fsync(token, gfid, data_only).err().map(|e| DataDone::Synced(Err(e))),
            DataOp::SyncAll => self.start_sync_all(token).err().map(|e| DataDone::Synced(Err(e))),
        };
        self.data.done.extend(refused.map(|done| (token, done)));
    }

    fn start_read(&mut self, token: u64, gfid: Gfid, offset: u64, len: u32) -> Res<()> {
        if len as usize > PAYLOAD_BYTES_MAX {
            return Err(Errno::EINVAL);
        }
        let file = self.file(gfid)?;
        if len == 0 || i64::try_from(offset).is_err() {
            self.data.done.push((token, DataDone::Read(Ok(Bytes::new()))));
            return Ok(());
        }
        self.data.start(Job::Read { token }, FileOp::Read { file, offset, len });
        Ok(())
    }

    fn start_write(&mut self, token: u64, gfid: Gfid, offset: u64, data: Bytes, time: TimeSpec) -> Res<()> {
        if offset.checked_add(data.len() as u64).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(Errno::EFBIG);
        }
        let file = self.file(gfid)?;
        if data.is_empty() {
            let attr = sys::attr(gfid, &sys::stat_fd(&file)?);
            self.data.done.push((token, DataDone::Write(Ok(attr))));
            return Ok(());
        }
        self.mark(&[gfid.bucket()])?;
        let writing = self.data.writing.entry(gfid).or_default();
        *writing = (writing.0 + 1, writing.1.max(time));
        self.data.start(Job::Write { token, gfid, file: Arc::clone(&file) }, FileOp::Write { file, offset, data });
        Ok(())
    }

    /// fsync of the object and, when it got a name since its last one, of the directories that hold the name and
    /// of its bucket's index directory: on file systems with one ordered journal those cost next to nothing more.
    fn start_fsync(&mut self, token: u64, gfid: Gfid, data_only: bool) -> Res<()> {
        if self.data.latched {
            return Err(Errno::EIO);
        }
        if self.data.named_all {
            self.find(gfid)?;
            return self.start_sync_all(token);
        }
        let (is_dir, file) = match self.find(gfid)?.0 {
            super::handles::Obj::Dir(dir) => (true, dir),
            super::handles::Obj::Leaf(_) => (false, self.file(gfid)?),
        };
        let above = self.data.take_named(gfid);
        let mut files = vec![(file, data_only && above.is_empty() && !is_dir)];
        if is_dir || !above.is_empty() {
            match sys::open_dir(&self.handles.private, bucket_path(gfid.bucket()).as_bytes()) {
                Ok(bucket) => files.push((Arc::new(bucket), false)),
                Err(Errno::ENOENT) => {}
                Err(e) => return Err(e),
            }
        }
        for parent in above {
            match self.handles.dir(parent) {
                Ok(dir) => files.push((dir, false)),
                // Removed since: so is the name.
                Err(Errno::ENOENT) => {}
                Err(e) => return Err(e),
            }
        }
        self.data.next += 1;
        let group = self.data.next;
        self.data.groups.insert(group, SyncGroup { token, left: files.len(), result: Ok(()) });
        for (file, data_only) in files {
            self.data.start(Job::Sync { group }, FileOp::Fsync { file, data_only });
        }
        Ok(())
    }

    /// `syncfs` may take seconds and io_uring does not have it, so a thread waits for it. It says so through a pipe
    /// that the ring reads, which keeps one descriptor for all readiness.
    fn start_sync_all(&mut self, token: u64) -> Res<()> {
        if self.data.latched {
            return Err(Errno::EIO);
        }
        let (reader, writer) = io::pipe()?;
        let root = Arc::clone(&self.handles.root);
        let thread = std::thread::Builder::new().name("brick-syncfs".into()).spawn(move || {
            let result = sys::sync_fs(&root);
            let _ = io::Write::write_all(&mut &writer, &[1]);
            result
        })?;
        self.data.named.clear();
        self.data.named_all = false;
        let file = Arc::new(File::from(OwnedFd::from(reader)));
        self.data.start(Job::SyncAll { token, thread }, FileOp::Read { file, offset: 0, len: 1 });
        Ok(())
    }

    pub(super) fn reap_data(&mut self, out: &mut Vec<(u64, DataDone)>) {
        let mut reaped = std::mem::take(&mut self.data.reaped);
        self.data.ring.reap(&mut reaped);
        for (id, done) in reaped.drain(..) {
            let Some(job) = self.data.jobs.remove(&id) else { continue };
            self.job_ended(job, done);
        }
        self.data.reaped = reaped;
        out.append(&mut self.data.done);
    }

    fn job_ended(&mut self, job: Job, done: FileDone) {
        match (job, done) {
            (Job::Read { token }, FileDone::Read(result)) => self.data.done.push((token, DataDone::Read(result.map_err(Errno::from)))),
            (Job::Write { token, gfid, file }, FileDone::Write(result)) => {
                let attr = self.written(gfid, &file, result.map_err(Errno::from));
                self.data.done.push((token, DataDone::Write(attr)));
            }
            (Job::Sync { group }, FileDone::Fsync(result)) => self.data.sync_ended(group, result.map_err(Errno::from)),
            // Where the ring is not a real one the pipe cannot be read by it: the thread is waited for here.
            (Job::SyncAll { token, thread }, FileDone::Read(_)) => {
                let result = thread.join().unwrap_or(Err(Errno::EIO));
                self.data.latched |= result.is_err();
                self.data.done.push((token, DataDone::Synced(result)));
            }
            // The ring answered with another operation's kind: it is broken, and so is the answer.
            (Job::Read { token }, _) => self.data.done.push((token, DataDone::Read(Err(Errno::EIO)))),
            (Job::Write { token, .. }, _) => self.data.done.push((token, DataDone::Write(Err(Errno::EIO)))),
            (Job::Sync { group }, _) => self.data.sync_ended(group, Err(Errno::EIO)),
            (Job::SyncAll { token, .. }, _) => self.data.done.push((token, DataDone::Synced(Err(Errno::EIO)))),
        }
    }

    /// A write has ended: gives the file the write's time, whatever clock this brick has.
    fn written(&mut self, gfid: Gfid, file: &File, result: Res<()>) -> Res<Attr> {
        let mut time = None;
        if let Some((in_flight, latest)) = self.data.writing.get_mut(&gfid) {
            *in_flight -= 1;
            time = Some(*latest);
            if *in_flight == 0 {
                self.data.writing.remove(&gfid);
            }
        }
        result?;
        let at = At::Fd(file);
        at.set_times(None, time)?;
        Ok(sys::attr(gfid, &at.stat()?))
    }
}

impl std::os::fd::AsFd for DataPath {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.ring.as_fd()
    }
}
