//! `volume create`, `start`, `stop`, `delete`, `info`, `status`, `heal`, `scrub`, and what a mount asks.

use super::admin::{Admin, PEER_ALIVE, PEER_ANSWER, check_brick_path};
use super::cluster::{Change, Expect};
use crate::management::{Ask, BrickName, BrickStatus, HealReport, RunningBrick, VolumeInfo, VolumeStatusReport, VolumeView, with_port};
use crate::records::{BrickRecord, BucketTable, ClusterView, VolumeRecord, VolumeStatus, brick_key, group_key, volume_key};
use anyhow::{Context, Result, bail, ensure};
use brickraft_engine::types::NodeId;
use brickraft_fs::replica::{AdminRequest, BrickId, GroupConfig, GroupInfo};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, ToSocketAddrs};

/// GlusterFS's bound.
const NAME_BYTES_MAX: usize = 255;
/// Copies of one file at most.
const REPLICA_MAX: usize = 16;

fn check_name(name: &str) -> Result<()> {
    ensure!(!name.is_empty(), "volume name must not be empty");
    ensure!(name.len() <= NAME_BYTES_MAX, "Volume name exceeds {NAME_BYTES_MAX} characters");
    ensure!(
        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'),
        "Volume name should not contain \"{name}\": only letters, digits, - and _"
    );
    ensure!(!name.starts_with('-') && name != "all", "Volume name should not be \"{name}\"");
    Ok(())
}

fn exists<'a>(view: &'a ClusterView, name: &str) -> Result<&'a VolumeRecord> {
    view.volumes.get(name).with_context(|| format!("Volume {name} does not exist"))
}

fn brick_names(view: &ClusterView, ids: impl IntoIterator<Item = BrickId>) -> Vec<BrickName> {
    let name = |id| view.bricks.get(&id).map_or_else(|| format!("{id:016x}"), |b| format!("{}:{}", b.host, b.path));
    ids.into_iter().map(|id| BrickName { id, name: name(id) }).collect()
}

fn addresses(host: &str) -> BTreeSet<IpAddr> {
    let name = with_port(host.trim_start_matches('[').trim_end_matches(']'));
    name.to_socket_addrs().map(|a| a.map(|a| a.ip()).collect()).unwrap_or_default()
}

impl Admin {
    /// The server that `host` names.
    fn find_node(&self, view: &ClusterView, host: &str) -> Result<NodeId> {
        if let Some(node) = view.nodes.values().find(|n| n.host == host) {
            return Ok(node.id);
        }
        let wanted = addresses(host);
        ensure!(!wanted.is_empty(), "Host {host} is not known: its name cannot be resolved");
        let same = |other: &str| !addresses(other).is_disjoint(&wanted);
        if let Some(node) = view.nodes.values().find(|n| same(&n.host) || n.address.rsplit_once(':').is_some_and(|(h, _)| same(h))) {
            return Ok(node.id);
        }
        // A lone server may be called by any of its own addresses. (Others that have not written their records yet count.)
        let lone = self.cluster.member().last_status().membership.ids().count() <= 1;
        if lone && wanted.iter().any(|ip| std::net::TcpListener::bind((*ip, 0)).is_ok()) {
            return Ok(self.node);
        }
        bail!("Host {host} is not in 'Peer in Cluster' state (brickraft peer probe {host})")
    }

