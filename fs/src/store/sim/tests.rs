//! The simulated brick conforms, and loses what a disk may lose and no more.

use super::*;
use crate::store::conformance::{self, Subject};

struct InMemory(SimStore);

impl Subject for InMemory {
    type Store = SimStore;
    fn store(&mut self) -> &mut SimStore {
        &mut self.0
    }
    fn reopen(&mut self) {
        self.0.process_killed(&mut SmallRng::seed_from_u64(0));
    }
}

#[test]
fn conforms() {
    conformance::run(&mut || InMemory(SimStore::new(conformance::meta())));
}

#[test]
fn conforms_with_jitter() {
    let mut seed = 0;
    conformance::run(&mut || {
        seed += 1;
        let mut store = SimStore::new(conformance::meta());
        store.set_jitter(Some(seed));
        InMemory(store)
    });
}

fn create(n: u8) -> Fop {
    Fop::Create { parent: Gfid::ROOT, name: vec![b'a' + n].into(), gfid: Gfid([n + 1; 16]), mode: 0o600, uid: 0, gid: 0, open: false }
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_a_prefix_of_the_rest() {
    let mut lost = [false; 3];
    for seed in 0..300 {
        let mut s = SimStore::new(conformance::meta());
        for n in 0..3 {
            s.apply(&create(n), &OpCtx::default()).unwrap();
            let data = Bytes::from(vec![n + 1; 9_000]);
            conformance::data(&mut s, DataOp::Write { gfid: Gfid([n + 1; 16]), offset: 0, data, time: TimeSpec::default() });
            if n == 1 {
                conformance::data(&mut s, DataOp::Fsync { gfid: Gfid([2; 16]), data_only: false });
            }
        }
        s.power_cut(&mut SmallRng::seed_from_u64(seed));
        let file = |s: &SimStore, n: u8| s.tree.get(Gfid([n + 1; 16])).map(|f| f.content.read(0, 9_000)).ok();
        assert_eq!(file(&s, 1).unwrap(), vec![2; 9_000], "synced");
        assert!(file(&s, 0).is_some(), "an fsync makes the names before it durable");
        lost[0] |= file(&s, 0).unwrap() != vec![1; 9_000];
        lost[1] |= file(&s, 2).is_none();
        lost[2] |= file(&s, 2).is_some_and(|d| d != vec![3; 9_000]);
        assert!(s.dirty().contains(Gfid([3; 16]).bucket()));
    }
    assert_eq!(lost, [true; 3], "each loss happens for some seed");
}
