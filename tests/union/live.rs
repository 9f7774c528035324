//! Options, and changes of a live union.

use crate::links::Links;
use crate::stack::{Stack, System};
use crate::support::{BRICKRAFT, command, output, run, text, wait_for};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

fn list(dir: &Path) -> String {
    run(command([BRICKRAFT, "union", "list"]).arg(dir))
}

#[track_caller]
fn refused(words: &[&str], says: &str) {
    let answer = output(&mut command(words));
    let why = text(&answer.stderr);
    assert!(!answer.status.success() && why.contains(says), "{words:?}: {}: {why}", answer.status);
}

#[test]
fn wrong_lines_are_refused_in_words() {
    let stack = Stack::new(System::Ours);
    let (u, l, mnt) = (stack.upper(), stack.lower(), stack.mnt());
    let (u, l, mnt) = (u.to_str().expect("path"), l.to_str().expect("path"), mnt.to_str().expect("path"));
    let union = |options: &str, says: &str| refused(&[BRICKRAFT, "union", "-o", options, mnt], says);
    union("udba=none", "no branches are given");
    union(&format!("br={u},nonsense"), "unknown option nonsense");
    union(&format!("br={u}=wr"), "expected rw, ro or rr");
    union(&format!("br={u}:/no/such/directory"), "/no/such/directory: not a directory");
    union(&format!("br={u}:{u}"), "is given twice");
    union(&format!("br={u}:{l},create=best"), "expected tdp");
    union(&format!("append:{l}"), "with remount");
    union(&format!("remount,append:{l}"), "no union is mounted on");
    union("br=no.such.host:vol", "no.such.host");
    refused(&[BRICKRAFT, "union", "list", mnt], "no union is mounted on");
    refused(&[BRICKRAFT, "union", "-o", &format!("br={u}"), "/no/such/directory"], "/no/such/directory");
    // Nothing of all that is mounted, and the next one works.
    stack.mount();
    union(&format!("br={u}:{l}"), "a union is already mounted on");
    assert_eq!(list(&stack.mnt()), format!("{u}=rw\n{l}=ro\n"));
}

#[test]
fn branches_come_and_go_while_it_is_mounted() {
    let _links = Links::install();
    let stack = Stack::new(System::Ours);
    let (u, l, mnt) = (stack.upper(), stack.lower(), stack.mnt());
    for sub in ["second", "third"] {
        fs::create_dir(stack.path(sub)).expect("mkdir");
        fs::write(stack.path(sub).join(sub), sub).expect("write");
        fs::write(stack.path(sub).join("same"), sub).expect("write");
    }
    let (second, third) = (stack.path("second"), stack.path("third"));
    fs::write(l.join("lower"), "lower").expect("write");
    run(command(["mount", "-t", "aufs", "-o", &format!("dirs={}:{},udba=none", u.display(), l.display()), "none"]).arg(&mnt));
    let remount = |change: &str| run(command(["mount", "-o", &format!("remount,{change}")]).arg(&mnt));
    // The kernel now remembers that there are no such names, and for how long it may.
    assert!(!mnt.join("second").exists() && !mnt.join("third").exists() && !mnt.join("same").exists());
    assert_eq!(fs::read_dir(&mnt).expect("list").count(), 1);
    remount(&format!("append:{}=ro", second.display()));
    assert_eq!(fs::read_to_string(mnt.join("second")).expect("appended"), "second");
    assert_eq!(fs::read_to_string(mnt.join("same")).expect("appended"), "second");
    assert_eq!(fs::read_dir(&mnt).expect("list").count(), 3);
    remount(&format!("add:1:{}=ro", third.display()));
    assert_eq!(fs::read_to_string(mnt.join("same")).expect("above"), "third");
    let names = |lines: &[(&Path, &str)]| lines.iter().map(|(p, perm)| format!("{}={perm}\n", p.display())).collect::<String>();
    assert_eq!(list(&mnt), names(&[(&u, "rw"), (&third, "ro"), (&l, "ro"), (&second, "ro")]));
    let attribute = run(command(["getfattr", "--only-values", "-n", "user.brickraft.branches"]).arg(&mnt));
    assert_eq!(format!("{attribute}\n"), list(&mnt));

    // A branch that becomes writable is written to, one that is in use stays.
    remount(&format!("mod:{}=ro,mod:{}=rw", u.display(), third.display()));
    fs::write(mnt.join("new"), "x").expect("create");
    assert!(third.join("new").exists() && !u.join("new").exists());
    let mut open = fs::OpenOptions::new().append(true).open(mnt.join("third")).expect("open");
    open.write_all(b"!").expect("write");
    assert_eq!(fs::read_to_string(third.join("third")).expect("in place"), "third!");
    drop(open);
    remount(&format!("mod:{}=rw,mod:{}=ro", u.display(), third.display()));
    wait_for("the branch to be free", Duration::from_secs(10), || {
        output(command(["mount", "-o", &format!("remount,del:{}", third.display())]).arg(&mnt)).status.success().then_some(())
    });
    assert!(!mnt.join("third").exists(), "a name of a branch that is gone");
    assert_eq!(fs::read_to_string(mnt.join("same")).expect("below"), "second");
    assert_eq!(list(&mnt), names(&[(&u, "rw"), (&l, "ro"), (&second, "ro")]));
    refused(&["mount", "-o", &format!("remount,del:{}", third.display()), mnt.to_str().expect("path")], "is not part of this union");

    // Flags of the mount, and who may ask.
    remount("ro");
    assert!(fs::write(mnt.join("x"), "x").is_err(), "written to a read-only mount");
    remount("rw");
    fs::write(mnt.join("x"), "x").expect("writable again");
    let asked = output(
        command(["setpriv", "--reuid=65534", "--clear-groups", BRICKRAFT, "union", "-o", &format!("remount,append:{}", third.display())])
            .arg(&mnt),
    );
    assert!(!asked.status.success(), "anybody may change a union");
    run(command(["umount"]).arg(&mnt));
    assert!(!fs::read_to_string("/proc/self/mounts").expect("mounts").contains(mnt.to_str().expect("path")));
}

