//! The dirty ring: the host kernel's own record of the pages a vCPU wrote
//! (Linux: Documentation/virt/kvm/api.rst, `KVM_CAP_DIRTY_LOG_RING`).

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};

use crate::arch::layout::PAGE;

/// Flags of an entry (Linux: include/uapi/linux/kvm.h; written there with `_BITUL`, which bindgen passes over).
const KVM_DIRTY_GFN_F_DIRTY: u32 = 1 << 0;
const KVM_DIRTY_GFN_F_RESET: u32 = 1 << 1;
const KVM_DIRTY_GFN_F_MASK: u32 = 3;

/// Which entry is next: counters that run freely, past the ring's length and the largest number there is.
#[derive(Debug)]
struct Counters {
    /// The ring's length, a power of two, less one.
    mask: u32,
    /// Next entry to be looked at.
    next: u32,
    /// Next entry to be given back to KVM: all from here to `next` have been harvested and not given back.
    unreset: u32,
}

impl Counters {
    /// Those of a ring of so many entries, of which the first in turn is this. `None` if the length is no power of two.
    fn new(len: u32, first: u32) -> Option<Self> {
        len.is_power_of_two().then_some(Self {
            mask: len.wrapping_sub(1),
            next: first,
            unreset: first,
        })
    }

    fn len(&self) -> u32 {
        self.mask + 1
    }

    /// Entries harvested and not given back.
    fn used(&self) -> u32 {
        self.next.wrapping_sub(self.unreset)
    }

    /// Where an entry is: below [`Counters::len`].
    fn place(&self, counter: u32) -> usize {
        (counter & self.mask) as usize
    }

    /// The entry to be looked at. `None` while all are in use.
    fn to_look_at(&self) -> Option<usize> {
        (self.used() < self.len()).then(|| self.place(self.next))
    }

    fn looked(&mut self) {
        self.next = self.next.wrapping_add(1);
    }

    /// The oldest entry that was harvested and not given back.
    fn to_give_back(&self) -> Option<usize> {
        (self.used() > 0).then(|| self.place(self.unreset))
    }

    fn gave_back(&mut self) {
        self.unreset = self.unreset.wrapping_add(1);
    }

    /// The entry given back last.
    fn given_back_last(&self) -> usize {
        self.place(self.unreset.wrapping_sub(1))
    }
}

/// The mapped ring of one vCPU.
#[derive(Debug)]
pub struct DirtyRing {
    /// As many entries as `counters` has.
    entries: *mut kvm_dirty_gfn,
    counters: Counters,
}

