//! Errors in the middle of a change, and changes in the middle of others: each at a place of the test's choice.

use super::hooked::{Call, Hooked};
use super::*;
use crate::fop::TimeSpec;
use crate::union::branch::LocalBranch;
use crate::union::config::Access;
use crate::union::{BranchChange, ROOT_INO};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// A simulated upper branch with hooks over a simulated lower one with `/d/f`.
struct World {
    sim: Arc<SimBranch>,
    upper: Arc<Hooked>,
    lower: Arc<SimBranch>,
    union: Arc<Union>,
}

fn world(len: usize) -> World {
    let [sim, lower] = [1, 2].map(|dev| Arc::new(SimBranch::new(dev)));
    super::super::put(&*lower, "/d/f", FileKind::File, &text(len));
    let upper = Hooked::new(Arc::clone(&sim) as Arc<dyn Branch>);
    let union = Union::open(lazily(vec![upper.config("upper", Perm::RW), sim_branch("lower", &lower, Perm::RO)])).expect("open");
    World { sim, upper, lower, union: Arc::new(union) }
}

impl World {
    /// The same branches, mounted anew; `sim`: the upper one after a power cut.
    fn again(&self, sim: &Arc<SimBranch>) -> Union {
        Union::open(lazily(vec![sim_branch("upper", sim, Perm::RW), sim_branch("lower", &self.lower, Perm::RO)])).expect("open again")
    }
}

/// Starts it, and lets it run for a moment: by then it is done, or waits. What it gives comes later.
fn meanwhile<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (done, later) = mpsc::channel();
    let (early, was_early) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = done.send(what());
        let _ = early.send(());
    });
    let _ = was_early.recv_timeout(Duration::from_millis(200));
    later
}

fn result<T>(later: &mpsc::Receiver<T>) -> T {
    later.recv_timeout(Duration::from_secs(20)).expect("it waits for ever, or died")
}

#[test]
fn what_is_unlinked_stays_whole_although_nobody_had_read_it() {
    let w = world(100);
    w.union.write(walk(&w.union, "d/f").unwrap(), 20, b"NEW", false).unwrap();
    w.union.close();
    let union = w.again(&w.sim);
    let ino = walk(&union, "d/f").unwrap();
    union.unlink(walk(&union, "d").unwrap(), b"f").unwrap();
    let mut model = text(100);
    model[20..23].copy_from_slice(b"NEW");
    assert_eq!(content(&union, ino).as_deref(), Ok(&model[..]));
    union.write(ino, 50, b"more", false).unwrap();
    model[50..54].copy_from_slice(b"more");
    assert_eq!(content(&union, ino).as_deref(), Ok(&model[..]));
    assert_eq!(on_disk(&*w.sim), (vec![], vec![]));
}

