//! Tests of what only a directory can get wrong.

use super::*;
use crate::store::conformance::{self, Subject};
use tempfile::TempDir;

/// A brick in a temporary directory.
struct InDir {
    dir: TempDir,
    store: Option<DirStore>,
}

fn new() -> InDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("brick");
    DirStore::create(&path, conformance::meta()).unwrap();
    let store = Some(DirStore::open(&path).unwrap());
    InDir { dir, store }
}

impl Subject for InDir {
    type Store = DirStore;
    fn store(&mut self) -> &mut DirStore {
        self.store.as_mut().unwrap()
    }
    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(DirStore::open(&self.dir.path().join("brick")).unwrap());
    }
}

#[test]
fn conforms() {
    conformance::run(&mut new);
}
