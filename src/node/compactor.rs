//! `--auto-compaction-mode`: history that nobody asked to be kept is compacted by the leader.

use super::config::AutoCompaction;
use brickraft_engine::kv::types::{Command, Keyspace};
use brickraft_engine::member::MemberHandle;
use brickraft_engine::types::Revision;
use std::collections::VecDeque;
use std::time::Duration;

/// In mode `revision` the leader looks so often (as etcd's does).
const REVISION_INTERVAL: Duration = Duration::from_secs(300);
/// Looks in one period of mode `periodic`.
const LOOKS: u32 = 10;
/// A shorter pause would only cost.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// etcd looks once an hour where the period is longer.
const PERIOD_MAX: Duration = Duration::from_secs(3600);

/// Runs for as long as the member.
pub async fn run(member: MemberHandle, mode: AutoCompaction) {
    let interval = match mode {
        AutoCompaction::Off => return,
        AutoCompaction::Revision(_) => REVISION_INTERVAL,
        AutoCompaction::Periodic(period) => (period.min(PERIOD_MAX) / LOOKS).max(INTERVAL_MIN),
    };
    let mut history = History::default();
    loop {
        tokio::time::sleep(interval).await;
        let status = member.last_status();
        if status.stopped.is_some() {
            return;
        }
        let now = member.store().revision(Keyspace::User);
        let target = match mode {
            AutoCompaction::Off => return,
            AutoCompaction::Revision(kept) => Revision(now.0.saturating_sub(kept)),
            AutoCompaction::Periodic(period) => history.look(now, period.div_duration_f64(interval).ceil() as usize),
        };
        // Every member remembers, so that a new leader goes on where the old one was.
        if status.is_leader() && target > member.store().compact_revision(Keyspace::User) {
            match member.propose(Command::Compact { keyspace: Keyspace::User, revision: target }).await {
                Ok(_) => tracing::info!(revision = target.0, "auto-compaction"),
                Err(e) => tracing::warn!(%e, revision = target.0, "auto-compaction failed; it is tried again"),
            }
        }
    }
}

/// Revisions at past looks.
#[derive(Debug, Default)]
struct History(VecDeque<Revision>);

impl History {
    /// Notes the revision of now; the one of `looks` looks ago, 0 while there is none.
    fn look(&mut self, now: Revision, looks: usize) -> Revision {
        self.0.push_back(now);
        if self.0.len() <= looks {
            return Revision(0);
        }
        self.0.pop_front().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_of_history_is_kept() {
        let mut history = History::default();
        let targets: Vec<u64> = (1..=8).map(|r| history.look(Revision(r * 10), 3).0).collect();
        assert_eq!(targets, [0, 0, 0, 10, 20, 30, 40, 50]);
    }
}
