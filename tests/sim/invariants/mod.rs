//! One property in each file.

pub mod acknowledged_changes_survive;
pub mod bricks_are_equal;
pub mod fsynced_content_survives;
pub mod group_is_in_sync;
pub mod kv_linearizable;
pub mod members_are_equal;
pub mod reads_never_go_back;
pub mod same_seed_same_trace;

use crate::brick::the_group;
use crate::model::Files;
use crate::node::brick_node;
use crate::world::{World, note};
use brickraft_engine::kv::types::Keyspace;
use brickraft_engine::types::Revision;
use brickraft_fs::replica::GroupConfig;

/// What is remembered for the checks.
#[derive(Default)]
pub struct Checks {
    pub files: Files,
    pub kv: kv_linearizable::History,
    /// How often the group went on from a disk that had lost power: then what was not synced may be lost.
    pub losses: u64,
    /// The configurations as they were committed.
    pub configs: Vec<GroupConfig>,
    revision: u64,
}

impl World {
    /// Reads from a member's store which configurations were committed since the last look.
    pub fn observe_configs(&mut self, i: usize) {
        let Some(core) = &self.nodes[i].member.core else { return };
        let store = core.store().clone();
        let upto = store.revision(Keyspace::System);
        if upto.0 <= self.checks.revision {
            return;
        }
        let from = Revision(self.checks.revision + 1);
        let page = store.events_since(Keyspace::System, from, upto, 10_000).expect("the system's history is not compacted");
        self.checks.revision = upto.0;
        for event in page.events {
            if event.kv.key == the_group().as_bytes() {
                let config: GroupConfig = serde_json::from_slice(&event.kv.value).expect("JSON");
                self.committed(config);
            }
        }
    }

    fn committed(&mut self, config: GroupConfig) {
        note!(
            self,
            "COMMITTED epoch {} primary {:x} in sync {:x?} incarnations {:x?}",
            config.epoch,
            config.primary,
            config.in_sync,
            config.incarnations
        );
        if let Some(last) = self.checks.configs.last() {
            assert_eq!(config.epoch, last.epoch + 1, "epochs grow by one");
            assert!(config.in_sync.contains(&config.primary), "the primary is in sync");
            let restarted = last.incarnations.get(&config.primary) != config.incarnations.get(&config.primary);
            let lost = self.nodes[brick_node(config.primary)].brick.as_ref().is_some_and(|b| b.power_lost);
            if restarted && lost {
                self.checks.losses += 1;
                self.checks.files.power_lost();
                note!(self, "the group goes on after a power cut: what was not synced may be lost");
            }
        }
        for node in &mut self.nodes {
            if let Some(brick) = &mut node.brick
                && let Some(core) = &brick.core
                && config.holds(brick.id, core.incarnation())
            {
                brick.power_lost = false;
            }
        }
        self.checks.configs.push(config);
    }
}
