//! Memory calls of an unmodified program, which has an address space: brk(2), mmap(2), munmap(2), mremap(2), mprotect(2),
//! madvise(2), mincore(2), msync(2), as Linux answers them.

use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::abi::{PAGE, USER_END, Value, flags, int, length};
use crate::linux::memory::{
    MADV_DONTNEED, MADV_HARMLESS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_HUGETLB, MAP_PRIVATE,
    MAP_SHARED, MAP_SHARED_VALIDATE, MAP_TYPE, MREMAP_FIXED, MREMAP_MAYMOVE, MapRequest,
    PROT_WRITE, protection,
};
use crate::memory::space::SpaceError;
use crate::memory::space::address_space::AddressSpace;
use crate::memory::space::vmas::{Backing, PageSource, Vma};

/// `MAP_32BIT`: in the first 2 GiB.
const MAP_32BIT: u32 = 0x40;
/// `PROT_*` that mean something, `PROT_SEM` among them.
const PROT_KNOWN: u32 = 0xf;
/// `MREMAP_DONTUNMAP`, which is not there.
const MREMAP_DONTUNMAP: u32 = 4;
const MADV_FREE: i32 = 8;
const MADV_WIPEONFORK: i32 = 18;
const MADV_KEEPONFORK: i32 = 19;
/// `MS_ASYNC | MS_INVALIDATE | MS_SYNC` of msync(2).
const MS_KNOWN: u32 = 7;
/// `MS_SYNC`
pub const MS_SYNC: u32 = 4;
/// First address that a program may map (Linux: `vm.mmap_min_addr`).
const LOWEST: u64 = 0x1_0000;

impl From<SpaceError> for Errno {
    fn from(error: SpaceError) -> Self {
        match error {
            SpaceError::BeyondFiles => Errno::OVERFLOW,
            _ => Errno::NOMEM,
        }
    }
}

/// Where the program break is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Break {
    /// Where it started.
    pub start: u64,
    /// Where it is.
    pub now: u64,
}

/// A file to be mapped.
#[derive(Debug)]
pub struct File {
    /// Its pages.
    pub source: Arc<dyn PageSource>,
    /// Where in it the mapping starts; whole pages.
    pub offset: u64,
}

/// The addresses of whole pages that a program may map, or `None`.
fn pages(space: &AddressSpace<'_>, address: u64, len: u64) -> Option<Range<u64>> {
    let range = address..address.checked_add(len.checked_next_multiple_of(PAGE)?)?;
    space.check(&range).is_ok().then_some(range)
}

fn value(address: u64) -> Value {
    i64::try_from(address).map_err(|_| Errno::NOMEM)
}

/// brk(2), the system call: gives the new break, or the old one if it can't be changed.
pub fn brk(space: &mut AddressSpace<'_>, state: &mut Break, address: u64) -> Value {
    let page_up = |at: u64| at.next_multiple_of(PAGE);
    if address < state.start || address >= USER_END - PAGE {
        return value(state.now);
    }
    let (old, new) = (page_up(state.now), page_up(address));
    let done = if new > old {
        // Linux leaves a page between the heap and the mapping after it.
        let free = space.vmas().is_free(old..new + PAGE);
        free && pages(space, old, new - old).is_some()
            && space
                .map(Vma {
                    start: old,
                    end: new,
                    protection: protection(3),
                    shared: false,
                    wiped: false,
                    backing: Backing::Anonymous(Some("[heap]")),
                })
                .is_ok()
    } else {
        new == old || space.unmap(new..old).is_ok()
    };
    if done {
        state.now = address;
    }
    value(state.now)
}

/// Where a new mapping goes that may go anywhere: at the wished address if that is free, else as high as possible.
fn place(space: &AddressSpace<'_>, hint: u64, len: u64, kind: u32) -> Result<Range<u64>, Errno> {
    if kind & MAP_32BIT != 0 {
        let low = LOWEST..1 << 31;
        let start = space.vmas().gap_below(len, low).ok_or(Errno::NOMEM)?;
        return Ok(start..start + len);
    }
    if let Some(wished) = pages(space, hint & !(PAGE - 1), len)
        && wished.start >= LOWEST
        && space.vmas().is_free(wished.clone())
    {
        return Ok(wished);
    }
    let monitor = space.monitor();
    [monitor.end..space.mmap_top(), LOWEST..monitor.start]
        .into_iter()
        .find_map(|within| space.vmas().gap_below(len, within))
        .map(|start| start..start + len)
        .ok_or(Errno::NOMEM)
}

