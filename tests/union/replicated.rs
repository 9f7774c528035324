//! The writable branch is a replicated volume: a server dies, and neither a container nor a lazy copy notices.

use crate::container::{Container, plain_root, python_root};
use crate::lab::Lab;
use crate::stack::fingerprint;
use crate::support::{BRICKRAFT, command, output, run, text};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
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

/// Of the file that is copied up lazily onto the volume.
const HUGE: u64 = (2 << 30) + 12_345;
const WRITES: u32 = 600;

/// Writes of up to 20 kB, most of them near each other, here and in the model alike.
fn write_some(files: [&File; 2], rng: &mut SmallRng, end: u64, writes: u32) {
    for n in 0..writes {
        let place = rng.random_range(0..8) * (end / 8) + rng.random_range(0..if n % 4 == 0 { end / 8 } else { 3 << 20 });
        let data = vec![rng.random_range(1..255_u8); rng.random_range(1..20_000)];
        let at = place.min(end - data.len() as u64);
        for file in files {
            file.write_all_at(&data, at).expect("write");
        }
        if n % 50 == 0 {
            files[0].sync_data().expect("fdatasync");
        }
    }
}

/// Compares every part of 4 MiB, or every `step`th.
fn assert_same(shown: &Path, model: &Path, step: usize, when: &str) {
    let [shown, model] = [shown, model].map(|path| File::open(path).expect("open"));
    assert_eq!(shown.metadata().expect("stat").len(), model.metadata().expect("stat").len(), "{when}");
    let (mut a, mut b) = (vec![0; 4 << 20], vec![0; 4 << 20]);
    let size = model.metadata().expect("stat").len();
    for at in (0..size).step_by(step * a.len()) {
        let n = usize::try_from((size - at).min(a.len() as u64)).expect("small");
        shown.read_exact_at(&mut a[..n], at).expect("read");
        model.read_exact_at(&mut b[..n], at).expect("read the model");
        if a[..n] != b[..n] {
            let differs = (0..n).find(|i| a[*i] != b[*i]).expect("somewhere");
            panic!("{when}: byte {} is {} and not {}", at + differs as u64, a[differs], b[differs]);
        }
    }
}

#[test]
fn a_lazy_copy_on_a_volume_outlives_a_brick_server() {
    let mut lab = Lab::with_volume();
    let mut rng = SmallRng::seed_from_u64(7);
    let dir = lab.hosts[2].dir.join("data/lazy");
    let (lower, model_path, mnt) = (dir.join("lower"), dir.join("model"), lab.hosts[2].dir.join("mnt2"));
    fs::create_dir_all(&lower).expect("mkdir");
    let below = File::create(lower.join("huge")).expect("make it");
    let model = File::create(&model_path).expect("make the model");
    for file in [&below, &model] {
        file.set_len(HUGE).expect("size");
    }
    for part in 0..8 {
        let data: Vec<u8> = (0..2 << 20).map(|i: u32| (i / 1000 + part) as u8).collect();
        for file in [&below, &model] {
            file.write_all_at(&data, u64::from(part) * (HUGE / 8)).expect("write below");
        }
    }
    let before = fingerprint(&lower);
    let options =
        format!("dirs=h1:rep=rw:{}=ro,backup-volfile-servers=h2,lazy-cpup=1G,{}", lower.display(), lab.hosts[2].log_option("mnt2"));
    let mount = |lab: &Lab| run(lab.hosts[2].command([BRICKRAFT, "union", "-o", &options]).arg(&mnt));
    mount(&lab);
    let path = lab.hosts[2].path(&mnt).join("huge");
    let open = || OpenOptions::new().read(true).write(true).open(&path).expect("open");
    let file = open();
    write_some([&file, &model], &mut rng, HUGE, WRITES / 3);
    let primary = lab.primary();
    lab.hosts[primary].kill();
    write_some([&file, &model], &mut rng, HUGE, WRITES / 3);
    for file in [&file, &model] {
        file.set_len(HUGE / 8 * 7 - 77).expect("cut off the end");
        file.set_len(HUGE).expect("grow again");
    }
    lab.hosts[primary].start();
    write_some([&file, &model], &mut rng, HUGE, WRITES / 3);
    drop(file);
    assert_same(&path, &model_path, 7, "while it is mounted");
    run(lab.hosts[2].command(["umount"]).arg(&mnt));
    lab.whole();
    mount(&lab);
    assert_same(&path, &model_path, 1, "mounted anew");
    assert_eq!(fingerprint(&lower), before, "the read-only branch changed");
    // Small writes copied blocks, not the file.
    let kib = lab.brick_dir(1).join("huge").metadata().expect("the copy").blocks() / 2;
    assert!(kib < u64::from(WRITES) * 2 * 128, "{kib} KiB lie on the brick");
    assert_eq!(run(lab.hosts[2].command([BRICKRAFT, "union", "complete"]).arg(&mnt)), "1 file is whole\n");
    run(lab.hosts[2].command(["umount"]).arg(&mnt));
    lab.bricks_become_equal();
    assert_same(&lab.brick_dir(primary).join("huge"), &model_path, 1, "the brick that was away, completed");
}
