//! Which pages requests write, as the first ones have shown: a new fork has them for itself before anything reads them. A page
//! that the guest reads first and writes then costs the processor two faults, the second of which has every machine of the
//! process asked for translations of it (mmu notifiers).

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::arch::layout::PAGE;
use crate::memory::mapping::Mapping;

/// After so many resets in a row that taught nothing no more are looked at: each look takes a lock. Warm-up requests are among
/// them, and need not write what others do.
const LOOKS: u32 = 64;
/// Most pages that a fork has from the start: those of requests that write more cost more than they save if there is none.
const MOST: usize = 2048;
/// Pages between two that are written which are not worth a call of their own: copying one costs about as much.
const GAP: u32 = 1;

/// What was learnt of a master's forks.
#[derive(Debug, Default)]
pub struct Learned {
    looks: AtomicU32,
    /// In order.
    pages: Mutex<Vec<u32>>,
}

impl Learned {
    /// Learns from a fork that is reset: the pages that it has dirtied so far.
    pub fn learn(&self, dirtied: impl Iterator<Item = u32>) {
        if self.looks.load(Ordering::Relaxed) >= LOOKS {
            return;
        }
        let mut pages = self.pages.lock();
        let before = pages.len();
        for page in dirtied {
            if pages.len() >= MOST {
                self.looks.store(LOOKS, Ordering::Relaxed);
                return;
            }
            if let Err(at) = pages.binary_search(&page) {
                pages.insert(at, page);
            }
        }
        if pages.len() > before {
            self.looks.store(0, Ordering::Relaxed);
        } else {
            self.looks.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Gives a new fork its own copies. What can't be had now is had when it is written.
    pub fn populate(&self, fork: &Mapping) {
        for run in self.runs() {
            if fork.populate(run).is_err() {
                return;
            }
        }
    }

    /// Guest-physical ranges that hold them all.
    fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        for &page in &*self.pages.lock() {
            match runs.last_mut() {
                Some(run) if page <= run.end + GAP => run.end = page + 1,
                _ => runs.push(page..page + 1),
            }
        }
        let bytes = |run: Range<u32>| u64::from(run.start) * PAGE..u64::from(run.end) * PAGE;
        runs.into_iter().map(bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run() {
        let learned = Learned::default();
        learned.learn([9, 3, 4].into_iter());
        learned.learn([6, 3, 20].into_iter());
        let pages = |run: Range<u64>| run.start * PAGE..run.end * PAGE;
        assert_eq!(learned.runs(), [3..7, 9..10, 20..21].map(pages));
    }

    #[test]
    fn no_more_is_learnt_than_helps() {
        let learned = Learned::default();
        learned.learn(0..10_000);
        assert_eq!(learned.pages.lock().len(), MOST);
        let learned = Learned::default();
        let look = |page| learned.learn([page].into_iter());
        (0..2 * LOOKS).for_each(look);
        assert_eq!(learned.pages.lock().len(), 2 * LOOKS as usize);
        (0..LOOKS).for_each(look);
        look(1000);
        assert_eq!(learned.pages.lock().len(), 2 * LOOKS as usize);
    }

    #[test]
    fn a_fork_reads_the_same_with_pages_of_its_own() {
        use crate::master::freeze;
        let memfd = freeze::memfd("forkvm-test", 64 * PAGE).unwrap();
        Mapping::shared(&memfd, 64 * PAGE)
            .unwrap()
            .write(5 * PAGE, &[7])
            .unwrap();
        let unused = std::slice::from_ref(&(32 * PAGE..64 * PAGE));
        let fork = Mapping::fork(&memfd, 64 * PAGE, unused).unwrap();
        let learned = Learned::default();
        // Beyond its end there is nothing.
        learned.learn([5, 31, 32, 33, 1000].into_iter());
        learned.populate(&fork);
        let master = Mapping::frozen(&memfd, 64 * PAGE, unused).unwrap();
        assert_eq!(fork.differing_pages(&master), 0);
        assert!(fork.populate(1000 * PAGE..1001 * PAGE).is_err());
    }
}
