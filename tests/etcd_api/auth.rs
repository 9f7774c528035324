//! Users and roles by etcdctl, each command at another member than the one before, over a restart; and the flags.

use crate::support::dev::{Dev, enter};
use crate::support::{BRICKRAFT, Daemon, Netns, output, run, text, wait_for};
use std::time::Duration;

const HOSTS: [&str; 3] = ["127.0.0.1:2379", "127.0.0.2:2379", "127.0.0.3:2379"];

struct Ctl<'a> {
    dev: &'a Dev,
    next: std::cell::Cell<usize>,
}

impl Ctl<'_> {
    fn command(&self, words: &[&str]) -> std::process::Command {
        let n = self.next.get();
        self.next.set(n + 1);
        self.dev.etcdctl_at(HOSTS[n % 3], words)
    }

    #[track_caller]
    fn say(&self, words: &[&str]) -> String {
        run(&mut self.command(words))
    }

    #[track_caller]
    fn refused(&self, words: &[&str], with: &str) {
        let ended = output(&mut self.command(words));
        let said = text(&ended.stderr);
        assert!(!ended.status.success() && said.contains(with), "{words:?}: {said}{}", text(&ended.stdout));
    }
}

#[test]
fn etcdctl_manages_users_and_roles_at_any_member() {
    let mut dev = Dev::start();
    {
        let ctl = Ctl { dev: &dev, next: std::cell::Cell::new(0) };
        closing(&ctl);
        open_for_some(&ctl);
    }
    // Volumes are the cluster's own affair: they work on, and so does everything after a restart.
    std::fs::write(dev.mnt().join("file"), "x").expect("write through the mount");
    assert!(dev.brickraft(&["volume", "list"]).contains("dev"));
    dev.stop();
    dev.start_again();
    let ctl = Ctl { dev: &dev, next: std::cell::Cell::new(0) };
    open_for_some(&ctl);
    ctl.refused(&["--user=alice:secret", "role", "list"], "permission denied");
    ctl.say(&["--user=root:pw", "role", "revoke-permission", "--prefix", "team", "team/"]);
    ctl.refused(&["--user=alice:secret", "put", "team/k", "v"], "permission denied");
    ctl.say(&["--user=root:pw", "user", "delete", "alice"]);
    ctl.refused(&["--user=alice:secret", "get", "team/k"], "authentication failed, invalid user ID or password");
    ctl.refused(&["--user=root:pw", "user", "delete", "root"], "invalid auth management");
    assert!(ctl.say(&["--user=root:pw", "auth", "disable"]).contains("Authentication Disabled"));
    for _ in HOSTS {
        assert_eq!(ctl.say(&["put", "k", "v"]), "OK\n");
    }
}

fn closing(ctl: &Ctl<'_>) {
    assert!(ctl.say(&["user", "add", "root:pw"]).contains("User root created"));
    ctl.refused(&["user", "add", "root:pw"], "user name already exists");
    ctl.say(&["user", "add", "alice:secret"]);
    ctl.say(&["role", "add", "team"]);
    ctl.refused(&["role", "add", "team"], "role name already exists");
    ctl.say(&["role", "grant-permission", "--prefix", "team", "readwrite", "team/"]);
    ctl.say(&["role", "grant-permission", "team", "read", "one"]);
    ctl.say(&["user", "grant-role", "alice", "team"]);
    ctl.refused(&["user", "grant-role", "alice", "none"], "role name not found");
    assert!(ctl.say(&["auth", "enable"]).contains("Authentication Enabled"));
}

fn open_for_some(ctl: &Ctl<'_>) {
    for _ in HOSTS {
        ctl.refused(&["put", "k", "v"], "user name is empty");
        ctl.refused(&["--user=alice:wrong", "get", "one"], "authentication failed, invalid user ID or password");
        assert_eq!(ctl.say(&["--user=alice:secret", "put", "team/k", "v"]), "OK\n");
        assert_eq!(ctl.say(&["--user=alice:secret", "get", "--prefix", "team/"]), "team/k\nv\n");
        ctl.say(&["--user=alice:secret", "get", "one"]);
        ctl.refused(&["--user=alice:secret", "put", "one", "v"], "permission denied");
        ctl.refused(&["--user=alice:secret", "get", "--from-key", "team/"], "permission denied");
        ctl.refused(&["--user=alice:secret", "member", "remove", "1"], "permission denied");
        assert_eq!(ctl.say(&["--user=root:pw", "user", "list"]), "alice\nroot\n");
    }
    let said = ctl.say(&["--user=root:pw", "role", "get", "team"]);
    assert!(said.contains("[team/, team0) (prefix team/)") && said.contains("\tone"), "{said}");
    // All endpoints at once: the token that one member gave out is good at the others.
    let all = HOSTS.join(",");
    for _ in 0..6 {
        run(&mut ctl.dev.etcdctl_at(&all, &["--user=alice:secret", "put", "team/k", "v"]));
    }
    let health = output(&mut ctl.dev.etcdctl_at(&all, &["--user=root:pw", "endpoint", "health"]));
    let said = text(&health.stdout) + &text(&health.stderr);
    assert_eq!(said.matches("is healthy").count(), 3, "{said}");
}

#[test]
fn web_tokens_and_flags_that_are_refused() {
    let netns = Netns::new();
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("plain path").to_owned();
    std::fs::write(path("secret"), "a secret of some length").expect("write the secret");
    std::fs::write(path("nonsense.pem"), "nonsense").expect("write");
    let server = |flags: &[&str]| {
        let mut c = enter(&netns, [BRICKRAFT, "server", "--data-dir", &path("data")]);
        c.args(["--listen-client-urls", "http://127.0.0.1:2379", "--listen-peer-urls", "http://127.0.0.1:2380"]);
        c.args(["--listen-brick-addr", "127.0.0.1:24007"]).args(flags);
        c
    };
    for (flag, with) in [
        ("--auth-token=other".to_owned(), "it must be simple, or jwt with its options"),
        ("--auth-token=jwt,priv-key=x".to_owned(), "needs sign-method"),
        (format!("--auth-token=jwt,sign-method=HS256,priv-key={}", path("missing")), "No such file"),
        (format!("--auth-token=jwt,sign-method=RS256,priv-key={}", path("nonsense.pem")), "does not fit the sign-method"),
        ("--auth-token-ttl=0".to_owned(), "must be at least 1"),
    ] {
        let ended = output(&mut server(&[&flag]));
        let said = text(&ended.stderr);
        assert!(!ended.status.success() && said.contains(with) && !said.contains("panicked"), "{flag}: {said}");
    }
    let jwt = format!("--auth-token=jwt,sign-method=HS256,priv-key={},ttl=2s", path("secret"));
    let mut daemon = Daemon::spawn(server(&[&jwt, "--bcrypt-cost=4"]), &dir.path().join("log"));
    daemon.wait_line("ready", Duration::from_secs(60));
    let ctl = |words: &[&str]| {
        let mut c = enter(&netns, ["etcdctl", "--endpoints=127.0.0.1:2379"]);
        c.env("ETCDCTL_API", "3").args(words);
        output(&mut c)
    };
    wait_for("a leader", Duration::from_secs(30), || ctl(&["user", "add", "root:pw"]).status.success().then_some(()));
    assert!(ctl(&["auth", "enable"]).status.success());
    assert!(!ctl(&["put", "k", "v"]).status.success());
    assert!(ctl(&["--user=root:pw", "put", "k", "v"]).status.success());
    assert_eq!(text(&ctl(&["--user=root:pw", "get", "k"]).stdout), "k\nv\n");
}
