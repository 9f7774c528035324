//! (b) a server is killed, and (d) cut off, in the middle of writes.

use crate::lab::Lab;
use crate::support::{command, output};
use crate::writer::{Writer, content};
use std::time::{Duration, Instant};

/// No writer waits for longer when a server goes.
const STALL_MAX: Duration = Duration::from_secs(3);
/// The same where an election comes on top of the lease, whose votes wait for disks that other tests keep busy.
const STALL_MAX_BUSY: Duration = Duration::from_secs(4);

fn killed_in_the_middle_of_writes(of: impl FnOnce(&Lab) -> usize) {
    let mut lab = Lab::with_volume();
    let victim = of(&lab);
    let mnt = lab.hosts[2].mount("h1,h2", "rep", "mnt");
    let writer = Writer::start(mnt.join("writes"));
    writer.goes_on(50);
    lab.hosts[victim].kill();
    writer.goes_on(100);
    lab.hosts[victim].start();
    lab.whole();
    writer.goes_on(50);
    let written = writer.finish();
    written.assert_no_error();
    written.assert_kept(&mnt);
    eprintln!("{} steps, longest {:?}", written.steps.len(), written.stall());
    lab.bricks_become_equal();
    written.assert_kept(&lab.brick_dir(victim));
    assert!(written.stall() < STALL_MAX, "a write stalled for {:?}", written.stall());
}

#[test]
fn primary_killed() {
    killed_in_the_middle_of_writes(Lab::primary);
}

#[test]
fn secondary_killed() {
    killed_in_the_middle_of_writes(|lab| 1 - lab.primary());
}

/// A write on a host that is cut off; it must not be acknowledged. What waits for a mount cannot be killed: it ends
/// when the mount gives up.
fn write_in_vain(lab: &Lab, host: usize, dir: &std::path::Path) -> bool {
    let script = format!("echo minority > {0}/minority && sync {0}/minority && echo acknowledged", dir.display());
    let answer = output(&mut lab.hosts[host].command(["sh", "-c", &script]));
    String::from_utf8_lossy(&answer.stdout).contains("acknowledged")
}

fn cut_off(of: impl FnOnce(&Lab) -> usize, cut: impl FnOnce(&Lab, usize), stall_max: Duration) {
    let lab = Lab::with_volume();
    let victim = of(&lab);
    let mnt = lab.hosts[2].mount("h1,h2", "rep", "mnt");
    lab.hosts[victim].mount_with("localhost", "rep", "mnt2", "op-timeout=5");
    let inside = lab.hosts[victim].dir.join("mnt2");
    let writer = Writer::start(mnt.join("writes"));
    writer.goes_on(50);
    cut(&lab, victim);
    let at = Instant::now();
    writer.goes_on(100);
    assert!(!write_in_vain(&lab, victim, &inside), "a server without the majority acknowledged a write");
    assert!(at.elapsed() < Duration::from_secs(30), "a write without the majority waited for {:?}", at.elapsed());
    lab.connect(victim);
    lab.whole();
    writer.goes_on(50);
    let written = writer.finish();
    written.assert_no_error();
    written.assert_kept(&mnt);
    lab.bricks_become_equal();
    written.assert_kept(&lab.brick_dir(victim));
    eprintln!("{} steps, longest {:?}", written.steps.len(), written.stall());
    assert!(written.stall() < stall_max, "a write stalled for {:?}", written.stall());
}

#[test]
fn primary_cut_off() {
    cut_off(Lab::primary, Lab::pull_cable, STALL_MAX_BUSY);
}

#[test]
fn secondary_cut_off() {
    cut_off(|lab| 1 - lab.primary(), Lab::interface_down, STALL_MAX);
}

/// The client is killed: what it synced is there, and its mount can be taken away and made anew.
#[test]
fn client_killed() {
    let lab = Lab::with_volume();
    let mnt = lab.hosts[2].mount("h1", "rep", "mnt");
    let writer = Writer::start(mnt.join("writes"));
    writer.goes_on(100);
    for pid in lab.hosts[2].others() {
        output(&mut command(["kill", "-9", &pid.to_string()]));
    }
    let written = writer.finish();
    lab.hosts[2].unmount("mnt");
    assert!(lab.hosts[2].others().is_empty());
    let again = lab.hosts[2].mount("h2", "rep", "mnt");
    written.assert_kept(&again);
    std::fs::write(again.join("after"), content(3)).expect("write after");
    lab.bricks_become_equal();
}