/// mmap(2). `MAP_SHARED` of a file is read-only unless the file is the machine's own; there is no other process to share
/// anonymous memory with.
pub fn mmap(space: &mut AddressSpace<'_>, request: MapRequest, file: Option<File>) -> Value {
    let (kind, prot) = (flags(request.flags), flags(request.prot));
    let len = match request.len {
        0 => return Err(Errno::INVAL),
        len => len.checked_next_multiple_of(PAGE).ok_or(Errno::NOMEM)?,
    };
    if !matches!(
        kind & MAP_TYPE,
        MAP_SHARED | MAP_PRIVATE | MAP_SHARED_VALIDATE
    ) {
        return Err(Errno::INVAL);
    }
    let shared = kind & MAP_TYPE != MAP_PRIVATE;
    let backing = match file {
        Some(file) => Backing::File(file.source, file.offset),
        None => Backing::Anonymous(None),
    };
    if !backing.reaches(len) {
        return Err(Errno::OVERFLOW);
    }
    if shared && prot & PROT_WRITE != 0 && !takes_writes(&backing) {
        return Err(Errno::ACCESS);
    }
    // Before MAP_FIXED takes anything away.
    if kind & MAP_HUGETLB != 0 {
        return Err(Errno::NOMEM);
    }
    let range = if kind & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 {
        if !request.address.is_multiple_of(PAGE) {
            return Err(Errno::INVAL);
        }
        let range = pages(space, request.address, len).ok_or(Errno::NOMEM)?;
        if range.start < LOWEST {
            return Err(Errno::PERM);
        }
        if kind & MAP_FIXED_NOREPLACE != 0 && !space.vmas().is_free(range.clone()) {
            return Err(Errno::EXIST);
        }
        range
    } else {
        place(space, request.address, len, kind)?
    };
    space.map(Vma {
        start: range.start,
        end: range.end,
        protection: protection(prot),
        shared,
        wiped: false,
        backing,
    })?;
    value(range.start)
}

/// True if a shared mapping may write to it: to anonymous memory, and to a file of the program's own.
fn takes_writes(backing: &Backing) -> bool {
    match backing {
        Backing::Anonymous(_) => true,
        Backing::File(source, _) => source.node().is_some_and(|(_, writes)| writes),
    }
}

/// munmap(2)
pub fn munmap(space: &mut AddressSpace<'_>, address: u64, len: u64) -> Value {
    if !address.is_multiple_of(PAGE) || len == 0 {
        return Err(Errno::INVAL);
    }
    let range = pages(space, address, len).ok_or(Errno::INVAL)?;
    space.unmap(range)?;
    Ok(0)
}

/// Whether all of a range is mapped: ENOMEM if it is not.
pub fn check_mapped(space: &AddressSpace<'_>, address: u64, len: u64) -> Value {
    let start = address & !(PAGE - 1);
    let len = len.checked_add(address - start).ok_or(Errno::INVAL)?;
    let range = pages(space, start, len).ok_or(Errno::NOMEM)?;
    let mut end = range.start;
    for vma in space.vmas().overlapping(range.clone()) {
        if vma.start > end {
            break;
        }
        end = vma.end;
    }
    if end < range.end {
        return Err(Errno::NOMEM);
    }
    Ok(0)
}