#[test]
fn what_is_mounted_within_a_union_survives_a_change_of_branches() {
    let stack = Stack::new(System::Ours);
    fs::create_dir(stack.path("more")).expect("mkdir");
    fs::write(stack.path("more/new"), "new").expect("write");
    fs::create_dir_all(stack.lower().join("dir/point")).expect("mkdir");
    stack.mount_with(",udba=none");
    let point = stack.mnt().join("dir/point");
    run(command(["mount", "-t", "tmpfs", "tmpfs"]).arg(&point));
    let _unmount = crate::support::Unmount(point.clone());
    fs::write(point.join("file"), "kept").expect("write");
    assert!(!stack.mnt().join("new").exists());
    run(command([BRICKRAFT, "union", "-o", &format!("remount,append:{}", stack.path("more").display())]).arg(stack.mnt()));
    assert_eq!(fs::read_to_string(stack.mnt().join("new")).expect("appended"), "new");
    assert_eq!(fs::read_to_string(point.join("file")).expect("still mounted"), "kept");
}

#[test]
fn a_mount_ends_with_its_process_or_the_other_way_round() {
    let stack = Stack::ours();
    fs::write(stack.mnt().join("file"), "kept").expect("write");
    let pid = stack.says("pid");
    let gone = || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(());
    run(&mut command(["kill", "-TERM", &pid]));
    wait_for("its end", Duration::from_secs(10), gone);
    assert!(!fs::read_to_string("/proc/self/mounts").expect("mounts").contains(stack.mnt().to_str().expect("path")));
    stack.mount();
    assert_eq!(fs::read_to_string(stack.mnt().join("file")).expect("read"), "kept");
    let pid = stack.says("pid");
    stack.unmount();
    wait_for("its end", Duration::from_secs(10), || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    let sockets = fs::read_dir("/run/brickraft").into_iter().flatten().flatten();
    let names: Vec<_> = sockets.map(|e| e.file_name()).collect();
    assert!(names.len() < 100, "sockets are left behind: {names:?}");
}

#[test]
fn changes_made_directly_in_a_branch_show_after_a_second() {
    let stack = Stack::new(System::Ours);
    stack.mount_with(",udba=reval");
    fs::write(stack.lower().join("file"), "one").expect("write below");
    let soon = |what: &str, want: &str| {
        wait_for(what, Duration::from_secs(5), || (fs::read_to_string(stack.mnt().join("file")).unwrap_or_default() == want).then_some(()));
    };
    soon("the file", "one");
    fs::write(stack.lower().join("file"), "longer").expect("write below");
    soon("the new content", "longer");
    fs::write(stack.upper().join("file"), "above").expect("write above");
    soon("the file above", "above");
    fs::remove_file(stack.upper().join("file")).expect("remove above");
    soon("the file below", "longer");
    fs::remove_file(stack.lower().join("file")).expect("remove below");
    wait_for("its end", Duration::from_secs(5), || (!stack.mnt().join("file").exists()).then_some(()));
}

#[test]
fn file_capabilities_survive_a_copy_up() {
    // What setcap(8) writes for cap_net_raw=ep.
    const NET_RAW: &str = "0x0100000200200000000000000000000000000000";
    let stack = Stack::new(System::Ours);
    fs::write(stack.lower().join("tool"), "program").expect("write below");
    run(command(["setfattr", "-n", "security.capability", "-v", NET_RAW]).arg(stack.lower().join("tool")));
    stack.mount();
    run(command(["touch"]).arg(stack.mnt().join("tool")));
    assert!(stack.upper().join("tool").exists(), "never copied up");
    let has = run(command(["getfattr", "-e", "hex", "-n", "security.capability"]).arg(stack.upper().join("tool")));
    assert!(has.contains(NET_RAW), "{has}");
}

#[test]
fn what_is_mounted_inside_a_branch_does_not_show_be_it_the_union_itself() {
    let stack = Stack::new(System::Ours);
    let (u, l) = (stack.upper(), stack.lower());
    for dir in ["mp", "before", "after"] {
        fs::create_dir(l.join(dir)).expect("mkdir");
    }
    let _unmount = ["mp", "before", "after"].map(|dir| crate::support::Unmount(l.join(dir)));
    let tmpfs = |dir: &str| {
        run(command(["mount", "-t", "tmpfs", "tmpfs"]).arg(l.join(dir)));
        fs::write(l.join(dir).join("on tmpfs"), "").expect("write");
    };
    tmpfs("before");
    let union = l.join("mp");
    run(command([BRICKRAFT, "union", "-o", &format!("br={}:{}", u.display(), l.display())]).arg(&union));
    tmpfs("after");
    // Before, the union waited for itself, for ever.
    let names = run(command(["timeout", "20", "find", ".", "-mindepth", "1"]).current_dir(&union));
    let mut names: Vec<_> = names.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["./after", "./before", "./mp"]);
    fs::write(union.join("mp/file"), "x").expect("write");
    assert_eq!(fs::read_to_string(u.join("mp/file")).expect("copied up"), "x");
    run(command(["umount"]).arg(&union));
}