/// On a file system that gives numbers out again.
#[test]
fn a_copy_with_the_number_of_another_that_is_gone_shows_its_own_lower_file() {
    for access in [Access::Ro, Access::Rr] {
        let base = tempfile::tempdir().unwrap();
        let (upper, lower) = (base.path().join("upper"), base.path().join("lower"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&lower).unwrap();
        for i in 0..8_u8 {
            fs::write(lower.join(format!("f{i}")), vec![b'0' + i; 100]).unwrap();
        }
        let perm = Perm { access, ..Perm::RO };
        let union = Union::open(lazily(vec![dir_branch(&upper, Perm::RW), dir_branch(&lower, perm)])).unwrap();
        for i in 0..8_u8 {
            let name = format!("f{i}");
            let ino = union.lookup(ROOT_INO, name.as_bytes()).unwrap().ino;
            union.write(ino, 3, b"x", false).unwrap();
            let mut model = [b'0' + i; 100];
            model[3] = b'x';
            assert_eq!(content(&union, ino).as_deref(), Ok(&model[..]), "{name}");
            union.unlink(ROOT_INO, name.as_bytes()).unwrap();
            union.forget(ino, 1);
        }
    }
}

#[test]
fn what_was_cut_off_is_gone_though_the_rest_of_the_change_failed() {
    let w = world(100);
    let ino = walk(&w.union, "d/f").unwrap();
    w.union.write(ino, 0, b"x", false).unwrap();
    w.upper.once(|call| call == Call::Resized(37), || Err(Errno::EIO));
    assert_eq!(truncate(&w.union, ino, 37), Err(Errno::EIO));
    let mut model = text(37);
    model[0] = b'x';
    let mut buf = [0; 60];
    assert_eq!(w.union.read(ino, 32, &mut buf), Ok(5), "beyond the end");
    truncate(&w.union, ino, 90).unwrap();
    model.resize(90, 0);
    assert_eq!(content(&w.union, ino).unwrap(), model);
    w.union.close();
    let again = w.again(&w.sim);
    assert_eq!(content(&again, walk(&again, "d/f").unwrap()).unwrap(), model);
}

#[test]
fn completion_puts_no_time_back_that_somebody_set_meanwhile() {
    let w = world(100);
    let ino = walk(&w.union, "d/f").unwrap();
    w.union.write(ino, 0, b"x", false).unwrap();
    w.union.setxattr(ino, b"security.capability", b"old", 0).unwrap();
    let (union, other) = (Arc::clone(&w.union), Arc::clone(&w.union));
    let (send, later) = mpsc::channel();
    let mtime = TimeSpec { sec: 77, nsec: 7 };
    w.upper.once(
        |call| matches!(call, Call::Write(16.., _)),
        move || {
            let touched = meanwhile(move || union.setattr(ino, &SetAttr { mtime: Some(mtime), ..SetAttr::default() }, false).map(drop));
            let dropped = meanwhile(move || other.removexattr(ino, b"security.capability"));
            send.send((touched, dropped)).unwrap();
            Ok(())
        },
    );
    assert_eq!(w.union.complete(ino, u64::MAX), Ok(true));
    let (touched, dropped) = later.recv().unwrap();
    assert_eq!((result(&touched), result(&dropped)), (Ok(()), Ok(())));
    assert_eq!(w.union.getattr(ino).unwrap().mtime, mtime);
    assert_eq!(w.union.getxattr(ino, b"security.capability"), Err(Errno::ENODATA), "it came back");
}

#[test]
fn it_can_be_removed_where_no_second_name_can_be_made() {
    for error in [Errno::ENOSPC, Errno(31)] {
        let w = world(100);
        let (dir, ino) = (walk(&w.union, "d").unwrap(), walk(&w.union, "d/f").unwrap());
        w.union.write(ino, 0, b"x", false).unwrap();
        w.union.link(ino, ROOT_INO, b"second").unwrap();
        w.upper.hook(move |call| if call == Call::Link { Err(error) } else { Ok(()) });
        w.union.unlink(ROOT_INO, b"second").unwrap();
        assert_eq!(content(&w.union, ino).unwrap()[..2], *b"xb");
        assert_eq!(on_disk(&*w.sim).0.len(), 1, "it is still needed");
        w.union.unlink(dir, b"f").unwrap();
        assert_eq!(content(&w.union, ino).unwrap()[..2], *b"xb", "it is still open");
        assert_eq!(on_disk(&*w.sim), (vec![], vec![]));
    }
}

#[test]
fn a_full_disk_under_the_bitmap_costs_nothing_once_there_is_room() {
    let w = world(100);
    let ino = walk(&w.union, "d/f").unwrap();
    w.union.write(ino, 20, b"NEW", false).unwrap();
    // Seven blocks: the bitmap is one byte.
    w.upper.once(|call| call == Call::Write(0, 1), || Err(Errno::ENOSPC));
    assert_eq!(w.union.fsync(ino, true), Err(Errno::ENOSPC));
    w.union.write(ino, 60, b"TOO", false).unwrap();
    w.union.fsync(ino, true).unwrap();
    let mut model = text(100);
    model[20..23].copy_from_slice(b"NEW");
    model[60..63].copy_from_slice(b"TOO");
    let again = w.again(&Arc::new(w.sim.cut(w.sim.steps(), false)));
    assert_eq!(content(&again, walk(&again, "d/f").unwrap()).unwrap(), model);
}

/// The extended attributes of a file of ext4 share one block.
#[test]
fn where_the_mark_leaves_no_room_for_a_file_s_attributes_the_copy_is_whole() {
    let [sim, lower] = [1, 2].map(|dev| Arc::new(SimBranch::new(dev)));
    super::super::put(&*lower, "/f", FileKind::File, &text(100));
    let file = At::Name(&lower.root(), b"f");
    for name in [&b"user.a"[..], b"user.b"] {
        lower.set_xattr(file, name, &[7; 100], 0).unwrap();
    }
    let upper = Hooked::new(Arc::clone(&sim) as Arc<dyn Branch>);
    let union = Union::open(lazily(vec![upper.config("upper", Perm::RW), sim_branch("lower", &lower, Perm::RO)])).unwrap();
    let marked = AtomicBool::new(false);
    upper.hook(move |call| match call {
        Call::SetXattr(names::XATTR_LAZY, _) => {
            marked.store(true, Ordering::Relaxed);
            Ok(())
        }
        Call::SetXattr(b"user.b", _) if marked.swap(false, Ordering::Relaxed) => Err(Errno::ENOSPC),
        _ => Ok(()),
    });
    let ino = walk(&union, "f").unwrap();
    union.write(ino, 0, b"x", false).unwrap();
    assert_eq!(union.getxattr(ino, b"user.b").unwrap(), [7; 100]);
    assert_eq!(content(&union, ino).unwrap()[..2], *b"xb");
    assert_eq!(on_disk(&*sim), (vec![], vec![]));
}

#[test]
fn a_branch_is_not_taken_away_while_a_copy_begins_to_need_it() {
    for delete in [true, false] {
        let w = world(100);
        let union = Arc::clone(&w.union);
        let (send, later) = mpsc::channel();
        w.upper.once(
            |call| matches!(call, Call::SetXattr(names::XATTR_LAZY, _)),
            move || {
                let label = "lower".to_owned();
                let change = if delete { BranchChange::Delete { label } } else { BranchChange::Modify { label, perm: Perm::RW } };
                send.send(meanwhile(move || union.change(change).map_err(|e| e.to_string()))).unwrap();
                Ok(())
            },
        );
        let ino = walk(&w.union, "d/f").unwrap();
        w.union.write(ino, 0, b"x", false).unwrap();
        let why = result(&later.recv().unwrap()).unwrap_err();
        assert!(why.contains("is needed"), "{why}");
        assert_eq!(content(&w.union, ino).map(|c| c.len()), Ok(100));
    }
}

#[test]
fn what_was_cut_off_stays_so_for_who_looked_the_file_up_at_that_time() {
    let w = world(100);
    w.union.write(walk(&w.union, "d/f").unwrap(), 0, b"x", false).unwrap();
    w.union.close();
    let upper = Hooked::new(Arc::clone(&w.sim) as Arc<dyn Branch>);
    let union = Arc::new(Union::open(lazily(vec![upper.config("upper", Perm::RW), sim_branch("lower", &w.lower, Perm::RO)])).unwrap());
    let dir = walk(&union, "d").unwrap();
    let other = Arc::clone(&union);
    let (send, later) = mpsc::channel();
    upper.once(
        |call| call == Call::GetXattr(names::XATTR_LAZY),
        move || {
            let cut = meanwhile(move || {
                let ino = other.lookup(dir, b"f").unwrap().ino;
                truncate(&other, ino, 37).unwrap();
                truncate(&other, ino, 100).unwrap();
                other.fsync(ino, false).unwrap();
                other.forget(ino, 1);
            });
            send.send(cut).unwrap();
            Ok(())
        },
    );
    let ino = union.lookup(dir, b"f").unwrap().ino;
    result(&later.recv().unwrap());
    let mut model = text(37);
    model[0] = b'x';
    model.resize(100, 0);
    assert_eq!(String::from_utf8_lossy(&content(&union, ino).unwrap()), String::from_utf8_lossy(&model));
}

/// While the bits of some blocks go to the disk, others are written: it must not become an ordinary file before they are synced.
#[test]
fn it_is_no_ordinary_file_while_something_is_not_synced() {
    let w = world(100);
    let ino = walk(&w.union, "d/f").unwrap();
    let new = vec![b'N'; 100];
    w.union.write(ino, 0, &new[..40], false).unwrap();
    let (union, rest) = (Arc::clone(&w.union), new.clone());
    w.sim.settle();
    // The bits of the first blocks: a byte.
    w.upper.once(|call| call == Call::Write(0, 1), move || union.write(ino, 40, &rest[40..], false));
    w.union.fsync(ino, true).unwrap();
    assert_eq!(on_disk(&*w.sim), (vec![], vec![]), "it is an ordinary file now");
    for step in 0..=w.sim.steps() {
        let again = w.again(&Arc::new(w.sim.cut(step, false)));
        let shown = content(&again, walk(&again, "d/f").unwrap()).unwrap();
        let lost = (0..100).find(|i| ![b'N', text(100)[*i]].contains(&shown[*i]));
        assert_eq!(lost, None, "a cut after step {step} shows {}", String::from_utf8_lossy(&shown));
    }
}

#[test]
fn a_branch_that_went_and_came_again_has_its_lazy_copies() {
    let base = tempfile::tempdir().unwrap();
    let paths = ["upper", "lower", "third"].map(|name| base.path().join(name));
    for path in &paths {
        fs::create_dir(path).unwrap();
    }
    fs::write(paths[1].join("f"), text(100)).unwrap();
    let union = Union::open(lazily(vec![dir_branch(&paths[0], Perm::RW), dir_branch(&paths[1], Perm::RO)])).unwrap();
    let ino = walk(&union, "f").unwrap();
    union.write(ino, 20, b"NEW", false).unwrap();
    let label = paths[0].display().to_string();
    union.change(BranchChange::Delete { label }).unwrap();
    union.change(BranchChange::Prepend(dir_branch(&paths[0], Perm::RW))).unwrap();
    let ino = walk(&union, "f").unwrap();
    let mut model = text(100);
    model[20..23].copy_from_slice(b"NEW");
    assert_eq!(content(&union, ino).as_deref(), Ok(&model[..]));
    union.write(ino, 50, b"yz", false).unwrap();
    model[50..52].copy_from_slice(b"yz");
    assert_eq!(content(&union, ino).as_deref(), Ok(&model[..]));
    union.unlink(ROOT_INO, b"f").unwrap();
    assert_eq!(on_disk(&LocalBranch::open(&paths[0]).unwrap()), (vec![], vec![]));
}

/// Descriptors of this process below a directory.
fn open_below(dir: &Path) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link.starts_with(dir)).count()
}

