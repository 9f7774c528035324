//! `peer probe`, `peer detach`, `peer status`.

use super::admin::{Admin, PEER_ALIVE, PEER_ANSWER, host_of_url};
use super::cluster::Change;
use crate::management::{Ask, JoinRequest, PeerStatus, Whoami, ask_async, with_port};
use crate::records::{NodeRecord, node_key};
use anyhow::{Context, Result, bail, ensure};
use brickraft_engine::member::MemberError;
use brickraft_engine::raft::{ConfChange, MemberInfo};
use brickraft_engine::types::NodeId;
use serde_json::{Value, json};
use std::net::ToSocketAddrs;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// How long a new member may take to catch up before it is left a learner.
const CATCH_UP: Duration = Duration::from_secs(40);

impl Admin {
    /// Takes a lone server in: learner first, caught up, then voter.
    pub(super) async fn peer_probe(&self, host: &str) -> Result<Value> {
        ensure!(
            !host.is_empty() && host.len() < 256 && !host.chars().any(|c| c.is_whitespace() || c.is_control()),
            "{host:?} is not a host name"
        );
        let address = with_port(host);
        let host = address.rsplit_once(':').map_or(host, |(h, _)| h).to_owned();
        if let Err(e) = address.to_socket_addrs() {
            bail!("Probe returned with unknown host {host}: {e}");
        }
        let them: Whoami = match ask_async(&address, &Ask::Whoami, PEER_ANSWER).await {
            Ok(them) => them,
            Err(e) => bail!("Probe returned with Transport endpoint is not connected: {e}"),
        };
        if them.member_id == self.node {
            return Ok(json!({ "note": "Probe on localhost not needed" }));
        }
        if them.cluster_id == self.cluster_id {
            return Ok(
                json!({ "note": format!("Host {host} port {} already in peer list", address.rsplit_once(':').map_or("", |(_, p)| p)) }),
            );
        }
        ensure!(them.members <= 1, "{host} is already part of another cluster (of {} servers)", them.members);
        ensure!(them.empty, "{host} has volumes or keys of its own, which it would lose; empty its data directory first");
        let here = self.own_address_towards(&address).await?;
        self.tell_own_address(&here).await?;
        let voters = self.add_member(&host, &address, &them).await?;
        let note = match voters {
            2 => Some(
                "a cluster of two cannot lose either server without stopping writes; a third member fixes it, and needs no bricks: \
                 run `brickraft server` on any small machine and probe it",
            ),
            _ => None,
        };
        Ok(json!({ "voters": voters, "warning": note }))
    }

    /// The address by which the probed server sees us.
    async fn own_address_towards(&self, address: &str) -> Result<String> {
        let stream = tokio::time::timeout(PEER_ALIVE, TcpStream::connect(address)).await.context("connect")??;
        Ok(stream.local_addr()?.ip().to_string())
    }

    /// A lone server without advertised addresses does not know its own; the first probe shows it.
    async fn tell_own_address(&self, here: &str) -> Result<()> {
        let member = self.cluster.member();
        let membership = member.members(true).await.map_err(quorum)?;
        let me = membership.info(self.node).cloned().unwrap_or_default();
        let unusable = |url: &String| host_of_url(url).is_none_or(|h| matches!(h.as_str(), "0.0.0.0" | "[::]"));
        if me.peer_urls.is_empty() || me.peer_urls.iter().all(unusable) {
            let who = self.own_ports();
            let info = MemberInfo {
                name: self.config.name.clone(),
                peer_urls: vec![format!("http://{here}:{}", who.0)],
                client_urls: if self.config.advertise_client_urls.is_empty() {
                    vec![format!("http://{here}:{}", who.1)]
                } else {
                    self.config.advertise_client_urls.clone()
                },
            };
            member.conf_change(ConfChange::Update(self.node, info)).await.map_err(quorum)?;
        }
        let view = self.cluster.read().await?;
        let known = view.nodes.get(&self.node);
        if known.is_none_or(|n| n.address.starts_with("0.0.0.0") || n.address.starts_with("[::]")) {
            let record = NodeRecord {
                id: self.node,
                host: here.to_owned(),
                address: format!("{here}:{}", self.config.listen_brick.as_deref().map_or(0, super::config::port_of)),
            };
            self.cluster.commit(&[], vec![Change::put(node_key(self.node), &record)]).await?;
        }
        Ok(())
    }

    fn own_ports(&self) -> (u16, u16) {
        let port = |urls: &[super::url::Url]| urls.first().map_or(0, super::url::Url::port);
        (port(&self.config.listen_peer), port(&self.config.listen_client))
    }

