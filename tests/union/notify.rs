//! `udba=notify`, which is the default: what others change in a branch shows at once, although names and attributes live for a day in the kernel.

use crate::stack::{Stack, System};
use crate::support::{BRICKRAFT, Unmount, command, run, wait_for};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

/// Below the second after which it would show without being told, and with room for a busy machine.
const AT_ONCE: Duration = Duration::from_millis(800);

fn attribute(dir: &Path, name: &str) -> String {
    run(command(["getfattr", "--only-values", "-n", &format!("user.brickraft.{name}")]).arg(dir))
}

/// Notifications that were sent, and times that everything was forgotten.
pub fn invalidated(dir: &Path) -> (u64, u64) {
    let text = attribute(dir, "invalidated");
    let (sent, everything) = text.split_once(' ').expect("two numbers");
    (sent.parse().expect("a number"), everything.parse().expect("a number"))
}

#[track_caller]
fn at_once(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, AT_ONCE, || holds().then_some(()));
}

fn names(dir: &Path) -> Vec<String> {
    let mut all: Vec<_> = fs::read_dir(dir).expect("list").map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    all.sort();
    all
}

fn content(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn what_others_change_in_a_branch_shows_at_once() {
    let stack = Stack::new(System::Ours);
    let (u, l, mnt) = (stack.upper(), stack.lower(), stack.mnt());
    fs::create_dir_all(l.join("dir/deep")).expect("mkdir");
    for name in ["data", "gone", "old", "mode", "replaced", "hidden", "dir/deep/file"] {
        fs::write(l.join(name), "one").expect("write below");
    }
    stack.mount();
    assert_eq!(attribute(&mnt, "udba"), "notify");
    let warm = || {
        for name in ["data", "gone", "old", "mode", "replaced", "hidden", "dir/deep/file"] {
            assert_eq!(content(&mnt.join(name)), "one", "{name}");
        }
        assert!(!mnt.join("made").exists() && !mnt.join("new").exists() && !mnt.join("dir/deep/made").exists());
        assert_eq!(names(&mnt), ["data", "dir", "gone", "hidden", "mode", "old", "replaced"]);
        assert_eq!(names(&mnt.join("dir/deep")), ["file"]);
    };
    warm();
    warm();

    fs::write(l.join("made"), "made").expect("create");
    at_once("a name that did not exist", || content(&mnt.join("made")) == "made");
    at_once("it in the listing", || names(&mnt).contains(&"made".into()));
    fs::remove_file(l.join("gone")).expect("remove");
    at_once("the end of a name", || !mnt.join("gone").exists());
    at_once("that in the listing", || !names(&mnt).contains(&"gone".into()));
    fs::rename(l.join("old"), l.join("new")).expect("rename");
    at_once("a renamed file", || !mnt.join("old").exists() && content(&mnt.join("new")) == "one");
    fs::set_permissions(l.join("mode"), fs::Permissions::from_mode(0o640)).expect("chmod");
    at_once("a new mode", || fs::metadata(mnt.join("mode")).expect("stat").mode() & 0o7777 == 0o640);
    // Held open: nothing of it is looked up by name again.
    let open = fs::File::open(mnt.join("data")).expect("open");
    fs::write(l.join("data"), "two").expect("write");
    at_once("new data of the same size", || content(&mnt.join("data")) == "two");
    fs::OpenOptions::new().append(true).open(l.join("data")).and_then(|mut f| f.write_all(b", three")).expect("append");
    at_once("a longer file", || open.metadata().expect("fstat").len() == 10);
    fs::OpenOptions::new().write(true).open(l.join("data")).and_then(|f| f.set_len(1)).expect("truncate");
    at_once("a shorter file", || open.metadata().expect("fstat").len() == 1 && content(&mnt.join("data")) == "t");
    fs::write(l.join(".tmp"), "other").expect("write");
    fs::rename(l.join(".tmp"), l.join("replaced")).expect("replace");
    at_once("what replaced a file", || content(&mnt.join("replaced")) == "other");
    fs::write(u.join(".wh.hidden"), "").expect("whiteout");
    at_once("a whiteout", || !mnt.join("hidden").exists());
    fs::remove_file(u.join(".wh.hidden")).expect("no whiteout");
    at_once("what it hid", || content(&mnt.join("hidden")) == "one");
    fs::write(u.join("mode"), "above").expect("cover");
    at_once("a file above", || content(&mnt.join("mode")) == "above");
    fs::remove_file(u.join("mode")).expect("uncover");
    at_once("the file below again", || content(&mnt.join("mode")) == "one");
    fs::write(l.join("dir/deep/made"), "made").expect("create");
    at_once("a name in a subdirectory", || content(&mnt.join("dir/deep/made")) == "made" && names(&mnt.join("dir/deep")).len() == 2);
    fs::write(l.join("dir/deep/file"), "two").expect("write");
    at_once("data in a subdirectory", || content(&mnt.join("dir/deep/file")) == "two");
}

#[test]
fn directories_that_others_make_move_and_hide_show_at_once() {
    let stack = Stack::new(System::Ours);
    let (u, l, mnt) = (stack.upper(), stack.lower(), stack.mnt());
    for dir in [u.join("both"), l.join("both"), l.join("low"), l.join("away"), stack.path("aside")] {
        fs::create_dir(dir).expect("mkdir");
    }
    fs::write(l.join("away/file"), "away").expect("write");
    fs::write(l.join("both/low"), "low").expect("write");
    stack.mount();
    let cold = |name: &str| !mnt.join(name).exists();
    assert!(cold("new") && cold("both/x") && cold("low/x") && cold("moved") && content(&mnt.join("away/file")) == "away");
    assert!(names(&mnt.join("low")).is_empty() && names(&mnt.join("both")) == ["low"]);

    fs::create_dir_all(l.join("new/sub")).expect("mkdir");
    fs::write(l.join("new/sub/file"), "new").expect("write");
    at_once("a new directory with what is in it", || content(&mnt.join("new/sub/file")) == "new");
    fs::rename(l.join("away"), l.join("moved")).expect("rename");
    at_once("a directory that moved", || cold("away") && content(&mnt.join("moved/file")) == "away");
    fs::write(l.join("moved/more"), "more").expect("write");
    at_once("what was made in it there", || content(&mnt.join("moved/more")) == "more");
    // A layer comes under a directory that is known, whole: nobody tells of the names in it.
    let here = mnt.join("both");
    fs::rename(l.join("both"), stack.path("aside/both")).expect("rename");
    at_once("a layer that went", || cold("both/low") && names(&here).is_empty());
    fs::write(stack.path("aside/both/x"), "x").expect("write");
    fs::rename(stack.path("aside/both"), l.join("both")).expect("rename");
    at_once("a layer that came", || content(&mnt.join("both/x")) == "x" && names(&here) == ["low", "x"]);
    fs::create_dir(stack.path("aside/low")).expect("mkdir");
    fs::write(stack.path("aside/low/x"), "above").expect("write");
    fs::rename(stack.path("aside/low"), u.join("low")).expect("rename");
    at_once("a layer above", || content(&mnt.join("low/x")) == "above");
    fs::write(u.join("both/.wh..wh..opq"), "").expect("opaque");
    at_once("an opaque directory", || cold("both/low") && names(&here).is_empty());
}

#[test]
fn names_live_on_and_own_changes_are_no_news() {
    let stack = Stack::ours();
    let mnt = stack.mnt();
    fs::create_dir(mnt.join("dir")).expect("mkdir");
    let file = |i: usize| mnt.join(format!("dir/{i}"));
    for i in 0..200 {
        fs::write(file(i), vec![b'x'; 5000]).expect("write");
    }
    for i in 0..100 {
        fs::rename(file(i), file(1000 + i)).expect("rename");
        fs::set_permissions(file(1000 + i), fs::Permissions::from_mode(0o600)).expect("chmod");
        fs::remove_file(file(100 + i)).expect("remove");
    }
    fs::create_dir(mnt.join("sub")).and_then(|()| fs::rename(mnt.join("sub"), mnt.join("dir/sub"))).expect("mkdir, rename");
    fs::remove_dir(mnt.join("dir/sub")).expect("rmdir");
    let look = || (0..100).all(|i| file(1000 + i).exists() && !file(i).exists());
    assert!(look() && names(&mnt.join("dir")).len() == 100);
    // Past the second that they would live for otherwise.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(invalidated(&mnt), (0, 0), "own changes are forgotten");
    let pid = attribute(&mnt, "pid");
    let reads = || -> u64 {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).expect("its reads");
        io.lines().find_map(|l| l.strip_prefix("syscr: ")).expect("a line").parse().expect("a number")
    };
    assert!(look());
    let before = reads();
    assert!(look() && names(&mnt.join("dir")).len() == 100);
    let asked = reads() - before;
    assert!(asked < 20, "{asked} requests for 300 names that are known");
    // The directories are let go of where the kernel forgets them.
    let watched = || attribute(&mnt, "watched").parse::<u64>().expect("a number");
    assert!(watched() >= 3, "{}", watched());
    run(command([BRICKRAFT, "union", "-o", "remount,rw"]).arg(&mnt));
    at_once("the roots alone to be watched", || watched() == 2);
}