#[test]
fn a_branch_that_was_taken_away_is_not_held() {
    let base = tempfile::tempdir().unwrap();
    let (upper, lower) = (base.path().join("upper"), base.path().join("lower"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&lower).unwrap();
    fs::write(lower.join("f"), text(100)).unwrap();
    fs::write(lower.join("g"), text(100)).unwrap();
    let union = Union::open(lazily(vec![dir_branch(&upper, Perm::RW), dir_branch(&lower, Perm::RO)])).unwrap();
    let (f, g) = (walk(&union, "f").unwrap(), walk(&union, "g").unwrap());
    union.write(f, 20, b"NEW", false).unwrap();
    union.write(g, 20, b"NEW", false).unwrap();
    assert!(content(&union, f).is_ok() && content(&union, g).is_ok());
    assert_eq!(union.complete(f, u64::MAX), Ok(true));
    union.unlink(ROOT_INO, b"g").unwrap();
    union.forget(g, 1);
    union.change(BranchChange::Delete { label: lower.display().to_string() }).unwrap();
    // Who looks at the root again lets its layers go.
    assert!(walk(&union, "f").is_ok());
    assert_eq!(open_below(&lower), 0);
}

/// It had looked at the directories before the first copy came into them; and somebody moves one to where nothing was ever copied up to.
#[test]
fn a_second_mount_of_the_branches_shows_no_holes() {
    const SIZE: usize = 2 << 20;
    let base = tempfile::tempdir().unwrap();
    let (upper, lower) = (base.path().join("upper"), base.path().join("lower"));
    fs::create_dir_all(upper.join("pure")).unwrap();
    fs::create_dir_all(lower.join("d")).unwrap();
    for (name, size) in [("d/f", 100), ("d/g", SIZE), ("h", SIZE)] {
        fs::write(lower.join(name), text(size)).unwrap();
    }
    let mut config = lazily(vec![dir_branch(&upper, Perm::RW), dir_branch(&lower, Perm::RO)]);
    let first = Union::open(config.clone()).unwrap();
    fs::create_dir(upper.join("d")).unwrap();
    config.lazy.cpup = None;
    let second = Union::open(config).unwrap();
    for name in ["d/f", "d/g", "h", "pure"] {
        let ino = walk(&second, name).unwrap();
        if name != "d/f" {
            second.forget(ino, 1);
        }
    }
    for name in ["d/f", "d/g", "h"] {
        let ino = walk(&first, name).unwrap();
        first.write(ino, 20, b"NEW", false).unwrap();
        first.fsync(ino, false).unwrap();
    }
    fs::rename(upper.join("d/g"), upper.join("pure/moved")).unwrap();
    for (name, size) in [("d/f", 100), ("pure/moved", SIZE), ("h", SIZE)] {
        let mut model = text(size);
        model[20..23].copy_from_slice(b"NEW");
        let shown = content(&second, walk(&second, name).unwrap()).unwrap();
        let wrong = shown.iter().zip(&model).position(|(a, b)| a != b);
        assert!(shown.len() == model.len() && wrong.is_none(), "{name} at {wrong:?}");
    }
}

/// Who is asked for more than a number? Only what was copied up without its data.
#[test]
fn ordinary_copies_are_not_asked_for_a_mark() {
    let w = world(100);
    super::super::put(&*w.lower, "/d/small", FileKind::File, b"small");
    let (small, f) = (walk(&w.union, "d/small").unwrap(), walk(&w.union, "d/f").unwrap());
    w.union.write(small, 0, b"S", false).unwrap();
    w.union.write(f, 0, b"F", false).unwrap();
    let asked = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&asked);
    w.upper.hook(move |call| {
        seen.fetch_or(call == Call::GetXattr(names::XATTR_LAZY), Ordering::Relaxed);
        Ok(())
    });
    walk(&w.union, "d/small").unwrap();
    assert!(!asked.load(Ordering::Relaxed));
    w.union.close();
    let upper = &w.upper;
    let union = Union::open(lazily(vec![upper.config("upper", Perm::RW), sim_branch("lower", &w.lower, Perm::RO)])).unwrap();
    walk(&union, "d/small").unwrap();
    assert!(!asked.load(Ordering::Relaxed));
    walk(&union, "d/f").unwrap();
    assert!(asked.load(Ordering::Relaxed));
}

