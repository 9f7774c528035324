//! The top of a translator stack as the FUSE session sees it.

use crate::fop::{Errno, Fop, Reply};
use bytes::Bytes;

/// Something that carries out file operations: the client's view of a volume, or a stack of translators.
///
/// Calls come from several threads at once and may block. Errors are what the application shall see.
pub trait Volume: Send + Sync + 'static {
    /// Carries out `fop`. `payload` is the data of a write; the answer's [`Bytes`] are the data of a read.
    ///
    /// # Errors
    /// The operation's own refusal, or `ENOTCONN` when no server could be reached in time.
    fn call(&self, fop: &Fop, payload: &[u8]) -> Result<(Reply, Bytes), Errno>;

    /// As [`Self::call`], for a file handle with a fencing token (0: none): refused with `ESTALE` when the file's fence
    /// is higher by the time that the operation would be carried out.
    ///
    /// # Errors
    /// As `call`; `EOPNOTSUPP` where there are no fences.
    fn call_fenced(&self, fop: &Fop, payload: &[u8], fence: u64) -> Result<(Reply, Bytes), Errno> {
        if fence == 0 { self.call(fop, payload) } else { Err(Errno::EOPNOTSUPP) }
    }

    /// Tells the servers that the client is leaving; called once, at the end.
    fn close(&self) {}
}
