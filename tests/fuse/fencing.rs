//! The example of a lock whose holder was paused past its lease, and a fence over restarts and other mounts.

use crate::support::dev::{Dev, enter};
use crate::support::{BRICKRAFT, Daemon, Unmount, command, output, run, text, wait_for};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Writes to a file through a handle with a token (0: none); the error's name, or nothing.
fn write(file: &Path, token: u64, content: &str) -> String {
    let script = "import errno, fcntl, os, struct, sys\n\
        fd = os.open(sys.argv[1], os.O_WRONLY)\n\
        try:\n\
        \x20 if int(sys.argv[2]): fcntl.ioctl(fd, 0x40084201, struct.pack('Q', int(sys.argv[2])))\n\
        \x20 os.pwrite(fd, sys.argv[3].encode(), 0)\n\
        except OSError as e: print(errno.errorcode[e.errno])\n";
    run(command(["python3", "-c", script]).arg(file).arg(token.to_string()).arg(content)).trim().to_owned()
}

#[test]
fn a_holder_that_was_paused_past_its_lease_writes_no_more() {
    let mut dev = Dev::start();
    let file = dev.mnt().join("ledger");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/fencing.py");
    let answer = output(enter(&dev.netns, ["python3"]).arg(example).arg(&file));
    let said = text(&answer.stdout);
    assert!(answer.status.success(), "{said}{}", text(&answer.stderr));
    assert!(said.contains("A: its late write was refused") && said.ends_with("the file says: B wrote this\n"), "{said}");

    // The fence is the file's: it outlives the servers, and holds for every mount.
    let fence: u64 = run(command(["getfattr", "--only-values", "-n", "user.brickraft.fence"]).arg(&file)).parse().expect("a number");
    dev.daemon.kill();
    dev.start_again();
    let second = dev.dir.path().join("second");
    fs::create_dir(&second).expect("mkdir");
    let _unmount = Unmount(second.clone());
    let mut c = enter(&dev.netns, [BRICKRAFT, "mount", "--foreground", "127.0.0.2:dev"]);
    let _client = Daemon::spawn({ c.arg(&second); c }, &dev.dir.path().join("mount.log"));
    let there = second.join("ledger");
    wait_for("the mount", Duration::from_secs(20), || there.exists().then_some(()));
    assert_eq!(write(&there, fence - 1, "stale"), "ESTALE");
    assert_eq!(write(&there, fence, "equal"), "");
    assert_eq!(write(&there, 0, "plain"), "", "who uses no token is not fenced");
    assert_eq!(fs::read_to_string(&there).expect("read"), "plainte this\n");
    dev.assert_bricks_equal();
}
