//! `brickraft union`, and `mount.aufs` as mount(8) calls it.

mod complete;
mod control;
mod options;
mod words;
mod writers;

use super::mount::{in_background, is_live, mounted_on};
use super::print::Printer;
use crate::client::VolumeClient;
use anyhow::{Context, Result, bail, ensure};
use brickraft_fs::fuse::{Caching, UnionMount, UnionMountOptions, set_flags};
use brickraft_fs::union::{BranchChange, BranchConfig, BranchSource, Perm, Udba, Union, UnionConfig};
use brickraft_fs::volume::Volume;
use clap::{Args, Subcommand};
use control::{Asked, Control};
use options::{BranchSpec, Change, Options, Place, branch_text};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Threads that serve a union on local branches, for each processor: they wait for disks.
const THREADS_PER_CPU: usize = 4;
/// Threads that serve a union with a branch on a volume: they wait for servers.
const VOLUME_THREADS: usize = 16;

/// Descriptors that the serving process may have: the kernel's own most for one process.
const FILES_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct UnionArgs {
    #[command(subcommand)]
    command: Option<UnionCommand>,
    /// The directory to mount on
    #[arg(required = true)]
    dir: Option<PathBuf>,
    /// AUFS's options. br=BRANCH:BRANCH... (also br:, dirs=), topmost first, each with =rw, =ro or =rr (and +wh); a branch is a directory or HOST:VOLUME[/DIR].
    /// create=tdp|rr|mfs|pmfs..., cpup=tdp|bup|bu, udba=notify|reval|none (notify, the default, is reval where the kernel cannot tell of
    /// changes made directly in a branch), layout=aufs|overlay, always-whiteout, noplink, sum, dirren=off, lazy-cpup=SIZE (files of so many bytes, as 4G, are copied up block by block as they are written to), volatile (nothing is synced until the unmount), passthrough, io_uring; ro, noatime, nodev...;
    /// remount with append:, prepend:, add:N:, mod:, del: on a live union
    #[arg(short = 'o')]
    options: Vec<String>,
    /// Stay in the foreground until unmounted
    #[arg(long, short = 'f')]
    foreground: bool,
    /// What /proc/mounts shows as the source
    #[arg(long, hide = true, default_value = "none")]
    source: String,
    /// Tell on this standard output when the mount is live (used by the background process)
    #[arg(long, hide = true)]
    tell_ready: bool,
}

#[derive(Debug, Subcommand)]
enum UnionCommand {
    /// The branches of the union that is mounted on DIR, topmost first
    List {
        /// The mount point
        dir: PathBuf,
    },
    /// Copies up what `lazy-cpup` left in the lower branches: of all files below DIR, or of one
    Complete {
        /// The mount point, or a directory of the union
        dir: PathBuf,
        /// A file or directory, from DIR
        path: Option<PathBuf>,
    },
}

pub(crate) fn run(args: &UnionArgs, print: Printer) -> Result<()> {
    if let Some(UnionCommand::List { dir }) = &args.command {
        return list(dir, print);
    }
    if let Some(UnionCommand::Complete { dir, path }) = &args.command {
        return complete::complete(dir, path.as_deref(), print);
    }
    let dir = args.dir.as_deref().context("no directory is given")?;
    let options = Options::parse(&args.options)?;
    let dir = dir.canonicalize().with_context(|| format!("mount point {}", dir.display()))?;
    ensure!(dir.is_dir(), "mount point {} is not a directory", dir.display());
    if options.remount {
        return remount(&dir, &options);
    }
    ensure!(!options.branches.is_empty(), "no branches are given: -o br=DIR:DIR");
    ensure!(!is_union(&dir)?, "a union is already mounted on {}: change it with remount, or unmount it first", dir.display());
    for branch in &options.branches {
        if let Place::Local(path) = &branch.place {
            ensure!(path.is_dir(), "branch {}: not a directory", path.display());
        }
    }
    if args.foreground || args.tell_ready {
        return serve(&args.source, &dir, &options, args.tell_ready);
    }
    let mut command = std::process::Command::new(std::env::current_exe().context("find this program's file")?);
    command.args(["union", "--tell-ready", "--source", &args.source]).arg(&dir);
    for o in &args.options {
        command.arg("-o").arg(o);
    }
    in_background(command, options.log_level.as_deref(), options.log_file.as_deref())?;
    if print.json {
        print.show(&serde_json::json!({ "mounted": dir }), |_| String::new());
    }
    Ok(())
}

