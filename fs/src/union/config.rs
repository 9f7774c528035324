//! What a union is made of, and how the words of AUFS's options are read.

use super::branch::Branch;
use super::error::UnionError;
use crate::volume::Volume;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// How a union is put together.
#[derive(Clone, Debug)]
pub struct UnionConfig {
    /// The branches, the topmost first. At least one, at most [`BRANCHES_MAX`].
    pub branches: Vec<BranchConfig>,
    /// Where new objects go (`create=`).
    pub create: CreatePolicy,
    /// Where an object of a branch that cannot be written is copied to (`cpup=`).
    pub copyup: CopyUpPolicy,
    /// What is done about changes that somebody makes in a branch directly (`udba=`).
    pub udba: Udba,
    /// How whiteouts and opaque directories are written; both kinds are always read.
    pub layout: Layout,
    /// Leave a whiteout at every removal, not only where a lower branch shows the name.
    pub always_whiteout: bool,
    /// Rename directories that exist on lower branches; false: `EXDEV`, as AUFS answers (`dirren=off`).
    pub dirren: bool,
    /// Keep hard links of read-only branches together at copy-up (`plink`/`noplink`).
    pub plink: bool,
    /// statfs(2) of all branches together (`sum`) rather than of the first (`nosum`).
    pub sum: bool,
    /// How huge files are copied up.
    pub lazy: LazyConfig,
    /// Nothing is synced, neither copies nor what fsync(2) asks for, until the union ends in order (overlayfs's `volatile`). A branch whose union
    /// did not is refused. Neither with [`LazyConfig::cpup`] nor with writable branches on volumes.
    pub volatile: bool,
}

/// Copy-up block by block, as a file is written to. Not with [`Layout::Overlay`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LazyConfig {
    /// Files of so many bytes are copied up lazily (`lazy-cpup=SIZE`); `None`: none are.
    pub cpup: Option<u64>,
    /// Bytes of a block, of files copied up from now on. Of very large files blocks are larger.
    pub block_bytes: u64,
    /// What was written is synced after this long, in the background, so that a killed process costs no more. `None`: at fsync only, and when
    /// much has gathered.
    pub flush_after: Option<Duration>,
}

impl Default for LazyConfig {
    fn default() -> Self {
        Self { cpup: None, block_bytes: 128 << 10, flush_after: Some(Duration::from_secs(5)) }
    }
}

impl Default for UnionConfig {
    fn default() -> Self {
        Self {
            branches: Vec::new(),
            create: CreatePolicy::default(),
            copyup: CopyUpPolicy::default(),
            udba: Udba::default(),
            layout: Layout::default(),
            always_whiteout: false,
            dirren: true,
            plink: true,
            sum: false,
            lazy: LazyConfig::default(),
            volatile: false,
        }
    }
}

impl UnionConfig {
    /// Refuses options that exclude each other.
    ///
    /// # Errors
    /// Which ones.
    pub fn check(&self) -> Result<(), UnionError> {
        if self.lazy.cpup.is_some() { self.goes_with_lazy() } else { Ok(()) }
    }

    /// What a `lazy-cpup` excludes.
    pub(super) fn goes_with_lazy(&self) -> Result<(), UnionError> {
        match (self.layout, self.volatile) {
            (Layout::Overlay, _) => Err(UnionError::LazyOverlay),
            (_, true) => Err(UnionError::LazyVolatile),
            _ => Ok(()),
        }
    }
}

/// The most branches that a union can have.
pub const BRANCHES_MAX: usize = 500;

/// One branch.
#[derive(Clone, Debug)]
pub struct BranchConfig {
    /// Where it lies.
    pub source: BranchSource,
    /// What may be done with it.
    pub perm: Perm,
}

/// Where a branch lies.
#[derive(Clone)]
pub enum BranchSource {
    /// A directory of this host.
    Dir(PathBuf),
    /// A directory of a volume.
    Volume {
        /// What listings show: `HOST:VOL/subdir`.
        label: String,
        /// The volume's translator stack.
        volume: Arc<dyn Volume>,
        /// The directory in it that is the branch's root; empty: the volume's root.
        subdir: PathBuf,
    },
    /// Any other implementation.
    Other {
        /// What listings show.
        label: String,
        /// The branch.
        branch: Arc<dyn Branch>,
    },
}

impl BranchSource {
    /// What listings show and `del:`/`mod:` match.
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Self::Dir(path) => path.display().to_string(),
            Self::Volume { label, .. } | Self::Other { label, .. } => label.clone(),
        }
    }
}

impl fmt::Debug for BranchSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label())
    }
}

