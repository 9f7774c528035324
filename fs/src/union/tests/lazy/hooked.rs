//! A branch that calls somebody back before each change: to fail it, or to do something else in the middle of it.

use super::*;
use crate::fop::StatFs;
use crate::union::branch::{Listed, New, Stat};
use std::os::fd::OwnedFd;
use std::sync::Mutex;

/// What a branch is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call<'a> {
    GetXattr(&'a [u8]),
    SetXattr(&'a [u8], usize),
    Link,
    /// Offset and length.
    Write(u64, usize),
    /// After it was done.
    Resized(u64),
    Read,
    Lseek,
}

type Hook = Arc<dyn Fn(Call<'_>) -> Res<()> + Send + Sync>;

pub(super) struct Hooked {
    inner: Arc<dyn Branch>,
    hook: Mutex<Option<Hook>>,
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Hooked {
    pub(super) fn new(inner: Arc<dyn Branch>) -> Arc<Self> {
        Arc::new(Self { inner, hook: Mutex::default() })
    }

    /// From now on.
    pub(super) fn hook(&self, hook: impl Fn(Call<'_>) -> Res<()> + Send + Sync + 'static) {
        *self.hook.lock().unwrap() = Some(Arc::new(hook));
    }

    /// The first time that `wanted` says so; it may fail the call.
    pub(super) fn once(&self, wanted: impl Fn(Call<'_>) -> bool + Send + Sync + 'static, then: impl FnOnce() -> Res<()> + Send + 'static) {
        let then = Mutex::new(Some(then));
        self.hook(move |call| {
            let then = if wanted(call) { then.lock().unwrap().take() } else { None };
            then.map_or(Ok(()), |then| then())
        });
    }

    fn call(&self, call: Call<'_>) -> Res<()> {
        let hook = self.hook.lock().unwrap().clone();
        hook.map_or(Ok(()), |hook| hook(call))
    }

    pub(super) fn config(self: &Arc<Self>, label: &str, perm: Perm) -> BranchConfig {
        BranchConfig { source: BranchSource::Other { label: label.into(), branch: Arc::clone(self) as Arc<dyn Branch> }, perm }
    }
}

impl Branch for Hooked {
    fn root(&self) -> Handle {
        self.inner.root()
    }

    fn can_hold_overlay(&self) -> bool {
        self.inner.can_hold_overlay()
    }

    fn stat(&self, at: At<'_>) -> Res<Stat> {
        self.inner.stat(at)
    }

    fn open(&self, at: At<'_>, how: Open) -> Res<Handle> {
        self.inner.open(at, how)
    }

    fn list(&self, dir: &Handle, each: &mut dyn FnMut(Listed<'_>)) -> Res<()> {
        self.inner.list(dir, each)
    }

    fn readlink(&self, at: At<'_>) -> Res<Vec<u8>> {
        self.inner.readlink(at)
    }

    fn make(&self, dir: &Handle, name: &[u8], new: &New<'_>) -> Res<Stat> {
        self.inner.make(dir, name, new)
    }

    fn link(&self, from: At<'_>, dir: &Handle, name: &[u8]) -> Res<()> {
        self.call(Call::Link)?;
        self.inner.link(from, dir, name)
    }

    fn unlink(&self, dir: &Handle, name: &[u8]) -> Res<()> {
        self.inner.unlink(dir, name)
    }

    fn rmdir(&self, dir: &Handle, name: &[u8]) -> Res<()> {
        self.inner.rmdir(dir, name)
    }

    fn rename(&self, dir: &Handle, name: &[u8], new_dir: &Handle, new_name: &[u8], flags: u32) -> Res<()> {
        self.inner.rename(dir, name, new_dir, new_name, flags)
    }

    fn set_attr(&self, at: At<'_>, set: &SetAttr) -> Res<()> {
        self.inner.set_attr(at, set)?;
        set.size.map_or(Ok(()), |size| self.call(Call::Resized(size)))
    }

    fn get_xattr(&self, at: At<'_>, name: &[u8]) -> Res<Vec<u8>> {
        let value = self.inner.get_xattr(at, name);
        self.call(Call::GetXattr(name))?;
        value
    }

    fn list_xattr(&self, at: At<'_>) -> Res<Vec<Vec<u8>>> {
        self.inner.list_xattr(at)
    }

    fn set_xattr(&self, at: At<'_>, name: &[u8], value: &[u8], flags: u32) -> Res<()> {
        self.call(Call::SetXattr(name, value.len()))?;
        self.inner.set_xattr(at, name, value, flags)
    }

    fn remove_xattr(&self, at: At<'_>, name: &[u8]) -> Res<()> {
        self.inner.remove_xattr(at, name)
    }

    fn read(&self, file: &Handle, offset: u64, buf: &mut [u8]) -> Res<usize> {
        self.call(Call::Read)?;
        self.inner.read(file, offset, buf)
    }

    fn write(&self, file: &Handle, offset: u64, data: &[u8]) -> Res<()> {
        self.call(Call::Write(offset, data.len()))?;
        self.inner.write(file, offset, data)
    }

    fn fallocate(&self, file: &Handle, offset: u64, len: u64, mode: u32) -> Res<()> {
        self.inner.fallocate(file, offset, len, mode)
    }

    fn lseek(&self, file: &Handle, offset: u64, whence: u32) -> Res<u64> {
        self.call(Call::Lseek)?;
        self.inner.lseek(file, offset, whence)
    }

    fn fsync(&self, file: &Handle, data_only: bool) -> Res<()> {
        self.inner.fsync(file, data_only)
    }

    fn statfs(&self) -> Res<StatFs> {
        self.inner.statfs()
    }

    fn claim(&self, dir: &Handle) -> Res<bool> {
        self.inner.claim(dir)
    }

    fn descriptor(&self, file: &Handle) -> Option<Arc<OwnedFd>> {
        self.inner.descriptor(file)
    }
}
