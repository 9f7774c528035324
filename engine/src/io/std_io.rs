//! The fall-back: pwrite and fdatasync. `submit` blocks for as long as the disk needs.

use super::ring::read_full;
use super::{AlignedBuf, Completion, Io, IoOp, ZERO_BYTES_MAX};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Files of one directory, by plain system calls.
pub struct StdIo {
    dir: Dir,
    files: Vec<Option<File>>,
    done: Vec<Completion>,
    zeros: AlignedBuf,
}

impl StdIo {
    /// Uses `dir`, which must exist.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self { dir: Dir::open(dir)?, files: Vec::new(), done: Vec::new(), zeros: AlignedBuf::zeroed(ZERO_BYTES_MAX) })
    }

    fn file(&self, file: usize) -> io::Result<&File> {
        self.files.get(file).and_then(Option::as_ref).ok_or_else(closed)
    }

    fn run(&self, op: &IoOp<usize>) -> io::Result<()> {
        match op {
            IoOp::Write { file, offset, data, durable } => {
                let file = self.file(*file)?;
                file.write_all_at(data.as_slice(), *offset)?;
                if *durable { file.sync_data() } else { Ok(()) }
            }
            IoOp::Fsync { file } => self.file(*file)?.sync_all(),
            IoOp::Zero { file, offset, len } => {
                let zeros = self.zeros.as_slice().get(..*len).ok_or(io::ErrorKind::InvalidInput)?;
                self.file(*file)?.write_all_at(zeros, *offset)
            }
            IoOp::SyncDir => self.dir.handle.sync_all(),
        }
    }
}

impl Io for StdIo {
    type File = usize;

    fn list(&mut self) -> io::Result<Vec<String>> {
        self.dir.list()
    }

    fn open(&mut self, name: &str, create: bool) -> io::Result<usize> {
        let file = self.dir.open_file(name, create)?;
        Ok(keep(&mut self.files, file))
    }

    fn close(&mut self, file: usize) {
        if let Some(slot) = self.files.get_mut(file) {
            *slot = None;
        }
    }

    fn len(&mut self, file: usize) -> io::Result<u64> {
        Ok(self.file(file)?.metadata()?.len())
    }

    fn read_at(&mut self, file: usize, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        read_full(self.file(file)?, offset, buf)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.dir.rename(from, to)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.dir.remove(name)
    }

    fn submit(&mut self, token: u64, op: IoOp<usize>) -> io::Result<()> {
        let result = self.run(&op);
        let data = if let IoOp::Write { data, .. } = op { Some(data) } else { None };
        self.done.push(Completion { token, result, data });
        Ok(())
    }

    fn reap(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        out.append(&mut self.done);
        Ok(())
    }

    fn wait(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn describe(&self) -> String {
        "pwrite and fdatasync".into()
    }
}

/// Puts `file` into the first free slot, which is its handle.
pub(super) fn keep<T>(files: &mut Vec<Option<T>>, file: T) -> usize {
    let at = files.iter().position(Option::is_none).unwrap_or(files.len());
    if at == files.len() {
        files.push(None);
    }
    files[at] = Some(file);
    at
}

pub(super) fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the file handle was closed")
}

/// A directory and the blocking calls in it.
pub(super) struct Dir {
    pub(super) path: PathBuf,
    pub(super) handle: File,
}

impl Dir {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), handle: File::open(path)? })
    }

    pub(super) fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    pub(super) fn options(create: bool) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(false);
        options
    }

    pub(super) fn open_file(&self, name: &str, create: bool) -> io::Result<File> {
        Self::options(create).open(self.path.join(name))
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }
}
