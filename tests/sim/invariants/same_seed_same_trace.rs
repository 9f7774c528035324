//! A seed replays a run exactly: the digests of two runs' traces are the same.

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 2, 3] {
        let (a, b) = (crate::run(seed), crate::run(seed));
        assert_eq!(a, b, "seed {seed}: (digest, events) of two runs");
    }
}
