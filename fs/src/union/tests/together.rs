//! Several threads change the same few names at once: nobody waits for ever, and what is left is a union.

use super::{act, dir_branch, dump, random, union_of};
use crate::union::Perm;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::sync::{Arc, mpsc};
use std::time::Duration;

#[test]
fn threads_do_not_hinder_each_other() {
    let base = tempfile::tempdir().unwrap();
    let [upper, lower] = ["upper", "lower"].map(|n| base.path().join(n));
    for dir in [&upper, &lower] {
        std::fs::create_dir(dir).unwrap();
        let alone = union_of(vec![dir_branch(dir, Perm::RW)]);
        let mut rng = SmallRng::seed_from_u64(7);
        for _ in 0..40 {
            let _ = act(&alone, &random::op(&mut rng));
        }
        alone.close();
    }
    let union = Arc::new(union_of(vec![dir_branch(&upper, Perm::RW), dir_branch(&lower, Perm::RO)]));
    let (done, waiting) = mpsc::channel();
    for seed in 0..6 {
        let (union, done) = (Arc::clone(&union), done.clone());
        std::thread::spawn(move || {
            let mut rng = SmallRng::seed_from_u64(seed);
            for _ in 0..3000 {
                let _ = act(&union, &random::op(&mut rng));
            }
            done.send(()).unwrap();
        });
    }
    for _ in 0..6 {
        waiting.recv_timeout(Duration::from_secs(30)).expect("a thread waits for ever, or died");
    }
    let live = dump(&union);
    let fresh = dump(&union_of(vec![dir_branch(&upper, Perm::RW), dir_branch(&lower, Perm::RO)]));
    assert_eq!(live, fresh);
}
