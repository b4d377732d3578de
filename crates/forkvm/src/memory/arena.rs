//! Memory for what a machine's files have: a mapping of its own, given back to the kernel when nothing is left in it. The allocator
//! of the process would keep some of it for each of its arenas, of which threads that run requests have several.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Bytes of a slot, that is of addresses: memory it has for what is written to only.
pub const SLOT: usize = 16 << 10;
/// What stays when nothing is left, so that small files cost no system call, and the kernel no question of each machine of the
/// process (mmu notifiers): in slots.
const KEPT: usize = 16;

/// A machine's memory for files.
pub struct Arena {
    /// Most slots.
    slots: usize,
    mapping: OnceLock<Mapping>,
    taken: Mutex<Taken>,
}

/// Which slots are in use.
#[derive(Default)]
struct Taken {
    count: usize,
    /// The first one that none has had since nothing was left, and those before it that are free again.
    next: usize,
    free: Vec<usize>,
}

struct Mapping {
    start: usize,
    len: usize,
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

impl Arena {
    /// One of so many slots at most. Nothing is mapped before the first is taken.
    pub fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self {
            slots,
            mapping: OnceLock::new(),
            taken: Mutex::default(),
        })
    }

    /// A slot of so many bytes, at most [`SLOT`], which are zero.
    pub fn take(self: &Arc<Self>, len: usize) -> Result<Slot, Errno> {
        if len > SLOT {
            return Err(Errno::INVAL);
        }
        let mut taken = self.taken.lock();
        let start = self.mapping()?.start;
        let number = match taken.free.pop() {
            Some(number) => number,
            None if taken.next < self.slots => {
                taken.next += 1;
                taken.next - 1
            }
            None => return Err(Errno::NOSPC),
        };
        taken.count += 1;
        drop(taken);
        let mut slot = Slot {
            arena: Arc::clone(self),
            number,
            address: start + number * SLOT,
            len,
        };
        // Another file's bytes may be there.
        slot.fill(0);
        Ok(slot)
    }

    fn mapping(&self) -> Result<&Mapping, Errno> {
        if let Some(mapping) = self.mapping.get() {
            return Ok(mapping);
        }
        let mapping = Mapping::new(self.slots.checked_mul(SLOT).ok_or(Errno::NOSPC)?)?;
        Ok(self.mapping.get_or_init(|| mapping))
    }

    fn give_back(&self, number: usize) {
        let mut taken = self.taken.lock();
        taken.count -= 1;
        if taken.count > 0 {
            taken.free.push(number);
            return;
        }
        // The list would be as long as it ever was.
        let used = std::mem::take(&mut *taken).next;
        if used > KEPT
            && let Some(mapping) = self.mapping.get()
        {
            mapping.give_back(KEPT * SLOT, used * SLOT);
        }
    }
}

impl Mapping {
    fn new(len: usize) -> Result<Self, Errno> {
        let how = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, which takes nothing's place.
        let address = unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, how)? };
        let mapping = Self {
            start: address.addr(),
            len,
        };
        // A huge page would be more memory than is counted.
        // SAFETY: of the mapping made above, of which nobody knows yet.
        match unsafe { madvise(address, len, Advice::LinuxNoHugepage) } {
            // A kernel without them.
            Ok(()) | Err(Errno::INVAL) => Ok(mapping),
            Err(errno) => Err(errno),
        }
    }

    /// Gives the memory from an offset to another one back. Nobody has a slot.
    fn give_back(&self, from: usize, to: usize) {
        let to = to.min(self.len);
        let address = (self.start + from.min(to)) as *mut _;
        // SAFETY: a part of the mapping, of which there is no reference, as no slot is taken and the lock is held.
        let _ = unsafe { madvise(address, to - from.min(to), Advice::LinuxDontNeed) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is ours, and slots hold on to their arena.
        let _ = unsafe { munmap(self.start as *mut _, self.len) };
    }
}

/// Some bytes of an arena's, given back when this is dropped.
#[derive(Debug)]
pub struct Slot {
    arena: Arc<Arena>,
    number: usize,
    address: usize,
    len: usize,
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: within the arena's mapping, which is there as long as the arena; no other slot has these bytes.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.len) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref(), and `self` is the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.len) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.arena.give_back(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that are in memory of the arena's mapping (proc_pid_smaps(5)).
    fn resident(arena: &Arena) -> usize {
        let start = format!("{:x}-", arena.mapping.get().unwrap().start);
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    #[test]
    fn what_is_not_used_any_more_is_given_back() {
        let arena = Arena::new(100);
        let mut slots: Vec<Slot> = (0..100).map(|_| arena.take(SLOT).unwrap()).collect();
        for slot in &mut slots {
            slot.fill(7);
        }
        assert!(arena.take(1).is_err());
        assert_eq!(resident(&arena), 100 * SLOT);
        // What is free again is taken again, and what it had is gone.
        drop(slots.remove(50));
        let slot = arena.take(100).unwrap();
        assert_eq!(*slot, [0; 100]);
        drop(slots);
        drop(slot);
        assert!(resident(&arena) <= KEPT * SLOT);
        let slot = arena.take(SLOT).unwrap();
        assert!(slot.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn slots_outlive_who_made_them() {
        let arena = Arena::new(2);
        let mut slot = arena.take(3).unwrap();
        drop(arena);
        slot.copy_from_slice(b"abc");
        assert_eq!(&*slot, b"abc");
        assert!(slot.arena.take(SLOT + 1).is_err());
    }
}
