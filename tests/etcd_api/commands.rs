//! Debian's etcdctl: the commands that users have in their fingers and scripts.

use crate::support::dev::Dev;
use crate::support::{output, run, text, wait_for};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

/// A program whose lines are read as they come; killed at the end.
struct Running {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Running {
    fn start(mut c: std::process::Command) -> Self {
        let mut child = c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start");
        let out = BufReader::new(child.stdout.take().expect("stdout"));
        let (tx, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|l| tx.send(l)));
        Self { child, lines }
    }

    #[track_caller]
    fn line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(20)).expect("a line in time")
    }

    fn no_line(&self) -> bool {
        self.lines.recv_timeout(Duration::from_millis(500)).is_err()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every command goes to another member than the one before.
struct Ctl<'a> {
    dev: &'a Dev,
    next: std::cell::Cell<usize>,
}

impl Ctl<'_> {
    fn endpoint(&self) -> &'static str {
        let n = self.next.get();
        self.next.set(n + 1);
        ["127.0.0.1:2379", "127.0.0.2:2379", "127.0.0.3:2379"][n % 3]
    }

    #[track_caller]
    fn say(&self, words: &[&str]) -> String {
        run(&mut self.dev.etcdctl_at(self.endpoint(), words))
    }

    #[track_caller]
    fn fails(&self, words: &[&str]) -> String {
        let ended = output(&mut self.dev.etcdctl_at(self.endpoint(), words));
        assert!(!ended.status.success(), "{words:?} should have failed: {}", text(&ended.stdout));
        text(&ended.stderr)
    }

    fn start(&self, words: &[&str]) -> Running {
        Running::start(self.dev.etcdctl_at(self.endpoint(), words))
    }
}

#[test]
fn etcdctl_works_against_any_member() {
    let dev = Dev::start();
    let ctl = Ctl { dev: &dev, next: std::cell::Cell::new(0) };
    keys(&ctl);
    transactions(&ctl);
    watches(&ctl);
    leases(&ctl);
    locks(&ctl);
    elections(&ctl);
    cluster(&ctl);
}

fn revision(ctl: &Ctl<'_>) -> i64 {
    let json: serde_json::Value = serde_json::from_str(&ctl.say(&["get", "--write-out=json", "some-key"])).expect("JSON");
    json["header"]["revision"].as_i64().expect("a revision")
}

fn keys(ctl: &Ctl<'_>) {
    assert_eq!(revision(ctl), 1, "the cluster's own records must not show in the users' revision");
    assert_eq!(ctl.say(&["put", "a/1", "one"]), "OK\n");
    let first = revision(ctl);
    assert_eq!(first, 2);
    ctl.say(&["put", "a/2", "two"]);
    ctl.say(&["put", "b/1", "three"]);
    ctl.say(&["put", "a/1", "ONE"]);
    assert_eq!(ctl.say(&["get", "a/1"]), "a/1\nONE\n");
    assert_eq!(ctl.say(&["get", "--prefix", "a/"]), "a/1\nONE\na/2\ntwo\n");
    assert_eq!(ctl.say(&["get", "--prefix", "--keys-only", "a/"]), "a/1\n\na/2\n\n");
    assert_eq!(ctl.say(&["get", "a/2", "b/2"]), "a/2\ntwo\nb/1\nthree\n");
    assert_eq!(ctl.say(&["get", "--from-key", "--limit=1", "--order=DESCEND", "--sort-by=KEY", "a"]), "b/1\nthree\n");
    assert_eq!(ctl.say(&["get", &format!("--rev={first}"), "a/1"]), "a/1\none\n");
    assert!(ctl.say(&["get", "--prefix", "", "--write-out=fields"]).contains("\"Count\" : 3"));
    assert_eq!(ctl.say(&["put", "--prev-kv", "a/2", "TWO"]), "OK\na/2\ntwo\n");
    assert_eq!(ctl.say(&["del", "--prefix", "a/"]), "2\n");
    assert_eq!(ctl.say(&["del", "a/1"]), "0\n");
    assert_eq!(ctl.say(&["get", "a/1"]), "");
    let now = revision(ctl);
    ctl.say(&["compaction", &now.to_string()]);
    assert!(ctl.fails(&["get", &format!("--rev={first}"), "a/1"]).contains("required revision has been compacted"));
    assert!(ctl.fails(&["get", &format!("--rev={}", now + 100), "a/1"]).contains("required revision is a future revision"));
    assert!(ctl.fails(&["put", "", "x"]).contains("key is not provided"));
    // Everything the user can name is the user's; the cluster's own records are not among it.
    ctl.say(&["del", "--prefix", ""]);
    assert!(run(&mut ctl.dev.command([crate::support::BRICKRAFT, "volume", "list"])).contains("dev"));
}

fn transactions(ctl: &Ctl<'_>) {
    ctl.say(&["put", "t", "1"]);
    let txn = |compare: &str| {
        let mut c = ctl.dev.etcdctl_at(ctl.endpoint(), &["txn"]);
        let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
        write!(child.stdin.take().expect("stdin"), "{compare}\n\nput t 2\nget t\n\nget t\n\n").expect("write");
        let ended = child.wait_with_output().expect("wait");
        assert!(ended.status.success(), "{}", text(&ended.stderr));
        text(&ended.stdout)
    };
    let said = txn("value(\"t\") = \"1\"");
    assert!(said.contains("SUCCESS") && said.ends_with("t\n2\n"), "{said}");
    let said = txn("value(\"t\") = \"1\"");
    assert!(said.contains("FAILURE") && said.ends_with("t\n2\n"), "{said}");
}