#[test]
fn a_union_is_no_branch_of_itself() {
    let stack = Stack::ours();
    fs::create_dir(stack.mnt().join("dir")).expect("mkdir");
    let mnt = stack.mnt();
    for branch in [mnt.clone(), mnt.join("dir")] {
        let change = format!("remount,append:{}", branch.display());
        refused(&[BRICKRAFT, "union", "-o", &change, mnt.to_str().expect("path")], "lies on this very union");
    }
    assert_eq!(run(command(["timeout", "20", "ls"]).arg(&mnt)), "dir\n");
}

#[test]
fn a_branch_in_which_somebody_writes_stays() {
    let stack = Stack::new(System::Ours);
    fs::write(stack.lower().join("below"), "below").expect("write");
    stack.mount();
    let (u, mnt) = (stack.upper(), stack.mnt());
    let change = |change: &str| {
        let mut c = command([BRICKRAFT, "union", "-o", &format!("remount,{change}")]);
        output(c.arg(&mnt))
    };
    let mut file = fs::File::create(mnt.join("file")).expect("create");
    let del = format!("del:{}", u.display());
    for words in [del.clone(), format!("mod:{}=ro", u.display())] {
        let answer = change(&words);
        let why = text(&answer.stderr);
        assert!(!answer.status.success() && why.contains("file open for writing"), "{words}: {why}");
        assert!(why.contains(&format!("process {}", std::process::id())), "{words}: {why}");
    }
    file.write_all(b"goes on").expect("write");
    drop(file);
    // What lies below would be copied up to it.
    let below = fs::OpenOptions::new().write(true).open(mnt.join("below")).expect("open");
    let answer = change(&del);
    let why = text(&answer.stderr);
    assert!(!answer.status.success() && why.contains("below open for writing"), "{why}");
    // Each change is judged by what those before it led to.
    let more = stack.path("more");
    fs::create_dir(&more).expect("mkdir");
    for words in [format!("prepend:{}=rw,mod:{}=ro", more.display(), u.display()), format!("mod:{}=rw,del:{}", u.display(), more.display())]
    {
        let answer = change(&words);
        assert!(answer.status.success(), "{words}: {}", text(&answer.stderr));
    }
    drop(below);
    let _reader = fs::File::open(mnt.join("file")).expect("open");
    let answer = change(&del);
    assert!(answer.status.success(), "{}", text(&answer.stderr));
    assert_eq!(list(&mnt), format!("{}=ro\n", stack.lower().display()));
}

#[test]
fn what_fstab_says_of_branches_is_no_obstacle_to_a_remount() {
    let stack = Stack::ours();
    let (u, l, mnt) = (stack.upper(), stack.lower(), stack.mnt());
    let more = stack.path("more");
    fs::create_dir(&more).expect("mkdir");
    // As mount(8) joins the two.
    let remount = |fstab: &str, change: &str| {
        let answer = output(command([BRICKRAFT, "union", "-o", &format!("rw,{fstab},nofail,remount,{change}")]).arg(&mnt));
        assert!(answer.status.success(), "{fstab} {change}: {}", text(&answer.stderr));
        text(&answer.stderr)
    };
    let fstab = format!("br:{}=rw:{}=ro", u.display(), l.display());
    assert_eq!(remount(&fstab, &format!("append:{}", more.display())), "");
    assert_eq!(list(&mnt), format!("{}=rw\n{}=ro\n{}=ro\n", u.display(), l.display(), more.display()));
    assert_eq!(remount(&fstab, "ro"), "");
    assert!(fs::write(mnt.join("x"), "x").is_err(), "written to a read-only mount");
    assert!(remount("dirs=/other", "rw").contains("passed over"));
    fs::write(mnt.join("x"), "x").expect("writable again");
    // Who may write there could put a socket of his own in the place of ours.
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata("/run/brickraft").expect("stat").permissions());
    assert_eq!(mode & 0o7777, 0o755);
}
