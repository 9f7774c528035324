//! In a quiet system both bricks hold the same tree: names, attributes, content.

use crate::world::World;
use brickraft_fs::fop::{FileKind, Gfid};
use brickraft_fs::heal::HealStore;
use brickraft_fs::store::{BrickStore, SimStore};
use bytes::Bytes;
use std::collections::BTreeMap;

fn walk(store: &mut SimStore, dir: Gfid, path: &str, tree: &mut BTreeMap<String, String>) {
    let mut cookie = 0;
    loop {
        let (entries, next) = store.heal_entries(dir, cookie, 256).expect("a directory");
        for entry in entries {
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            let (attr, _) = store.heal_stat(entry.gfid).expect("an object behind a name");
            let data = match attr.kind {
                FileKind::File => store.heal_read(entry.gfid, 0, 1 << 20).expect("content"),
                _ => Bytes::new(),
            };
            let digest = xxhash_rust::xxh3::xxh3_64(&data);
            let size = if attr.kind == FileKind::File { attr.size } else { 0 };
            let text = format!(
                "{} {:?} {:o} nlink {} size {size} mtime {:?} xattrs {:?} data {digest:x}",
                entry.gfid,
                attr.kind,
                attr.mode,
                attr.nlink,
                attr.mtime,
                store.heal_xattrs(entry.gfid).expect("xattrs"),
            );
            tree.insert(path.clone(), text);
            if attr.kind == FileKind::Dir {
                walk(store, entry.gfid, &path, tree);
            }
        }
        if next == 0 {
            return;
        }
        cookie = next;
    }
}

pub fn check(world: &mut World) {
    let mut trees = Vec::new();
    for node in &mut world.nodes {
        let Some(core) = node.brick.as_mut().and_then(|b| b.core.as_mut()) else { continue };
        let mut tree = BTreeMap::new();
        walk(core.store(), Gfid::ROOT, "", &mut tree);
        assert!(core.store().heal_limbo().expect("limbo").is_empty(), "a heal left something in limbo");
        let orphans = core.store().orphans().expect("orphans");
        trees.push((tree, orphans));
    }
    let [a, b] = &trees[..] else { panic!("two bricks") };
    for (path, text) in &a.0 {
        assert_eq!(Some(text), b.0.get(path), "the bricks differ at {path}");
    }
    for path in b.0.keys() {
        assert!(a.0.contains_key(path), "brick 1 alone has {path}");
    }
    assert_eq!(a.1, b.1, "the bricks keep different files without a name");
}
