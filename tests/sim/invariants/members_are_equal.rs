//! In a quiet system all members have applied the same, and hold the same.

use crate::world::World;
use brickraft_engine::kv::types::Keyspace;
use brickraft_engine::types::Revision;

/// Whether all members have applied everything that is committed anywhere.
pub fn settled(world: &World) -> bool {
    let mut states = world.nodes.iter().map(|n| n.member.core.as_ref().map(|c| (c.status().applied, c.status().committed)));
    let Some(Some(first)) = states.next() else { return false };
    first.0 == first.1 && states.all(|s| s == Some(first))
}

pub fn check(world: &World) {
    let hash = |keyspace| {
        let of = |i: usize| {
            let core = world.nodes[i].member.core.as_ref().expect("runs");
            core.store().hash_kv(keyspace, Revision(0)).expect("hash")
        };
        let first = of(0);
        for i in 1..world.nodes.len() {
            assert_eq!(of(i), first, "members 0 and {i} differ in {keyspace:?}");
        }
    };
    hash(Keyspace::User);
    hash(Keyspace::System);
}

/// Every put that the store holds, in order.
pub fn puts(world: &World) -> Vec<(u64, bytes::Bytes, bytes::Bytes)> {
    let store = world.nodes[0].member.core.as_ref().expect("runs").store();
    let upto = store.revision(Keyspace::User);
    let mut from = Revision(1);
    let mut puts = Vec::new();
    while from <= upto {
        let page = store.events_since(Keyspace::User, from, upto, 1_000_000).expect("history");
        puts.extend(page.events.iter().map(|e| (e.kv.mod_revision.0, e.kv.key.clone(), e.kv.value.clone())));
        let Some(last) = page.events.last() else { break };
        from = Revision(last.kv.mod_revision.0 + 1);
    }
    puts
}