/// True when what is mounted on `dir` (the last, where there are several) is a union of ours.
fn is_union(dir: &Path) -> Result<bool> {
    Ok(mounted_on(dir)?.last().is_some_and(|kind| kind == UnionMount::TYPE))
}

/// Opens volumes, each once.
struct Volumes {
    options: Options,
    open: Mutex<HashMap<(String, String), Arc<VolumeClient>>>,
}

impl Volumes {
    fn client(&self, server: &str, volume: &str) -> Result<Arc<VolumeClient>> {
        let mut open = self.open.lock().expect("no panic holds it");
        let key = (server.to_owned(), volume.to_owned());
        if let Some(client) = open.get(&key) {
            return Ok(client.clone());
        }
        let mut servers = vec![server.to_owned()];
        servers.extend(self.options.backup.iter().cloned());
        let client =
            Arc::new(VolumeClient::open(&servers, volume, self.options.client).with_context(|| format!("branch {server}:{volume}"))?);
        open.insert(key, client.clone());
        Ok(client)
    }

    /// A branch as the union takes it; `first` decides what it may do where nothing is said.
    fn branch(&self, spec: &BranchSpec, first: bool) -> Result<BranchConfig> {
        let perm = spec.permission.unwrap_or(if first { Perm::RW } else { Perm::RO });
        let source = match &spec.place {
            Place::Local(path) => BranchSource::Dir(path.clone()),
            Place::Volume { server, volume, sub } => {
                let client = self.client(server, volume)?;
                BranchSource::Volume { label: spec.place.to_string(), volume: client, subdir: sub.clone() }
            }
        };
        Ok(BranchConfig { source, perm })
    }

    fn change(&self, change: &Change) -> Result<BranchChange> {
        Ok(match change {
            Change::Add(0, spec) => BranchChange::Prepend(self.branch(spec, true)?),
            Change::Add(at, spec) => BranchChange::Insert(*at, self.branch(spec, false)?),
            Change::Append(spec) => BranchChange::Append(self.branch(spec, false)?),
            Change::Modify(place, perm) => BranchChange::Modify { label: place.to_string(), perm: *perm },
            Change::Delete(place) => BranchChange::Delete { label: place.to_string() },
            Change::LazyCopyUp(bytes) => BranchChange::LazyCopyUp(*bytes),
        })
    }

    fn close(&self) {
        self.open.lock().expect("no panic holds it").values().for_each(|client| client.close());
    }
}

fn serve(source: &str, dir: &Path, options: &Options, tell_ready: bool) -> Result<()> {
    let stop = crate::signals::Stop::install()?;
    open_many();
    // When memory runs short while a request is served, the kernel must not wait for pages of this very mount.
    if let Err(e) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::info!(%e, "not marked as a process that writes for others");
    }
    let volumes = Arc::new(Volumes { options: options.clone(), open: Mutex::default() });
    let branches = options.branches.iter().enumerate().map(|(i, b)| volumes.branch(b, i == 0)).collect::<Result<Vec<_>>>()?;
    let local = options.branches.iter().all(|b| matches!(b.place, Place::Local(_)));
    let config = UnionConfig { branches, ..options.union.clone() };
    let mount_options = mount_options(source, options, local);
    let union = Arc::new(Union::open(config)?);
    let mount = UnionMount::new(Arc::clone(&union), dir, &mount_options).with_context(|| format!("mount on {}", dir.display()))?;
    let change = mount.changer();
    let made = volumes.clone();
    let (device, _) = writers::identity(dir).with_context(|| format!("stat {}", dir.display()))?;
    let control = Control::listen(dir, move |asked| {
        if let Some(ino) = asked.complete {
            return complete::step(&union, ino);
        }
        let changes = Options::parse(std::slice::from_ref(&asked.change))?.changes;
        for (done, c) in changes.iter().enumerate() {
            // Each against what those before it led to.
            let changed = check_change(&union, device, c).and_then(|()| Ok(change(made.change(c)?)?));
            changed
                .with_context(|| if done == 0 { change_text(c) } else { format!("{} (what stands before it was done)", change_text(c)) })?;
        }
        Ok(false)
    });
    let control = match control {
        Ok(control) => Some(control),
        Err(e) => {
            tracing::warn!("the branches cannot be changed while mounted: {e:#}");
            None
        }
    };
    // Nothing of the caller's file systems stays busy.
    let _ = std::env::set_current_dir("/");
    is_live(stop, dir, tell_ready)?;
    let ended = mount.wait().context("serve the mount");
    drop(control);
    volumes.close();
    ended
}

