//! A ring for the data files of a brick: reads, writes and syncs of any open file.

use super::uring::{Driver, Finished, Work, WriteBuf};
use bytes::Bytes;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// An operation on a file.
#[derive(Debug)]
pub enum FileOp {
    /// Reads `len` bytes; fewer only at the end of the file.
    Read {
        /// From where.
        file: Arc<File>,
        /// In bytes.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// Writes all of `data`; not durable by itself.
    Write {
        /// Where to.
        file: Arc<File>,
        /// In bytes.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// fsync, or fdatasync with `data_only`.
    Fsync {
        /// Which file or directory.
        file: Arc<File>,
        /// fdatasync.
        data_only: bool,
    },
}

/// The end of a [`FileOp`].
#[derive(Debug)]
pub enum FileDone {
    /// The bytes read.
    Read(io::Result<Bytes>),
    /// All or an error (with an unknown part written).
    Write(io::Result<()>),
    /// Durable, or an error that must not be answered by another try.
    Fsync(io::Result<()>),
}

/// Submits at once; polls readable (see [`super::uring::Readiness`] for tokio) when [`Self::reap`] may have something. Where io_uring is forbidden it does the work synchronously inside `submit`.
/// Dropping it waits for what is in flight.
pub struct FileRing {
    inner: Inner,
    scratch: Vec<Finished>,
}

enum Inner {
    Uring(Box<Driver>),
    Sync(SyncRing),
}

/// Results of work already done; one byte lies in the pipe while there are any.
struct SyncRing {
    done: Vec<(u64, FileDone)>,
    reader: PipeReader,
    writer: PipeWriter,
}

impl FileRing {
    /// A ring with up to `entries` operations in flight; more are queued.
    ///
    /// # Errors
    /// When neither a ring nor a pipe can be made (descriptors or memory are used up).
    pub fn new(entries: u32) -> io::Result<Self> {
        match Driver::new(entries) {
            Ok(driver) => Ok(Self { inner: Inner::Uring(Box::new(driver)), scratch: Vec::new() }),
            Err(e) => {
                tracing::warn!(error = %e, "io_uring is not available; data files are read and written synchronously");
                Self::without_uring()
            }
        }
    }

    /// The fall-back, for tests and for those who want it.
    ///
    /// # Errors
    /// When no pipe can be made.
    pub fn without_uring() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        Ok(Self { inner: Inner::Sync(SyncRing { done: Vec::new(), reader, writer }), scratch: Vec::new() })
    }

    /// Starts `op`; its end comes out of [`Self::reap`] with `token`.
    pub fn submit(&mut self, token: u64, op: FileOp) {
        match &mut self.inner {
            Inner::Uring(driver) => {
                let work = match op {
                    FileOp::Read { file, offset, len } => Work::Read { file, offset, buf: vec![0; len as usize] },
                    FileOp::Write { file, offset, data } => Work::Write { file, offset, buf: WriteBuf::Bytes(data), dsync: false },
                    FileOp::Fsync { file, data_only } => Work::Fsync { file, data_only },
                };
                // The driver keeps the work queued; a broken ring is reported by its descriptor never
                // getting ready, so say it loudly here.
                if let Err(e) = driver.submit(token, work) {
                    tracing::error!(error = %e, "io_uring_enter");
                }
            }
            Inner::Sync(ring) => {
                if ring.done.is_empty() {
                    let _ = ring.writer.write_all(&[1]);
                }
                ring.done.push((token, run_now(op)));
            }
        }
    }

    /// Appends what has ended to `out`. Never blocks.
    pub fn reap(&mut self, out: &mut Vec<(u64, FileDone)>) {
        match &mut self.inner {
            Inner::Uring(driver) => {
                if let Err(e) = driver.reap(&mut self.scratch) {
                    tracing::error!(error = %e, "io_uring_enter");
                }
                out.extend(self.scratch.drain(..).map(|(token, result, work)| (token, file_done(result, work))));
            }
            Inner::Sync(ring) => {
                if !ring.done.is_empty() {
                    let _ = ring.reader.read_exact(&mut [0]);
                    out.append(&mut ring.done);
                }
            }
        }
    }

    /// Blocks until [`Self::reap`] has something; returns at once when nothing is pending.
    ///
    /// # Errors
    /// When the ring is broken.
    pub fn wait(&mut self) -> io::Result<()> {
        match &mut self.inner {
            Inner::Uring(driver) => driver.wait(),
            Inner::Sync(_) => Ok(()),
        }
    }

    /// Operations submitted and not reaped yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        match &self.inner {
            Inner::Uring(driver) => driver.pending(),
            Inner::Sync(ring) => ring.done.len(),
        }
    }
}

impl AsRawFd for FileRing {
    fn as_raw_fd(&self) -> RawFd {
        match &self.inner {
            Inner::Uring(driver) => driver.as_raw_fd(),
            Inner::Sync(ring) => ring.reader.as_raw_fd(),
        }
    }
}

