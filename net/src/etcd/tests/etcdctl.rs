//! Debian's `etcdctl`, where it is installed.

use super::*;
use std::process::{Command, Stdio};

fn installed() -> bool {
    let found = Command::new("etcdctl").env("ETCDCTL_API", "3").arg("version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("skipped: there is no etcdctl");
    }
    found
}

/// Runs etcdctl with blank-separated arguments; its output and whether it succeeded.
async fn ctl(s: &Server, arguments: &str, input: &'static str) -> (bool, String) {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", s.address)).args(arguments.split(' '));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = move || {
        let mut child = command.spawn().expect("run etcdctl");
        std::io::Write::write_all(&mut child.stdin.take().expect("stdin"), input.as_bytes()).expect("write");
        child.wait_with_output().expect("wait")
    };
    let output = tokio::task::spawn_blocking(run).await.expect("no panic");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

async fn ok(s: &Server, arguments: &str) -> String {
    let (success, text) = ctl(s, arguments, "").await;
    assert!(success, "etcdctl {arguments}: {text}");
    text
}

#[test]
fn keys() {
    if !installed() {
        return;
    }
    with_server(|s| async move {
        assert_eq!(ok(&s, "put k1 v1").await, "OK\n");
        assert_eq!(ok(&s, "put k2 v2").await, "OK\n");
        assert_eq!(ok(&s, "get k1").await, "k1\nv1\n");
        assert_eq!(ok(&s, "get --prefix k --keys-only").await, "k1\n\nk2\n\n");
        assert_eq!(ok(&s, "get k1 k3 --print-value-only --order=DESCEND").await, "v2\nv1\n");
        ok(&s, "put k1 v3").await;
        assert_eq!(ok(&s, "get k1 --rev=2").await, "k1\nv1\n");
        assert_eq!(ok(&s, "del k1 --prev-kv").await, "1\nk1\nv3\n");
        let (success, text) = ctl(&s, "txn", "value(\"k2\") = \"v2\"\n\nput k2 yes\nget k2\n\nput k2 no\n\n").await;
        assert!(success && text.starts_with("SUCCESS") && text.contains("yes"), "{text}");
        ok(&s, "compaction 4").await;
        let (success, text) = ctl(&s, "get k1 --rev=2", "").await;
        assert!(!success && text.contains("required revision has been compacted"), "{text}");
    });
}

#[test]
fn leases_locks_and_elections() {
    if !installed() {
        return;
    }
    with_server(|s| async move {
        let granted = ok(&s, "lease grant 60").await;
        let id = granted.split(' ').nth(1).expect("an id").to_owned();
        ok(&s, &format!("put k v --lease={id}")).await;
        assert!(ok(&s, &format!("lease timetolive {id} --keys")).await.contains("attached keys([k])"));
        assert!(ok(&s, &format!("lease keep-alive --once {id}")).await.contains("keepalived with TTL(60)"));
        assert!(ok(&s, "lease list").await.contains(&id));
        assert!(ok(&s, &format!("lease revoke {id}")).await.contains("revoked"));
        assert_eq!(ok(&s, "get k").await, "");
        assert!(ok(&s, "lock m echo locked").await.contains("locked"));
        assert_eq!(s.count("m/").await, 0);
    });
}

#[test]
fn cluster() {
    if !installed() {
        return;
    }
    with_server(|s| async move {
        assert!(ok(&s, "endpoint health").await.contains("is healthy"));
        assert!(ok(&s, "endpoint status").await.contains("3.5."));
        assert!(ok(&s, "endpoint hashkv").await.contains("127.0.0.1"));
        assert!(ok(&s, "member list").await.contains(", started, one,"));
        assert!(ok(&s, "defrag").await.contains("Finished defragmenting"));
        assert_eq!(ok(&s, "alarm list").await, "");
    });
}

#[test]
fn watch_and_elect() {
    if !installed() {
        return;
    }
    with_server(|s| async move {
        s.put("w", "1").await;
        s.put("w", "2").await;
        let run = |arguments: &str| {
            let mut command = Command::new("timeout");
            command.args(["-s", "INT", "3", "etcdctl"]).env("ETCDCTL_API", "3").arg(format!("--endpoints={}", s.address));
            command.args(arguments.split(' ')).stdin(Stdio::null());
            tokio::task::spawn_blocking(move || String::from_utf8_lossy(&command.output().expect("run").stdout).into_owned())
        };
        let (watch, elect) = (run("watch w --rev=2"), run("elect e proposal"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(s.count("e/").await, 1);
        s.put("w", "3").await;
        assert_eq!(watch.await.expect("no panic"), "PUT\nw\n1\nPUT\nw\n2\nPUT\nw\n3\n");
        assert!(elect.await.expect("no panic").contains("proposal"));
        while s.count("e/").await != 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}

#[test]
fn users_and_roles() {
    if !installed() {
        return;
    }
    with_server(|s| async move {
        let refused = |arguments: &'static str, with: &'static str| {
            let s = &s;
            async move {
                let (success, text) = ctl(s, arguments, "").await;
                assert!(!success && text.contains(with), "etcdctl {arguments}: {text}");
            }
        };
        assert!(ok(&s, "user add root:pw").await.contains("User root created"));
        ok(&s, "user add alice:secret").await;
        ok(&s, "role add team").await;
        assert!(ok(&s, "role grant-permission team --prefix=true readwrite team/").await.contains("Role team updated"));
        ok(&s, "user grant-role alice team").await;
        // It makes the root role and grants it, as it finds root without.
        assert!(ok(&s, "auth enable").await.contains("Authentication Enabled"));
        refused("put k v", "user name is empty").await;
        refused("--user=alice:wrong put k v", "authentication failed, invalid user ID or password").await;
        refused("--user=alice:secret put k v", "permission denied").await;
        assert_eq!(ok(&s, "--user=alice:secret put team/k v").await, "OK\n");
        assert_eq!(ok(&s, "--user=alice:secret get --prefix team/").await, "team/k\nv\n");
        refused("--user=alice:secret get --prefix tea", "permission denied").await;
        refused("--user=alice:secret user list", "permission denied").await;
        assert_eq!(ok(&s, "--user=root:pw user list").await, "alice\nroot\n");
        assert_eq!(ok(&s, "--user=root:pw role list").await, "root\nteam\n");
        assert!(ok(&s, "--user=root:pw user get alice --detail").await.contains("[team/, team0) (prefix team/)"));
        assert!(
            ok(&s, "--user=root:pw role revoke-permission --prefix team team/")
                .await
                .contains("Permission of range [team/, team0) is revoked")
        );
        refused("--user=alice:secret put team/k v", "permission denied").await;
        ok(&s, "--user=root:pw user delete alice").await;
        assert!(ok(&s, "--user=root:pw auth disable").await.contains("Authentication Disabled"));
        assert_eq!(ok(&s, "put k v").await, "OK\n");
    });
}