/// Refuses what would take the ground from under somebody's feet: a branch that lies on the union itself, and the end of one that files are
/// written to in.
fn check_change(union: &Union, device: u64, change: &Change) -> Result<()> {
    let ended = match change {
        Change::Add(_, spec) | Change::Append(spec) => {
            if let Place::Local(path) = &spec.place {
                let (its_device, _) = writers::identity(path).with_context(|| format!("branch {}", path.display()))?;
                ensure!(its_device != device, "branch {} lies on this very union", path.display());
            }
            return Ok(());
        }
        Change::Modify(_, perm) if perm.writable() => return Ok(()),
        Change::Modify(place, _) | Change::Delete(place) => place.to_string(),
        Change::LazyCopyUp(_) => return Ok(()),
    };
    let is_ended = |label: &str| label.trim_end_matches('/') == ended.trim_end_matches('/');
    // What is open for writing in a lower branch is copied up when it is written to, if there is somewhere to copy it to.
    let is_last = !union.branches().iter().any(|b| b.perm.writable() && !is_ended(&b.label));
    let needs_it = |w: &writers::Writer| is_last || union.branch_of(w.ino).is_some_and(|label| is_ended(&label));
    if let Some(writer) = writers::on(device).iter().find(|w| needs_it(w)) {
        bail!("branch {ended} is busy: process {} has {} open for writing", writer.pid, writer.path.display());
    }
    Ok(())
}

/// Every directory that the kernel remembers is held by a descriptor in each branch that has it.
fn open_many() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let most = getrlimit(Resource::Nofile).maximum.map_or(FILES_MAX, |m| m.max(FILES_MAX));
    let limit = |n| Rlimit { current: Some(n), maximum: Some(n) };
    // More than the hard limit needs a privilege.
    if setrlimit(Resource::Nofile, limit(most)).is_err() {
        let most = getrlimit(Resource::Nofile).maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
    }
}

fn mount_options(source: &str, options: &Options, local: bool) -> UnionMountOptions {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    UnionMountOptions {
        source: source.to_owned(),
        flags: options.flags,
        caching: Caching::from(options.union.udba),
        threads: options.threads.unwrap_or(if local { cpus * THREADS_PER_CPU } else { VOLUME_THREADS }),
        // Whoever else makes files in a branch must not turn an O_CREAT into EEXIST.
        create_by_mknod: local || options.union.udba == Udba::None,
        writeback: options.writeback,
        passthrough: options.passthrough,
        transport: options.transport,
    }
}

/// Changes a live mount: its flags by mount(2), its branches by asking the process that serves it.
fn remount(dir: &Path, options: &Options) -> Result<()> {
    ensure!(is_union(dir)?, "no union is mounted on {}", dir.display());
    // mount(8) hands over what fstab says of the mount point as well.
    if !options.branches.is_empty() && !are_all_there(dir, &options.branches).unwrap_or(true) {
        eprintln!("warning: the branches of a live union are changed by append, prepend, add, mod and del; what br= says was passed over");
    }
    if !options.changes.is_empty() {
        let text: Vec<String> = options.changes.iter().map(change_text).collect();
        control::ask(dir, &Asked { change: format!("remount,{}", text.join(",")), complete: None })?;
    }
    if options.flags_given {
        set_flags(dir, options.flags).with_context(|| format!("remount {}", dir.display()))?;
    }
    Ok(())
}

/// Whether the union has these branches, and perhaps others.
fn are_all_there(dir: &Path, branches: &[BranchSpec]) -> Result<bool> {
    let live = live_branches(dir)?;
    Ok(branches.iter().all(|b| live.iter().any(|(label, _)| *label == b.place.to_string())))
}