/// What may be done with a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write.
    Rw,
    /// Never written through the union; somebody else may change it.
    Ro,
    /// On a medium that never changes.
    Rr,
}

/// A branch's permission with its attributes: `rw`, `ro+wh`, `rw+nolwh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perm {
    /// Read, write.
    pub access: Access,
    /// `+wh`: the `.wh.` whiteouts of a branch that cannot be written count. (A writable one's always do.)
    pub whiteouts: bool,
    /// `+nolwh`: whiteouts are never hard links of one file.
    pub no_link_whiteouts: bool,
}

impl Perm {
    /// `rw`.
    pub const RW: Self = Self { access: Access::Rw, whiteouts: false, no_link_whiteouts: false };
    /// `ro`.
    pub const RO: Self = Self { access: Access::Ro, whiteouts: false, no_link_whiteouts: false };

    /// Whether the union writes to it.
    #[must_use]
    pub fn writable(self) -> bool {
        self.access == Access::Rw
    }

    /// Whether its `.wh.` names hide what is below.
    #[must_use]
    pub fn honours_whiteouts(self) -> bool {
        self.writable() || self.whiteouts
    }
}

/// An option's value that nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a {what}: expected {expected}")]
pub struct BadValue {
    /// What was read.
    pub value: String,
    /// What it should be.
    pub what: &'static str,
    /// The words that are known.
    pub expected: &'static str,
}

impl FromStr for Perm {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let bad = || BadValue { value: text.into(), what: "branch permission", expected: "rw, ro or rr, with +wh or +nolwh" };
        let mut words = text.split('+');
        let access = match words.next() {
            Some("rw") => Access::Rw,
            Some("ro") => Access::Ro,
            Some("rr") => Access::Rr,
            _ => return Err(bad()),
        };
        let mut perm = Self { access, whiteouts: false, no_link_whiteouts: false };
        for word in words {
            match word {
                "wh" if access != Access::Rw => perm.whiteouts = true,
                "nolwh" if access == Access::Rw => perm.no_link_whiteouts = true,
                _ => return Err(bad()),
            }
        }
        Ok(perm)
    }
}

impl fmt::Display for Perm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.access {
            Access::Rw => "rw",
            Access::Ro => "ro",
            Access::Rr => "rr",
        })?;
        if self.whiteouts {
            f.write_str("+wh")?;
        }
        if self.no_link_whiteouts {
            f.write_str("+nolwh")?;
        }
        Ok(())
    }
}

/// How long a measurement of free space is good, where the option does not say.
pub const FREE_SPACE_GOOD_FOR: Duration = Duration::from_secs(30);

/// `create=`: the writable branch for a new object. Each family is one file in `fs/src/union/policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CreatePolicy {
    /// The highest writable branch in which the parent exists.
    #[default]
    TopDownParent,
    /// The same, and for an object that a rename brings the branch that has it: the same in AUFS but for moves.
    TopDownMove,
    /// Each writable branch in turn.
    RoundRobin,
    /// The one with the most free space, measured anew after this long.
    MostFree(Duration),
    /// As `MostFree`; round robin once it has less than `low` bytes free.
    MostFreeRoundRobin {
        /// Bytes.
        low: u64,
        /// How long a measurement is good.
        every: Duration,
    },
    /// `MostFree` among those in which the parent exists.
    ParentMostFree(Duration),
    /// `MostFreeRoundRobin` among those in which the parent exists.
    ParentMostFreeRoundRobin {
        /// Bytes.
        low: u64,
        /// How long a measurement is good.
        every: Duration,
    },
}

impl FromStr for CreatePolicy {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let bad = || BadValue {
            value: text.into(),
            what: "create policy",
            expected: "tdp, tdmvr, rr, mfs[:SEC], mfsrr:LOW[:SEC], pmfs[:SEC] or pmfsrr:LOW[:SEC]",
        };
        let mut parts = text.split(':');
        let word = parts.next().unwrap_or_default();
        let mut number = || parts.next().map(|n| n.parse::<u64>().map_err(|_| bad())).transpose();
        let every = |n: Option<u64>| n.map_or(FREE_SPACE_GOOD_FOR, Duration::from_secs);
        let policy = match word {
            "tdp" | "top-down-parent" => Self::TopDownParent,
            "tdmvr" => Self::TopDownMove,
            "rr" | "round-robin" => Self::RoundRobin,
            "mfs" | "most-free-space" => Self::MostFree(every(number()?)),
            "pmfs" => Self::ParentMostFree(every(number()?)),
            "mfsrr" => Self::MostFreeRoundRobin { low: number()?.ok_or_else(bad)?, every: every(number()?) },
            "pmfsrr" => Self::ParentMostFreeRoundRobin { low: number()?.ok_or_else(bad)?, every: every(number()?) },
            _ => return Err(bad()),
        };
        if parts.next().is_some() { Err(bad()) } else { Ok(policy) }
    }
}

