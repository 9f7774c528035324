//! What becomes of a member that does not belong where it is: removed from its cluster, it says so and ends, and does not
//! start again; one of `etcd` among those of `brickraft server`, or the other way round, says so and ends.

use super::join::member_dir;
use super::member::peer_address;
use anyhow::{Context, Result, bail};
use brickraft_engine::member::{MemberHandle, MemberStatus};
use brickraft_engine::types::Index;
use brickraft_net::peers::{self, Kind, PeerTls, Who};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a member may be without a leader before it asks the others whether it still belongs.
const ASK_AFTER: Duration = Duration::from_secs(3);
/// Between two looks at a status that does not change.
const LOOK: Duration = Duration::from_millis(500);

fn marker(data_dir: &Path) -> PathBuf {
    member_dir(data_dir).join("removed")
}

/// Refuses the data of a member that was removed.
///
/// # Errors
/// It was.
pub fn check(data_dir: &Path) -> Result<()> {
    let path = marker(data_dir);
    match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
        Ok(text) => bail!("{}", text.trim_end()),
    }
}

/// Why a member does not belong where it is.
enum Verdict {
    /// It was removed.
    Removed,
    /// The others, who have a leader, were started as something else.
    Mixed(Kind),
}

/// Returns when this member has been removed, or when it turns out that the cluster is of the other kind; with what is to be
/// said.
pub async fn watch(member: MemberHandle, who: Who, data_dir: PathBuf, tls: Option<PeerTls>) -> anyhow::Error {
    let mut status = member.status_watch();
    // A joiner may be sent a state from before it was added; only who was a member can have been removed.
    let mut member_at: Option<Index> = None;
    let mut leaderless = Duration::ZERO;
    // Whoever has had a leader is one of those that others may not fit to.
    let mut had_leader = false;
    let verdict = loop {
        let without_leader = {
            let now = status.borrow_and_update();
            if now.membership.contains(now.id) {
                member_at = Some(now.applied);
            } else if member_at.is_some() {
                break Verdict::Removed;
            }
            now.leader.is_none()
        };
        had_leader |= !without_leader;
        leaderless = if without_leader { leaderless } else { Duration::ZERO };
        match tokio::time::timeout(LOOK, status.changed()).await {
            Err(_) => leaderless += LOOK,
            Ok(Ok(())) => continue,
            // The member has ended: the driver says why.
            Ok(Err(_)) => std::future::pending().await,
        }
        if leaderless < ASK_AFTER {
            continue;
        }
        leaderless = Duration::ZERO;
        let now = status.borrow().clone();
        match ask_others(&now, member_at, who.kind, tls.as_ref()).await {
            Some(Verdict::Mixed(_)) if had_leader => {}
            Some(verdict) => break verdict,
            None => {}
        }
    };
    if let Verdict::Mixed(theirs) = verdict {
        return anyhow::Error::msg(peers::mixed(who.cluster_id, theirs, who.kind));
    }
    // A member that learns of its removal by applying it lets its last answers out.
    tokio::time::sleep(LOOK).await;
    let text = format!(
        "the member {:016x} has been permanently removed from the cluster; the data-dir used by this member must be removed: {}",
        who.id.0,
        data_dir.display()
    );
    tracing::error!("{text}");
    if let Err(e) = std::fs::write(marker(&data_dir), &text) {
        tracing::warn!(%e, "note the removal");
    }
    anyhow::Error::msg(text)
}

/// Asks those that this member takes for its cluster. One that has applied at least what this one has, and does not know it
/// any more, proves that it was removed, since what it belongs by has been applied there too.
async fn ask_others(me: &MemberStatus, member_at: Option<Index>, kind: Kind, tls: Option<&PeerTls>) -> Option<Verdict> {
    for id in me.membership.ids().filter(|id| *id != me.id) {
        let urls = me.membership.info(id).map(|i| i.peer_urls.clone()).unwrap_or_default();
        let Some(address) = peer_address(&urls) else { continue };
        let Ok(answer) = peers::ask_members(&address, tls).await else { continue };
        if answer.cluster_id != me.cluster_id {
            continue;
        }
        if answer.kind != kind && answer.has_leader {
            return Some(Verdict::Mixed(answer.kind));
        }
        if member_at.is_some_and(|at| answer.applied >= at) && !answer.membership.contains(me.id) {
            return Some(Verdict::Removed);
        }
    }
    None
}
