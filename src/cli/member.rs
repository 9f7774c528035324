//! `member list | add | remove | update | promote | replace`, with etcdctl's words.

use super::endpoint::{Endpoint, block_on, grid};
use anyhow::{Context, Result, bail, ensure};
use brickraft_net::etcd::client::{Client, Member as Info, Members};
use clap::{Args, Subcommand};
use serde_json::json;
use std::time::{Duration, Instant};

#[derive(Debug, Subcommand)]
pub(crate) enum Member {
    /// All members
    List {
        #[command(flatten)]
        endpoint: Endpoint,
    },
    /// Add a member, before its server is started with --initial-cluster-state existing
    Add {
        name: String,
        /// Comma-separated peer URLs of the new member
        #[arg(long)]
        peer_urls: String,
        /// It gets the log but does not vote
        #[arg(long)]
        learner: bool,
        #[command(flatten)]
        endpoint: Endpoint,
    },
    /// Remove a member
    Remove {
        id: String,
        #[command(flatten)]
        endpoint: Endpoint,
    },
    /// Give a member other peer URLs
    Update {
        id: String,
        /// Comma-separated peer URLs
        #[arg(long)]
        peer_urls: String,
        #[command(flatten)]
        endpoint: Endpoint,
    },
    /// Let a learner vote
    Promote {
        id: String,
        #[command(flatten)]
        endpoint: Endpoint,
    },
    /// Put a new member in the place of a dead one: add it as a learner, wait until it has caught up, let it vote, and only
    /// then remove the dead one
    Replace(Replace),
}

#[derive(Debug, Args)]
pub(crate) struct Replace {
    /// The dead member's id
    old: String,
    /// The new member's name
    name: String,
    /// Comma-separated peer URLs of the new member
    #[arg(long)]
    peer_urls: String,
    /// How long the new member may take to start and catch up, in seconds
    #[arg(long, default_value_t = 3600)]
    wait_s: u64,
    /// Also when the old member still answers
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    endpoint: Endpoint,
}

pub(crate) fn run(command: &Member) -> Result<()> {
    match command {
        Member::List { endpoint } => block_on(async {
            list(&endpoint.connect().await?.member_list().await?, &endpoint.write_out);
            Ok(())
        }),
        Member::Add { name, peer_urls, learner, endpoint } => block_on(async {
            let added = endpoint.connect().await?.member_add(urls(peer_urls), *learner).await?;
            say_added(name, &added);
            Ok(())
        }),
        Member::Remove { id, endpoint } => block_on(async {
            let left = endpoint.connect().await?.member_remove(parse_id(id)?).await?;
            println!("Member {:x} removed from cluster {:x}", parse_id(id)?, left.cluster_id);
            Ok(())
        }),
        Member::Update { id, peer_urls, endpoint } => block_on(async {
            let now = endpoint.connect().await?.member_update(parse_id(id)?, urls(peer_urls)).await?;
            println!("Member {:x} updated in cluster {:x}", parse_id(id)?, now.cluster_id);
            Ok(())
        }),
        Member::Promote { id, endpoint } => block_on(async {
            let now = endpoint.connect().await?.member_promote(parse_id(id)?).await?;
            println!("Member {:x} promoted in cluster {:x}", parse_id(id)?, now.cluster_id);
            Ok(())
        }),
        Member::Replace(replace) => block_on(replace.run()),
    }
}

fn parse_id(text: &str) -> Result<u64> {
    u64::from_str_radix(text, 16).with_context(|| format!("bad member ID arg ({text}), expecting ID in Hex"))
}

fn urls(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|u| !u.is_empty()).map(str::to_owned).collect()
}

fn started(m: &Info) -> &'static str {
    if m.name.is_empty() { "unstarted" } else { "started" }
}

fn list(all: &Members, write_out: &str) {
    let row = |m: &Info| {
        let (peers, clients) = (m.peer_urls.join(","), m.client_urls.join(","));
        vec![format!("{:x}", m.id), started(m).to_owned(), m.name.clone(), peers, clients, m.is_learner.to_string()]
    };
    match write_out {
        "json" => {
            let members: Vec<_> = all.members.iter().map(member_json).collect();
            println!("{}", json!({ "header": { "cluster_id": all.cluster_id }, "members": members }));
        }
        "table" => {
            let rows: Vec<_> = all.members.iter().map(row).collect();
            println!("{}", grid(&["ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER"], &rows));
        }
        _ => all.members.iter().for_each(|m| println!("{}", row(m).join(", "))),
    }
}

