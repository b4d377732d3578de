//! One range of addresses, in part a file's and in part anonymous memory.
//!
//! The pieces are mapped side by side where nothing is mapped, not one over the other: to take a mapping away, be it by
//! `MAP_FIXED`, asks each virtual machine of the process whether it has translations of it (mmu notifiers), which with
//! hundreds of forks takes longer than all else that a fork's memory needs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Where a range starts, as one that the kernel chose for so much memory would (2 MiB).
const ALIGNMENT: usize = 2 << 20;
/// Ranges are tried below one another. Threads of the process may map something there meanwhile.
const TRIES: usize = 16;

/// The address below which nothing may be mapped: a guess, that only costs another try where it is wrong.
static BELOW: AtomicUsize = AtomicUsize::new(0);
/// One looks for a place at a time: what another one maps while it looks would be in the way of those who have found theirs, each
/// of the other, until all have run out of tries.
static PLACING: Mutex<()> = Mutex::new(());

/// A private mapping of a file from its start, with anonymous memory in the place of some parts of it. Unmapped when dropped.
#[derive(Debug)]
pub struct Pieces {
    start: usize,
    /// Of what is mapped so far.
    len: usize,
}

impl Pieces {
    /// Maps the first `len` bytes of a file but for the parts in `anonymous`, which are in order, apart and whole pages.
    pub fn map(
        file: &File,
        len: usize,
        anonymous: &[Range<u64>],
        protection: ProtFlags,
    ) -> io::Result<Self> {
        let _alone = PLACING.lock();
        let mut start = BELOW.load(Ordering::Relaxed).wrapping_sub(len) & !(ALIGNMENT - 1);
        for _ in 0..TRIES {
            match Self::map_at(start, file, len, anonymous, protection) {
                Ok(pieces) => {
                    BELOW.store(start, Ordering::Relaxed);
                    return Ok(pieces);
                }
                // Taken; or no place for programs at all, as where the guess has run down to the lowest address.
                Err(Errno::EXIST | Errno::PERM | Errno::NOMEM | Errno::INVAL) => {
                    start = free_range(len)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::NOMEM.into())
    }

    fn map_at(
        start: usize,
        file: &File,
        len: usize,
        anonymous: &[Range<u64>],
        protection: ProtFlags,
    ) -> Result<Self, Errno> {
        // Root may map even the page at 0.
        if start < ALIGNMENT || start.checked_add(len).is_none() {
            return Err(Errno::INVAL);
        }
        let mut pieces = Self { start, len: 0 };
        for part in anonymous {
            let part = (part.start as usize).min(len)..(part.end as usize).min(len);
            pieces.extend(part.start, Some(file), protection)?;
            pieces.extend(part.end, None, protection)?;
        }
        pieces.extend(len, Some(file), protection)?;
        Ok(pieces)
    }

    /// Maps what is between what is mapped so far and `end`: the same part of the file, or none of it.
    fn extend(
        &mut self,
        end: usize,
        file: Option<&File>,
        protection: ProtFlags,
    ) -> Result<(), Errno> {
        let len = end.checked_sub(self.len).ok_or(Errno::INVAL)?;
        if len == 0 {
            return Ok(());
        }
        let address = (self.start + self.len) as *mut _;
        let how = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
        // SAFETY: a new mapping, which takes nothing's place.
        unsafe {
            match file {
                Some(file) => mmap(address, len, protection, how, file, self.len as u64)?,
                None => mmap_anonymous(address, len, protection, how)?,
            };
        }
        self.len = end;
        if file.is_none() {
            // A huge page would be far more memory than a request's limit counts.
            // SAFETY: of the mapping made above, of which nobody knows yet.
            match unsafe { madvise(address, len, Advice::LinuxNoHugepage) } {
                // A kernel without them.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The first byte's address.
    pub fn start(&self) -> *mut u8 {
        self.start as *mut u8
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        // SAFETY: these are the mappings made above, and who uses them holds this. There is nothing to do about an error,
        // which leaves them where they are.
        let _ = unsafe { munmap(self.start as *mut _, self.len) };
        BELOW.store(self.start + self.len, Ordering::Relaxed);
    }
}

/// Where nothing is mapped at this moment.
fn free_range(len: usize) -> Result<usize, Errno> {
    let len = len.checked_add(ALIGNMENT).ok_or(Errno::NOMEM)?;
    // SAFETY: a new mapping wherever there is room, unmapped before anybody knows of it.
    unsafe {
        let how = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let start = mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), how)?;
        munmap(start, len)?;
        Ok((start as usize).next_multiple_of(ALIGNMENT))
    }
}

#[cfg(test)]
// Lists of ranges that have one.
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    fn file(pages: usize) -> File {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; pages * PAGE], 0).unwrap();
        file
    }

    fn bytes(pieces: &Pieces) -> Vec<u8> {
        // SAFETY: mapped, readable, and nobody writes to it.
        unsafe { std::slice::from_raw_parts(pieces.start(), pieces.len) }.to_vec()
    }

    #[test]
    fn the_parts_are_where_they_belong() {
        let file = file(10);
        let page = |n: u64| n * PAGE as u64;
        for anonymous in [
            vec![],
            vec![0..page(1)],
            vec![page(2)..page(4), page(5)..page(6)],
            vec![page(9)..page(10)],
            vec![0..page(10)],
        ] {
            let pieces = Pieces::map(&file, 10 * PAGE, &anonymous, ProtFlags::READ).unwrap();
            let bytes = bytes(&pieces);
            assert_eq!(bytes.len(), 10 * PAGE);
            for (n, page_bytes) in bytes.chunks(PAGE).enumerate() {
                let hole = anonymous.iter().any(|part| part.contains(&page(n as u64)));
                let expected = if hole { 0 } else { 7 };
                assert!(
                    page_bytes.iter().all(|&byte| byte == expected),
                    "{n} {anonymous:?}"
                );
            }
        }
    }

    #[test]
    fn nothing_is_taken_away() {
        let file = file(4);
        let first = Pieces::map(&file, 4 * PAGE, &[], ProtFlags::READ).unwrap();
        // In the middle of it, and where nothing can be.
        for start in [
            first.start + 2 * PAGE,
            first.start - 2 * PAGE,
            0,
            usize::MAX - PAGE + 1,
        ] {
            let result = Pieces::map_at(start, &file, 4 * PAGE, &[0..PAGE as u64], ProtFlags::READ);
            assert!(result.is_err(), "{start:x}");
        }
        assert_eq!(bytes(&first), vec![7; 4 * PAGE]);
        // A wrong guess costs a try.
        BELOW.store(first.start + 3 * PAGE, Ordering::Relaxed);
        let second = Pieces::map(&file, 4 * PAGE, &[], ProtFlags::READ).unwrap();
        assert_eq!(bytes(&second), vec![7; 4 * PAGE]);
        assert_eq!(bytes(&first), vec![7; 4 * PAGE]);
    }

    /// One that looks for a place takes the room of others that have just found theirs.
    #[test]
    fn many_at_once_all_find_a_place() {
        let file = file(4);
        let part = |from: u64, to: u64| from << 20..to << 20;
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for turn in 0..300 {
                        let len = (64 + turn % 7 * 16) << 20;
                        let parts = [part(1, 16), part(32, 48)];
                        Pieces::map(&file, len, &parts, ProtFlags::READ).unwrap();
                    }
                });
            }
        });
    }
}
