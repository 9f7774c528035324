//! What the cluster remembers of itself: the values in the coordination store's system key space, as JSON.
//!
//! | key | value |
//! |---|---|
//! | `node/<id>` | [`NodeRecord`] |
//! | `volume/<name>` | [`VolumeRecord`] |
//! | `brick/<id>` | [`BrickRecord`] |
//! | `group/<volume>/<number>` | [`GroupConfig`] |
//!
//! Ids are written as 16 hexadecimal digits.

use brickraft_engine::types::NodeId;
use brickraft_fs::replica::{BrickId, GroupConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A server of the trusted pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its member id in the coordination store.
    pub id: NodeId,
    /// The name that it was probed by, or its own.
    pub host: String,
    /// Where its management and brick port answers, `host:port`.
    pub address: String,
}

/// Whether clients may use a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "GlusterFS's own words")]
pub enum VolumeStatus {
    Created,
    Started,
    Stopped,
}

impl std::fmt::Display for VolumeStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Random, 32 hexadecimal digits; stamped on every brick.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Copies of every file.
    pub replica: usize,
    /// Whether clients may use it.
    pub status: VolumeStatus,
    /// The bricks of each replica group, in the order in which they were named.
    pub groups: Vec<Vec<BrickId>>,
    /// Which group holds which buckets.
    pub buckets: BucketTable,
    /// Options that differ from their defaults.
    pub options: BTreeMap<String, String>,
}

/// Bucket -> replica group. Every bucket is in exactly one range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketTable {
    /// Grows with each change.
    pub version: u64,
    /// Ranges of buckets, ascending and without gaps, each with its group.
    pub ranges: Vec<BucketRange>,
}

/// Buckets `first..=last` live in group `group`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the text above says it")]
pub struct BucketRange {
    pub first: u16,
    pub last: u16,
    pub group: usize,
}

impl BucketTable {
    /// All buckets in group 0.
    #[must_use]
    pub fn single() -> Self {
        Self { version: 1, ranges: vec![BucketRange { first: 0, last: u16::MAX, group: 0 }] }
    }
}

/// A brick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrickRecord {
    /// Random, never reused.
    pub id: BrickId,
    /// Its volume's name.
    pub volume: String,
    /// Its group in the volume.
    pub group: usize,
    /// The server that holds it.
    pub node: NodeId,
    /// The server's name as given at creation.
    pub host: String,
    /// The directory.
    pub path: String,
    /// It was allowed to lie on the root file system (`force`).
    pub on_root: bool,
}

/// The key of a server's record.
#[must_use]
pub fn node_key(id: NodeId) -> String {
    format!("node/{:016x}", id.0)
}

/// The key of a volume's record.
#[must_use]
pub fn volume_key(name: &str) -> String {
    format!("volume/{name}")
}

/// The key of a brick's record.
#[must_use]
pub fn brick_key(id: BrickId) -> String {
    format!("brick/{id:016x}")
}

/// The key of a replica group's configuration.
#[must_use]
pub fn group_key(volume: &str, group: usize) -> String {
    format!("group/{volume}/{group}")
}

/// All records, as one member last saw them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// The servers.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// The volumes by name.
    pub volumes: BTreeMap<String, VolumeRecord>,
    /// The bricks.
    pub bricks: BTreeMap<BrickId, BrickRecord>,
    /// The group configurations by key, each with the revision that a compare-and-swap needs.
    pub groups: BTreeMap<String, (GroupConfig, u64)>,
}

impl ClusterView {
    /// Takes one change in. What cannot be read is logged and left out: an older binary must not stumble
    /// over a newer one's records.
    pub fn apply(&mut self, key: &[u8], value: Option<&[u8]>, revision: u64) {
        let Ok(key) = std::str::from_utf8(key) else { return };
        let Some((kind, rest)) = key.split_once('/') else { return };
        match kind {
            "node" => set(&mut self.nodes, hex(rest).map(NodeId), key, value),
            "volume" => set(&mut self.volumes, Some(rest.to_owned()), key, value),
            "brick" => set(&mut self.bricks, hex(rest), key, value),
            "group" => {
                let mut one: BTreeMap<String, GroupConfig> = BTreeMap::new();
                set(&mut one, Some(key.to_owned()), key, value);
                match one.pop_first() {
                    Some((key, config)) => drop(self.groups.insert(key, (config, revision))),
                    None if value.is_none() => drop(self.groups.remove(key)),
                    None => {}
                }
            }
            _ => {}
        }
    }

    /// Where a brick answers, `host:port`.
    #[must_use]
    pub fn brick_address(&self, brick: BrickId) -> Option<&str> {
        let brick = self.bricks.get(&brick)?;
        self.nodes.get(&brick.node).map(|n| n.address.as_str())
    }
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

fn set<K: Ord, V: serde::de::DeserializeOwned>(map: &mut BTreeMap<K, V>, id: Option<K>, key: &str, value: Option<&[u8]>) {
    let Some(id) = id else { return };
    match value.map(serde_json::from_slice) {
        None => drop(map.remove(&id)),
        Some(Ok(v)) => drop(map.insert(id, v)),
        Some(Err(e)) => tracing::warn!(key, %e, "cluster store: unreadable record"),
    }
}