#[test]
fn a_bitmap_whose_file_somebody_removed_keeps_no_branch() {
    let base = tempfile::tempdir().unwrap();
    let (upper, lower) = (base.path().join("upper"), base.path().join("lower"));
    fs::create_dir_all(upper.join("elsewhere")).unwrap();
    fs::create_dir(&lower).unwrap();
    for name in ["f", "g"] {
        fs::write(lower.join(name), text(100)).unwrap();
    }
    let union = Union::open(lazily(vec![dir_branch(&upper, Perm::RW), dir_branch(&lower, Perm::RO)])).unwrap();
    for name in ["f", "g"] {
        union.write(walk(&union, name).unwrap(), 0, b"x", false).unwrap();
        union.forget(walk(&union, name).unwrap(), 2);
    }
    fs::remove_file(upper.join("f")).unwrap();
    let label = lower.display().to_string();
    let delete = || union.change(BranchChange::Delete { label: label.clone() }).map_err(|e| e.to_string());
    let why = delete().unwrap_err();
    assert!(why.contains("of 1 files") && why.contains("g among"), "{why}");
    // It is found wherever it lies.
    fs::rename(upper.join("g"), upper.join("elsewhere/moved")).unwrap();
    assert!(delete().is_err());
    fs::remove_file(upper.join("elsewhere/moved")).unwrap();
    delete().unwrap();
}

