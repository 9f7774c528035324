//! AUFS's mount options, as mount(8) and people write them.

use super::words::{cut, escaped, plain};
use crate::client::ClientOptions;
use crate::management::with_port;
use anyhow::{Context, Result, bail, ensure};
use brickraft_fs::fuse::{MountFlags, Transport};
use brickraft_fs::union::{Perm, UnionConfig};
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Where a branch is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A directory of this machine, absolute.
    Local(PathBuf),
    /// A directory of a volume: the server that knows the volume, its name, and a relative path, empty for its root.
    Volume { server: String, volume: String, sub: PathBuf },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(f, "{}", path.display()),
            Self::Volume { server, volume, sub } if sub.as_os_str().is_empty() => write!(f, "{server}:{volume}"),
            Self::Volume { server, volume, sub } => write!(f, "{server}:{volume}/{}", sub.display()),
        }
    }
}

/// One branch as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BranchSpec {
    pub(super) place: Place,
    /// `None`: rw for a union's first branch, ro for the others.
    pub(super) permission: Option<Perm>,
}

/// A change of a live union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// At this position (0 is the top; beyond the end: the end).
    Add(usize, BranchSpec),
    Append(BranchSpec),
    Modify(Place, Perm),
    Delete(Place),
    /// From how many bytes on files are copied up lazily; `None`: none are.
    LazyCopyUp(Option<u64>),
}

/// Everything that stood after `-o`.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub(super) branches: Vec<BranchSpec>,
    pub(super) remount: bool,
    pub(super) changes: Vec<Change>,
    /// The words that choose behaviour; its branches are empty.
    pub(super) union: UnionConfig,
    /// `lazy-cpup` or its opposite was given.
    lazy_cpup: Option<Change>,
    pub(super) flags: MountFlags,
    /// A word among the options was one of `flags`.
    pub(super) flags_given: bool,
    pub(super) threads: Option<usize>,
    pub(super) writeback: bool,
    pub(super) passthrough: bool,
    pub(super) transport: Transport,
    pub(super) client: ClientOptions,
    pub(super) backup: Vec<String>,
    pub(super) log_level: Option<String>,
    pub(super) log_file: Option<String>,
}

impl Options {
    /// Reads the option strings of a command line, in order; a later option wins.
    ///
    /// # Errors
    /// The first option that means nothing here, in words.
    pub(super) fn parse(strings: &[String]) -> Result<Self> {
        let mut out = Self::default();
        for string in strings {
            for word in cut(string, ',')?.into_iter().filter(|w| !w.is_empty()) {
                out.word(word)?;
            }
        }
        match out.lazy_cpup.take() {
            Some(change) if out.remount => out.changes.push(change),
            Some(Change::LazyCopyUp(bytes)) => out.union.lazy.cpup = bytes,
            _ => {}
        }
        out.union.check()?;
        ensure!(out.remount || out.changes.is_empty(), "append, prepend, add, mod and del change a live union: give them with remount");
        ensure!(!(out.passthrough && out.writeback), "writeback and passthrough exclude each other (the kernel's rule): give one");
        Ok(out)
    }

    fn word(&mut self, word: &str) -> Result<()> {
        let end = word.find(['=', ':']).unwrap_or(word.len());
        let (name, value) = (&word[..end], word.get(end + 1..).unwrap_or_default());
        if self.generic(name) || self.branch_word(name, value)? || self.policy(word, name, value)? || without_effect(name) {
            return Ok(());
        }
        match name {
            "threads" => {
                let n = value.parse().ok().filter(|n| (1..=64).contains(n));
                self.threads = Some(n.with_context(|| format!("option {word}: must be from 1 to 64"))?);
            }
            "writeback" => self.writeback = true,
            "passthrough" => self.passthrough = true,
            "io_uring" => self.transport = Transport::Ring,
            "noio_uring" => self.transport = Transport::Device,
            "nopassthrough" => self.passthrough = false,
            "log-level" => self.log_level = Some(crate::cli::mount::log_level(value)?.to_owned()),
            "log-file" => self.log_file = Some(plain(value)?),
            "op-timeout" => self.client.op_timeout = crate::cli::mount::seconds(name, value)?.max(Duration::from_secs(1)),
            "backup-volfile-servers" => self.backup.extend(value.split(':').map(with_port)),
            "shwh" | "diropq" | "coo" | "fhsm" | "acsfs" | "refrof" => bail!("option {name} is not supported yet"),
            _ => bail!("unknown option {word}"),
        }
        Ok(())
    }