#[test]
fn lost_events_make_it_forget_everything() {
    const LIMIT: &str = "/proc/sys/fs/fanotify/max_queued_events";
    let stack = Stack::new(System::Ours);
    let (l, mnt) = (stack.lower(), stack.mnt());
    let usual = fs::read_to_string(LIMIT).expect("the limit");
    // Read when a mount is made.
    fs::write(LIMIT, "20").expect("set the limit");
    stack.mount();
    fs::write(LIMIT, usual).expect("the limit as it was");
    fs::write(l.join("first"), "x").expect("write");
    let made = |i: usize| format!("made{i}");
    for round in 0..20 {
        for i in 0..500 {
            assert!(!mnt.join(made(i)).exists());
        }
        for i in 0..500 {
            fs::write(l.join(made(i)), "x").expect("write");
        }
        at_once("all names", || (0..500).all(|i| mnt.join(made(i)).exists()) && names(&mnt).len() == 501);
        for i in 0..500 {
            fs::remove_file(l.join(made(i))).expect("remove");
        }
        at_once("no name", || (0..500).all(|i| !mnt.join(made(i)).exists()) && names(&mnt).len() == 1);
        if round > 0 && invalidated(&mnt).1 > 0 {
            return;
        }
    }
    panic!("no event was lost: {:?}", invalidated(&mnt));
}

