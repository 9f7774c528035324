//! Three hosts: a network namespace, a mount namespace and an /etc/hosts each, joined by a switch.
//!
//! A host is a process that does nothing but hold its namespaces: whoever enters them sees the host's network, its
//! names and its mounts, and the test sees its files through `/proc/PID/root`. When that process and those in the
//! namespace are gone, so is everything that was mounted.

use crate::support::{BRICKRAFT, Daemon, Netns, command, output, run, text, unique, wait_for};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// What a volume may take to become whole again; the machine may be busy with other tests.
pub const HEAL: Duration = Duration::from_secs(240);

pub struct Host {
    pub name: String,
    /// The host's own directory; the disk is mounted on `disk` in it, in the host's mount namespace only.
    pub dir: PathBuf,
    server: Option<Daemon>,
    holder: Child,
    netns: Netns,
    etc: PathBuf,
}

impl Host {
    fn new(number: usize, dir: PathBuf, hosts: &str) -> Self {
        let netns = Netns::new();
        let etc = Path::new("/etc/netns").join(&netns.name);
        fs::create_dir_all(&etc).expect("make /etc/netns");
        fs::write(etc.join("hosts"), hosts).expect("write the host's names");
        for sub in ["disk", "mnt", "mnt2", "data"] {
            fs::create_dir_all(dir.join(sub)).expect("make the host's directories");
        }
        let mut holder = netns
            .command(["sh", "-c", "echo up; exec sleep 1800"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the host");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line).expect("the host is up");
        let host = Self { name: format!("h{number}"), dir, server: None, holder, netns, etc };
        let image = host.dir.join("disk.img");
        fs::File::create(&image).and_then(|f| f.set_len(3 << 30)).expect("make the disk");
        run(&mut command(["mkfs.ext4", "-q", "-N", "100000", "-O", "^has_journal", image.to_str().expect("plain path")]));
        run(&mut host.command([OsStr::new("mount"), "-o".as_ref(), "loop".as_ref(), image.as_ref(), host.dir.join("disk").as_ref()]));
        host
    }

    /// A command on this host. It keeps its pid, so a daemon's pid is its own.
    pub fn command(&self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut c = command(["nsenter", "-t", &self.holder.id().to_string(), "-m", "-n", "--"]);
        c.args(words);
        c
    }

    /// The host's file at `path` as the test can open it.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        Path::new("/proc").join(self.holder.id().to_string()).join("root").join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The brick directory `name` on this host's own disk, as this host calls it.
    pub fn brick(&self, name: &str) -> String {
        self.dir.join("disk").join(name).to_str().expect("plain path").to_owned()
    }

    /// `HOST:/DIR` of the same.
    pub fn brick_name(&self, name: &str) -> String {
        format!("{}:{}", self.name, self.brick(name))
    }

    pub fn start(&mut self) {
        let server = self.command([BRICKRAFT, "server", "--data-dir", self.dir.join("data").to_str().expect("plain path")]);
        let log = self.dir.join("server.log");
        // A server that starts again appends: what it said before must not be taken for its being ready.
        let before = fs::read_to_string(&log).unwrap_or_default().matches("\nready").count();
        let server = Daemon::spawn(server, &log);
        wait_for(&format!("{} is ready", self.name), Duration::from_secs(30), || {
            (format!("\n{}", server.log()).matches("\nready").count() > before).then_some(())
        });
        self.server = Some(server);
    }

    pub fn server(&mut self) -> &mut Daemon {
        self.server.as_mut().expect("the server runs")
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.server().kill();
        self.server = None;
    }

    /// A `brickraft` command that must succeed.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        run(self.command([BRICKRAFT, "--mode", "script"]).args(words))
    }

    /// The same, answered in JSON.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> Value {
        let text = run(self.command([BRICKRAFT, "--mode", "script", "--json"]).args(words));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{words:?}: {e}\n{text}"))
    }

    pub fn output(&self, words: &[&str]) -> Output {
        output(self.command([BRICKRAFT, "--mode", "script"]).args(words))
    }

    /// Mounts `volume` by way of `via` on the host's directory `on`; the directory as the test sees it.
    #[track_caller]
    pub fn mount(&self, via: &str, volume: &str, on: &str) -> PathBuf {
        self.mount_with(via, volume, on, "rw")
    }

