//! `volatile`: nothing is synced, and a branch whose union was killed is refused until somebody has decided about it.

use crate::stack::{Stack, System};
use crate::support::{command, output, run, text, wait_for};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

fn append(path: &Path, what: &str) {
    let mut file = OpenOptions::new().append(true).open(path).expect("open");
    file.write_all(what.as_bytes()).expect("append");
    file.sync_all().expect("fsync");
}

#[test]
fn it_ends_in_order_or_is_refused() {
    let stack = Stack::new(System::Ours);
    fs::write(stack.lower().join("f"), "below").expect("write below");
    let f = stack.mnt().join("f");
    let mark = stack.upper().join(".wh..wh.volatile");
    stack.mount_with(",volatile");
    append(&f, ", and above");
    File::open(stack.mnt()).and_then(|dir| dir.sync_all()).expect("fsync of a directory");
    assert!(mark.is_dir());
    assert_eq!(fs::read_dir(stack.mnt()).expect("list").count(), 1, "the mark is not seen");
    let pid = stack.says("pid");
    let ended = |pid: &str| wait_for("its end", Duration::from_secs(10), || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    stack.unmount();
    ended(&pid);
    assert!(!mark.exists(), "it ended in order");

    stack.mount_with(",volatile");
    append(&f, ", twice");
    let pid = stack.says("pid");
    run(&mut command(["kill", "-KILL", &pid]));
    ended(&pid);
    output(command(["umount", "-l"]).arg(stack.mnt()));
    for options in ["", ",volatile"] {
        let refused = output(&mut stack.command(options));
        let said = text(&refused.stderr);
        assert!(
            !refused.status.success() && said.contains("did not end in order") && said.contains(&format!("rmdir {}", mark.display())),
            "{said}"
        );
    }
    fs::remove_dir(&mark).expect("what the message says");
    stack.mount();
    assert_eq!(fs::read_to_string(&f).expect("read"), "below, and above, twice");
    stack.unmount();
}
