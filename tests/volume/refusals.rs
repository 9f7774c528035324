//! Wrong input: one clear line and a non-zero exit, and JSON on request.

use crate::lab::{HEAL, Host, Lab};
use crate::support::{BRICKRAFT, output, run, text, wait_for};
use serde_json::Value;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// `words` are refused with one line that has `expected` in it.
#[track_caller]
fn refused(host: &Host, words: &[&str], expected: &str) {
    let plain = host.output(words);
    let said = text(&plain.stderr);
    assert!(!plain.status.success(), "{words:?} was not refused: {}{said}", text(&plain.stdout));
    assert_eq!(said.trim_end().lines().count(), 1, "{words:?}: not one line:\n{said}");
    assert!(said.to_lowercase().contains(&expected.to_lowercase()), "{words:?}: {said}");
    let json = output(host.command([BRICKRAFT, "--json"]).args(words));
    let value: Value = serde_json::from_slice(&json.stdout).unwrap_or_else(|e| panic!("{words:?}: {e}: {}", text(&json.stdout)));
    assert!(!json.status.success() && value["error"].as_str().is_some_and(|e| !e.contains('\n')), "{words:?}: {value}");
}

fn pair<'a>(name: &'a str, x: &'a str, y: &'a str) -> [&'a str; 7] {
    ["volume", "create", name, "replica", "2", x, y]
}

/// Removes /sbin/mount.brickraft if this test made it.
struct Helper(PathBuf);

impl Helper {
    fn install() -> Option<Self> {
        let path = Path::new("/sbin/mount.brickraft");
        if path.symlink_metadata().is_ok() {
            return None;
        }
        symlink(BRICKRAFT, path).expect("install the mount helper");
        Some(Self(path.into()))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn wrong_input_gets_one_clear_line() {
    let mut lab = Lab::new();
    let h1 = &lab.hosts[0];
    refused(h1, &["peer", "status"], "is `brickraft server` running there?");
    for host in &mut lab.hosts[..2] {
        host.start();
    }
    let h1 = &lab.hosts[0];
    peers(&lab);
    let (a, b) = (h1.brick_name("a"), lab.hosts[1].brick_name("b"));
    let on_root = format!("h1:{}", h1.dir.join("on-root").display());
    let (c, d) = (h1.brick_name("c"), lab.hosts[1].brick_name("d"));

    refused(h1, &pair("rep", &a, "h9:/x"), "h9");
    refused(h1, &pair("rep", &a, "h3:/x"), "h3 is not in 'Peer in Cluster' state");
    refused(h1, &pair("rep", &a, "h2:relative"), "Wrong brick type");
    refused(h1, &pair("rep", &a, "h2:/a/../b"), "must not contain");
    refused(h1, &pair("rep", &a, &a), "duplicate");
    refused(h1, &pair("rep", &a, &c), "on the same server");
    refused(h1, &pair("rep", &on_root, &b), "in the root partition");
    refused(h1, &["volume", "create", "rep", "replica", "2", &a], "not a multiple of replica count");
    refused(h1, &["volume", "create", "rep", "replica", "2", &a, &b, &c], "not a multiple of replica count");
    refused(h1, &["volume", "create", "rep", "replica", "two", &a, &b], "two");
    for name in ["a/b", "a b", "ü", "a:b", "-x", "", "all", &"x".repeat(300)] {
        refused(h1, &pair(name, &a, &b), "");
    }
    // Nothing of the refused attempts is left in the way.
    h1.json(&pair("rep", &a, &b));
    refused(h1, &pair("rep", &c, &d), "already exists");
    refused(h1, &pair("other", &a, &d), "already part of a volume");
    for verb in ["start", "stop", "delete", "info", "status", "heal", "scrub"] {
        refused(h1, &["volume", verb, "nosuch"], "nosuch");
    }
    refused(h1, &["volume", "stop", "rep"], "not in the started state");
    refused(h1, &["volume", "status", "rep"], "not started");
    refused(h1, &["volume", "frobnicate"], "");
    mounts(&lab);

    let forced = format!("h2:{}", lab.hosts[1].dir.join("on-root").display());
    h1.ok(&["volume", "create", "forced", "replica", "2", &on_root, &forced, "force"]);
    h1.json(&["volume", "start", "forced"]);
    for words in [&["volume", "info"][..], &["volume", "status"], &["volume", "list"], &["peer", "status"], &["pool", "list"], &["volume", "heal", "rep", "info"]] {
        h1.json(words);
    }
    refused(h1, &["volume", "start", "rep"], "already started");
    refused(h1, &["volume", "delete", "rep"], "has been started");
    refused(h1, &["peer", "detach", "h2"], "hosts one or more bricks");
    h1.json(&["volume", "stop", "rep"]);
    h1.json(&["volume", "delete", "rep"]);
    // A deleted volume's bricks are free again, but its files are not mistaken for a new volume's.
    refused(h1, &pair("again", &a, &b), "not empty");
    for (host, brick) in [(0, "a"), (1, "b")] {
        std::fs::remove_file(lab.hosts[host].path(lab.hosts[host].brick(brick)).join("file")).expect("the volume's file stayed");
    }
    h1.json(&pair("again", &a, &b));
}

fn peers(lab: &Lab) {
    let h1 = &lab.hosts[0];
    refused(h1, &["peer", "probe", "h9"], "unknown host h9");
    refused(h1, &["peer", "probe", "h3"], "not connected");
    refused(h1, &["peer", "probe", "a b"], "not a host name");
    refused(h1, &["peer", "detach", "h2"], "not part of cluster");
    h1.json(&["peer", "probe", "h2"]);
    assert!(h1.json(&["peer", "probe", "h2"])["note"].as_str().is_some_and(|n| n.contains("already in peer list")));
    assert!(h1.json(&["peer", "probe", "h1"])["note"].as_str().is_some_and(|n| n.contains("not needed")));
}

fn mounts(lab: &Lab) {
    let h1 = &lab.hosts[0];
    let mnt = h1.dir.join("mnt").to_str().expect("plain path").to_owned();
    refused(h1, &["mount", "h1:rep", &mnt], "not started");
    h1.json(&["volume", "start", "rep"]);
    refused(h1, &["mount", "h1:nosuch", &mnt], "nosuch");
    refused(h1, &["mount", "h9:rep", &mnt], "h9");
    refused(h1, &["mount", "rep", &mnt], "not HOST:VOLUME");
    refused(h1, &["mount", "h1:rep", "/nosuch"], "/nosuch");
    refused(h1, &["mount", "h1:rep", "/etc/hosts"], "not a directory");
    refused(h1, &["mount", "h1:rep", &mnt, "-o", "frobnicate"], "frobnicate");
    let helper = Helper::install();
    run(&mut h1.command(["mount", "-t", "brickraft", "-o", &h1.log_option("mnt"), "h1:rep", &mnt]));
    drop(helper);
    assert!(h1.is_mounted("mnt"));
    refused(h1, &["mount", "h1:rep", &mnt], "already mounted");
    std::fs::write(h1.path(&mnt).join("file"), "content").expect("write through mount(8)'s mount");
    h1.unmount("mnt");
    wait_for("both bricks are in sync", HEAL, || {
        let status = h1.json(&["volume", "status", "rep"]);
        status[0]["bricks"].as_array()?.iter().all(|b| matches!(b["state"].as_str(), Some("primary" | "in sync"))).then_some(())
    });
    let again = h1.mount("h2", "rep", "mnt");
    assert_eq!(std::fs::read(again.join("file")).expect("read"), b"content");
    h1.unmount("mnt");
}