impl AsFd for FileRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.inner {
            Inner::Uring(driver) => driver.as_fd(),
            Inner::Sync(ring) => ring.reader.as_fd(),
        }
    }
}

fn file_done(result: io::Result<usize>, work: Work) -> FileDone {
    match work {
        Work::Read { buf, .. } => FileDone::Read(result.map(|_| Bytes::from(buf))),
        Work::Write { .. } => FileDone::Write(result.map(|_| ())),
        Work::Fsync { .. } => FileDone::Fsync(result.map(|_| ())),
    }
}

fn run_now(op: FileOp) -> FileDone {
    match op {
        FileOp::Read { file, offset, len } => {
            let mut buf = vec![0; len as usize];
            FileDone::Read(read_full(&file, offset, &mut buf).map(|n| {
                buf.truncate(n);
                Bytes::from(buf)
            }))
        }
        FileOp::Write { file, offset, data } => FileDone::Write(file.write_all_at(&data, offset)),
        FileOp::Fsync { file, data_only } => FileDone::Fsync(if data_only { file.sync_data() } else { file.sync_all() }),
    }
}

/// Reads until `buf` is full or the file ends.
pub(super) fn read_full(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(ring: &mut FileRing) -> Vec<(u64, FileDone)> {
        let mut out = Vec::new();
        while ring.pending() > 0 {
            ring.wait().unwrap();
            ring.reap(&mut out);
        }
        out.sort_by_key(|(token, _)| *token);
        out
    }

    fn exercise(mut ring: FileRing) {
        let file = Arc::new(tempfile::tempfile().unwrap());
        // More than the ring has entries: the rest is queued, nothing is refused.
        for i in 0..40_u64 {
            let data = Bytes::from(vec![u8::try_from(i).unwrap(); 1000]);
            ring.submit(i, FileOp::Write { file: file.clone(), offset: i * 1000, data });
        }
        for (_, done) in drain(&mut ring) {
            assert!(matches!(done, FileDone::Write(Ok(()))));
        }
        ring.submit(1, FileOp::Fsync { file: file.clone(), data_only: true });
        ring.submit(2, FileOp::Read { file: file.clone(), offset: 39_500, len: 4096 });
        ring.submit(3, FileOp::Read { file: file.clone(), offset: 7_500, len: 1000 });
        ring.submit(4, FileOp::Read { file, offset: 99_999, len: 10 });
        let done = drain(&mut ring);
        assert!(matches!(&done[0].1, FileDone::Fsync(Ok(()))));
        assert!(matches!(&done[1].1, FileDone::Read(Ok(b)) if b.len() == 500), "short only at the end of the file");
        assert!(matches!(&done[2].1, FileDone::Read(Ok(b)) if b[..500] == [7; 500] && b[500..] == [8; 500]));
        assert!(matches!(&done[3].1, FileDone::Read(Ok(b)) if b.is_empty()));
    }

    #[test]
    fn ring_reads_back_what_it_wrote() {
        exercise(FileRing::new(8).unwrap());
    }

    #[test]
    fn fall_back_reads_back_what_it_wrote() {
        exercise(FileRing::without_uring().unwrap());
    }

    #[test]
    fn errors_come_back_as_errors() {
        for mut ring in [FileRing::new(8).unwrap(), FileRing::without_uring().unwrap()] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("f");
            std::fs::write(&path, b"x").unwrap();
            let file = Arc::new(File::open(&path).unwrap());
            ring.submit(9, FileOp::Write { file, offset: 0, data: Bytes::from_static(b"y") });
            assert!(matches!(drain(&mut ring).as_slice(), [(9, FileDone::Write(Err(_)))]));
        }
    }

    #[test]
    fn dropping_waits_for_what_is_in_flight() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut ring = FileRing::new(8).unwrap();
        for i in 0..8 {
            ring.submit(i, FileOp::Write { file: file.clone(), offset: i << 20, data: Bytes::from(vec![1; 1 << 20]) });
        }
        drop(ring);
        assert_eq!(file.metadata().unwrap().len(), 8 << 20);
    }

    #[tokio::test]
    async fn is_ready_for_tokio() {
        for mut ring in [FileRing::new(8).unwrap(), FileRing::without_uring().unwrap()] {
            let readiness = crate::io::uring::Readiness::new(&ring).unwrap();
            let file = Arc::new(tempfile::tempfile().unwrap());
            for round in 0..20 {
                ring.submit(round, FileOp::Write { file: file.clone(), offset: 0, data: Bytes::from_static(b"abc") });
                ring.submit(round, FileOp::Fsync { file: file.clone(), data_only: false });
                let mut out = Vec::new();
                while out.len() < 2 {
                    readiness.ready().await.unwrap();
                    ring.reap(&mut out);
                }
            }
        }
    }
}