fn watches(ctl: &Ctl<'_>) {
    ctl.say(&["put", "w/1", "before"]);
    let since = revision(ctl);
    let past = ctl.start(&["watch", "--prefix", "w/", &format!("--rev={since}")]);
    assert_eq!([past.line(), past.line(), past.line()], ["PUT", "w/1", "before"]);
    let live = ctl.start(&["watch", "--prefix", "--prev-kv", "w/"]);
    assert!(live.no_line());
    for i in 0..50 {
        ctl.say(&["put", "w/1", &i.to_string()]);
    }
    ctl.say(&["del", "w/1"]);
    for i in 0..50 {
        assert_eq!([past.line(), past.line(), past.line()], ["PUT", "w/1", &i.to_string()]);
        let before = if i == 0 { "before".to_owned() } else { (i - 1).to_string() };
        assert_eq!([live.line(), live.line(), live.line(), live.line(), live.line()], ["PUT", "w/1", &before as &str, "w/1", &i.to_string()]);
    }
    assert_eq!([past.line(), past.line()], ["DELETE", "w/1"]);
}

fn leases(ctl: &Ctl<'_>) {
    let grant = |ttl: &str| ctl.say(&["lease", "grant", ttl]).split(' ').nth(1).expect("an id").to_owned();
    let kept = grant("3");
    let keep = ctl.start(&["lease", "keep-alive", &kept]);
    assert!(keep.line().contains("keepalived with TTL(3)"));
    let lost = grant("2");
    ctl.say(&["put", &format!("--lease={kept}"), "l/kept", "x"]);
    ctl.say(&["put", &format!("--lease={lost}"), "l/lost", "x"]);
    assert!(ctl.say(&["lease", "timetolive", "--keys", &kept]).contains("attached keys([l/kept])"));
    assert!(ctl.say(&["lease", "list"]).contains(&kept));
    wait_for("the end of a lease", Duration::from_secs(15), || ctl.say(&["get", "l/lost"]).is_empty().then_some(()));
    assert_eq!(ctl.say(&["get", "l/kept"]), "l/kept\nx\n");
    drop(keep);
    ctl.say(&["lease", "revoke", &kept]);
    assert_eq!(ctl.say(&["get", "l/kept"]), "");
    assert!(ctl.fails(&["lease", "revoke", &kept]).contains("requested lease not found"));
    assert!(ctl.fails(&["put", &format!("--lease={kept}"), "l/x", "x"]).contains("requested lease not found"));
}

fn locks(ctl: &Ctl<'_>) {
    let first = ctl.start(&["lock", "m"]);
    let holder = first.line();
    assert!(holder.starts_with("m/"), "{holder}");
    let second = ctl.start(&["lock", "m"]);
    let third = ctl.start(&["lock", "m"]);
    assert!(second.no_line() && third.no_line(), "two hold the lock");
    // Who stands first holds it; deleting its record passes the lock on.
    let mut waiting: Vec<String> = ctl.say(&["get", "--prefix", "--keys-only", "--sort-by=CREATE", "m/"]).lines().filter(|l| !l.is_empty()).map(str::to_owned).collect();
    assert_eq!(waiting.len(), 3);
    assert_eq!(waiting.remove(0), holder);
    ctl.say(&["del", &holder]);
    let got = wait_for("the lock to pass on", Duration::from_secs(10), || second.lines.try_recv().or_else(|_| third.lines.try_recv()).ok());
    assert_eq!(got, waiting[0]);
}

fn elections(ctl: &Ctl<'_>) {
    let candidate = ctl.start(&["elect", "e", "me"]);
    assert!(candidate.line().starts_with("e/"));
    assert_eq!(candidate.line(), "me");
    let observer = ctl.start(&["elect", "--listen", "e"]);
    assert!(observer.line().starts_with("e/"));
    assert_eq!(observer.line(), "me");
}

fn cluster(ctl: &Ctl<'_>) {
    let members = ctl.say(&["member", "list"]);
    assert_eq!(members.lines().filter(|l| l.contains(", started, member-")).count(), 3, "{members}");
    let all = "127.0.0.1:2379,127.0.0.2:2379,127.0.0.3:2379";
    let health = output(&mut ctl.dev.etcdctl_at(all, &["endpoint", "health"]));
    let said = text(&health.stdout) + &text(&health.stderr);
    assert_eq!(said.matches("is healthy").count(), 3, "{said}");
    let status: serde_json::Value = serde_json::from_str(&run(&mut ctl.dev.etcdctl_at(all, &["endpoint", "status", "--write-out=json"]))).expect("JSON");
    let leaders: std::collections::BTreeSet<_> = status.as_array().expect("a list").iter().map(|s| s["Status"]["leader"].to_string()).collect();
    assert_eq!(leaders.len(), 1, "{status}");
}
