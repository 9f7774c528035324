//! `brickraft mount`, and `mount.brickraft` as mount(8) calls it.

use super::print::Printer;
use crate::client::{ClientOptions, VolumeClient};
use crate::management::with_port;
use crate::signals::Stop;
use anyhow::{Context, Result, anyhow, bail, ensure};
use brickraft_fs::fuse::{Mount, MountOptions, detach};
use clap::Args;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// HOST[,HOST...]:VOLUME
    source: String,
    /// The directory to mount on
    dir: PathBuf,
    /// ro, log-level=, log-file=, backup-volfile-servers=HOST:HOST, attribute-timeout=, entry-timeout=, reader-thread-count=,
    /// op-timeout= (seconds that an operation waits for a server before it fails; 60)
    #[arg(short = 'o', value_delimiter = ',')]
    options: Vec<String>,
    /// Stay in the foreground until unmounted
    #[arg(long, short = 'f')]
    foreground: bool,
    /// Tell on this standard output when the mount is live (used by the background process)
    #[arg(long, hide = true)]
    tell_ready: bool,
}

/// What the line that the background process prints begins with.
const READY: &str = "mounted";

/// The options that mean something here.
#[derive(Debug, Default)]
struct Parsed {
    mount: MountOptions,
    client: ClientOptions,
    backup: Vec<String>,
    log_level: Option<String>,
    log_file: Option<String>,
}

pub(super) fn seconds(name: &str, value: &str) -> Result<Duration> {
    let s: f64 = value.parse().map_err(|_| anyhow!("option {name}={value}: not a number of seconds"))?;
    ensure!((0.0..=86_400.0).contains(&s), "option {name}={value}: must be from 0 to 86400 seconds");
    Ok(Duration::from_secs_f64(s))
}

/// GlusterFS's levels as ours.
pub(super) fn log_level(value: &str) -> Result<&'static str> {
    Ok(match value.to_ascii_uppercase().as_str() {
        "TRACE" => "trace",
        "DEBUG" => "debug",
        "INFO" => "info",
        "WARNING" => "warn",
        "ERROR" | "CRITICAL" => "error",
        "NONE" => "off",
        _ => bail!("option log-level={value}: must be TRACE, DEBUG, INFO, WARNING, ERROR, CRITICAL or NONE"),
    })
}

fn parse(options: &[String]) -> Result<Parsed> {
    let mut p = Parsed::default();
    for option in options.iter().filter(|o| !o.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "ro" => p.mount.read_only = true,
            "rw" | "defaults" | "_netdev" | "auto" | "noauto" | "nofail" | "user" | "nouser" | "exec" | "suid" | "dev" | "async"
            | "relatime" | "noatime" | "acl" => {}
            "log-level" => p.log_level = Some(log_level(value)?.to_owned()),
            "log-file" => p.log_file = Some(value.to_owned()),
            "backup-volfile-servers" | "backupvolfile-server" => p.backup.extend(value.split(':').map(str::to_owned)),
            "attribute-timeout" => p.mount.attribute_timeout = seconds(name, value)?,
            "entry-timeout" => p.mount.entry_timeout = seconds(name, value)?,
            "op-timeout" => p.client.op_timeout = seconds(name, value)?.max(Duration::from_secs(1)),
            "reader-thread-count" => {
                p.mount.threads = value
                    .parse()
                    .ok()
                    .filter(|n| (1..=64).contains(n))
                    .with_context(|| format!("option {option}: must be from 1 to 64"))?;
            }
            "negative-timeout" | "direct-io-mode" => bail!("option {name} is not supported yet"),
            _ if name.starts_with("x-") => {}
            _ => bail!("unknown option {option}"),
        }
    }
    Ok(p)
}

/// Reads `HOST[,HOST...]:VOLUME`.
fn source(text: &str) -> Result<(Vec<String>, String)> {
    let (hosts, volume) =
        text.rsplit_once(':').filter(|(h, v)| !h.is_empty() && !v.is_empty()).with_context(|| format!("{text}: not HOST:VOLUME"))?;
    let volume = volume.trim_start_matches('/');
    ensure!(!volume.contains('/'), "{text}: mounting a subdirectory is not supported yet");
    Ok((hosts.split(',').map(with_port).collect(), volume.to_owned()))
}

/// The types of what is mounted exactly on `dir`, the topmost last.
pub(super) fn mounted_on(dir: &Path) -> Result<Vec<String>> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let unescape = |s: &str| s.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    Ok(fields.filter(|f| f.len() > 2 && Path::new(&unescape(f[1])) == dir).map(|f| f[2].to_owned()).collect())
}