/// A change as an option again, with absolute names.
fn change_text(change: &Change) -> String {
    let branch = |spec: &BranchSpec| branch_text(&spec.place, spec.permission);
    match change {
        Change::Add(at, spec) => format!("add:{at}:{}", branch(spec)),
        Change::Append(spec) => format!("append:{}", branch(spec)),
        Change::Modify(place, perm) => format!("mod:{}", branch_text(place, Some(*perm))),
        Change::Delete(place) => format!("del:{}", branch_text(place, None)),
        Change::LazyCopyUp(Some(bytes)) => format!("lazy-cpup={bytes}"),
        Change::LazyCopyUp(None) => "nolazy-cpup".to_owned(),
    }
}

/// All branches, each with its permission.
fn live_branches(dir: &Path) -> Result<Vec<(String, String)>> {
    let not_one = || format!("no union is mounted on {}", dir.display());
    let mut value = vec![0; 64 << 10];
    let len = rustix::fs::getxattr(dir, "user.brickraft.branches", value.as_mut_slice()).with_context(not_one)?;
    value.truncate(len);
    let text = String::from_utf8_lossy(&value);
    Ok(text.lines().filter_map(|l| l.rsplit_once('=')).map(|(branch, perm)| (branch.to_owned(), perm.to_owned())).collect())
}

fn list(dir: &Path, print: Printer) -> Result<()> {
    let branches = live_branches(dir)?;
    let json: Vec<_> = branches.iter().map(|(branch, perm)| serde_json::json!({ "branch": branch, "permission": perm })).collect();
    print.show(&json, |_| branches.iter().map(|(branch, perm)| format!("{branch}={perm}\n")).collect());
    Ok(())
}

/// Names that mount(8) calls this program by, for unions.
pub fn is_helper(called: &str) -> bool {
    matches!(called, "mount.aufs" | "mount.fuse.aufs" | "mount.brickraft.union")
}

/// `mount.aufs SOURCE DIR [-sfnv] [-N namespace] [-o options] [-t type]` as `brickraft union`.
///
/// # Errors
/// What is wrong with the line.
pub fn helper(args: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>> {
    let (mut names, mut options, mut fake) = (Vec::new(), Vec::new(), false);
    let mut args = args.into_iter().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("-o") => options.extend(args.next()),
            Some("-t" | "-N") => drop(args.next()),
            Some(flags) if flags.len() > 1 && flags.starts_with('-') && flags[1..].chars().all(|c| "sfnv".contains(c)) => {
                fake |= flags.contains('f')
            }
            _ => names.push(arg),
        }
    }
    let [source, dir] = names.as_slice() else { bail!("usage: mount.aufs SOURCE DIR [-o OPTIONS]") };
    let mut out: Vec<OsString> = vec!["brickraft".into(), "union".into()];
    if fake {
        // mount(8)'s dry run.
        return Ok(vec!["brickraft".into(), "--version".into()]);
    }
    out.extend([OsStr::new("--source"), source, dir].map(OsStr::to_owned));
    options.into_iter().for_each(|o| out.extend(["-o".into(), o]));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_helper_takes_mounts_own_lines() {
        for (line, ours) in [
            ("mount.aufs none /u -o rw,dirs=/a:/b", "brickraft union --source none /u -o rw,dirs=/a:/b"),
            ("/sbin/mount.aufs none /u -sn -o rw,br:/a", "brickraft union --source none /u -o rw,br:/a"),
            ("mount.fuse.aufs none /u -o rw,remount,append:/b -t fuse.aufs", "brickraft union --source none /u -o rw,remount,append:/b"),
        ] {
            assert_eq!(helper(words(line)).expect(line), words(ours));
        }
        assert!(helper(words("mount.aufs /u")).is_err());
        assert!(is_helper("mount.aufs") && !is_helper("mount.brickraft"));
    }

    #[test]
    fn changes_survive_the_way_to_the_serving_process() {
        let line = r"remount,append:/no\:1=ro,add:2:h:vol/sub=rw,mod:/no2=ro+wh,del:h:24008:vol,lazy-cpup=3G";
        let changes = Options::parse(&[line.into()]).expect("reads").changes;
        let text: Vec<String> = changes.iter().map(change_text).collect();
        let again = Options::parse(&[format!("remount,{}", text.join(","))]).expect("reads again").changes;
        assert_eq!(changes, again);
    }
}
