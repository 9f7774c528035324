//! The whole system in one thread: three members, two bricks and two clients on simulated disks, network and clocks.
//! See ARCHITECTURE.md, "Tests".
//!
//! `SIM_SEEDS=n` runs seeds 1 to n (300 unless told), `SIM_SEED=n` only that one, both so many from that one on;
//! `SIM_TRACE=1` prints as it goes.

mod brick;
mod caller;
mod disk;
mod faults;
mod invariants;
mod kv;
mod member;
mod model;
mod net;
mod node;
mod trace;
mod work;
mod world;

use invariants::{bricks_are_equal, group_is_in_sync, members_are_equal};
use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;
use trace::Trace;
use world::{Event, World};

/// How long a repaired system may take until all is as it should be.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// One run; returns the trace's digest and its length.
pub fn run(seed: u64) -> (u64, u64) {
    let trace = Rc::new(RefCell::new(Trace::new()));
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| play(seed, trace.clone())));
    let trace = trace.borrow();
    if let Err(panic) = outcome {
        eprintln!("{}\nseed {seed} failed (SIM_SEED={seed} replays it)", trace.tail());
        std::panic::resume_unwind(panic);
    }
    (trace.hash, trace.events)
}

fn settled(world: &World) -> bool {
    world.kv_idle() && world.callers.iter().all(|c| c.work.verified) && members_are_equal::settled(world) && group_is_in_sync::settled(world)
}

fn play(seed: u64, trace: Rc<RefCell<Trace>>) {
    let mut world = World::new(seed, trace);
    world.post_in(Duration::from_secs(2), Event::Fault);
    let end = world.faults.end;
    while world.step(end) {}
    world.repair();
    world.draining = true;
    let end = world.now.after(QUIET_MAX);
    while !settled(&world) {
        assert!(
            world.step(end),
            "not settled {QUIET_MAX:?} after the last fault: kv idle {}, verified {:?}, members equal {}, callers {}, group {}",
            world.kv_idle(),
            world.callers.iter().map(|c| c.work.verified).collect::<Vec<_>>(),
            members_are_equal::settled(&world),
            world.describe_callers(),
            group_is_in_sync::describe(&world)
        );
    }
    let end = world.now.after(Duration::from_secs(5));
    while world.step(end) {}
    members_are_equal::check(&world);
    world.checks.kv.check(&members_are_equal::puts(&world));
    bricks_are_equal::check(&mut world);
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn all_seeds() {
    let seeds = match (number("SIM_SEED"), number("SIM_SEEDS")) {
        (Some(seed), count) => seed..seed + count.unwrap_or(1),
        (None, count) => 1..1 + count.unwrap_or(300),
    };
    let mut failed = Vec::new();
    if std::env::var_os("SIM_TRACE").is_some() {
        let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr).without_time().try_init();
    }
    let started = std::time::Instant::now();
    for seed in seeds {
        if std::panic::catch_unwind(|| run(seed)).is_err() {
            failed.push(seed);
        }
        if failed.len() >= 10 {
            break;
        }
    }
    eprintln!("{:?}", started.elapsed());
    assert!(failed.is_empty(), "seeds {failed:?} failed");
}