    /// Options that every file system has.
    fn generic(&mut self, name: &str) -> bool {
        let f = &mut self.flags;
        let before = self.flags_given;
        self.flags_given = true;
        match name {
            "ro" => f.read_only = true,
            "rw" => f.read_only = false,
            "nosuid" => f.no_suid = true,
            "suid" => f.no_suid = false,
            "nodev" => f.no_dev = true,
            "dev" => f.no_dev = false,
            "noexec" => f.no_exec = true,
            "exec" => f.no_exec = false,
            "noatime" => f.no_atime = true,
            "atime" | "relatime" | "strictatime" | "norelatime" => f.no_atime = false,
            "nodiratime" => f.no_dir_atime = true,
            "diratime" => f.no_dir_atime = false,
            "sync" => f.sync = true,
            "async" => f.sync = false,
            "dirsync" => f.dir_sync = true,
            "remount" => (self.remount, self.flags_given) = (true, before),
            // Of mount(8) itself, and what /proc/mounts shows of a FUSE mount and mount(8) hands back at a remount.
            "defaults"
            | "auto"
            | "noauto"
            | "user"
            | "nouser"
            | "users"
            | "owner"
            | "group"
            | "_netdev"
            | "nofail"
            | "comment"
            | "nostrictatime"
            | "lazytime"
            | "nolazytime"
            | "acl"
            | "silent"
            | "loud"
            | "allow_other"
            | "default_permissions"
            | "user_id"
            | "group_id"
            | "max_read"
            | "blksize"
            | "rootmode" => self.flags_given = before,
            _ => {
                self.flags_given = before;
                return name.starts_with("x-") || name.starts_with("X-");
            }
        }
        true
    }

