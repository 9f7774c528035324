//! Random operations on the store and on a model that keeps every state it ever had.

use super::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

pub(super) type Keys = BTreeMap<Bytes, KeyValue>;

#[derive(Default)]
pub(super) struct Model {
    /// The state at each revision; `states[0]` is revision 1.
    pub(super) states: Vec<Keys>,
    pub(super) compact: u64,
    pub(super) leases: BTreeMap<i64, i64>,
}

impl Model {
    pub(super) fn revision(&self) -> u64 {
        self.states.len() as u64
    }
    fn now(&self) -> &Keys {
        &self.states[self.states.len() - 1]
    }
    fn change(&mut self, f: impl FnOnce(&mut Keys, u64)) {
        let mut keys = self.now().clone();
        f(&mut keys, self.revision() + 1);
        if keys != *self.now() {
            self.states.push(keys);
        }
    }
    fn put(keys: &mut Keys, revision: u64, put: &PutRequest) {
        let old = keys.get(&put.key);
        let kv = KeyValue {
            key: put.key.clone(),
            value: put.value.clone(),
            create_revision: old.map_or(Revision(revision), |old| old.create_revision),
            mod_revision: Revision(revision),
            version: old.map_or(1, |old| old.version + 1),
            lease: put.lease,
        };
        keys.insert(put.key.clone(), kv);
    }
    fn in_range(key: &Bytes, start: &Bytes, end: &Bytes) -> bool {
        match &end[..] {
            [] => key == start,
            [0] => key >= start,
            _ => key >= start && key < end,
        }
    }
    pub(super) fn apply(&mut self, command: &Command) {
        match command {
            Command::Put(_, put) => {
                if put.lease == 0 || self.leases.contains_key(&put.lease) {
                    self.change(|keys, revision| Self::put(keys, revision, put));
                }
            }
            Command::DeleteRange(_, d) => {
                self.change(|keys, _| keys.retain(|key, _| !Self::in_range(key, &d.key, &d.range_end)));
            }
            Command::Txn(_, txn) => {
                let succeeded = txn.compare.iter().all(|c| {
                    let CompareTarget::Version(v) = c.target else { panic!() };
                    self.now().get(&c.key).map_or(0, |kv| kv.version) == v
                });
                let ops = if succeeded { &txn.success } else { &txn.failure };
                self.change(|keys, revision| {
                    for op in ops {
                        match op {
                            TxnOp::Put(put) => Self::put(keys, revision, put),
                            TxnOp::DeleteRange(d) => {
                                keys.retain(|key, _| !Self::in_range(key, &d.key, &d.range_end));
                            }
                            _ => panic!(),
                        }
                    }
                });
            }
            Command::Compact { revision, .. } => {
                if revision.0 > self.compact && revision.0 <= self.revision() {
                    self.compact = revision.0;
                }
            }
            Command::LeaseGrant { id, ttl_s } => {
                self.leases.entry(*id).or_insert(*ttl_s);
            }
            Command::LeaseRevoke { id } => {
                if self.leases.remove(id).is_some() {
                    self.change(|keys, _| keys.retain(|_, kv| kv.lease != *id));
                }
            }
            Command::MemberAttributes { .. } | Command::Alarm { .. } | Command::Auth(_) | Command::As { .. } => {}
        }
    }
}

fn random_key(rng: &mut SmallRng) -> Bytes {
    let byte = |rng: &mut SmallRng| [0u8, 1, b'a', b'b', 0xff][rng.random_range(0..5usize)];
    // Some are longer than what an entry has of them, and differ only behind that.
    let (beginning, len) = if rng.random_ratio(1, 3) { ("b-sixteen--bytes", 0..=2) } else { ("", 1..=3) };
    let rest: Vec<u8> = (0..rng.random_range(len)).map(|_| byte(rng)).collect();
    [beginning.as_bytes(), &rest].concat().into()
}

fn random_put(rng: &mut SmallRng, key: Bytes) -> PutRequest {
    let len = if rng.random_ratio(1, 10) { rng.random_range(500..2000) } else { rng.random_range(0..20) };
    let value = vec![rng.random::<u8>(); len].into();
    let lease = if rng.random_ratio(1, 4) { rng.random_range(1..5) } else { 0 };
    PutRequest { key, value, lease, ..Default::default() }
}