    async fn add_member(&self, host: &str, address: &str, them: &Whoami) -> Result<usize> {
        let member = self.cluster.member();
        let urls = |told: &[String], port: u16| if told.is_empty() { vec![format!("http://{host}:{port}")] } else { told.to_vec() };
        let info = MemberInfo {
            name: host.to_owned(),
            peer_urls: urls(&them.peer_urls, them.peer_port),
            client_urls: urls(&them.client_urls, them.client_port),
        };
        let id = NodeId(rand::random::<u64>().max(1));
        let membership = member.conf_change(ConfChange::AddLearner(id, info.clone())).await.map_err(quorum)?;
        let members = membership.ids().filter_map(|id| membership.info(id).map(|i| (id, i.peer_urls.clone()))).collect();
        let join = JoinRequest {
            cluster_id: self.cluster_id,
            member_id: id,
            host: host.to_owned(),
            peer_urls: info.peer_urls,
            client_urls: info.client_urls,
            members,
        };
        let joined: Result<Value, _> = ask_async(address, &Ask::Join(join), PEER_ANSWER).await;
        if let Err(e) = joined {
            let _ = member.conf_change(ConfChange::Remove(id)).await;
            bail!("{host} did not join: {e}");
        }
        let record = NodeRecord { id, host: host.to_owned(), address: address.to_owned() };
        self.cluster.commit(&[], vec![Change::put(node_key(id), &record)]).await?;
        self.promote(id, host).await
    }

    /// Waits until the learner has caught up, and lets it vote.
    async fn promote(&self, id: NodeId, host: &str) -> Result<usize> {
        let started = Instant::now();
        loop {
            match self.cluster.member().conf_change(ConfChange::Promote(id)).await {
                Ok(membership) => return Ok(membership.voters.len()),
                Err(MemberError::NotLearner) => return Ok(self.cluster.member().last_status().membership.voters.len()),
                Err(e) if started.elapsed() > CATCH_UP => bail!(
                    "{host} has joined, but did not catch up in {} s, so it does not vote yet ({e}); it is tried again with the next `peer probe`",
                    CATCH_UP.as_secs()
                ),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Takes a server out of the cluster. It must not hold bricks.
    pub(super) async fn peer_detach(&self, host: &str, force: bool) -> Result<Value> {
        let view = self.cluster.read().await?;
        let address = with_port(host);
        let Some(node) = view.nodes.values().find(|n| n.host == host || n.address == address) else {
            bail!("{host} is not part of cluster")
        };
        ensure!(node.id != self.node, "{host} is localhost; detach it from another server");
        if let Some(brick) = view.bricks.values().find(|b| b.node == node.id) {
            bail!(
                "Peer {host} hosts one or more bricks of volume {}. If the peer is in not recoverable state then use `volume delete` first",
                brick.volume
            );
        }
        let membership = self.cluster.member().members(true).await.map_err(quorum)?;
        if membership.voters.len() == 2 && membership.is_voter(node.id) && !force {
            let reachable = ask_async::<Whoami>(&node.address, &Ask::Whoami, PEER_ALIVE).await.is_ok();
            ensure!(reachable, "{host} does not answer; use 'force' to detach it all the same");
        }
        match self.cluster.member().conf_change(ConfChange::Remove(node.id)).await {
            Ok(_) | Err(MemberError::MemberNotFound) => {}
            Err(e) => return Err(quorum(e)),
        }
        self.cluster.commit(&[], vec![Change::Delete(node_key(node.id))]).await?;
        Ok(json!({}))
    }

    pub(super) async fn peers(&self) -> Result<Vec<PeerStatus>> {
        // Without a majority the last known records must do: that is when they are needed most.
        let view = self.cluster.view();
        let status = self.cluster.member().last_status();
        let mut answers = Vec::new();
        for node in view.nodes.values() {
            let local = node.id == self.node;
            let ask = (!local).then(|| {
                let address = node.address.clone();
                tokio::task::spawn_local(async move { ask_async::<Whoami>(&address, &Ask::Whoami, PEER_ALIVE).await.is_ok() })
            });
            answers.push((node.clone(), ask));
        }
        let mut peers = Vec::new();
        for (node, ask) in answers {
            let connected = match ask {
                None => true,
                Some(ask) => ask.await.unwrap_or(false),
            };
            peers.push(PeerStatus {
                local: node.id == self.node,
                connected,
                voter: status.membership.is_voter(node.id),
                leader: status.leader == Some(node.id),
                node,
            });
        }
        Ok(peers)
    }
}

fn quorum(e: MemberError) -> anyhow::Error {
    anyhow::anyhow!("the membership could not be changed: {e} (see `brickraft peer status`)")
}