    /// Options about branches.
    fn branch_word(&mut self, name: &str, value: &str) -> Result<bool> {
        let one = |value: &str| -> Result<BranchSpec> {
            let mut list = branches(value)?;
            match (list.pop(), list.is_empty()) {
                (Some(one), true) => Ok(one),
                _ => bail!("option {name}:{value}: give one branch"),
            }
        };
        match name {
            "br" | "dirs" => self.branches.extend(branches(value)?),
            "append" => self.changes.push(Change::Append(one(value)?)),
            "prepend" => self.changes.push(Change::Add(0, one(value)?)),
            "add" | "ins" => {
                let (at, branch) = value.split_once(':').with_context(|| format!("option {name}:{value}: not {name}:NUMBER:BRANCH"))?;
                let at = at.parse().with_context(|| format!("option {name}:{value}: {at:?} is no position"))?;
                self.changes.push(Change::Add(at, one(branch)?));
            }
            "mod" => {
                let branch = one(value)?;
                let permission = branch.permission.with_context(|| format!("option mod:{value}: give the new permission, mod:DIR=rw"))?;
                self.changes.push(Change::Modify(branch.place, permission));
            }
            "del" => {
                let branch = one(value)?;
                ensure!(branch.permission.is_none(), "option del:{value}: no permission is wanted");
                self.changes.push(Change::Delete(branch.place));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Options that choose behaviour.
    fn policy(&mut self, word: &str, name: &str, value: &str) -> Result<bool> {
        let u = &mut self.union;
        match (name, value) {
            ("create" | "create_policy", _) => u.create = value.parse()?,
            ("cpup" | "copyup" | "copyup_policy", _) => u.copyup = value.parse()?,
            ("udba", _) => u.udba = value.parse()?,
            ("layout", _) => u.layout = value.parse()?,
            ("lazy-cpup", _) => self.lazy_cpup = Some(Change::LazyCopyUp(Some(size(word, value)?))),
            ("nolazy-cpup", "") => self.lazy_cpup = Some(Change::LazyCopyUp(None)),
            ("plink", "") => u.plink = true,
            ("noplink", "") => u.plink = false,
            ("volatile", "") => u.volatile = true,
            ("sum" | "wsum", "") => u.sum = true,
            ("nosum", "") => u.sum = false,
            ("always-whiteout", "") => u.always_whiteout = true,
            ("dirren", "" | "on") => u.dirren = true,
            ("nodirren", "") | ("dirren", "off") => u.dirren = false,
            ("plink" | "noplink" | "nolazy-cpup" | "volatile" | "sum" | "nosum" | "dirren" | "nodirren", _) => {
                bail!("option {word}: no such value")
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Bytes, with or without K, M, G or T.
fn size(word: &str, value: &str) -> Result<u64> {
    let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let shift = match value[end..].to_ascii_uppercase().as_str() {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        "T" => Some(40),
        _ => None,
    };
    let bytes = shift.and_then(|shift| value[..end].parse::<u64>().ok()?.checked_mul(1 << shift));
    bytes.filter(|n| *n > 0).with_context(|| format!("option {word}: must be a size, as 512M or 4G"))
}

/// AUFS's options that change nothing here; SEMANTICS.md names them.
fn without_effect(name: &str) -> bool {
    matches!(
        name,
        "xino"
            | "noxino"
            | "zxino"
            | "trunc_xino"
            | "notrunc_xino"
            | "trunc_xino_path"
            | "itrunc_xino"
            | "trunc_xib"
            | "notrunc_xib"
            | "dirwh"
            | "dirperm1"
            | "nodirperm1"
            | "verbose"
            | "v"
            | "noverbose"
            | "quiet"
            | "q"
            | "silent"
            | "warn_perm"
            | "nowarn_perm"
            | "dio"
            | "nodio"
            | "rdblk"
            | "rdhash"
            | "rdcache"
            | "noshwh"
            | "si"
            | "norefrof"
            | "noacsfs"
    )
}

/// Reads `BRANCH[=PERMISSION][:BRANCH[=PERMISSION]]...`, top first.
///
/// A branch that begins with `/` or `.`, or names a directory from here, is a directory; `HOST:VOLUME[/DIR]` and
/// `HOST:PORT:VOLUME[/DIR]` are volumes.
fn branches(text: &str) -> Result<Vec<BranchSpec>> {
    let mut out = Vec::new();
    let mut words = cut(text, ':')?.into_iter().peekable();
    ensure!(!text.is_empty(), "no branches are given");
    while let Some(word) = words.next() {
        let (first, permission) = permission(word)?;
        ensure!(!first.is_empty(), "branches {text}: one is empty");
        if first.starts_with(['/', '.']) || Path::new(&first).is_dir() {
            out.push(BranchSpec { place: local(&first)?, permission });
            continue;
        }
        let hint = || format!("branch {word}: neither a directory nor HOST:VOLUME");
        ensure!(permission.is_none(), hint());
        let mut host = first;
        if let Some(port) = words.next_if(|w| !w.is_empty() && w.bytes().all(|b| b.is_ascii_digit())) {
            host = format!("{host}:{port}");
        }
        let (name, permission) = self::permission(words.next().with_context(hint)?)?;
        let (volume, sub) = name.split_once('/').unwrap_or((&name, ""));
        ensure!(!volume.is_empty(), hint());
        out.push(BranchSpec { place: volume_place(&host, volume, sub)?, permission });
    }
    Ok(out)
}

fn permission(word: &str) -> Result<(String, Option<Perm>)> {
    let parts = cut(word, '=')?;
    Ok(match parts.as_slice() {
        [path] => (plain(path)?, None),
        [path, permission] => (plain(path)?, Some(permission.parse()?)),
        _ => bail!("branch {word}: more than one ="),
    })
}

fn local(text: &str) -> Result<Place> {
    let path = std::path::absolute(text).with_context(|| format!("branch {text}"))?;
    // As the shell would name it, so that `del:` finds a branch that `append:` named in another way.
    Ok(Place::Local(path.canonicalize().unwrap_or(path)))
}

fn volume_place(host: &str, volume: &str, sub: &str) -> Result<Place> {
    let sub = Path::new(sub.trim_matches('/'));
    ensure!(
        sub.components().all(|c| matches!(c, Component::Normal(_))),
        "branch {host}:{volume}/{}: a path without . and ..",
        sub.display()
    );
    Ok(Place::Volume { server: with_port(host), volume: volume.to_owned(), sub: sub.to_owned() })
}

/// A branch as an option string has it.
pub(super) fn branch_text(place: &Place, permission: Option<Perm>) -> String {
    let name = match place {
        Place::Local(path) => escaped(&path.display().to_string()),
        // Its colons are meant; what is between them is escaped.
        Place::Volume { .. } => place.to_string().split(':').map(escaped).collect::<Vec<_>>().join(":"),
    };
    permission.map_or_else(|| name.clone(), |p| format!("{name}={p}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickraft_fs::union::{Access, CopyUpPolicy, CreatePolicy, Udba};

    fn parse(text: &str) -> Result<Options> {
        Options::parse(&[text.to_owned()])
    }

    fn shown(options: &Options) -> Vec<String> {
        let permission = |b: &BranchSpec| b.permission.map_or_else(|| "-".into(), |p| p.to_string());
        options.branches.iter().map(|b| format!("{} {}", b.place, permission(b))).collect()
    }

    #[test]
    fn the_lines_of_scripts_and_fstab_are_read() {
        for line in
            ["br:/no1=rw:/no2=ro:/no3=rr+wh", "br=/no1=rw:/no2=ro:/no3=rr+wh", "rw,dirs=/no1=rw:/no2=ro:/no3=rr+wh,xino=/x/.xino,noplink"]
        {
            assert_eq!(shown(&parse(line).expect(line)), ["/no1 rw", "/no2 ro", "/no3 rr+wh"], "{line}");
        }
        assert_eq!(shown(&parse("dirs=/no1:/no2").expect("plain")), ["/no1 -", "/no2 -"]);
        assert_eq!(shown(&parse(r"dirs=/no\:1:/n\,o").expect("escaped")), ["/no:1 -", "/n,o -"]);
        let o = parse("ro,noatime,nodev,create=pmfsrr:4096:5,cpup=bu,udba=none,sum,dirwh=3,dirperm1,trunc_xino,verbose").expect("many");
        assert!(o.flags.read_only && o.flags.no_atime && o.flags.no_dev && o.union.sum);
        assert_eq!(o.union.create, CreatePolicy::ParentMostFreeRoundRobin { low: 4096, every: Duration::from_secs(5) });
        assert_eq!((o.union.copyup, o.union.udba), (CopyUpPolicy::BottomUp, Udba::None));
    }

    #[test]
    fn branches_on_volumes_are_read() {
        let o = parse("dirs=nohost:vol/a/b=rw:/no2:127.0.0.1:24008:rep=ro").expect("volumes");
        assert_eq!(shown(&o), ["nohost:24007:vol/a/b rw", "/no2 -", "127.0.0.1:24008:rep ro"]);
    }

    #[test]
    fn changes_of_a_live_union_are_read() {
        // What mount(8) hands to a helper of a FUSE mount, and what was asked for.
        let o = parse(
            "rw,relatime,user_id=0,group_id=0,default_permissions,allow_other,remount,append:/no1=ro,add:1:/no2=rr,mod:/no1=rw,del:/no2",
        )
        .expect("remount");
        assert_eq!(o.changes.len(), 4);
        assert!(matches!(&o.changes[1], Change::Add(1, b) if b.place == Place::Local("/no2".into())), "{:?}", o.changes);
        assert!(matches!(&o.changes[2], Change::Modify(_, p) if p.access == Access::Rw));
        assert_eq!(o.changes[3], Change::Delete(Place::Local("/no2".into())));
    }

    #[test]
    fn sizes_of_lazy_copy_ups_are_read() {
        for (line, bytes) in
            [("lazy-cpup=1", Some(1)), ("lazy-cpup=64k", Some(64 << 10)), ("lazy-cpup=1G,nolazy-cpup", None), ("sum", None)]
        {
            assert_eq!(parse(line).expect(line).union.lazy.cpup, bytes, "{line}");
        }
        assert_eq!(parse("lazy-cpup=2T,remount").expect("remount").changes, [Change::LazyCopyUp(Some(2 << 40))]);
        assert_eq!(parse("remount,nolazy-cpup").expect("remount").changes, [Change::LazyCopyUp(None)]);
    }

    #[test]
    fn odd_options_are_refused_in_words() {
        for (bad, said) in [
            ("nonsense", "unknown option nonsense"),
            ("dirs=", "no branches"),
            ("dirs=/no1::/no2", "one is empty"),
            ("dirs=nohost", "neither a directory nor HOST:VOLUME"),
            ("dirs=/no1=xx", "expected rw, ro or rr"),
            ("dirs=/no1=rw+wh", "expected rw, ro or rr"),
            ("dirs=h:vol/../x", "without . and .."),
            ("append:/no1", "with remount"),
            ("remount,mod:/no1", "give the new permission"),
            ("remount,add:x:/no1", "is no position"),
            ("remount,del:/no1:/no2", "one branch"),
            ("create=mfsrr", "expected tdp"),
            ("cpup=best", "expected tdp, bup or bu"),
            ("udba=maybe", "expected none, reval or notify"),
            ("shwh", "not supported yet"),
            ("passthrough,writeback", "exclude each other"),
            ("lazy-cpup=much", "must be a size"),
            ("lazy-cpup=0", "must be a size"),
            ("lazy-cpup", "must be a size"),
            ("lazy-cpup=99999999T", "must be a size"),
            ("nolazy-cpup=1G", "no such value"),
            ("lazy-cpup=1G,layout=overlay", "exclude each other"),
            ("lazy-cpup=1G,volatile", "exclude each other"),
            ("volatile=yes", "no such value"),
        ] {
            let why = format!("{:#}", parse(bad).expect_err(bad));
            assert!(why.contains(said), "{bad}: {why}");
        }
    }
}
