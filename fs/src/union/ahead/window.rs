//! How far a scout may be ahead of one walk: pure counting, no files.

use std::collections::{HashMap, VecDeque};

/// A first guess is one file ahead; each file that is then read doubles it, up to so many.
pub(super) const AHEAD_FILES_MAX: u64 = 128;
/// Files behind the walker that are still known to be this walk's: not every walker keeps to the order.
const BEHIND_FILES_MAX: u64 = 128;

/// Files by number, in the order in which a walker is expected to read them. Invariant: `read <= first + order.len()`, and at most
/// [`AHEAD_FILES_MAX`] of them lie after `read`.
#[derive(Debug)]
pub(super) struct Window {
    order: VecDeque<u64>,
    /// The position of the first of `order`.
    first: u64,
    position: HashMap<u64, u64>,
    /// The position after the furthest file that was read.
    read: u64,
    ahead_max: u64,
}

impl Window {
    /// `ahead_max`: files ahead, to begin with.
    pub(super) fn new(ahead_max: u64) -> Self {
        Self { order: VecDeque::new(), first: 0, position: HashMap::new(), read: 0, ahead_max: ahead_max.clamp(1, AHEAD_FILES_MAX) }
    }

    fn next(&self) -> u64 {
        self.first + self.order.len() as u64
    }

    pub(super) fn ahead_max(&self) -> u64 {
        self.ahead_max
    }

    /// Whether another file may be scouted.
    pub(super) fn wants(&self) -> bool {
        self.next() - self.read < self.ahead_max
    }

    /// A file is scouted next.
    pub(super) fn scout(&mut self, ino: u64) {
        self.position.insert(ino, self.next());
        self.order.push_back(ino);
    }

    /// The walker reads a file. `None`: not one of this walk's; else whether so few are ahead of it that the scout shall go on.
    pub(super) fn read(&mut self, ino: u64) -> Option<bool> {
        let at = *self.position.get(&ino)?;
        if at >= self.read {
            self.read = at + 1;
            self.ahead_max = (self.ahead_max * 2).min(AHEAD_FILES_MAX);
            while self.first + BEHIND_FILES_MAX < self.read
                && let Some(old) = self.order.pop_front()
            {
                // A file with several names stands at its last one.
                if self.position.get(&old) == Some(&self.first) {
                    self.position.remove(&old);
                }
                self.first += 1;
            }
        }
        Some(self.next() - self.read <= self.ahead_max / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(window: &mut Window, from: u64) -> u64 {
        (from..).take_while(|ino| window.wants().then(|| window.scout(*ino)).is_some()).count() as u64
    }

    #[test]
    fn each_file_read_doubles_the_way_ahead_up_to_the_bound() {
        let mut window = Window::new(1);
        let mut next = filled(&mut window, 0);
        assert_eq!(next, 1);
        for (read, ahead) in (0..10).zip([2, 4, 8, 16, 32, 64, 128, 128, 128, 128]) {
            window.read(read).expect("known");
            next += filled(&mut window, next);
            assert_eq!(next - (read + 1), ahead.min(AHEAD_FILES_MAX), "after file {read}");
        }
    }

    #[test]
    fn it_is_asked_for_more_when_half_is_used_up() {
        let mut window = Window::new(AHEAD_FILES_MAX);
        let next = filled(&mut window, 0);
        let hungry: Vec<u64> = (0..next).filter(|ino| window.read(*ino) == Some(true)).collect();
        assert_eq!(hungry.first(), Some(&(AHEAD_FILES_MAX / 2 - 1)));
        assert_eq!(hungry.len() as u64, AHEAD_FILES_MAX / 2 + 1);
    }

    #[test]
    fn a_walker_may_jump_about_and_nothing_is_remembered_for_ever() {
        let mut window = Window::new(16);
        filled(&mut window, 0);
        assert_eq!(window.read(12), Some(true));
        assert_eq!(window.read(3), Some(true), "passed, and still known");
        assert_eq!(window.read(1_000_000), None);
        let mut next = 16;
        for ino in 13..2000 {
            next += filled(&mut window, next);
            assert!(window.read(ino).is_some());
        }
        let bound = usize::try_from(AHEAD_FILES_MAX + BEHIND_FILES_MAX).expect("small");
        assert!(window.order.len() <= bound && window.position.len() <= bound);
        assert_eq!(window.read(12), None);
    }

    #[test]
    fn a_file_with_several_names_stands_at_the_last() {
        let mut window = Window::new(AHEAD_FILES_MAX);
        (0..4).for_each(|ino| window.scout(ino % 2));
        assert!(window.read(0).is_some());
        assert_eq!(window.read, 3);
    }
}
