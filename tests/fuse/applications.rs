//! Programs that people run on file systems.

use crate::support::dev::Dev;
use crate::support::{command, run};

#[test]
fn sqlite_git_cargo_and_dbench_work() {
    let dev = Dev::start();
    for mode in ["WAL", "DELETE"] {
        sqlite(&dev, mode);
    }
    git(&dev);
    cargo(&dev);
    let mnt = dev.mnt();
    let said = run(command(["dbench", "-t", "10", "-D"]).arg(&mnt).arg("4"));
    assert!(said.contains("Throughput"), "{said}");
    dev.assert_bricks_equal();
}

fn sqlite(dev: &Dev, mode: &str) {
    let sql = format!(
        "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); \
         WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x<20000) INSERT INTO t SELECT x, hex(randomblob(50)) FROM c; \
         UPDATE t SET b='x' WHERE a%3=0; DELETE FROM t WHERE a%7=0; PRAGMA integrity_check; SELECT count(*) FROM t;"
    );
    let said = run(command(["sqlite3"]).arg(dev.mnt().join(format!("{mode}.db"))).arg(sql));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines, [&mode.to_lowercase() as &str, "ok", "17143"], "{said}");
}

fn git(dev: &Dev) {
    let made = tempfile::tempdir().expect("temporary directory");
    let source = made.path().join("source");
    let script = "git init -q . && for i in $(seq 300); do mkdir -p d$((i%17)) && seq $i > d$((i%17))/f$i; done && git add . \
                  && git -c user.name=t -c user.email=t@t commit -qm one && git rm -qr d3 && git -c user.name=t -c user.email=t@t commit -qm two";
    std::fs::create_dir(&source).expect("make the source");
    run(command(["sh", "-c", script]).current_dir(&source));
    let clone = dev.mnt().join("clone");
    run(command(["git", "clone", "-q", "--no-hardlinks"]).arg(&source).arg(&clone));
    run(command(["git", "fsck", "--strict"]).current_dir(&clone));
    assert_eq!(run(command(["git", "status", "--porcelain"]).current_dir(&clone)), "");
}

fn cargo(dev: &Dev) {
    let package = dev.mnt().join("hello");
    std::fs::create_dir_all(package.join("src")).expect("make the package");
    std::fs::write(package.join("Cargo.toml"), "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n").expect("write");
    std::fs::write(package.join("src/main.rs"), "fn main() { println!(\"built on the mount\"); }\n").expect("write");
    let said = run(command(["cargo", "run", "--quiet", "--offline"]).current_dir(&package).env_remove("CARGO_TARGET_DIR"));
    assert_eq!(said, "built on the mount\n");
}
