//! Frames: the pages of guest-physical memory that an address space gives to its pages.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::arch::layout::PAGE;
use crate::memory::dirty::NoRecord;

/// A frame for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Its guest-physical address.
    pub address: u64,
    /// It holds what another page left.
    pub used: bool,
}

/// The frames of a machine: those never given out lie from `next` on, those given back are in two lists.
#[derive(Debug, Clone)]
pub struct Frames {
    next: u64,
    end: u64,
    /// Given back, and zero.
    clean: Vec<u64>,
    /// Given back with what the page held.
    used: Vec<u64>,
}

impl Frames {
    /// All the frames of a guest-physical range, which is zero.
    pub fn new(range: Range<u64>) -> Self {
        Self {
            next: range.start,
            end: range.end,
            clean: Vec::new(),
            used: Vec::new(),
        }
    }

    /// The frames of a range of which those from `next` on were never given out, and of the others those that are not `used` are
    /// free, and zero.
    pub fn with(range: Range<u64>, next: u64, used: impl Fn(u64) -> bool) -> Self {
        let given = (range.start..next).step_by(PAGE as usize);
        Self {
            next,
            end: range.end,
            clean: given.filter(|frame| !used(*frame)).collect(),
            used: Vec::new(),
        }
    }

    /// The same, but of those that lie beyond `end` none.
    pub fn below(&self, end: u64) -> Self {
        Self {
            end: self.end.min(end),
            ..self.clone()
        }
    }

    /// Where those begin that were never given out.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// A frame. `None` if all are in use.
    pub fn take(&mut self) -> Option<Frame> {
        if let Some(address) = self.clean.pop() {
            return Some(Frame {
                address,
                used: false,
            });
        }
        // What was never used costs the host memory; what was used does not.
        if let Some(address) = self.used.pop() {
            return Some(Frame {
                address,
                used: true,
            });
        }
        let address = self.next;
        if address >= self.end {
            return None;
        }
        self.next += PAGE;
        Some(Frame {
            address,
            used: false,
        })
    }

    /// Gives a frame back with what is in it. After an error nobody gets it any more.
    pub fn give_back(&mut self, address: u64) -> Result<(), NoRecord> {
        self.used.try_reserve(1).map_err(|_| NoRecord)?;
        self.used.push(address);
        Ok(())
    }

    /// Frames in use.
    pub fn count(&self, first: u64) -> u64 {
        let free = (self.clean.len() + self.used.len()) as u64;
        (self.next - first) / PAGE - free
    }

    /// Takes out the frames that were given back and hold something, so that their caller zeroes them.
    pub fn take_used(&mut self) -> Vec<u64> {
        let used = std::mem::take(&mut self.used);
        self.clean.extend_from_slice(&used);
        self.clean.sort_unstable();
        used
    }

    /// True for a frame that is not given out, once [`Frames::take_used`] has been called and nothing since.
    pub fn is_free(&self, frame: u64) -> bool {
        frame >= self.next || self.clean.binary_search(&frame).is_ok()
    }

    /// Goes back to the master's state, but for the frames in `kept`, which stay given out. All others hold what the
    /// master's do: those that the master never gave out are zero.
    pub fn restore_from(&mut self, master: &Self, kept: &BTreeSet<u64>) {
        self.used.clone_from(&master.used);
        self.used.retain(|frame| !kept.contains(frame));
        self.clean.clone_from(&master.clean);
        self.clean.retain(|frame| !kept.contains(frame));
        let last = kept.last().map_or(0, |frame| frame + PAGE);
        self.next = master.next.max(last);
        let between = (master.next..self.next).step_by(PAGE as usize);
        self.clean
            .extend(between.filter(|frame| !kept.contains(frame)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(frames: &mut Frames) -> BTreeSet<u64> {
        std::iter::from_fn(|| frames.take())
            .map(|frame| frame.address)
            .collect()
    }

    #[test]
    fn every_frame_is_given_out_once() {
        let mut frames = Frames::new(0..8 * PAGE);
        let first = frames.take().unwrap().address;
        frames.give_back(first).unwrap();
        assert_eq!(
            frames.take(),
            Some(Frame {
                address: first,
                used: true
            })
        );
        frames.give_back(first).unwrap();
        assert_eq!(drain(&mut frames).len(), 8);
    }

    #[test]
    fn what_a_fork_keeps_is_not_given_out_again() {
        let mut master = Frames::new(0..16 * PAGE);
        let taken: Vec<_> = (0..4).map(|_| master.take().unwrap().address).collect();
        master.give_back(taken[1]).unwrap();
        master.take_used();
        let mut fork = master.clone();
        let kept: BTreeSet<_> = [taken[1], 6 * PAGE].into();
        fork.restore_from(&master, &kept);
        let rest = drain(&mut fork);
        assert_eq!(rest.len(), 16 - 3 - 2);
        assert!(rest.is_disjoint(&kept));
        fork.restore_from(&master, &BTreeSet::new());
        assert_eq!(drain(&mut fork).len(), 16 - 3);
    }
}