    pub(super) async fn volume_create(&self, name: &str, replica: usize, bricks: &[String], force: bool) -> Result<Value> {
        check_name(name)?;
        ensure!(!bricks.is_empty(), "volume create: {name}: no bricks named");
        ensure!((1..=REPLICA_MAX).contains(&replica), "replica count should be from 1 to {REPLICA_MAX}");
        ensure!(
            bricks.len().is_multiple_of(replica),
            "number of bricks is not a multiple of replica count ({} bricks, replica {replica})",
            bricks.len()
        );
        ensure!(
            bricks.len() == replica,
            "a volume of more than one replica group ({} bricks, replica {replica}) is not supported yet",
            bricks.len()
        );
        let view = self.cluster.read().await?;
        ensure!(!view.volumes.contains_key(name), "Volume {name} already exists");
        let volume_id = format!("{:032x}", rand::random::<u128>());
        let records = self.place(&view, name, bricks)?;
        let nodes: BTreeSet<NodeId> = records.iter().map(|b| b.node).collect();
        ensure!(
            force || replica == 1 || nodes.len() == records.len(),
            "Multiple bricks of a replicate volume are present on the same server. This setup is not optimal. Bricks should be on different nodes to have best fault tolerant configuration. \
             Use 'force' at the end of the command if you want to override this behavior."
        );
        let mut prepared = Vec::new();
        for mut record in records {
            let ask = Ask::BrickPrepare { volume: volume_id.clone(), brick: record.id, path: record.path.clone(), force };
            match self.ask_node::<Value>(&view, record.node, ask, PEER_ANSWER).await {
                Ok(made) => record.on_root = made["on_root"].as_bool().unwrap_or(false),
                Err(e) => {
                    self.release(&view, &volume_id, &prepared).await;
                    return Err(e.context(format!("{}:{}", record.host, record.path)));
                }
            }
            prepared.push(record);
        }
        let ids: Vec<BrickId> = prepared.iter().map(|b| b.id).collect();
        let volume = VolumeRecord {
            id: volume_id.clone(),
            name: name.to_owned(),
            replica,
            status: VolumeStatus::Created,
            groups: vec![ids.clone()],
            buckets: BucketTable::single(),
            options: BTreeMap::new(),
        };
        let group = GroupConfig::initial(&ids, ids.iter().map(|&b| (b, 0)).collect());
        let mut changes = vec![Change::put(volume_key(name), &volume), Change::put(group_key(name, 0), &group)];
        changes.extend(prepared.iter().map(|b| Change::put(brick_key(b.id), b)));
        if !self.cluster.commit(&[Expect::Absent(volume_key(name))], changes).await? {
            self.release(&view, &volume_id, &prepared).await;
            bail!("Volume {name} already exists");
        }
        let warning = (replica == 2 && view.nodes.len() == 2).then_some(
            "with two servers, losing either stops writes; probe a third server (it needs no bricks) before you rely on this volume",
        );
        Ok(json!({ "warning": warning }))
    }

    /// Reads `HOST:/DIR` and finds the servers.
    fn place(&self, view: &ClusterView, name: &str, bricks: &[String]) -> Result<Vec<BrickRecord>> {
        let mut records: Vec<BrickRecord> = Vec::new();
        for brick in bricks {
            let Some((host, path)) = brick.split_once(":/").map(|(h, p)| (h, format!("/{}", p.trim_end_matches('/')))) else {
                bail!("Wrong brick type: {brick}, use <HOSTNAME>:<export-dir-abs-path>");
            };
            ensure!(!host.is_empty(), "Wrong brick type: {brick}, use <HOSTNAME>:<export-dir-abs-path>");
            check_brick_path(&path)?;
            let node = self.find_node(view, host)?;
            ensure!(!records.iter().any(|b| b.node == node && b.path == path), "Found duplicate exports {brick}");
            if let Some(used) = view.bricks.values().find(|b| b.node == node && b.path == path) {
                bail!("{brick} is already part of a volume ({})", used.volume);
            }
            records.push(BrickRecord {
                id: rand::random::<u64>().max(1),
                volume: name.to_owned(),
                group: 0,
                node,
                host: host.to_owned(),
                path,
                on_root: false,
            });
        }
        Ok(records)
    }

    /// Gives directories back; what does not answer is left as it is, and says so when it is used again.
    async fn release(&self, view: &ClusterView, volume: &str, bricks: &[BrickRecord]) {
        for b in bricks {
            let ask = Ask::BrickRelease { volume: volume.to_owned(), brick: b.id, path: b.path.clone() };
            if let Err(e) = self.ask_node::<Value>(view, b.node, ask, PEER_ANSWER).await {
                tracing::warn!(brick = %format_args!("{}:{}", b.host, b.path), %e, "the brick's directory still carries the volume's mark");
            }
        }
    }

