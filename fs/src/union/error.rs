//! Why a union could not be put together or changed.

use crate::fop::Errno;

/// Why a union could not be put together, or its branches not be changed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum UnionError {
    #[error("a union needs at least one branch")]
    NoBranches,
    #[error("a union has at most {} branches", super::config::BRANCHES_MAX)]
    TooManyBranches,
    #[error("branch {branch}: {doing}: {source}")]
    Branch {
        branch: String,
        doing: &'static str,
        #[source]
        source: Errno,
    },
    #[error("branch {branch} is given twice")]
    Twice { branch: String },
    #[error("branch {branch} lies inside branch {other}: give directories that do not contain each other")]
    Nested { branch: String, other: String },
    #[error("branch {branch} is not part of this union (list the branches)")]
    NotABranch { branch: String },
    #[error("branch {branch} is in use by {user}: close it first")]
    Busy { branch: String, user: String },
    #[error(
        "branch {branch} is needed: of {files} files not all was copied up from it, {example} among them; complete them first \
         (brickraft union complete DIR), or remove them"
    )]
    Needed { branch: String, files: usize, example: String },
    #[error("lazy-cpup and layout=overlay exclude each other: overlayfs would take the sparse copies for whole files")]
    LazyOverlay,
    #[error("lazy-cpup and volatile exclude each other: what a copy has already must be known after a crash")]
    LazyVolatile,
    #[error(
        "branch {branch} was written to with the option volatile by a union that did not end in order, or still runs: files in it may be half \
         there. Begin with an empty branch, or, if the machine has not crashed since, take it as it is: rmdir {branch}/.wh..wh.volatile"
    )]
    Volatile { branch: String },
    #[error("{0} is not supported yet")]
    NotSupportedYet(&'static str),
}