fn random_end(rng: &mut SmallRng) -> Bytes {
    match rng.random_range(0..4) {
        0 => Bytes::new(),
        1 if rng.random_ratio(1, 4) => b("\0"),
        _ => random_key(rng),
    }
}

pub(super) fn random_command(rng: &mut SmallRng, revision: u64) -> Command {
    let key = random_key(rng);
    match rng.random_range(0..20) {
        0..10 => Command::Put(U, random_put(rng, key)),
        10..13 => Command::DeleteRange(U, DeleteRangeRequest { key, range_end: random_end(rng), prev_kv: false }),
        13..16 => {
            let target = CompareTarget::Version(rng.random_range(0..3));
            let compare = vec![Compare { key: random_key(rng), range_end: Bytes::new(), op: CompareOp::Equal, target }];
            let branch = |rng: &mut SmallRng, first: u8| -> Vec<TxnOp> {
                let mut put = random_put(rng, vec![first, 0].into());
                put.lease = 0;
                let end = vec![b'b', rng.random()].into();
                let delete = DeleteRangeRequest { key: b("b"), range_end: end, prev_kv: false };
                let mut ops = vec![TxnOp::Put(put), TxnOp::DeleteRange(delete)];
                if rng.random() {
                    ops.reverse();
                }
                ops
            };
            let (success, failure) = (branch(rng, b'a'), branch(rng, 0xff));
            Command::Txn(U, TxnRequest { compare, success, failure })
        }
        16 if rng.random_ratio(1, 3) => Command::Compact { keyspace: U, revision: Revision(rng.random_range(0..=revision + 1)) },
        17 => Command::LeaseGrant { id: rng.random_range(1..5), ttl_s: 10 },
        18 if rng.random_ratio(1, 2) => Command::LeaseRevoke { id: rng.random_range(1..5) },
        _ => Command::Put(U, random_put(rng, key)),
    }
}

pub(super) fn compare_range(store: &Store, model: &Model, rng: &mut SmallRng) {
    let revision = rng.random_range(0..=model.revision() + 1);
    let request = RangeRequest {
        key: random_key(rng),
        range_end: random_end(rng),
        revision: Revision(revision),
        limit: if rng.random() { rng.random_range(0..5) } else { 0 },
        keys_only: rng.random_ratio(1, 5),
        sort_order: *[SortOrder::None, SortOrder::Ascend, SortOrder::Descend].get(rng.random_range(0..3usize)).unwrap(),
        sort_target: if rng.random() { SortTarget::Key } else { SortTarget::Mod },
        ..Default::default()
    };
    let found = store.range(U, &request);
    if revision > model.revision() {
        assert!(matches!(found, Err(ReadError::Kv(KvError::FutureRevision))), "{found:?}");
        return;
    }
    if revision > 0 && revision < model.compact {
        assert!(matches!(found, Err(ReadError::Kv(KvError::Compacted))), "{found:?}");
        return;
    }
    let keys = if revision == 0 { model.now() } else { &model.states[revision as usize - 1] };
    let mut kvs: Vec<KeyValue> = keys.values().filter(|kv| Model::in_range(&kv.key, &request.key, &request.range_end)).cloned().collect();
    let count = kvs.len() as u64;
    if request.sort_target == SortTarget::Mod {
        kvs.sort_by_key(|kv| kv.mod_revision);
        if request.sort_order == SortOrder::Descend {
            kvs.sort_by_key(|kv| std::cmp::Reverse(kv.mod_revision));
        }
    } else if request.sort_order == SortOrder::Descend {
        kvs.reverse();
    }
    // Changes of one transaction share a revision; ties stay in key order.
    if request.sort_target == SortTarget::Mod {
        let descend = request.sort_order == SortOrder::Descend;
        kvs.sort_by(|a, b| {
            let order = a.mod_revision.cmp(&b.mod_revision);
            if descend { order.reverse() } else { order }.then(a.key.cmp(&b.key))
        });
    }
    let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    assert_eq!(found.unwrap(), (RangeResponse { kvs, more, count }, Revision(model.revision())), "{request:?}");
}

