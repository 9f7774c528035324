//! In a quiet system every brick is in sync again, by itself.

use crate::world::{BRICKS, World};
use brickraft_fs::replica::Role;

pub fn settled(world: &World) -> bool {
    let Some(config) = world.checks.configs.last() else { return false };
    let bricks: Vec<_> = world.nodes.iter().filter_map(|n| n.brick.as_ref()?.core.as_ref()).collect();
    bricks.len() == BRICKS
        && config.in_sync.len() == BRICKS
        && bricks.iter().all(|b| b.group() == config && b.role() != Role::Outsider)
        && bricks.iter().all(|b| b.info().in_flight == 0 && b.info().heals.is_empty())
}

/// For the report of a group that does not settle.
pub fn describe(world: &World) -> String {
    let bricks = world.nodes.iter().filter_map(|n| n.brick.as_ref()?.core.as_ref());
    format!("{:#?}\n{:?}", bricks.map(|b| b.info()).collect::<Vec<_>>(), world.checks.configs.last())
}