#[test]
fn where_it_cannot_be_told_it_looks_every_second() {
    let stack = Stack::new(System::Ours);
    let (l, mnt) = (stack.lower(), stack.mnt());
    // Nothing to tell its directories apart by.
    run(command(["mount", "-t", "ramfs", "ramfs"]).arg(&l));
    let _unmount = Unmount(l.clone());
    run(command(["chmod", "755"]).arg(&l));
    fs::create_dir_all(stack.upper().join("told")).expect("mkdir");
    let log = stack.path("log");
    stack.mount_with(&format!(",udba=notify,log-file={}", log.display()));
    assert_eq!(attribute(&mnt, "udba"), "notify");
    assert!(!mnt.join("file").exists() && !mnt.join("told/file").exists());
    fs::write(l.join("file"), "x").expect("write");
    wait_for("a name in a directory that is not watched", Duration::from_secs(3), || mnt.join("file").exists().then_some(()));
    fs::write(stack.upper().join("told/file"), "x").expect("write");
    at_once("a name in a directory that is", || mnt.join("told/file").exists());
    let said = fs::read_to_string(&log).expect("a log");
    assert_eq!(said.matches("cannot be watched").count(), 1, "{said}");
    // No layer of `told` is there.
    assert_eq!(attribute(&mnt, "watched"), "2");
    stack.unmount();
}

#[test]
fn another_name_of_a_file_shows_after_a_second() {
    let stack = Stack::new(System::Ours);
    let (l, mnt) = (stack.lower(), stack.mnt());
    fs::create_dir(l.join("elsewhere")).expect("mkdir");
    fs::write(l.join("file"), "one").expect("write");
    fs::hard_link(l.join("file"), l.join("elsewhere/name")).expect("link");
    stack.mount();
    assert_eq!(content(&mnt.join("file")), "one");
    fs::write(l.join("elsewhere/name"), "longer").expect("write");
    wait_for("its new data", Duration::from_secs(3), || (content(&mnt.join("file")) == "longer").then_some(()));
}

#[test]
fn two_unions_see_each_other_at_once() {
    let stack = Stack::ours();
    let other = Stack::new(System::Ours);
    run(command([BRICKRAFT, "union", "-o", &format!("br={}=rw:{}=ro", stack.upper().display(), other.lower().display())]).arg(other.mnt()));
    let (a, b) = (stack.mnt(), other.mnt());
    assert!(!a.join("file").exists() && !b.join("file").exists());
    fs::write(a.join("file"), "one").expect("write");
    at_once("the file", || content(&b.join("file")) == "one");
    fs::write(b.join("file"), "longer").expect("write");
    at_once("its data", || content(&a.join("file")) == "longer");
    fs::remove_file(b.join("file")).expect("remove");
    at_once("its end", || !a.join("file").exists());
}