/// As a virtual machine does that discards its whole disk.
#[test]
fn a_hole_of_many_millions_of_blocks_takes_no_time() {
    let base = tempfile::tempdir().unwrap();
    let (upper, lower) = (base.path().join("upper"), base.path().join("lower"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&lower).unwrap();
    let file = fs::File::create(lower.join("f")).unwrap();
    let size = 8_u64 << 40;
    file.set_len(size).unwrap();
    let mut config = lazily(vec![dir_branch(&upper, Perm::RW), dir_branch(&lower, Perm::RO)]);
    config.lazy.block_bytes = 128 << 10;
    let union = Union::open(config).unwrap();
    let ino = walk(&union, "f").unwrap();
    let started = std::time::Instant::now();
    union.fallocate(ino, 5, size - 10, 3).unwrap();
    union.fsync(ino, true).unwrap();
    assert_eq!(on_disk(&LocalBranch::open(&upper).unwrap()), (vec![], vec![]), "nothing is missing");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

/// A file of a writable branch moves to a higher one, since the name that it replaces is there: who writes to it, and who changes its
/// mode, in the middle of the copy does neither for nothing.
#[test]
fn what_is_written_to_a_file_that_moves_up_is_not_lost() {
    let (upper, lower) = (Arc::new(SimBranch::new(1)), Arc::new(SimBranch::new(2)));
    super::super::put(&*upper, "/e/g", FileKind::File, b"old");
    let long = text(3 << 20);
    super::super::put(&*lower, "/d/f", FileKind::File, &long);
    let lower = Hooked::new(lower as Arc<dyn Branch>);
    let branches = vec![sim_branch("upper", &upper, Perm::RW), lower.config("lower", Perm::RW)];
    let union = Arc::new(Union::open(UnionConfig { branches, ..UnionConfig::default() }).expect("open"));
    let (d, e, f) = (walk(&union, "d").unwrap(), walk(&union, "e").unwrap(), walk(&union, "d/f").unwrap());

    let (starts, started) = mpsc::channel();
    // At the second of three pieces: the first was copied.
    let pieces = AtomicUsize::new(0);
    let writer = Arc::clone(&union);
    lower.once(
        move |call| call == Call::Read && pieces.fetch_add(1, Ordering::Relaxed) == 1,
        move || {
            let later = meanwhile(move || {
                writer.write(f, 0, b"NEW", false)?;
                writer.setattr(f, &SetAttr { mode: Some(0o600), ..SetAttr::default() }, false)
            });
            starts.send(later).unwrap();
            Ok(())
        },
    );
    union.rename(d, b"f", e, b"g", 0).unwrap();
    result(&started.try_recv().expect("the file was copied up")).unwrap();

    let g = walk(&union, "e/g").unwrap();
    assert_eq!(g, f);
    let found = content(&union, g).unwrap();
    assert!(found.starts_with(b"NEW") && found[3..] == long[3..], "what was written is lost");
    assert_eq!(union.getattr(g).unwrap().mode, 0o600);
}
