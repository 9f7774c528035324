//! The pages are true: what SEMANTICS.md names exists, and the house rules that a machine can check hold.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<PathBuf> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("read a source directory").map(|e| e.expect("entry").path()) {
            if entry.is_dir() {
                walk(&entry, out);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                out.push(entry);
            }
        }
    }
    let mut out = Vec::new();
    for dir in ["engine", "net", "fs", "src", "tests", "xtask"] {
        walk(&root().join(dir), &mut out);
    }
    out
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let page = fs::read_to_string(root().join("SEMANTICS.md")).expect("SEMANTICS.md");
    let mut named = 0;
    for word in page.split('`') {
        let Some((file, test)) = word.split_once("::").filter(|(file, _)| file.ends_with(".rs")) else { continue };
        let source = fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("SEMANTICS.md names {file}: {e}"));
        let found = source.contains(&format!("#[test]\nfn {test}()"));
        assert!(found, "SEMANTICS.md names {file}::{test}, which is not a test there");
        named += 1;
    }
    assert!(named >= 10, "only {named} promises name a test");
}

#[test]
fn unsafe_code_stands_where_the_architecture_says() {
    for path in sources() {
        let place = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
        let source = fs::read_to_string(&path).expect("read");
        let word = concat!("uns", "afe {");
        assert!(!source.contains(word) || place.starts_with("engine/src/io/uring") || place == "fs/src/union/watch/handle.rs", "{place} has unsafe code");
    }
}

#[test]
fn no_source_file_has_outgrown_its_purpose() {
    const LINES_MAX: usize = 800;
    for path in sources() {
        let lines = fs::read_to_string(&path).expect("read").lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines; split it by role", path.display());
    }
}

#[test]
fn each_direct_dependency_is_explained() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let table = page.split("## Direct dependencies").nth(1).expect("the chapter").split("\n## ").next().expect("its text");
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    let section = manifest.split("[workspace.dependencies]").nth(1).expect("the section").split("\n[").next().expect("its lines");
    for line in section.lines().filter(|l| l.contains('=')) {
        let name = line.split([' ', '=']).next().expect("a name");
        let family = name.trim_end_matches("-build").trim_end_matches("-types");
        assert!(name.starts_with("brickraft") || table.contains(family), "ARCHITECTURE.md does not say why {name}");
    }
}