    #[track_caller]
    pub fn mount_with(&self, via: &str, volume: &str, on: &str, options: &str) -> PathBuf {
        let dir = self.dir.join(on);
        let options = format!("{},{options}", self.log_option(on));
        run(self.command([BRICKRAFT, "mount"]).arg(format!("{via}:{volume}")).arg(&dir).args(["-o", &options]));
        self.path(&dir)
    }

    pub fn log_option(&self, on: &str) -> String {
        format!("log-file={}", self.dir.join(format!("{on}.log")).display())
    }

    #[track_caller]
    pub fn unmount(&self, on: &str) {
        run(self.command(["umount"]).arg(self.dir.join(on)));
    }

    /// The processes on this host besides its holder and its server.
    pub fn others(&self) -> Vec<u32> {
        let known = [Some(self.holder.id()), self.server.as_ref().map(Daemon::pid)];
        let pids = output(&mut command(["ip", "netns", "pids", &self.netns.name]));
        text(&pids.stdout).lines().filter_map(|l| l.trim().parse().ok()).filter(|p| !known.contains(&Some(*p))).collect()
    }

    /// True when `on` has a mount.
    pub fn is_mounted(&self, on: &str) -> bool {
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", self.holder.id())).expect("the host's mounts");
        let dir = self.dir.join(on);
        mounts.lines().any(|l| l.split(' ').nth(1) == dir.to_str())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["mnt.log", "mnt2.log"] {
                let all = fs::read_to_string(self.dir.join(log)).unwrap_or_default();
                let lines: Vec<&str> = all.lines().collect();
                eprintln!("--- {} {log}\n{}", self.name, lines[lines.len().saturating_sub(30)..].join("\n"));
            }
        }
        // A mount ends first, while it has a server to take its leave from.
        for on in ["mnt", "mnt2"] {
            if self.is_mounted(on) {
                let _ = output(self.command(["umount", "-l"]).arg(self.dir.join(on)));
            }
        }
        if let Some(server) = &mut self.server {
            server.kill();
        }
        for pid in self.others() {
            let _ = output(&mut command(["kill", "-9", &pid.to_string()]));
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let _ = fs::remove_dir_all(&self.etc);
        let _ = fs::remove_dir("/etc/netns");
    }
}

pub struct Lab {
    /// `h1`, `h2` and `h3`.
    pub hosts: Vec<Host>,
    switch: Netns,
    ports: Vec<String>,
    _dir: tempfile::TempDir,
}