// SAFETY: a mapping belongs to no thread, and nobody else has this one.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Maps the ring of a vCPU whose VM has a ring of `len` entries (a power of two).
    pub fn map(vcpu: &impl AsRawFd, len: u32) -> std::io::Result<Self> {
        let counters = Counters::new(len, 0).ok_or(std::io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh mapping chosen by the kernel; the result is checked.
        let entries = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::bytes(len),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE as i64,
            )
        };
        if entries == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self {
            entries: entries.cast(),
            counters,
        })
    }

    fn bytes(len: u32) -> usize {
        len as usize * size_of::<kvm_dirty_gfn>()
    }

    /// An entry's flags, and the whole of it. `place` is one that `counters` gave.
    fn entry(&self, place: usize) -> (&AtomicU32, *const kvm_dirty_gfn) {
        debug_assert!(place < self.counters.len() as usize);
        // SAFETY: the counters give only places below the ring's length, so the entry is inside the mapping; `flags` is
        // shared with the kernel and only ever accessed atomically.
        unsafe {
            let entry = self.entries.add(place);
            (AtomicU32::from_ptr(&raw mut (*entry).flags), entry)
        }
    }

    /// Hands every new entry's (memslot, page offset in it) to `dirtied`.
    pub fn harvest(&mut self, mut dirtied: impl FnMut(u32, u64)) {
        while let Some(place) = self.counters.to_look_at() {
            let (flags, entry) = self.entry(place);
            if flags.load(Ordering::Acquire) & KVM_DIRTY_GFN_F_MASK != KVM_DIRTY_GFN_F_DIRTY {
                break;
            }
            // SAFETY: inside the mapping (see `entry`); the kernel wrote the fields before it set the flag.
            let (slot, offset) = unsafe { ((*entry).slot, (*entry).offset) };
            dirtied(slot, offset);
            self.counters.looked();
        }
    }

    /// Entries harvested and not yet given back.
    pub fn used(&self) -> u32 {
        self.counters.used()
    }

    /// Entries of the ring.
    pub fn len(&self) -> u32 {
        self.counters.len()
    }

    /// Marks all harvested entries, and only those, as to be reset. The VM's ioctl does the reset.
    pub fn mark_reset(&mut self) {
        while let Some(place) = self.counters.to_give_back() {
            let (flags, _) = self.entry(place);
            flags.store(KVM_DIRTY_GFN_F_RESET, Ordering::Release);
            self.counters.gave_back();
        }
    }

    /// Whether KVM has taken back all that was marked. It does so in order, so the last one tells.
    pub fn is_reset(&self) -> bool {
        let (flags, _) = self.entry(self.counters.given_back_last());
        flags.load(Ordering::Acquire) & KVM_DIRTY_GFN_F_RESET == 0
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, unmapped once; no reference into it outlives `self`.
        unsafe { libc::munmap(self.entries.cast(), Self::bytes(self.len())) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring without KVM, and what KVM would do to it.
    struct Played {
        ring: DirtyRing,
        dirty_index: u32,
    }

    impl Played {
        fn new(len: u32, start: u32) -> Self {
            // SAFETY: a fresh anonymous mapping chosen by the kernel; the result is checked, and `ring` unmaps it.
            let entries = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    DirtyRing::bytes(len),
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            assert_ne!(entries, libc::MAP_FAILED);
            let ring = DirtyRing {
                entries: entries.cast(),
                counters: Counters::new(len, start).unwrap(),
            };
            Self {
                ring,
                dirty_index: start,
            }
        }

        fn push(&mut self, page: u64) {
            let (flags, entry) = self.ring.entry(self.ring.counters.place(self.dirty_index));
            // SAFETY: inside the mapping (see `entry`), and nobody else has it.
            unsafe { (*entry.cast_mut()).offset = page };
            flags.store(KVM_DIRTY_GFN_F_DIRTY, Ordering::Release);
            self.dirty_index = self.dirty_index.wrapping_add(1);
        }

        /// Takes back what is marked; the pages of these entries are logged again from now on.
        fn reset(&mut self, most: usize) -> Vec<u64> {
            let mut pages = Vec::new();
            for i in 0..self.ring.len() {
                // In order from the oldest; a full turn finds it wherever it is.
                let counters = &self.ring.counters;
                let place = counters.place(counters.unreset.wrapping_add(i));
                let (flags, entry) = self.ring.entry(place);
                if pages.len() < most && flags.load(Ordering::Acquire) & KVM_DIRTY_GFN_F_RESET != 0
                {
                    flags.store(0, Ordering::Release);
                    // SAFETY: inside the mapping (see `entry`), and nobody else has it.
                    pages.push(unsafe { (*entry).offset });
                }
            }
            pages
        }

        fn harvest(&mut self) -> Vec<u64> {
            let mut pages = Vec::new();
            self.ring.harvest(|_, page| pages.push(page));
            pages
        }
    }

    /// Every order of looking and giving back that there is, up to a length, at the numbers that matter.
    #[test]
    fn counters_agree_with_numbers_that_never_end() {
        const STEPS: u32 = if cfg!(miri) { 8 } else { 13 };
        assert!(
            [0, 3, 6, u32::MAX]
                .iter()
                .all(|&len| Counters::new(len, 0).is_none())
        );
        assert_eq!(Counters::new(1 << 31, 0).unwrap().len(), 1 << 31);
        for len in [1, 2, 4, 8] {
            for first in [0, 1, 7, u32::MAX - 9, u32::MAX] {
                for order in 0..1u32 << STEPS {
                    let mut counters = Counters::new(len, first).unwrap();
                    let place = |n: u64| ((u64::from(first) + n) % u64::from(len)) as usize;
                    let (mut looked, mut given) = (0u64, 0u64);
                    for step in 0..STEPS {
                        if order >> step & 1 == 0 {
                            let found = counters.to_look_at();
                            assert_eq!(
                                found,
                                (looked - given < u64::from(len)).then(|| place(looked))
                            );
                            if found.is_some() {
                                counters.looked();
                                looked += 1;
                            }
                        } else {
                            let found = counters.to_give_back();
                            assert_eq!(found, (given < looked).then(|| place(given)));
                            if found.is_some() {
                                counters.gave_back();
                                given += 1;
                                assert_eq!(counters.given_back_last(), place(given - 1));
                            }
                        }
                        assert_eq!(u64::from(counters.used()), looked - given);
                    }
                }
            }
        }
    }

    /// With `mark_reset` going over all entries that are dirty, 5 to 7 would be given back unseen.
    #[test]
    fn only_harvested_entries_are_given_back() {
        let mut played = Played::new(16, 0);
        (0..5).for_each(|page| played.push(page));
        assert_eq!(played.harvest(), [0, 1, 2, 3, 4]);
        (5..8).for_each(|page| played.push(page));
        played.ring.mark_reset();
        assert_eq!(played.reset(usize::MAX), [0, 1, 2, 3, 4]);
        assert_eq!(played.harvest(), [5, 6, 7]);
        assert_eq!(played.ring.used(), 3);
    }

    /// The counters run past the ring's size, and past the largest number there is.
    #[test]
    fn counters_run_freely() {
        for start in [0, 13, u32::MAX - 20] {
            let mut played = Played::new(16, start);
            let (mut pushed, mut seen) = (0u64, Vec::new());
            for turn in 0..100 {
                let room = u64::from(16 - played.ring.used());
                for _ in 0..room.min(turn % 7) {
                    played.push(pushed);
                    pushed += 1;
                }
                seen.extend(played.harvest());
                if turn % 3 == 0 {
                    played.ring.mark_reset();
                    assert_eq!(played.ring.used(), 0);
                    played.reset(usize::MAX);
                    assert!(played.ring.is_reset());
                }
            }
            assert!(seen.iter().copied().eq(0..pushed), "{seen:?}");
        }
    }

    #[test]
    fn a_reset_cut_short_is_noticed() {
        let mut played = Played::new(16, 0);
        assert!(played.ring.is_reset());
        (0..6).for_each(|page| played.push(page));
        played.harvest();
        played.ring.mark_reset();
        played.reset(3);
        assert!(!played.ring.is_reset());
        played.reset(3);
        assert!(played.ring.is_reset());
    }

    /// More than the ring holds: nothing tells what was lost, but all of it is in use.
    #[test]
    fn an_overflow_fills_the_ring() {
        for earlier in [0, 5] {
            let mut played = Played::new(16, 0);
            (0..earlier).for_each(|page| played.push(page));
            played.harvest();
            (0..20).for_each(|page| played.push(page));
            played.harvest();
            assert_eq!(played.ring.used(), played.ring.len());
        }
    }
}
