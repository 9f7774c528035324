//! `snapshot restore`: the data directory of a new cluster's member, out of a backup.

use super::cluster::{all_records, build};
use super::join;
use crate::records::ClusterView;
use anyhow::{Context, Result, anyhow, bail, ensure};
use brickraft_engine::io::disk::DiskIo;
use brickraft_engine::kv::types::Keyspace;
use brickraft_engine::kv::{BackupReader, Refound, Store};
use brickraft_engine::member::identity::{Identity, InitialMember, cluster_id_of, member_id};
use brickraft_engine::member::refound;
use brickraft_engine::raft::{MemberInfo, Membership};
use brickraft_engine::types::NodeId;
use brickraft_engine::wal::WalConfig;
use std::collections::BTreeSet;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

/// The store's cache while it is filled, in bytes.
const CACHE_BYTES: usize = 64 << 20;

/// What is to be made.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names are those of the flags")]
pub struct Restore<'a> {
    pub data_dir: &'a Path,
    pub name: &'a str,
    pub members: &'a [InitialMember],
    pub token: &'a str,
    pub advertise_peer_urls: &'a [String],
    pub bump_revision: u64,
    pub mark_compacted: bool,
}

/// What was made.
#[derive(Debug)]
pub struct Restored {
    /// The member.
    pub identity: Identity,
    /// What the backup knows of volumes. Their files are in the bricks.
    pub records: ClusterView,
    /// Servers with bricks that are no members of the new cluster.
    pub missing: Vec<String>,
}

/// Makes the data directory; all or nothing: it gets its name last.
///
/// A member at a peer URL that the old cluster knew keeps the id that it had there, because volumes know their servers
/// by it. The cluster's id is new, so that nobody of the old cluster is let in.
///
/// # Errors
/// Flags that do not fit each other, a directory that is in use, a damaged backup, a full disk.
pub fn restore<R: Read + Seek>(plan: &Restore<'_>, backup: &mut BackupReader<R>) -> Result<Restored> {
    let me = plan.members.iter().find(|m| m.name == plan.name);
    let me =
        me.with_context(|| format!("couldn't find local name {:?} in the initial cluster configuration (--initial-cluster)", plan.name))?;
    ensure!(
        sorted(&me.peer_urls) == sorted(plan.advertise_peer_urls),
        "--initial-cluster has {:?} for {:?} but --initial-advertise-peer-urls is {:?}",
        me.peer_urls,
        plan.name,
        plan.advertise_peer_urls
    );
    let dir = plan.data_dir;
    match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => bail!("data-dir {} could not be read: {e}", dir.display()),
        Ok(mut entries) => ensure!(entries.next().is_none(), "data-dir {} not empty or could not be read", dir.display()),
    }
    let summary = backup.summary().map_err(|e| anyhow!("{e}"))?;
    let old: Membership = match &summary.membership {
        Some(bytes) => postcard::from_bytes(bytes).context("the backup's membership cannot be read")?,
        None => Membership::default(),
    };
    let founders = founders(plan, &old, summary.cluster_id);
    let member_id =
        founders.voters.iter().find(|(_, info)| info.name == plan.name).map(|(id, _)| *id).context("two members have one name")?;
    // Members that restored something else do not fit, and must not meet.
    let lineage =
        format!("{}\nrestored {:016x} {} {} {}", plan.token, summary.cluster_id, summary.hash, plan.bump_revision, plan.mark_compacted);
    let identity = Identity { cluster_id: cluster_id_of(&founders, &lineage), member_id, name: plan.name.to_owned() };
    let mut making = dir.as_os_str().to_owned();
    making.push(".restoring");
    let making = PathBuf::from(making);
    match std::fs::remove_dir_all(&making) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => bail!("remove {}, left by a restore that did not end: {e}", making.display()),
        _ => {}
    }
    let made = make(plan, backup, &making, &founders, &identity).and_then(|records| {
        let _ = std::fs::remove_dir(dir);
        std::fs::rename(&making, dir).with_context(|| format!("rename {} to {}", making.display(), dir.display()))?;
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::File::open(parent).and_then(|d| d.sync_all()).with_context(|| format!("sync {}", parent.display()))?;
        Ok(records)
    });
    if made.is_err() {
        let _ = std::fs::remove_dir_all(&making);
    }
    let records = made?;
    let bricks = records.bricks.values().filter(|b| !founders.contains(b.node));
    let missing: BTreeSet<String> = bricks.map(|b| b.host.clone()).collect();
    Ok(Restored { identity, records, missing: missing.into_iter().collect() })
}

fn sorted(urls: &[String]) -> Vec<&str> {
    let mut urls: Vec<&str> = urls.iter().map(|u| u.trim_end_matches('/')).collect();
    urls.sort_unstable();
    urls
}

fn founders(plan: &Restore<'_>, old: &Membership, old_cluster: u64) -> Membership {
    let mut founders = Membership::default();
    for m in plan.members {
        let known = old.ids().find(|id| old.info(*id).is_some_and(|info| sorted(&info.peer_urls) == sorted(&m.peer_urls)));
        let fresh = || member_id(&m.peer_urls, plan.token, old_cluster);
        let id: NodeId = known.filter(|id| !founders.voters.contains_key(id)).unwrap_or_else(fresh);
        let info = MemberInfo { name: m.name.clone(), peer_urls: m.peer_urls.clone(), client_urls: Vec::new() };
        founders.voters.insert(id, info);
    }
    founders
}

fn make<R: Read + Seek>(
    plan: &Restore<'_>,
    backup: &mut BackupReader<R>,
    dir: &Path,
    founders: &Membership,
    identity: &Identity,
) -> Result<ClusterView> {
    let member = join::member_dir(dir);
    let log = member.join(super::join::LOG);
    std::fs::create_dir_all(&log).with_context(|| format!("create {}", log.display()))?;
    let store = Store::open(&member.join(super::join::STORE), CACHE_BYTES).map_err(|e| anyhow!("{e}"))?;
    backup.restore(&store).map_err(|e| anyhow!("{e}"))?;
    let (all, _) = store.range(Keyspace::System, &all_records()).map_err(|e| anyhow!("{e}"))?;
    let io = DiskIo::open(&log).with_context(|| format!("open the log's directory {}", log.display()))?;
    let options = Refound { bump_revision: plan.bump_revision, mark_compacted: plan.mark_compacted, ..Refound::default() };
    refound(io, WalConfig::default(), &store, founders, options)?;
    identity.claim(&member)?;
    Ok(build(&all.kvs))
}