    async fn set_status(&self, name: &str, from: &dyn Fn(VolumeStatus) -> Result<()>, to: VolumeStatus) -> Result<()> {
        // Nothing else writes a volume's record without holding `one_at_a_time` here or on another server, so a
        // lost race is rare and a plain retry settles it.
        for _ in 0..5 {
            let view = self.cluster.read().await?;
            let volume = exists(&view, name)?;
            from(volume.status)?;
            let mut changed = volume.clone();
            changed.status = to;
            let (_, group_revision) = view.groups.get(&group_key(name, 0)).context("the volume has no group")?;
            // The group's key stands for the volume: it cannot have been deleted and made anew in between.
            if self
                .cluster
                .commit(&[Expect::At(group_key(name, 0), *group_revision)], vec![Change::put(volume_key(name), &changed)])
                .await?
            {
                return Ok(());
            }
        }
        bail!("Volume {name} is being changed by somebody else; try again")
    }

    pub(super) async fn volume_start(&self, name: &str) -> Result<Value> {
        let from = |s| match s {
            VolumeStatus::Started => bail!("Volume {name} already started"),
            _ => Ok(()),
        };
        self.set_status(name, &from, VolumeStatus::Started).await?;
        Ok(json!({}))
    }

    pub(super) async fn volume_stop(&self, name: &str) -> Result<Value> {
        let from = |s| match s {
            VolumeStatus::Started => Ok(()),
            _ => bail!("Volume {name} is not in the started state"),
        };
        self.set_status(name, &from, VolumeStatus::Stopped).await?;
        Ok(json!({}))
    }

    pub(super) async fn volume_delete(&self, name: &str) -> Result<Value> {
        let view = self.cluster.read().await?;
        let volume = exists(&view, name)?.clone();
        ensure!(volume.status != VolumeStatus::Started, "Volume {name} has been started. Volume needs to be stopped before deletion.");
        let bricks: Vec<BrickRecord> = view.bricks.values().filter(|b| b.volume == name).cloned().collect();
        let mut changes = vec![Change::Delete(volume_key(name))];
        changes.extend((0..volume.groups.len()).map(|g| Change::Delete(group_key(name, g))));
        changes.extend(bricks.iter().map(|b| Change::Delete(brick_key(b.id))));
        self.cluster.commit(&[], changes).await?;
        self.release(&view, &volume.id, &bricks).await;
        Ok(json!({}))
    }

    fn select(view: &ClusterView, name: Option<&str>) -> Result<Vec<VolumeRecord>> {
        match name {
            None | Some("all") => Ok(view.volumes.values().cloned().collect()),
            Some(name) => Ok(vec![exists(view, name)?.clone()]),
        }
    }

    pub(super) async fn volume_info(&self, name: Option<&str>) -> Result<Vec<VolumeInfo>> {
        let view = self.cluster.read().await?;
        let volumes = Self::select(&view, name)?.into_iter();
        Ok(volumes.map(|volume| VolumeInfo { bricks: brick_names(&view, volume.groups.iter().flatten().copied()), volume }).collect())
    }

    pub(super) async fn volume_status(&self, name: Option<&str>) -> Result<Vec<VolumeStatusReport>> {
        let view = self.cluster.view();
        let volumes = Self::select(&view, name)?;
        if let (Some(name), Some(v)) = (name, volumes.first()) {
            ensure!(v.status == VolumeStatus::Started || name == "all", "Volume {name} is not started");
        }
        let wanted: BTreeSet<BrickId> = volumes.iter().flat_map(|v| v.groups.iter().flatten().copied()).collect();
        let nodes: BTreeSet<NodeId> = wanted.iter().filter_map(|b| view.bricks.get(b)).map(|b| b.node).collect();
        let mut running: BTreeMap<BrickId, RunningBrick> = BTreeMap::new();
        for node in nodes {
            if let Ok(bricks) = self.ask_node::<Vec<RunningBrick>>(&view, node, Ask::BrickStatus, PEER_ALIVE).await {
                running.extend(bricks.into_iter().map(|b| (b.id, b)));
            }
        }
        let report = |v: VolumeRecord| {
            let config = |g: usize| view.groups.get(&group_key(&v.name, g)).map(|(c, _)| c.clone()).unwrap_or_default();
            let mut bricks = Vec::new();
            for (g, ids) in v.groups.iter().enumerate() {
                let config = config(g);
                for name in brick_names(&view, ids.iter().copied()) {
                    let here = running.get(&name.id);
                    let online = here.is_some_and(|b| b.error.is_none());
                    let state = brick_state(&config, name.id, here.map(|b| b.incarnation));
                    let error = here.and_then(|b| b.error.clone());
                    bricks.push(BrickStatus {
                        name: name.name,
                        id: name.id,
                        online,
                        state: state.into(),
                        pid: here.map(|b| b.pid).filter(|_| online),
                        port: here.map(|b| b.port).filter(|_| online),
                        error,
                    });
                }
            }
            VolumeStatusReport { epochs: (0..v.groups.len()).map(|g| config(g).epoch).collect(), name: v.name.clone(), bricks }
        };
        Ok(volumes.into_iter().filter(|v| v.status == VolumeStatus::Started).map(report).collect())
    }

