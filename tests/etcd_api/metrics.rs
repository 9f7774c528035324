//! What three members say of each other on `/metrics`.

use crate::servers::{PATIENCE, Servers, client};
use crate::support::dev::enter;
use crate::support::{run, wait_for};

fn page(s: &Servers, i: usize) -> String {
    run(enter(&s.netns, ["curl", "-sS", "--max-time", "10"]).arg(format!("{}/metrics", client(i))))
}

/// A figure by name and labels, if it is there.
fn figure(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn metrics_of_peers() {
    let mut s = Servers::cluster(3);
    let leader = s.wait_leader(&[0, 1, 2]);
    let ids: Vec<String> = (0..3).map(|i| s.id(leader, &format!("m{i}"))).collect();
    let active = |page: &str, me: usize, peer: usize| {
        figure(page, &format!("etcd_network_active_peers{{Local=\"{}\",Remote=\"{}\"}}", ids[me], ids[peer]))
    };
    let sent = |page: &str, to: usize| figure(page, &format!("etcd_network_peer_sent_bytes_total{{To=\"{}\"}}", ids[to])).unwrap_or(0.0);
    let received =
        |page: &str, from: usize| figure(page, &format!("etcd_network_peer_received_bytes_total{{From=\"{}\"}}", ids[from])).unwrap_or(0.0);
    let timed = |page: &str, to: usize| {
        figure(page, &format!("etcd_network_peer_round_trip_time_seconds_count{{To=\"{}\"}}", ids[to])).unwrap_or(0.0)
    };
    for me in 0..3 {
        let others = (0..3).filter(|&peer| peer != me);
        wait_for("connections to both others", PATIENCE, || {
            let page = page(&s, me);
            others.clone().all(|peer| active(&page, me, peer) == Some(1.0)).then_some(())
        });
        assert_eq!(active(&page(&s, me), me, me), None);
    }
    // 100 kB reach each follower by way of the leader.
    let before: Vec<String> = (0..3).map(|i| page(&s, i)).collect();
    let value = "x".repeat(10_000);
    for n in 0..10 {
        s.ctl(leader, &["put", &format!("key/{n}"), &value]);
    }
    for follower in (0..3).filter(|&i| i != leader) {
        s.wait_keys(follower, "key/", 10);
        let (far, near) = (page(&s, follower), page(&s, leader));
        assert!(sent(&near, follower) - sent(&before[leader], follower) >= 100_000.0, "{near}");
        assert!(received(&far, leader) - received(&before[follower], leader) >= 100_000.0, "{far}");
        assert!(received(&near, follower) > received(&before[leader], follower));
        assert_eq!(figure(&far, "etcd_mvcc_put_total"), Some(10.0), "every member applies them");
        wait_for("some round trips", PATIENCE, || (timed(&page(&s, leader), follower) > timed(&near, follower)).then_some(()));
        assert_eq!(timed(&far, leader), 0.0, "a follower sends no heartbeats");
    }
    // Round trips within one machine take less than a tenth of a second, nearly all.
    let near = page(&s, leader);
    let follower = (0..3).find(|&i| i != leader).expect("one");
    let quick = format!("etcd_network_peer_round_trip_time_seconds_bucket{{To=\"{}\",le=\"0.1024\"}}", ids[follower]);
    assert!(figure(&near, &quick).is_some_and(|n| n >= timed(&near, follower) / 2.0), "{near}");

    s.kill(follower);
    wait_for("the loss of a connection", PATIENCE, || (active(&page(&s, leader), leader, follower) == Some(0.0)).then_some(()));
    s.ctl(leader, &["member", "remove", &ids[follower]]);
    wait_for("the end of a peer's figures", PATIENCE, || active(&page(&s, leader), leader, follower).is_none().then_some(()));
}