pub(crate) fn run(args: &MountArgs, print: Printer) -> Result<()> {
    let parsed = parse(&args.options)?;
    let (mut servers, volume) = source(&args.source)?;
    servers.extend(parsed.backup.iter().map(|h| with_port(h)));
    let dir = args.dir.canonicalize().with_context(|| format!("mount point {}", args.dir.display()))?;
    ensure!(dir.is_dir(), "mount point {} is not a directory", dir.display());
    ensure!(mounted_on(&dir)?.is_empty(), "{} is already mounted or mount point busy", dir.display());
    if args.foreground || args.tell_ready {
        return serve(&args.source, &servers, &volume, &dir, &parsed, args.tell_ready);
    }
    background(args, &dir)?;
    print.show(&serde_json::json!({ "mounted": dir }), |_| String::new());
    Ok(())
}

fn serve(source: &str, servers: &[String], volume: &str, dir: &Path, parsed: &Parsed, tell_ready: bool) -> Result<()> {
    let stop = Stop::install()?;
    let client = VolumeClient::open(servers, volume, parsed.client)?;
    let options = MountOptions { source: source.to_owned(), ..parsed.mount.clone() };
    let mount = Mount::new(Arc::new(client), dir, &options).with_context(|| format!("mount on {}", dir.display()))?;
    is_live(stop, dir, tell_ready)?;
    mount.wait().context("serve the mount")
}

/// The mount on `dir` works: says so to who waits in [`in_background`], and ends its session once a signal asks for it.
pub(super) fn is_live(stop: Stop, dir: &Path, tell_ready: bool) -> Result<()> {
    if tell_ready {
        println!("{READY}");
        std::io::stdout().flush()?;
    }
    let dir = dir.to_owned();
    std::thread::spawn(move || {
        stop.wait();
        // A busy mount point goes as soon as its last user does.
        let _ = detach(&dir);
    });
    Ok(())
}

/// Starts the process that serves the mount, and waits until it is live.
fn background(args: &MountArgs, dir: &Path) -> Result<()> {
    let parsed = parse(&args.options)?;
    let mut command = Command::new(std::env::current_exe().context("find this program's file")?);
    command.arg("mount").arg("--tell-ready").arg(&args.source).arg(dir);
    if !args.options.is_empty() {
        command.arg("-o").arg(args.options.join(","));
    }
    in_background(command, parsed.log_level.as_deref(), parsed.log_file.as_deref())
}

/// Starts a process that serves a mount, and waits until it says that it is [`READY`]; else its last words are the error.
pub(super) fn in_background(mut command: Command, log_level: Option<&str>, log_file: Option<&str>) -> Result<()> {
    if let Some(level) = log_level {
        command.env("BRICKRAFT_LOG", level);
    }
    let log: Stdio = match log_file {
        Some(path) => {
            std::fs::OpenOptions::new().create(true).append(true).open(path).with_context(|| format!("open log file {path}"))?.into()
        }
        None => Stdio::piped(),
    };
    // Of its own process group: Ctrl-C in the shell that mounted must not unmount.
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0).spawn().context("start the mount's process")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("its standard output")?).read_line(&mut line).context("wait for the mount")?;
    if line.trim_end() == READY {
        return Ok(());
    }
    let mut why = String::new();
    if let Some(stderr) = child.stderr.take() {
        why = BufReader::new(stderr).lines().map_while(Result::ok).last().unwrap_or_default();
    }
    let _ = child.wait();
    bail!("{}", if why.is_empty() { "the mount failed; see its log file".to_owned() } else { why })
}

/// `mount.brickraft SOURCE DIR [-o OPTIONS]`, as mount(8) calls it: flags that mount knows and we do not need are
/// passed over.
pub fn helper(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut out: Vec<OsString> = vec!["brickraft".into(), "mount".into()];
    let mut args = args.into_iter().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("-o") => out.extend([Some("-o".into()), args.next()].into_iter().flatten()),
            Some("-t" | "-N") => drop(args.next()),
            Some("-n" | "-s" | "-v" | "-f") => {}
            _ => out.push(arg),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read() {
        assert_eq!(source("a:rep").expect("plain"), (vec!["a:24007".into()], "rep".into()));
        assert_eq!(source("a,b:/rep").expect("two"), (vec!["a:24007".into(), "b:24007".into()], "rep".into()));
        assert_eq!(source("127.0.0.1:24008:rep").expect("port").0, ["127.0.0.1:24008"]);
        for bad in ["rep", ":rep", "a:", "a:rep/sub"] {
            assert!(source(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_helper_takes_mounts_own_flags() {
        let words = |t: &str| t.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(helper(words("mount.brickraft h:v /m -n -o ro,_netdev")), words("brickraft mount h:v /m -o ro,_netdev"));
    }

    #[test]
    fn odd_options_are_refused() {
        parse(&["ro".into(), "_netdev".into(), "attribute-timeout=0.5".into()]).expect("good");
        for bad in ["nonsense", "attribute-timeout=x", "attribute-timeout=-1", "reader-thread-count=0"] {
            assert!(parse(&[bad.into()]).is_err(), "{bad}");
        }
    }
}
