//! `peer` and `pool`.

use super::Context_;
use super::print::table;
use crate::management::{Ask, PeerStatus};
use anyhow::{Result, anyhow};
use clap::Subcommand;
use serde_json::Value;

#[derive(Debug, Subcommand)]
pub(crate) enum Peer {
    /// Take a server into the cluster
    Probe { host: String },
    /// Take a server out of the cluster
    Detach {
        host: String,
        /// "force": also when it does not answer
        #[arg(value_parser = ["force"])]
        force: Option<String>,
    },
    /// The other servers
    Status,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Pool {
    /// All servers
    List,
}

pub(crate) fn run(c: &Context_, command: &Peer) -> Result<()> {
    match command {
        Peer::Probe { host } => {
            let answer: Value = c.ask(&Ask::PeerProbe { host: host.clone() }).map_err(|e| anyhow!("peer probe: failed: {e}"))?;
            c.print.show(&answer, |a| {
                let mut text = match a["note"].as_str() {
                    Some(note) => format!("peer probe: success. {note}\n"),
                    None => "peer probe: success\n".to_owned(),
                };
                if let Some(warning) = a["warning"].as_str() {
                    text.push_str(&format!("note: {warning}\n"));
                }
                text
            });
        }
        Peer::Detach { host, force } => {
            if !c.confirm("All clients mounted through the peer which is getting detached need to be remounted using one of the other active peers in the trusted storage pool to ensure client gets notification on any changes done on the gluster configuration and if the same has been done do you want to proceed?")? {
                return Ok(());
            }
            let ask = Ask::PeerDetach { host: host.clone(), force: force.is_some() };
            let answer: Value = c.ask(&ask).map_err(|e| anyhow!("peer detach: failed: {e}"))?;
            c.print.show(&answer, |_| "peer detach: success".into());
        }
        Peer::Status => {
            let peers: Vec<PeerStatus> = c.ask(&Ask::PeerStatus).map_err(|e| anyhow!("peer status: failed: {e}"))?;
            c.print.show(&peers, |peers| {
                let others: Vec<_> = peers.iter().filter(|p| !p.local).collect();
                let mut text = format!("Number of Peers: {}\n", others.len());
                for p in others {
                    let state = if p.voter { "Peer in Cluster" } else { "Peer is catching up" };
                    let link = if p.connected { "Connected" } else { "Disconnected" };
                    text.push_str(&format!("\nHostname: {}\nUuid: {:016x}\nState: {state} ({link})\n", p.node.host, p.node.id.0));
                }
                text
            });
        }
    }
    Ok(())
}

pub(crate) fn pool(c: &Context_, command: &Pool) -> Result<()> {
    let Pool::List = command;
    let peers: Vec<PeerStatus> = c.ask(&Ask::PoolList).map_err(|e| anyhow!("pool list: failed: {e}"))?;
    c.print.show(&peers, |peers| {
        let rows: Vec<_> = peers
            .iter()
            .map(|p| {
                let host = if p.local { "localhost".to_owned() } else { p.node.host.clone() };
                let role = if p.leader {
                    "leader"
                } else if p.voter {
                    "voter"
                } else {
                    "learner"
                };
                vec![format!("{:016x}", p.node.id.0), host, if p.connected { "Connected" } else { "Disconnected" }.into(), role.into()]
            })
            .collect();
        table(&["UUID", "Hostname", "State", "Role"], &rows)
    });
    Ok(())
}