    async fn ask_primaries(&self, name: &str, request: AdminRequest) -> Result<HealReport> {
        let view = self.cluster.read().await?;
        let volume = exists(&view, name)?.clone();
        ensure!(volume.status == VolumeStatus::Started, "Volume {name} is not started");
        let mut groups: Vec<GroupInfo> = Vec::new();
        for g in 0..volume.groups.len() {
            let (config, _) = view.groups.get(&group_key(name, g)).context("the volume has no group")?;
            let brick = view.bricks.get(&config.primary).context("the group's primary is not known")?;
            let ask = Ask::BrickAdmin { brick: brick.id, request };
            groups.push(
                self.ask_node(&view, brick.node, ask, PEER_ANSWER)
                    .await
                    .with_context(|| format!("{}:{} (primary)", brick.host, brick.path))?,
            );
        }
        Ok(HealReport { name: name.to_owned(), bricks: brick_names(&view, volume.groups.iter().flatten().copied()), groups })
    }

    pub(super) async fn volume_heal(&self, name: &str, full: bool) -> Result<HealReport> {
        self.ask_primaries(name, if full { AdminRequest::HealFull } else { AdminRequest::Heal }).await
    }

    pub(super) async fn volume_heal_info(&self, name: &str) -> Result<HealReport> {
        self.ask_primaries(name, AdminRequest::Info).await
    }

    pub(super) async fn volume_scrub(&self, name: &str) -> Result<HealReport> {
        self.ask_primaries(name, AdminRequest::Scrub).await
    }

    /// From what this server last saw: a mount asks exactly when the majority may be away, and bricks refuse old epochs.
    pub(super) fn volume_view(&self, name: &str) -> Result<VolumeView> {
        let view = self.cluster.view();
        let volume = exists(&view, name)?.clone();
        let groups = (0..volume.groups.len()).filter_map(|g| view.groups.get(&group_key(name, g)).map(|(c, _)| c.clone())).collect();
        let bricks = volume.groups.iter().flatten().filter_map(|&b| view.brick_address(b).map(|a| (b, a.to_owned()))).collect();
        Ok(VolumeView { volume, groups, bricks, servers: view.nodes.values().map(|n| n.address.clone()).collect() })
    }
}

/// `running` is the incarnation under which the brick runs, if it does: one that the group does not know is not in
/// sync, whatever its predecessor was.
fn brick_state(config: &GroupConfig, brick: BrickId, running: Option<u64>) -> &'static str {
    let in_sync = match running {
        Some(incarnation) => config.holds(brick, incarnation),
        None => config.in_sync.contains(&brick),
    };
    match (config.primary == brick, in_sync, running.is_some()) {
        (true, true, _) => "primary",
        (false, true, _) => "in sync",
        (_, false, true) => "healing",
        (_, false, false) => "out of sync",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_refused() {
        for good in ["rep", "a-b_c9", "0"] {
            check_name(good).expect(good);
        }
        for bad in ["", "a/b", "a b", "ü", "-x", "all", "a:b", &"x".repeat(256)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