/// History told as events leads from each state to the next.
pub(super) fn compare_events(store: &Store, model: &Model) {
    let from = model.compact.max(1);
    let mut keys = model.states[from as usize - 1].clone();
    let mut next = Revision(from + 1);
    while next.0 <= model.revision() {
        let page = store.events_since(U, next, Revision(u64::MAX), 3).unwrap();
        for event in &page.events {
            assert_eq!(event.prev_kv, keys.get(&event.kv.key).cloned(), "{event:?}");
            if event.delete {
                keys.remove(&event.kv.key);
            } else {
                keys.insert(event.kv.key.clone(), event.kv.clone());
            }
        }
        assert!(page.next > next);
        next = page.next;
        assert_eq!(keys, model.states[next.0 as usize - 2]);
    }
}

#[test]
fn the_store_answers_as_the_model_does() {
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let store = memory();
        let twin = memory();
        let mut model = Model { states: vec![Keys::new()], ..Model::default() };
        let (mut index, mut frozen) = (0, None);
        for _ in 0..40 {
            // Checkpoints anywhere, and changes between the two halves of one.
            match (rng.random_range(0..4), frozen.take()) {
                (0, None) => frozen = Some(store.freeze().unwrap()),
                (1, None) => {
                    store.checkpoint().unwrap();
                }
                (0, Some(half)) => {
                    store.fold_frozen(half, rng.random_range(0..50), &|_| {}).unwrap();
                }
                (_, still) => frozen = still,
            }
            let mut batch = Vec::new();
            for _ in 0..rng.random_range(1..10) {
                index += 1;
                let command = random_command(&mut rng, model.revision());
                model.apply(&command);
                batch.push(entry(index, command));
            }
            // Other batches, same outcomes. A store that nobody watches finds what a put supersedes in another way.
            let single: Vec<ApplyOutcome> = batch.iter().map(|e| twin.apply(std::slice::from_ref(e)).unwrap().remove(0)).collect();
            if seed % 2 == 0 {
                assert_eq!(store.apply(&batch).unwrap(), single);
            } else {
                let unwatched = store.apply_with(&batch, &|_, _| Wanted::Nothing).unwrap();
                assert!(unwatched.iter().all(|outcome| outcome.events.is_empty()));
                assert!(unwatched.iter().map(|o| &o.applied).eq(single.iter().map(|o| &o.applied)));
            }
            if frozen.is_none() {
                store.check_history();
            }
            assert_eq!(store.revision(U).0, model.revision(), "seed {seed}");
            assert_eq!(store.compact_revision(U).0, model.compact);
            for _ in 0..10 {
                compare_range(&store, &model, &mut rng);
            }
            if frozen.is_none() && rng.random_ratio(1, 4) {
                store.collect_garbage(rng.random_range(1..50)).unwrap();
            }
            assert_eq!(store.hash_kv(U, Revision(0)).unwrap(), twin.hash_kv(U, Revision(0)).unwrap());
        }
        compare_events(&store, &model);
        if let Some(half) = frozen.take() {
            store.fold_frozen(half, 0, &|_| {}).unwrap();
        }
        compare_events(&store, &model);
        // Without history, members with equal keys have equal records, wherever their checkpoints were.
        index += 1;
        let compact = entry(index, Command::Compact { keyspace: U, revision: Revision(model.revision()) });
        for store in [&store, &twin] {
            store.apply(std::slice::from_ref(&compact)).unwrap();
            store.checkpoint().unwrap();
        }
        model.compact = model.revision();
        while store.collect_garbage(1000).unwrap() {}
        while twin.collect_garbage(7).unwrap() {}
        assert_eq!(store.sizes().in_use_bytes, twin.sizes().in_use_bytes);
        store.check_history();
        twin.check_history();
        compare_events(&store, &model);
        let leases: BTreeMap<i64, i64> = store.leases().unwrap().iter().map(|l| (l.id, l.ttl_s)).collect();
        assert_eq!(leases, model.leases);
        for &id in model.leases.keys() {
            let attached: Vec<Bytes> = model.now().values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect();
            assert_eq!(store.lease_keys(id).unwrap(), attached);
        }
    }
}