/// mprotect(2). As in Linux, what lies before a hole is changed, and then comes ENOMEM.
pub fn mprotect(space: &mut AddressSpace<'_>, address: u64, len: u64, prot: u64) -> Value {
    let prot = flags(prot);
    if !address.is_multiple_of(PAGE) || prot & !PROT_KNOWN != 0 {
        return Err(Errno::INVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let range = pages(space, address, len).ok_or(Errno::NOMEM)?;
    let mut end = range.start;
    for vma in space.vmas().overlapping(range.clone()) {
        if vma.start > end {
            break;
        }
        if prot & PROT_WRITE != 0 && vma.shared && !takes_writes(&vma.backing) {
            return Err(Errno::ACCESS);
        }
        end = vma.end.min(range.end);
    }
    space.protect_range(range.start..end, protection(prot))?;
    if end < range.end {
        return Err(Errno::NOMEM);
    }
    Ok(0)
}

/// mremap(2): shrinks, grows in place, or moves with `MREMAP_MAYMOVE`. One mapping only, as in Linux.
pub fn mremap(space: &mut AddressSpace<'_>, args: [u64; 6]) -> Value {
    let [address, old_len, new_len, how, new_address, _] = args;
    let how = flags(how);
    let fixed = how & MREMAP_FIXED != 0;
    if !address.is_multiple_of(PAGE)
        || new_len == 0
        || how & !(MREMAP_MAYMOVE | MREMAP_FIXED) != 0
        || (fixed && (how & MREMAP_MAYMOVE == 0 || !new_address.is_multiple_of(PAGE)))
        || how & MREMAP_DONTUNMAP != 0
    {
        return Err(Errno::INVAL);
    }
    // A length of 0 would make a second view of a shared mapping.
    if old_len == 0 {
        return Err(Errno::INVAL);
    }
    let old = pages(space, address, old_len).ok_or(Errno::INVAL)?;
    let new_len = new_len.checked_next_multiple_of(PAGE).ok_or(Errno::NOMEM)?;
    let vma = space.vmas().find(old.start).ok_or(Errno::FAULT)?.clone();
    let old_len = old.end - old.start;
    let kept = old.start..old.start + old_len.min(new_len);
    let before = old.start - vma.start;
    if new_len > old_len && !vma.backing.reaches(before.saturating_add(new_len)) {
        return Err(Errno::INVAL);
    }
    if fixed {
        let target = pages(space, new_address, new_len).ok_or(Errno::INVAL)?;
        if target.start < old.end && old.start < target.end {
            return Err(Errno::INVAL);
        }
        if old.end > vma.end {
            return Err(Errno::FAULT);
        }
        return relocate(space, &vma, old, kept, target);
    }
    if new_len <= old_len {
        if kept.end < old.end {
            space.unmap(kept.end..old.end)?;
        }
        return value(old.start);
    }
    if old.end > vma.end {
        return Err(Errno::FAULT);
    }
    if old.end == vma.end
        && let Some(whole) = pages(space, old.start, new_len)
        && space.vmas().is_free(old.end..whole.end)
    {
        space.map(continued(&vma, old.end..whole.end))?;
        return value(old.start);
    }
    if how & MREMAP_MAYMOVE == 0 {
        return Err(Errno::NOMEM);
    }
    let target = place(space, 0, new_len, 0)?;
    relocate(space, &vma, old, kept, target)
}

/// What a VMA would be at other addresses, counted from its own.
fn continued(vma: &Vma, range: Range<u64>) -> Vma {
    Vma {
        start: range.start,
        end: range.end,
        backing: match &vma.backing {
            Backing::File(file, offset) => {
                Backing::File(file.clone(), offset + (range.start - vma.start))
            }
            other => other.clone(),
        },
        ..vma.clone()
    }
}

fn relocate(
    space: &mut AddressSpace<'_>,
    vma: &Vma,
    old: Range<u64>,
    kept: Range<u64>,
    target: Range<u64>,
) -> Value {
    let len = kept.end - kept.start;
    space.move_range(kept.clone(), target.start)?;
    if kept.end < old.end {
        space.unmap(kept.end..old.end)?;
    }
    let moved = target.start + len;
    if moved < target.end {
        let mut rest = continued(vma, kept.end..kept.end + (target.end - moved));
        (rest.start, rest.end) = (moved, target.end);
        space.map(rest)?;
    }
    value(target.start)
}

/// madvise(2)
pub fn madvise(space: &mut AddressSpace<'_>, address: u64, len: u64, advice: u64) -> Value {
    let advice = int(advice);
    if !address.is_multiple_of(PAGE) {
        return Err(Errno::INVAL);
    }
    let known = [MADV_DONTNEED, MADV_FREE, MADV_WIPEONFORK];
    if !known.contains(&advice) && !MADV_HARMLESS.contains(&advice) {
        return Err(Errno::INVAL);
    }
    let range = pages(space, address, len).ok_or(Errno::INVAL)?;
    match advice {
        MADV_DONTNEED => space.discard(range.clone())?,
        MADV_WIPEONFORK => wipe_on_fork(space, range.clone())?,
        MADV_KEEPONFORK => space.set_wiped(range.clone(), false)?,
        _ => {}
    }
    if space.vmas().covers(range) {
        Ok(0)
    } else {
        Err(Errno::NOMEM)
    }
}

/// Private anonymous memory only; as in Linux, what lies before other memory is marked, and then comes EINVAL.
fn wipe_on_fork(space: &mut AddressSpace<'_>, range: Range<u64>) -> Result<(), Errno> {
    let is_fit = |vma: &Vma| !vma.shared && matches!(vma.backing, Backing::Anonymous(_));
    let unfit = space
        .vmas()
        .overlapping(range.clone())
        .find(|vma| !is_fit(vma));
    let end = unfit.map(|vma| vma.start.max(range.start));
    space.set_wiped(range.start..end.unwrap_or(range.end), true)?;
    match end {
        Some(_) => Err(Errno::INVAL),
        None => Ok(()),
    }
}

/// mincore(2): one byte a page, whose lowest bit says whether it is there.
pub fn mincore(space: &AddressSpace<'_>, address: u64, len: u64) -> Result<Vec<u8>, Errno> {
    if !address.is_multiple_of(PAGE) {
        return Err(Errno::INVAL);
    }
    let range = pages(space, address, len).ok_or(Errno::NOMEM)?;
    if !space.vmas().covers(range.clone()) {
        return Err(Errno::NOMEM);
    }
    // A vector of a longer range would be an allocation of the program's choice.
    let most = range
        .end
        .min(range.start + length(crate::linux::abi::CHUNK) * PAGE);
    Ok((range.start..most)
        .step_by(4096)
        .map(|page| u8::from(space.is_present(page)))
        .collect())
}

/// msync(2): there is nothing to write back.
pub fn msync(space: &AddressSpace<'_>, address: u64, len: u64, how: u64) -> Value {
    let how = flags(how);
    if !address.is_multiple_of(PAGE) || how & !MS_KNOWN != 0 || how & 5 == 5 {
        return Err(Errno::INVAL);
    }
    let range = pages(space, address, len).ok_or(Errno::NOMEM)?;
    if space.vmas().covers(range) {
        Ok(0)
    } else {
        Err(Errno::NOMEM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::with_space;

    const LAST_PAGE: u64 = i64::MAX as u64 / PAGE * PAGE - PAGE;
    const PRIVATE: u64 = MAP_PRIVATE as u64;

    #[derive(Debug)]
    struct Endless;

    impl PageSource for Endless {
        fn read_at(&self, _: u64, buf: &mut [u8]) -> std::io::Result<usize> {
            Ok(buf.len())
        }
        fn path(&self) -> &[u8] {
            b"/endless"
        }
        fn identity(&self) -> (u64, u64) {
            (0, 1)
        }
    }

    fn map(space: &mut AddressSpace<'_>, len: u64, offset: Option<u64>) -> Value {
        let request = MapRequest {
            address: 0,
            len,
            prot: 1,
            flags: PRIVATE,
        };
        let file = offset.map(|offset| File {
            source: Arc::new(Endless),
            offset,
        });
        mmap(space, request, file)
    }

    #[test]
    fn lengths_that_are_no_lengths() {
        let mut memory = with_space();
        let mut space = memory.address_space().unwrap();
        let at = map(&mut space, PAGE, None).unwrap() as u64;
        for len in [0u64.wrapping_sub(PAGE), 1 << 63, USER_END] {
            for how in [0, u64::from(MREMAP_MAYMOVE)] {
                let result = mremap(&mut space, [at, PAGE, len, how, 0, 0]);
                assert_eq!(result, Err(Errno::NOMEM), "{len:#x} {how}");
            }
            assert!(map(&mut space, len, None).is_err());
            assert!(space.vmas().covers(at..at + PAGE));
        }
        let longer = mremap(&mut space, [at, PAGE, 2 * PAGE, 0, 0, 0]);
        assert_eq!(longer, Ok(at as i64));
    }

    #[test]
    fn no_mapping_reaches_beyond_the_largest_file() {
        let mut memory = with_space();
        let mut space = memory.address_space().unwrap();
        for (len, offset) in [
            (2 * PAGE, LAST_PAGE),
            (PAGE, LAST_PAGE + PAGE),
            (PAGE, 0u64.wrapping_sub(PAGE)),
            (USER_END / 2, LAST_PAGE),
        ] {
            assert_eq!(map(&mut space, len, Some(offset)), Err(Errno::OVERFLOW));
        }
        let at = map(&mut space, 2 * PAGE, Some(LAST_PAGE - PAGE)).unwrap() as u64;
        for how in [0, u64::from(MREMAP_MAYMOVE)] {
            let grown = mremap(&mut space, [at + PAGE, PAGE, 2 * PAGE, how, 0, 0]);
            assert_eq!(grown, Err(Errno::INVAL));
        }
        memory
            .fault(at + PAGE, crate::memory::access::Touch::Read)
            .unwrap();
    }
}
