//! What a server does all the time: renew its lease with the coordination store, and, where it leads, take the
//! bricks of dead servers out of their groups.

use super::admin::host_of_url;
use super::bricks::Bricks;
use super::cluster::{Change, Cluster, Expect};
use super::config::{ServerConfig, port_of};
use crate::records::{ClusterView, NodeRecord, node_key};
use brickraft_engine::member::NodeLeases;
use brickraft_engine::types::NodeId;
use brickraft_fs::replica::controller::{Controller, ControllerConfig, ControllerInput};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// A node serves for so long after it sent a renewal that was answered. With the margin and an election
/// (one to two time-outs) it bounds how long clients wait when a server vanishes.
pub const LEASE: Duration = Duration::from_millis(900);
/// What the controller adds for clock drift and scheduling.
pub const MARGIN: Duration = Duration::from_millis(150);
/// Between two renewals.
pub const RENEW: Duration = Duration::from_millis(250);
/// Between two looks of the controller.
pub const CONTROL: Duration = Duration::from_millis(100);

/// Runs for as long as the server.
pub async fn run(config: ServerConfig, node: NodeId, cluster: Cluster, bricks: Rc<Bricks>) {
    tokio::join!(register(config, node, cluster.clone()), renew(node, cluster.clone(), bricks.clone()), control(cluster, bricks));
}

/// Writes this server's own record, unless the probing server has.
async fn register(config: ServerConfig, node: NodeId, cluster: Cluster) {
    let told = config.advertise_peer_urls.first().and_then(|u| host_of_url(u));
    let listen_brick = config.listen_brick.as_deref().unwrap_or_default();
    let listened = listen_brick.rsplit_once(':').map_or_else(String::new, |(h, _)| h.to_owned());
    let host = config.host.clone().or(told).unwrap_or(listened);
    let record = NodeRecord { id: node, address: format!("{host}:{}", port_of(listen_brick)), host };
    loop {
        // A server that was probed is not a member until it has caught up.
        if cluster.member().last_status().membership.contains(node)
            && let Ok(view) = cluster.read().await
        {
            if view.nodes.contains_key(&node) {
                return;
            }
            let key = node_key(node);
            if cluster.commit(&[Expect::Absent(key.clone())], vec![Change::put(key, &record)]).await.is_ok() {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn renew(node: NodeId, cluster: Cluster, bricks: Rc<Bricks>) {
    let mut ticks = interval(RENEW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Ok(Ok(sent)) = timeout(LEASE, cluster.member().node_alive(node)).await {
            bricks.lease(sent.after(LEASE));
        }
    }
}

async fn control(cluster: Cluster, bricks: Rc<Bricks>) {
    let mut controller = controller();
    let mut ticks = interval(CONTROL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !cluster.member().last_status().is_leader() {
            continue;
        }
        let Ok(leases) = cluster.member().node_leases().await else { continue };
        let now = leases.as_ref().map_or_else(|| cluster.member().clock().now(), |l| l.now);
        let input = controller_input(&cluster.view(), leases);
        for (group, proposal) in controller.poll(now, &input) {
            tracing::warn!(group, in_sync = ?proposal.new.in_sync, "a server's lease has run out; its bricks leave their groups");
            bricks.commit(&group, &proposal).await;
        }
    }
}

/// The controller as a server runs it.
#[must_use]
pub fn controller() -> Controller {
    Controller::new(ControllerConfig { lease: LEASE, margin: MARGIN, ..ControllerConfig::default() })
}

/// What the controller decides by.
#[must_use]
pub fn controller_input(view: &ClusterView, leases: Option<NodeLeases>) -> ControllerInput {
    ControllerInput {
        groups: view.groups.iter().map(|(name, (config, _))| (name.clone(), config.clone())).collect(),
        nodes: view.bricks.values().map(|b| (b.id, b.node)).collect(),
        leader_since: leases.as_ref().map(|l| l.leader_since),
        last_heard: leases.map(|l| l.last_heard).unwrap_or_default(),
    }
}
