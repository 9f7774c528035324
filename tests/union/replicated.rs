//! A container whose writable branch is a replicated volume: a server dies, the container does not notice.

use crate::container::{Container, plain_root, python_root};
use crate::lab::Lab;
use crate::stack::fingerprint;
use crate::support::{BRICKRAFT, command, output, run, text};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Lines that the container writes; a server is killed while it does.
const LINES: u32 = 400;

#[test]
fn the_container_outlives_a_brick_server() {
    let mut lab = Lab::with_volume();
    // The container lives on h3, which has no brick.
    let dir = lab.hosts[2].dir.join("data/container");
    let (python, test, lxc) = (dir.join("python"), lab.hosts[2].dir.join("mnt2"), dir.join("lxc"));
    python_root(&python);
    let before = fingerprint(&python);
    // Its plain root goes onto the volume by way of an ordinary mount.
    let plain = dir.join("plain");
    plain_root(&plain);
    let mounted = lab.hosts[2].mount("h1", "rep", "mnt");
    fs::create_dir(mounted.join("root")).expect("mkdir on the volume");
    run(command(["cp", "-a"]).arg(plain.join(".")).arg(mounted.join("root")));
    lab.hosts[2].unmount("mnt");

    let options = format!("dirs=h1:rep/root=rw:{}=ro,backup-volfile-servers=h2,{}", python.display(), lab.hosts[2].log_option("mnt2"));
    run(lab.hosts[2].command([BRICKRAFT, "union", "-o", &options]).arg(&test));
    let pid = lab.hosts[2].others();
    assert!(!pid.is_empty(), "nobody serves the union");
    let enter = holder(&lab);
    let container = Container::new(
        &lxc,
        &test,
        Box::new(move |words| {
            let mut c = command(&enter);
            c.args(words);
            c
        }),
    );
    container.start();
    assert_eq!(container.run(&["python3", "-c", "print(\"hello\")"]), "hello\n");

    // Each line is its own open, write and close; any that fails ends the script with an error.
    let script = format!(
        "i=0; while [ $i -lt {LINES} ]; do echo \"line $i\" >> /var/lib/log || exit 1; sync -f /var/lib/log 2>/dev/null; i=$((i+1)); done; echo all"
    );
    let mut writer = container.attach(&["sh", "-c", &script]);
    let writer = writer.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the writer");
    let seen = || container.output(&["wc", "-l", "/var/lib/log"]);
    let started = Instant::now();
    while text(&seen().stdout).split(' ').next().and_then(|n| n.parse::<u32>().ok()).unwrap_or(0) < 20 {
        assert!(started.elapsed() < Duration::from_secs(30), "the container does not write: {:?}", seen());
    }
    let primary = lab.primary();
    lab.hosts[primary].kill();
    let ended = writer.wait_with_output().expect("the writer's end");
    assert!(ended.status.success() && text(&ended.stdout) == "all\n", "the container noticed: {ended:?}");
    let want: String = (0..LINES).map(|i| format!("line {i}\n")).collect();
    assert_eq!(container.run(&["cat", "/var/lib/log"]), want);
    container.run(&["python3", "-c", "import os; os.remove('/etc/motd'); open('/etc/new', 'w').write('written with one server')"]);
    container.stop();
    run(lab.hosts[2].command(["umount"]).arg(&test));

    assert_eq!(fingerprint(&python), before, "the read-only branch changed");
    lab.hosts[primary].start();
    lab.bricks_become_equal();
    for host in 0..2 {
        let root = lab.brick_dir(host).join("root");
        assert_eq!(fs::read_to_string(root.join("var/lib/log")).expect("the log"), want);
        assert_eq!(fs::read_to_string(root.join("etc/new")).expect("the new file"), "written with one server");
        assert!(root.join("etc/.wh.motd").exists(), "no whiteout on brick {host}");
    }
}

/// What goes before a command so that it runs on h3.
fn holder(lab: &Lab) -> Vec<String> {
    let c = lab.hosts[2].command(Vec::<&str>::new());
    let mut words = vec![c.get_program().to_string_lossy().into_owned()];
    words.extend(c.get_args().map(|a| a.to_string_lossy().into_owned()));
    let there = output(command(&words).args(["test", "-d"]).arg(Path::new("/proc/self")));
    assert!(there.status.success());
    words
}