fn member_json(m: &Info) -> serde_json::Value {
    let mut value = json!({ "ID": m.id, "name": m.name, "peerURLs": m.peer_urls, "clientURLs": m.client_urls });
    if m.is_learner {
        value["isLearner"] = true.into();
    }
    value
}

/// What etcdctl prints, to be pasted into the new server's environment.
fn say_added(name: &str, added: &Members) {
    println!("Member {:16x} added to cluster {:16x}\n", added.added, added.cluster_id);
    let mut cluster = Vec::new();
    let mut own = Vec::new();
    for m in &added.members {
        let its_name = if m.id == added.added { name } else { &m.name };
        cluster.extend(m.peer_urls.iter().map(|url| format!("{its_name}={url}")));
        if m.id == added.added {
            own.clone_from(&m.peer_urls);
        }
    }
    println!("ETCD_NAME={name:?}");
    println!("ETCD_INITIAL_CLUSTER={:?}", cluster.join(","));
    println!("ETCD_INITIAL_ADVERTISE_PEER_URLS={:?}", own.join(","));
    println!("ETCD_INITIAL_CLUSTER_STATE=\"existing\"");
}

/// What is done next, so that a run that broke off is taken up where it was.
const NOT_IN_SYNC: &str = "etcdserver: can only promote a learner member which is in sync with leader";
const PAUSE: Duration = Duration::from_millis(500);

impl Replace {
    async fn run(&self) -> Result<()> {
        let old = parse_id(&self.old)?;
        let wanted = urls(&self.peer_urls);
        let client = self.endpoint.connect().await?;
        let all = client.member_list().await?;
        let old_member = all.members.iter().find(|m| m.id == old).context("etcdserver: member not found")?;
        if !self.force {
            self.refuse_alive(old_member).await?;
        }
        let new = match all.members.iter().find(|m| m.peer_urls == wanted) {
            // A run that broke off is taken up.
            Some(m) if m.id != old => m.clone(),
            Some(_) => bail!("the new member needs peer URLs of its own: {} are those of the member to be replaced", self.peer_urls),
            None => {
                let added = client.member_add(wanted, true).await?;
                say_added(&self.name, &added);
                println!("\nwaiting for the new member: start its server now");
                added.members.iter().find(|m| m.id == added.added).cloned().context("the new member is not listed")?
            }
        };
        if new.is_learner {
            self.promote(&client, new.id).await?;
        }
        println!("Member {:x} promoted in cluster {:x}", new.id, all.cluster_id);
        client.member_remove(old).await.context("the new member votes; the old one could not be removed")?;
        println!("Member {old:x} removed from cluster {:x}", all.cluster_id);
        Ok(())
    }

    /// A member that lives is not to be replaced by mistake.
    async fn refuse_alive(&self, old: &Info) -> Result<()> {
        for url in &old.client_urls {
            let alive = async { Ok::<_, anyhow::Error>(self.endpoint.open(url).await?.is_alive().await?) };
            let answer = tokio::time::timeout(Duration::from_secs(2), alive).await;
            ensure!(
                !matches!(answer, Ok(Ok(true))),
                "member {:x} answers at {url}: it is not dead; use --force to replace it all the same",
                old.id
            );
        }
        Ok(())
    }

    async fn promote(&self, client: &Client, new: u64) -> Result<()> {
        let started = Instant::now();
        loop {
            match client.member_promote(new).await {
                Ok(_) => return Ok(()),
                Err(e) if e.says("etcdserver: can only promote a learner member") => return Ok(()),
                Err(e) if started.elapsed() >= Duration::from_secs(self.wait_s) => {
                    return Err(e).context("the new member has not caught up; run the command again to go on waiting");
                }
                // Not yet there, or a moment without a leader.
                Err(e) if e.says(NOT_IN_SYNC) || !e.says("etcdserver: member not found") => tokio::time::sleep(PAUSE).await,
                Err(e) => return Err(e.into()),
            }
        }
    }
}
