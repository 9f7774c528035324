//! Random trees and random changes of them.

use super::model::{Model, Obj, PAGE};
use crate::fop::{FileKind, Gfid, TimeSpec};
use crate::heal::{HealStore, Place};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// What one random change touched: directories whose names, and objects of which anything changed.
#[derive(Default, Debug)]
pub struct Changed {
    pub dirs: Vec<Gfid>,
    pub objects: Vec<Gfid>,
    pub data: Vec<(Gfid, u64, u64)>,
}

pub struct World {
    pub model: Model,
    pub rng: SmallRng,
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self { model: Model::new(), rng: SmallRng::seed_from_u64(seed) }
    }

    /// One of the objects for which `pick` is true.
    pub fn any(&mut self, pick: impl Fn(&Obj) -> bool) -> Option<Gfid> {
        let all: Vec<_> = self.model.objs.iter().filter(|(_, o)| pick(o)).map(|(g, _)| *g).collect();
        (!all.is_empty()).then(|| all[self.rng.random_range(0..all.len())])
    }

    pub fn any_dir(&mut self) -> Gfid {
        self.any(|o| o.kind == FileKind::Dir).unwrap_or(Gfid::ROOT)
    }

    fn stamp(&mut self, g: Gfid) {
        let sec = self.rng.random_range(0..1000);
        if let Some(o) = self.model.objs.get_mut(&g) {
            o.mtime = TimeSpec { sec, nsec: 5 };
        }
    }

    fn name(&mut self) -> Bytes {
        Bytes::from(format!("n{}", self.rng.random_range(0..12)))
    }

    /// A gfid in one of a few buckets, so that they hold several.
    fn gfid(&mut self) -> Gfid {
        let mut id: [u8; 16] = self.rng.random();
        (id[0], id[1]) = (0, id[1] % 6);
        Gfid(id)
    }

    /// Changes something, and says what.
    pub fn change(&mut self) -> Changed {
        match self.rng.random_range(0..14) {
            0..4 => self.create(),
            4 => self.link(),
            5 | 6 => self.remove(),
            7 | 8 => self.rename(),
            9..12 => self.write(),
            12 => self.truncate(),
            _ => self.attributes(),
        }
    }

    fn put(&mut self, dir: Gfid, name: Bytes, g: Gfid) -> bool {
        let entries = &mut self.model.objs.get_mut(&dir).unwrap().entries;
        if entries.contains_key(&name) {
            return false;
        }
        entries.insert(name, g);
        self.stamp(dir);
        true
    }

    fn create(&mut self) -> Changed {
        let (dir, name, g) = (self.any_dir(), self.name(), self.gfid());
        let kinds = [FileKind::File, FileKind::File, FileKind::Dir, FileKind::Dir, FileKind::Symlink, FileKind::CharDevice];
        let kind = kinds[self.rng.random_range(0..kinds.len())];
        if !self.put(dir, name.clone(), g) {
            return Changed::default();
        }
        let mut o = Obj::new(kind);
        match kind {
            FileKind::Dir => o.place = Some(Place::At { parent: dir, name }),
            FileKind::Symlink => o.target = Some(Bytes::from_static(b"../somewhere")),
            FileKind::CharDevice => o.rdev = 0x501,
            _ => {}
        }
        self.model.objs.insert(g, o);
        self.stamp(g);
        Changed { dirs: vec![dir, g], objects: vec![dir, g], data: vec![(g, 0, u64::MAX)] }
    }

    fn link(&mut self) -> Changed {
        let Some(g) = self.any(|o| o.kind == FileKind::File) else { return Changed::default() };
        let (dir, name) = (self.any_dir(), self.name());
        self.put(dir, name, g);
        Changed { dirs: vec![dir], objects: vec![dir, g], data: vec![] }
    }

    fn remove(&mut self) -> Changed {
        let dir = self.any_dir();
        let Some((name, g)) = self.model.objs[&dir].entries.iter().next().map(|(n, g)| (n.clone(), *g)) else {
            return Changed::default();
        };
        if !self.model.objs[&g].entries.is_empty() {
            return Changed::default();
        }
        self.model.objs.get_mut(&dir).unwrap().entries.remove(&name);
        if self.model.names_of(g) == 0 {
            self.model.objs.remove(&g);
        }
        self.stamp(dir);
        Changed { dirs: vec![dir], objects: vec![dir, g], data: vec![] }
    }

    fn rename(&mut self) -> Changed {
        let (from, to, new) = (self.any_dir(), self.any_dir(), self.name());
        let Some((name, g)) = self.model.objs[&from].entries.iter().next_back().map(|(n, g)| (n.clone(), *g)) else {
            return Changed::default();
        };
        let is_dir = self.model.objs[&g].kind == FileKind::Dir;
        if is_dir && self.model.inside(to, g) || !self.put(to, new.clone(), g) {
            return Changed::default();
        }
        self.model.objs.get_mut(&from).unwrap().entries.remove(&name);
        if is_dir {
            self.model.objs.get_mut(&g).unwrap().place = Some(Place::At { parent: to, name: new });
        }
        self.stamp(from);
        self.stamp(to);
        Changed { dirs: vec![from, to], objects: vec![from, to, g], data: vec![] }
    }

    fn write(&mut self) -> Changed {
        let Some(g) = self.any(|o| o.kind == FileKind::File) else { return Changed::default() };
        let offset = if self.rng.random() { 0 } else { self.rng.random_range(0..600) * 2048 };
        let len = self.rng.random_range(1..3 * PAGE);
        let data: Vec<u8> = (0..len).map(|_| self.rng.random()).collect();
        self.model.heal_write(g, offset, &data.into()).unwrap();
        self.stamp(g);
        Changed { dirs: vec![], objects: vec![g], data: vec![(g, offset, offset + len)] }
    }

    fn truncate(&mut self) -> Changed {
        let Some(g) = self.any(|o| o.kind == FileKind::File) else { return Changed::default() };
        let size = self.rng.random_range(0..1_500_000);
        let old = self.model.objs[&g].size;
        self.model.heal_truncate(g, size).unwrap();
        self.stamp(g);
        Changed { dirs: vec![], objects: vec![g], data: vec![(g, old.min(size), u64::MAX)] }
    }

    fn attributes(&mut self) -> Changed {
        let Some(g) = self.any(|_| true) else { return Changed::default() };
        let (mode, value) = (self.rng.random_range(0..0o777), self.rng.random_range(0..4u8));
        let o = self.model.objs.get_mut(&g).unwrap();
        o.mode = mode;
        if value == 0 {
            o.xattrs.clear();
        } else {
            o.xattrs.insert(Bytes::from(format!("user.{value}")), Bytes::from(vec![value; 9]));
        }
        Changed { dirs: vec![], objects: vec![g], data: vec![] }
    }
}
