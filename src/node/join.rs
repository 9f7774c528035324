//! How a lone server becomes a member of a cluster that probes it: it is told who the members are, keeps that
//! in `join.json`, drops its own empty cluster and starts anew. A server that is started with
//! `--initial-cluster-state existing` asks for the same by itself.

use super::config::ServerConfig;
use super::member::peer_address;
use crate::management::JoinRequest;
use anyhow::{Context, Result, bail};
use brickraft_net::peers::{self, MembersAnswer, PeerTls};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The file's content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinFile {
    /// What the probing server said.
    pub request: JoinRequest,
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("join.json")
}

/// How long the members that `--initial-cluster` names may take to answer and to know of this one.
const FIND: Duration = Duration::from_secs(20);

/// etcd's recipe, `--initial-cluster-state existing`: asks the running members for the membership, and finds itself in
/// it by its peer URLs.
///
/// # Errors
/// When no member answers in time, none knows of this one, or they are of the other kind.
pub async fn find_self(config: &ServerConfig, tls: Option<&PeerTls>) -> Result<JoinRequest> {
    let me = config.initial_cluster.iter().find(|m| m.name == config.name);
    let own = me.map(|m| m.peer_urls.clone()).context("--initial-cluster does not name this member")?;
    let others = config.initial_cluster.iter().filter(|m| m.name != config.name);
    let addresses: Vec<_> = others.flat_map(|m| &m.peer_urls).filter_map(|u| peer_address(std::slice::from_ref(u))).collect();
    let started = Instant::now();
    loop {
        let mut known = None;
        for address in &addresses {
            match peers::ask_members(address, tls).await {
                Ok(answer) => known = Some(answer),
                Err(e) => {
                    tracing::debug!(address = %address.address, %e, "ask for the membership");
                    continue;
                }
            }
            if let Some(answer) = known.as_ref().filter(|answer| answer.kind != config.kind()) {
                bail!("{}", peers::mixed(answer.cluster_id, answer.kind, config.kind()));
            }
            if let Some(request) = known.as_ref().and_then(|answer| own_place(config, answer, &own)) {
                return Ok(request);
            }
        }
        if started.elapsed() < FIND {
            tokio::time::sleep(Duration::from_millis(300)).await;
            continue;
        }
        match known {
            None => bail!(
                "cannot fetch cluster info from peer urls: nobody answers at {}",
                addresses.iter().map(|a| a.address.as_str()).collect::<Vec<_>>().join(", ")
            ),
            Some(answer) => {
                let urls: Vec<_> = answer.membership.ids().filter_map(|id| answer.membership.info(id)).flat_map(|i| &i.peer_urls).collect();
                bail!(
                    "no member of cluster {:016x} has the peer URLs {own:?} (it has {urls:?}); add this one first: etcdctl member add {} --peer-urls={}",
                    answer.cluster_id,
                    config.name,
                    own.join(",")
                )
            }
        }
    }
}

fn own_place(config: &ServerConfig, answer: &MembersAnswer, own: &[String]) -> Option<JoinRequest> {
    let sorted = |urls: &[String]| {
        let mut urls: Vec<String> = urls.iter().map(|u| u.trim_end_matches('/').to_owned()).collect();
        urls.sort();
        urls
    };
    let membership = &answer.membership;
    let info = |id| membership.info(id);
    let member_id = membership.ids().find(|id| info(*id).is_some_and(|i| sorted(&i.peer_urls) == sorted(own)))?;
    Some(JoinRequest {
        cluster_id: answer.cluster_id,
        member_id,
        host: config.name.clone(),
        peer_urls: own.to_vec(),
        client_urls: config.advertise_client_urls.clone(),
        members: membership.ids().filter_map(|id| info(id).map(|i| (id, i.peer_urls.clone()))).collect(),
    })
}

/// Where the member's own data lies.
#[must_use]
pub fn member_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("member")
}

/// The store and the log in [`member_dir`].
pub const STORE: &str = "kv.redb";
/// See [`STORE`].
pub const LOG: &str = "log";

/// Whether there is a member in this directory already, or one on its way into a cluster. A start that failed before it made anything, a port
/// being in use perhaps, left none: the next one's flags may be better.
#[must_use]
pub fn is_member(data_dir: &Path) -> bool {
    // What cannot be looked at may well be there.
    let is_there = |path: PathBuf| !path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    is_there(path(data_dir)) || [STORE, LOG].iter().any(|name| is_there(member_dir(data_dir).join(name)))
}

/// Writes the file, durably.
///
/// # Errors
/// The file system's own.
pub fn write(data_dir: &Path, file: &JoinFile) -> Result<()> {
    let temporary = data_dir.join("join.json.tmp");
    let mut f = std::fs::File::create(&temporary).with_context(|| format!("create {}", temporary.display()))?;
    f.write_all(&serde_json::to_vec_pretty(file)?).and_then(|()| f.sync_all()).with_context(|| format!("write {}", temporary.display()))?;
    std::fs::rename(&temporary, path(data_dir)).context("rename join.json into place")?;
    std::fs::File::open(data_dir).and_then(|d| d.sync_all()).with_context(|| format!("sync {}", data_dir.display()))
}

/// Reads the file; `None` where there is none.
///
/// # Errors
/// It is there and cannot be read.
pub fn read(data_dir: &Path) -> Result<Option<JoinFile>> {
    let path = path(data_dir);
    match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
            format!("{} cannot be read; if it is damaged, empty the data directory and probe the server again", path.display())
        }),
    }
}