impl fmt::Display for CreatePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TopDownParent => f.write_str("tdp"),
            Self::TopDownMove => f.write_str("tdmvr"),
            Self::RoundRobin => f.write_str("rr"),
            Self::MostFree(every) => write!(f, "mfs:{}", every.as_secs()),
            Self::MostFreeRoundRobin { low, every } => write!(f, "mfsrr:{low}:{}", every.as_secs()),
            Self::ParentMostFree(every) => write!(f, "pmfs:{}", every.as_secs()),
            Self::ParentMostFreeRoundRobin { low, every } => write!(f, "pmfsrr:{low}:{}", every.as_secs()),
        }
    }
}

/// `cpup=`: the writable branch that an object is copied up to. Always one above where the object lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyUpPolicy {
    /// The highest in which the parent exists, else the nearest.
    #[default]
    TopDownParent,
    /// The nearest in which the parent exists, else the nearest.
    BottomUpParent,
    /// The nearest.
    BottomUp,
}

impl FromStr for CopyUpPolicy {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text {
            "tdp" | "top-down-parent" => Ok(Self::TopDownParent),
            "bup" | "bottom-up-parent" => Ok(Self::BottomUpParent),
            "bu" | "bottom-up" => Ok(Self::BottomUp),
            _ => Err(BadValue { value: text.into(), what: "copy-up policy", expected: "tdp, bup or bu" }),
        }
    }
}

impl fmt::Display for CopyUpPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TopDownParent => "tdp",
            Self::BottomUpParent => "bup",
            Self::BottomUp => "bu",
        })
    }
}

/// `udba=`: what is done about changes that somebody makes in a branch directly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Udba {
    /// Nothing: the front end may cache for as long as it likes.
    None,
    /// Each lookup looks at the branches again: the front end's time-outs say how late a change shows.
    Reval,
    /// The kernel tells what changes ([`super::Union::watch`]); where it cannot, as [`Self::Reval`].
    Notify,
    /// Nothing was said: as [`Self::Notify`], and no word where that is not possible.
    #[default]
    Auto,
}

impl FromStr for Udba {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text {
            "none" => Ok(Self::None),
            "reval" => Ok(Self::Reval),
            "notify" | "inotify" | "fsnotify" => Ok(Self::Notify),
            _ => Err(BadValue { value: text.into(), what: "udba mode", expected: "none, reval or notify" }),
        }
    }
}

impl fmt::Display for Udba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Reval => "reval",
            Self::Notify | Self::Auto => "notify",
        })
    }
}

/// How whiteouts and opaque directories are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// AUFS's: `.wh.NAME`, `.wh..wh..opq`.
    #[default]
    Aufs,
    /// overlayfs's: character devices 0/0, `trusted.overlay.opaque`.
    Overlay,
}

impl FromStr for Layout {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text {
            "aufs" => Ok(Self::Aufs),
            "overlay" | "overlayfs" => Ok(Self::Overlay),
            _ => Err(BadValue { value: text.into(), what: "layout", expected: "aufs or overlay" }),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aufs => "aufs",
            Self::Overlay => "overlay",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["rw", "ro", "rr", "ro+wh", "rr+wh", "rw+nolwh"] {
            assert_eq!(text.parse::<Perm>().unwrap().to_string(), text);
        }
        for text in ["", "rx", "rw+wh", "ro+nolwh", "ro+", "rw+x"] {
            assert!(text.parse::<Perm>().is_err(), "{text}");
        }
        for text in ["tdp", "tdmvr", "rr", "mfs:30", "mfsrr:5:7", "pmfs:1", "pmfsrr:5:30"] {
            assert_eq!(text.parse::<CreatePolicy>().unwrap().to_string(), text);
        }
        for text in ["mfsrr", "mfs:x", "rr:1", "tdp:", "pmfsrr:1:2:3"] {
            assert!(text.parse::<CreatePolicy>().is_err(), "{text}");
        }
        assert_eq!("most-free-space".parse::<CreatePolicy>(), Ok(CreatePolicy::MostFree(FREE_SPACE_GOOD_FOR)));
        assert_eq!("bottom-up".parse::<CopyUpPolicy>(), Ok(CopyUpPolicy::BottomUp));
    }
}
