//! What outlives restarts, crashes of the whole process, and the end of a mount.

use crate::support::dev::{Dev, enter};
use crate::support::{BRICKRAFT, Daemon, Unmount, command, output, run, wait_for};
use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

fn mounted(path: &std::path::Path) -> bool {
    fs::read_to_string("/proc/self/mounts").expect("mounts").lines().any(|l| l.split(' ').nth(1) == path.to_str())
}

#[test]
fn a_restart_finds_everything_and_a_stop_leaves_nothing_behind() {
    let mut dev = Dev::start();
    fs::write(dev.mnt().join("file"), "kept").expect("write");
    fs::create_dir_all(dev.mnt().join("a/b/c")).expect("mkdir");
    run(&mut dev.etcdctl(&["put", "key", "kept"]));
    dev.stop();
    assert!(!mounted(&dev.mnt()), "still mounted after the end");
    dev.start_again();
    assert_eq!(fs::read_to_string(dev.mnt().join("file")).expect("read"), "kept");
    assert!(dev.mnt().join("a/b/c").is_dir());
    assert_eq!(run(&mut dev.etcdctl(&["get", "--print-value-only", "key"])), "kept\n");
    dev.assert_bricks_equal();
}

#[test]
fn killing_everything_loses_nothing_that_was_synced() {
    let mut dev = Dev::start();
    for round in 0..3 {
        for i in 0..20 {
            let mut f = File::create(dev.mnt().join(format!("r{round}-{i}"))).expect("create");
            write!(f, "content {round} {i}").expect("write");
            f.sync_all().expect("fsync");
        }
        run(&mut dev.etcdctl(&["put", "round", &round.to_string()]));
        dev.daemon.kill();
        dev.start_again();
        for round in 0..=round {
            for i in 0..20 {
                assert_eq!(fs::read_to_string(dev.mnt().join(format!("r{round}-{i}"))).expect("read"), format!("content {round} {i}"));
            }
        }
        assert_eq!(run(&mut dev.etcdctl(&["get", "--print-value-only", "round"])), format!("{round}\n"));
    }
    dev.assert_bricks_equal();
}

#[test]
fn a_mount_of_its_own_can_be_killed_and_unmounted() {
    let dev = Dev::start();
    let dir = dev.dir.path().join("second");
    fs::create_dir(&dir).expect("mkdir");
    let _unmount = Unmount(dir.clone());
    // In the foreground, so that the pid to kill is known.
    let mut c = enter(&dev.netns, [BRICKRAFT, "mount", "--foreground", "127.0.0.2:dev"]);
    let mut client = Daemon::spawn({ c.arg(&dir); c }, &dev.dir.path().join("mount.log"));
    wait_for("the mount", Duration::from_secs(20), || mounted(&dir).then_some(()));
    let mut f = File::create(dir.join("synced")).expect("create");
    f.write_all(b"safe").expect("write");
    f.sync_all().expect("fsync");
    client.kill();
    drop(f);
    assert_eq!(fs::read_to_string(dev.mnt().join("synced")).expect("through the other mount"), "safe");
    run(command(["umount"]).arg(&dir));

    // In the background, as mount(8) leaves it; a second one on the same point is refused.
    let mount = || {
        let mut c = enter(&dev.netns, [BRICKRAFT, "mount", "127.0.0.2:dev"]);
        output(c.arg(&dir))
    };
    let first = mount();
    assert!(first.status.success(), "{first:?}");
    assert_eq!(fs::read_to_string(dir.join("synced")).expect("read"), "safe");
    let second = mount();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("already mounted"), "{second:?}");
    run(command(["umount"]).arg(&dir));
    let pattern = dir.to_str().expect("plain path").to_owned();
    wait_for("the client's end", Duration::from_secs(10), || {
        let processes = fs::read_dir("/proc").expect("proc").filter_map(Result::ok);
        let lines = processes.filter_map(|p| fs::read(p.path().join("cmdline")).ok());
        (!lines.into_iter().any(|l| String::from_utf8_lossy(&l).replace('\0', " ").contains(&format!("mount --tell-ready 127.0.0.2:dev {pattern}")))).then_some(())
    });
}
