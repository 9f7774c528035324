//! The scenario that all this is for: two root file systems, one with Python; a container boots from their union.

use crate::links::Links;
use crate::stack::{fingerprint, names};
use crate::support::{Unmount, command, output, run, text, unique, wait_for};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// Where `cargo xtask setup` puts Debian's packages.
fn debs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/union/debs")
}

fn unpack(packages: &[&str], into: &Path) {
    for package in packages {
        let all = fs::read_dir(debs()).unwrap_or_else(|e| panic!("{}: {e}: run `cargo xtask setup`", debs().display()));
        let deb = all
            .flatten()
            .map(|e| e.path())
            .find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&format!("{package}_"))));
        let deb = deb.unwrap_or_else(|| panic!("{package} is missing: run `cargo xtask setup`"));
        // A merged /usr keeps its links.
        let line = "dpkg-deb --fsys-tarfile \"$1\" | tar -x --keep-directory-symlink -C \"$2\"";
        run(command(["sh", "-ec", line, "sh"]).arg(deb).arg(into));
    }
}

/// The plain container's root: Debian's busybox and what a root needs.
pub fn plain_root(dir: &Path) {
    for sub in ["proc", "sys", "dev", "etc", "tmp", "root", "usr/bin", "usr/share", "var/lib", "run", "bin", "sbin"] {
        fs::create_dir_all(dir.join(sub)).expect("mkdir");
    }
    unpack(&["busybox-static"], dir);
    run(command(["chroot"]).arg(dir).args(["/bin/busybox", "--install", "-s", "/bin"]));
    fs::write(dir.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("write");
    fs::write(dir.join("etc/hostname"), "plain\n").expect("write");
}

/// The root that has Python.
pub fn python_root(dir: &Path) {
    fs::create_dir_all(dir).expect("mkdir");
    unpack(&["libc6", "zlib1g", "libexpat1", "libpython3.11-minimal", "python3.11-minimal", "python3-minimal"], dir);
    fs::create_dir_all(dir.join("etc")).expect("mkdir");
    fs::write(dir.join("etc/hostname"), "with python\n").expect("write");
    fs::write(dir.join("etc/motd"), "python lives here\n").expect("write");
}

/// A whole small Debian, as the plain root.
fn debian_root(dir: &Path) {
    run(command(["debootstrap", "--variant=minbase", "bookworm"]).arg(dir));
    fs::write(dir.join("etc/hostname"), "plain\n").expect("write");
    fs::remove_file(dir.join("etc/motd")).expect("remove");
}

/// A container of LXC's.
pub struct Container {
    name: String,
    path: PathBuf,
    /// Puts a command where the container's host is.
    host: Box<dyn Fn(&[&str]) -> Command>,
}

impl Container {
    /// Writes its configuration below `path`; its root is `root`.
    pub fn new(path: &Path, root: &Path, host: Box<dyn Fn(&[&str]) -> Command>) -> Self {
        let name = unique("c");
        fs::create_dir_all(path.join(&name)).expect("mkdir");
        let lines = [
            format!("lxc.uts.name = {name}"),
            format!("lxc.rootfs.path = dir:{}", root.display()),
            "lxc.net.0.type = empty".into(),
            "lxc.tty.max = 0".into(),
            "lxc.pty.max = 4".into(),
            "lxc.autodev = 1".into(),
            "lxc.mount.auto = proc:rw sys:ro".into(),
        ];
        fs::write(path.join(&name).join("config"), lines.join("\n") + "\n").expect("write the configuration");
        Self { name, path: path.to_owned(), host }
    }

    fn lxc(&self, program: &str, more: &[&str]) -> Command {
        let path = self.path.to_str().expect("plain path");
        let mut c = (self.host)(&[program, "-n", &self.name, "-P", path]);
        c.args(more);
        c
    }

    #[track_caller]
    pub fn start(&self) {
        let log = self.path.join("lxc.log");
        let started = output(&mut self.lxc("lxc-start", &["-o", log.to_str().expect("path"), "-l", "INFO", "--", "/bin/sleep", "1800"]));
        let why = || fs::read_to_string(&log).unwrap_or_default();
        assert!(started.status.success(), "lxc-start: {started:?}\n{}", why());
    }

    /// Runs a command in it.
    pub fn output(&self, words: &[&str]) -> Output {
        let clean = ["--clear-env", "-v", "PATH=/bin:/usr/bin:/sbin:/usr/sbin", "--"];
        output(&mut self.lxc("lxc-attach", &[&clean[..], words].concat()))
    }

    #[track_caller]
    pub fn run(&self, words: &[&str]) -> String {
        let answer = self.output(words);
        assert!(answer.status.success(), "{words:?}: {}\n{}{}", answer.status, text(&answer.stdout), text(&answer.stderr));
        text(&answer.stdout)
    }

    pub fn attach(&self, words: &[&str]) -> Command {
        let clean = ["--clear-env", "-v", "PATH=/bin:/usr/bin:/sbin:/usr/sbin", "--"];
        self.lxc("lxc-attach", &[&clean[..], words].concat())
    }

    #[track_caller]
    pub fn stop(&self) {
        run(&mut self.lxc("lxc-stop", &["-k"]));
        let state = || text(&output(&mut self.lxc("lxc-info", &["-s", "-H"])).stdout);
        wait_for("the container's end", Duration::from_secs(20), || state().contains("STOPPED").then_some(()));
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = output(&mut self.lxc("lxc-stop", &["-k"]));
    }
}

/// What is done in the container, and what the branches must look like afterwards.
fn live_in(container: &Container, plain: &Path, python: &Path) {
    let before = fingerprint(python);
    container.start();
    assert_eq!(container.run(&["python3", "-c", "print(\"hello\")"]), "hello\n");
    assert_eq!(container.run(&["cat", "/etc/hostname"]), "plain\n", "the upper branch counts");
    assert_eq!(container.run(&["cat", "/etc/motd"]), "python lives here\n");
    // Installs a file, with Python; deletes one of each root; changes one of the read-only root.
    let script = "import os\nos.makedirs('/usr/local/bin', exist_ok=True)\nwith open('/usr/local/bin/tool', 'w') as f: f.write('#!/bin/sh\\necho installed\\n')\n\
                  os.chmod('/usr/local/bin/tool', 0o755)\nos.remove('/etc/motd')\nos.remove('/etc/hostname')\n\
                  with open('/usr/lib/python3.11/os.py', 'a') as f: f.write('# changed\\n')";
    container.run(&["python3", "-c", script]);
    assert_eq!(container.run(&["/usr/local/bin/tool"]), "installed\n");
    assert!(!container.output(&["ls", "/etc/motd", "/etc/hostname"]).status.success());
    container.run(&[
        "sh",
        "-c",
        "rm -r /usr/lib/python3.11/collections && mkdir /usr/lib/python3.11/collections && echo own > /usr/lib/python3.11/collections/own",
    ]);
    assert_eq!(container.run(&["ls", "/usr/lib/python3.11/collections"]), "own\n");
    container.stop();

    assert_eq!(fingerprint(python), before, "the read-only branch changed");
    let there = |name: &str| plain.join(name).symlink_metadata().is_ok();
    assert_eq!(fs::read_to_string(plain.join("usr/local/bin/tool")).expect("installed"), "#!/bin/sh\necho installed\n");
    // Whiteouts where something below would show through: both names are in the lower root.
    for name in ["etc/.wh.motd", "etc/.wh.hostname", "usr/lib/python3.11/collections/.wh..wh..opq"] {
        let meta = plain.join(name).symlink_metadata().unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(meta.is_file() && meta.len() == 0, "{name}: {meta:?}");
    }
    assert!(!there("etc/motd") && !there("etc/hostname"));
    let changed = fs::read_to_string(plain.join("usr/lib/python3.11/os.py")).expect("copied up");
    assert!(changed.ends_with("# changed\n") && changed.len() > 100);
    // And nowhere else.
    let marks: Vec<_> =
        names(plain).into_iter().filter(|n| n.file_name().is_some_and(|f| f.to_string_lossy().starts_with(".wh."))).collect();
    let unexpected = |n: &&PathBuf| {
        !["etc/.wh.motd", "etc/.wh.hostname", "usr/lib/python3.11/collections/.wh..wh..opq"].iter().any(|w| n.as_path() == Path::new(w))
    };
    let unexpected: Vec<_> = marks
        .iter()
        .filter(unexpected)
        .filter(|n| !n.starts_with(".wh..wh.aufs") && !n.starts_with(".wh..wh.plnk") && !n.starts_with(".wh..wh.orph"))
        .collect();
    assert!(unexpected.is_empty(), "whiteouts that hide nothing: {unexpected:?}");
}

#[test]
fn a_container_boots_from_the_merge_and_runs_python() {
    boot(plain_root, python_root);
}

#[test]
fn a_debian_boots_over_a_debian_with_python() {
    // The one with Python is a Debian too.
    let python = |dir: &Path| {
        run(command(["cp", "-a"]).arg(dir.with_file_name("plain")).arg(dir));
        python_root(dir);
    };
    boot(debian_root, python);
}

fn boot(make_plain: impl Fn(&Path), make_python: impl Fn(&Path)) {
    let _links = Links::install();
    let dir = tempfile::Builder::new().prefix("union-lxc-").tempdir().expect("temporary directory");
    run(command(["chmod", "755"]).arg(dir.path()));
    let (plain, python, test) = (dir.path().join("plain"), dir.path().join("python"), dir.path().join("test"));
    make_plain(&plain);
    make_python(&python);
    fs::create_dir(&test).expect("mkdir");
    let _unmount = Unmount(test.clone());
    // The line of the issue, word for word, run by a shell.
    let line = "mount -t aufs -o dirs=$dir1:$dir2 none $user_test";
    run(command(["sh", "-c", line]).env("dir1", &plain).env("dir2", &python).env("user_test", &test));
    let container = Container::new(&dir.path().join("lxc"), &test, Box::new(|words| command(words)));
    live_in(&container, &plain, &python);
    // A second life finds what the first one left.
    container.start();
    assert_eq!(container.run(&["/usr/local/bin/tool"]), "installed\n");
    assert_eq!(container.run(&["python3", "-c", "print(\"hello\")"]), "hello\n");
    container.stop();
    run(command(["umount"]).arg(&test));
}
