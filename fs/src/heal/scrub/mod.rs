//! Scrub: finds what was altered behind our back, and says which brick is right.
//!
//! Files that have been idle are signed ([`Signer`]; cold ones by [`Hasher`], a thread of its own): their content's sum, with the
//! size and mtime that it had, goes into an extended attribute. A [`Scrubber`] walks both bricks' index, compares
//! attributes, names and contents, and where they differ asks [`decide`].

mod content;
mod decide;
mod hasher;
mod scrubber;
pub mod signature;
mod signer;

pub use content::{ContentSum, chunk_sum, names_sum};
pub use decide::{Doubt, Reason, Seen, Verdict, decide};
pub use hasher::{Hashed, Hasher};
pub use scrubber::{Difference, FINDINGS_MAX, Finding, ScrubReport, Scrubber};
pub use signer::{SIGNER_QUEUE_MAX, Signer};