impl Lab {
    /// Three hosts that can reach each other, with nothing running.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix(&unique("lab")).tempdir().expect("make the lab's directory");
        let switch = Netns::new();
        run(&mut command(["ip", "-n", &switch.name, "link", "add", "sw", "type", "bridge"]));
        run(&mut command(["ip", "-n", &switch.name, "link", "set", "sw", "up"]));
        let names: String = (1..=3).map(|n| format!("10.77.0.{n} h{n}\n")).collect();
        let names = format!("127.0.0.1 localhost\n{names}");
        let mut lab = Self { hosts: Vec::new(), switch, ports: Vec::new(), _dir: dir };
        for n in 1..=3 {
            let host = Host::new(n, lab._dir.path().join(format!("h{n}")), &names);
            let (ns, sw, port) = (host.netns.name.clone(), lab.switch.name.clone(), format!("p{n}"));
            run(&mut command(["ip", "-n", &sw, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &ns]));
            run(&mut command(["ip", "-n", &sw, "link", "set", &port, "master", "sw", "up"]));
            run(&mut command(["ip", "-n", &ns, "address", "add", &format!("10.77.0.{n}/24"), "dev", "eth0"]));
            run(&mut command(["ip", "-n", &ns, "link", "set", "eth0", "up"]));
            lab.ports.push(port);
            lab.hosts.push(host);
        }
        lab
    }

    /// Three servers in one cluster.
    pub fn with_cluster() -> Self {
        let mut lab = Self::new();
        for host in &mut lab.hosts {
            host.start();
        }
        for name in ["h2", "h3"] {
            lab.hosts[0].ok(&["peer", "probe", name]);
        }
        lab
    }

    /// The same with `rep`, two bricks on h1 and h2, started.
    pub fn with_volume() -> Self {
        let lab = Self::with_cluster();
        let (a, b) = (lab.hosts[0].brick_name("brick"), lab.hosts[1].brick_name("brick"));
        lab.hosts[0].ok(&["volume", "create", "rep", "replica", "2", &a, &b]);
        lab.hosts[0].ok(&["volume", "start", "rep"]);
        lab.whole();
        lab
    }

    /// Pulls a host's cable: what it sends is lost without a word.
    pub fn pull_cable(&self, host: usize) {
        run(&mut command(["ip", "-n", &self.switch.name, "link", "set", &self.ports[host], "down"]));
    }

    /// Takes the host's own interface down: what it sends fails at once.
    pub fn interface_down(&self, host: usize) {
        run(&mut command(["ip", "-n", &self.hosts[host].netns.name, "link", "set", "eth0", "down"]));
    }

    /// Undoes both.
    pub fn connect(&self, host: usize) {
        run(&mut command(["ip", "-n", &self.switch.name, "link", "set", &self.ports[host], "up"]));
        run(&mut command(["ip", "-n", &self.hosts[host].netns.name, "link", "set", "eth0", "up"]));
    }

    /// What `volume status rep` says of each brick, asked of h3: it has no brick and stays.
    pub fn states(&self) -> Vec<String> {
        let answer = output(self.hosts[2].command([BRICKRAFT, "--json", "volume", "status", "rep"]).args(Vec::<&str>::new()));
        let volumes: Value = serde_json::from_slice(&answer.stdout).unwrap_or_default();
        let bricks = volumes[0]["bricks"].as_array().cloned().unwrap_or_default();
        bricks.iter().map(|b| b["state"].as_str().unwrap_or("?").to_owned()).collect()
    }

    /// Waits until both bricks of `rep` are in sync.
    #[track_caller]
    pub fn whole(&self) {
        self.whole_with(2);
    }

    /// The same with as many bricks.
    #[track_caller]
    pub fn whole_with(&self, bricks: usize) {
        let mut last = Vec::new();
        let started = std::time::Instant::now();
        loop {
            last.clone_from(&self.states());
            if last.len() == bricks && last.iter().all(|s| s == "primary" || s == "in sync") {
                return;
            }
            assert!(started.elapsed() < HEAL, "bricks are not in sync: {last:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The host (0 or 1) whose brick is primary.
    #[track_caller]
    pub fn primary(&self) -> usize {
        wait_for("a primary", HEAL, || self.states().iter().position(|s| s == "primary"))
    }

    /// The brick directory of host 0 or 1, as the test sees it.
    pub fn brick_dir(&self, host: usize) -> PathBuf {
        self.hosts[host].path(self.hosts[host].brick("brick"))
    }

    /// Removes everything in `host`'s brick under the feet of its server, which may be making files there: a name that
    /// came into a directory while it was being emptied is removed by going over it again, as one would by hand.
    pub fn remove_all(&self, host: usize, dot_files: bool) {
        const TRIES: usize = 10;
        for entry in fs::read_dir(self.brick_dir(host)).expect("the brick").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "lost+found" || (!dot_files && name.starts_with('.')) {
                continue;
            }
            let rm = || output(command(["rm", "-rf"]).arg(entry.path()));
            let mut said = rm();
            for _ in 1..TRIES {
                if said.status.success() || !text(&said.stderr).contains("Directory not empty") {
                    break;
                }
                said = rm();
            }
            assert!(said.status.success(), "{name} cannot be removed: {}", text(&said.stderr));
        }
    }

    /// What is different between the two bricks, as rsync lists it. (Content signatures are each brick's own.)
    pub fn brick_differences(&self) -> String {
        let from = format!("{}/", self.brick_dir(0).display());
        let options = ["-nacHX", "--delete", "-i", "--exclude=/.brickraft", "--exclude=/lost+found", "--filter=-x trusted.brickraft.sum"];
        // A recent rsync follows no link of /proc to its destination, so the second host compares.
        let to = format!("{}/", self.hosts[1].brick("brick"));
        let answer = output(self.hosts[1].command(["rsync"]).args(options).args([from, to]));
        format!("{}{}", text(&answer.stdout), text(&answer.stderr))
    }

    /// Waits until both bricks are in sync and hold the same.
    #[track_caller]
    pub fn bricks_become_equal(&self) {
        self.whole();
        let started = std::time::Instant::now();
        loop {
            let differences = self.brick_differences();
            if differences.is_empty() {
                return;
            }
            let info = text(&self.hosts[2].output(&["volume", "heal", "rep", "info"]).stdout);
            assert!(started.elapsed() < HEAL, "the bricks differ:\n{}\n{info}", head(&differences));
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

pub fn head(text: &str) -> String {
    text.lines().take(40).collect::<Vec<_>>().join("\n")
}
