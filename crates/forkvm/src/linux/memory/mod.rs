//! Memory calls: brk(2), mmap(2), munmap(2), mremap(2), mprotect(2), madvise(2).

pub mod heap;
pub mod ranges;
pub mod space;

use rustix::io::Errno;

use crate::linux::abi::{Guest, PAGE, USER_END, Value, flags};
use crate::linux::memory::heap::{Full, Heap, Mapping, READ_WRITE, Window};
use crate::linux::memory::ranges::Pages;
use crate::memory::space::vmas::PageSource;
use crate::memory::user::{Protection, UserMemory};

impl From<Full> for Errno {
    fn from(_: Full) -> Self {
        Errno::NOMEM
    }
}

/// `MAP_*` of asm-generic/mman.h and mman-common.h that change what is done. Hints are accepted and ignored.
const MAP_TYPE: u32 = 0x0f;
const MAP_SHARED: u32 = 0x01;
const MAP_PRIVATE: u32 = 0x02;
const MAP_SHARED_VALIDATE: u32 = 0x03;
const MAP_FIXED: u32 = 0x10;
/// No file behind it.
pub const MAP_ANONYMOUS: u32 = 0x20;
const MAP_HUGETLB: u32 = 0x40000;
const MAP_FIXED_NOREPLACE: u32 = 0x10_0000;

const PROT_READ: u32 = 1;
/// `PROT_WRITE` of mmap(2).
pub const PROT_WRITE: u32 = 2;
const PROT_EXEC: u32 = 4;
const PROT_SEM: u32 = 8;

const MREMAP_MAYMOVE: u32 = 1;
const MREMAP_FIXED: u32 = 2;

/// `MADV_*` of mman-common.h.
const MADV_DONTNEED: i32 = 4;
/// Advice that may be ignored: NORMAL, RANDOM, SEQUENTIAL, WILLNEED, FREE, DONTFORK, DOFORK, MERGEABLE,
/// UNMERGEABLE, HUGEPAGE, NOHUGEPAGE, DONTDUMP, DODUMP, KEEPONFORK, COLD, PAGEOUT, POPULATE_READ, POPULATE_WRITE.
/// FREE is allowed to keep the contents; the others have no contents to change.
const MADV_HARMLESS: [i32; 18] = [
    0, 1, 2, 3, 8, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 22, 23,
];

/// Whether a mapping with these flags is shared.
pub fn is_shared(how: u64) -> bool {
    matches!(flags(how) & MAP_TYPE, MAP_SHARED | MAP_SHARED_VALIDATE)
}

/// A file to map: what `mmap` copies from.
#[derive(Debug)]
pub struct MapSource<'a> {
    /// The open regular file.
    pub file: &'a dyn PageSource,
    /// Where in it the mapping starts.
    pub offset: u64,
}

/// The arguments of `mmap` but for the descriptor, which its caller has looked up.
#[derive(Debug, Clone, Copy)]
pub struct MapRequest {
    /// The wanted address; binding with `MAP_FIXED` only.
    pub address: u64,
    /// Length in bytes.
    pub len: u64,
    /// `PROT_*`.
    pub prot: u64,
    /// `MAP_*`.
    pub flags: u64,
}

fn protection(prot: u32) -> Protection {
    // On x86-64 whatever is writable or executable is readable.
    Protection {
        read: prot & 7 != 0,
        write: prot & PROT_WRITE != 0,
        execute: prot & PROT_EXEC != 0,
    }
}

/// The addresses of whole pages, or `None` if they are none that a program can have.
fn whole_pages(address: u64, len: u64) -> Option<std::ops::Range<u64>> {
    let len = len.checked_next_multiple_of(PAGE)?;
    let end = address.checked_add(len)?;
    (end <= USER_END).then_some(address..end)
}

/// brk(2), the system call: gives the new break, or the old one if it can't be changed.
pub fn brk(heap: &mut Heap, guest: &mut Guest<'_>, address: u64) -> Value {
    if let Some(wanted) = address.checked_sub(heap.address(Window::Brk, 0))
        && heap.make_room().is_ok()
    {
        // The break that comes back tells the program whether it worked.
        let _ = heap.set_brk(wanted, guest.memory);
    }
    i64::try_from(heap.brk()).map_err(|_| Errno::NOMEM)
}

/// mmap(2). Anonymous memory, and copies of files; `MAP_SHARED` is like `MAP_PRIVATE`, since there is nobody
/// to share with and files can't be written.
pub fn mmap(
    heap: &mut Heap,
    guest: &mut Guest<'_>,
    request: MapRequest,
    source: Option<MapSource<'_>>,
) -> Value {
    let (kind, prot) = (flags(request.flags), flags(request.prot));
    if request.len == 0
        || !matches!(
            kind & MAP_TYPE,
            MAP_SHARED | MAP_PRIVATE | MAP_SHARED_VALIDATE
        )
    {
        return Err(Errno::INVAL);
    }
    if kind & MAP_HUGETLB != 0 {
        return Err(Errno::NOMEM);
    }
    if source.is_some() && kind & MAP_TYPE != MAP_PRIVATE && prot & PROT_WRITE != 0 {
        return Err(Errno::ACCESS);
    }
    let wanted = protection(prot);
    if wanted.execute && !guest.memory.can_protect() {
        return Err(Errno::ACCESS);
    }
    heap.make_room()?;
    let count = request.len.div_ceil(PAGE);
    let mapping = Mapping {
        protection: wanted,
        file: source.is_some(),
    };

    let (window, pages) = if kind & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 {
        map_fixed(heap, guest, request, mapping)?
    } else {
        (Window::Mmap, heap.map(count, mapping, guest.memory)?)
    };
    let filled = source.map_or(Ok(()), |source| {
        fill(heap, guest, window, pages.clone(), &source)
    });
    let finished = filled.and_then(|()| {
        // Only execution needs the page tables' consent. A mapping asked for with less than read-write may
        // have to become read-write after the freeze, so it is left as it is.
        if wanted.execute {
            Ok(heap.protect(window, pages.clone(), wanted, guest.memory)?)
        } else {
            Ok(())
        }
    });
    if let Err(errno) = finished {
        if window == Window::Mmap {
            heap.unmap(pages, guest.memory);
        }
        return Err(errno);
    }
    i64::try_from(heap.address(window, pages.start)).map_err(|_| Errno::NOMEM)
}

/// A mapping at the program's address: in the mmap window, or over a part of the brk heap (musl's allocator puts
/// a guard page there).
fn map_fixed(
    heap: &mut Heap,
    guest: &mut Guest<'_>,
    request: MapRequest,
    mapping: Mapping,
) -> Result<(Window, Pages), Errno> {
    if !request.address.is_multiple_of(PAGE) {
        return Err(Errno::INVAL);
    }
    let addresses = whole_pages(request.address, request.len).ok_or(Errno::NOMEM)?;
    let (window, pages) = heap.locate(addresses).ok_or(Errno::NOMEM)?;
    let taken = match window {
        Window::Brk => pages.start < heap.brk_pages(),
        Window::Mmap => !heap.mappings().is_free(pages.clone()),
    };
    if taken && flags(request.flags) & MAP_FIXED_NOREPLACE != 0 {
        return Err(Errno::EXIST);
    }
    match window {
        Window::Mmap => heap.map_at(pages.clone(), mapping, guest.memory)?,
        Window::Brk if pages.end <= heap.brk_pages() => {
            heap.reopen_brk(pages.clone(), guest.memory)?
        }
        Window::Brk => return Err(Errno::NOMEM),
    }
    Ok((window, pages))
}

/// Copies a file's contents into a fresh mapping. What lies beyond its end stays zero.
fn fill(
    heap: &Heap,
    guest: &mut Guest<'_>,
    window: Window,
    pages: Pages,
    source: &MapSource<'_>,
) -> Result<(), Errno> {
    let mut at = heap.address(window, pages.start);
    let end = heap.address(window, pages.end);
    let mut offset = source.offset;
    let mut chunk = vec![0; crate::linux::abi::CHUNK];
    while at < end {
        let most = usize::try_from(end - at)
            .unwrap_or(chunk.len())
            .min(chunk.len());
        let piece = chunk.get_mut(..most).ok_or(Errno::NOMEM)?;
        let read = source.file.read_at(offset, &mut *piece);
        let got = read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        let Some(bytes) = piece.get(..got).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        guest.write(at, bytes)?;
        let got = crate::linux::abi::length(got);
        at = at.saturating_add(got);
        offset = offset.checked_add(got).ok_or(Errno::OVERFLOW)?;
    }
    Ok(())
}

/// munmap(2). Memory that is not a mapping (the program itself, its stack, the brk heap) stays.
pub fn munmap(heap: &mut Heap, guest: &mut Guest<'_>, address: u64, len: u64) -> Value {
    if !address.is_multiple_of(PAGE) || len == 0 {
        return Err(Errno::INVAL);
    }
    let addresses = whole_pages(address, len).ok_or(Errno::INVAL)?;
    let pages = heap.cut_to_mmap_window(addresses);
    if heap.is_crowded() && heap.would_split(&pages) {
        return Err(Errno::NOMEM);
    }
    heap.make_room()?;
    heap.unmap(pages, guest.memory);
    Ok(0)
}

/// mremap(2): shrinks, grows in place, or moves with `MREMAP_MAYMOVE`. One mapping only, as in Linux.
pub fn mremap(heap: &mut Heap, guest: &mut Guest<'_>, args: [u64; 6]) -> Value {
    let [address, old_len, new_len, how, new_address, _] = args;
    let how = flags(how);
    let fixed = how & MREMAP_FIXED != 0;
    if !address.is_multiple_of(PAGE)
        || new_len == 0
        || old_len == 0
        || how & !(MREMAP_MAYMOVE | MREMAP_FIXED) != 0
    {
        return Err(Errno::INVAL);
    }
    if fixed && (how & MREMAP_MAYMOVE == 0 || !new_address.is_multiple_of(PAGE)) {
        return Err(Errno::INVAL);
    }
    let old_addresses = whole_pages(address, old_len).ok_or(Errno::INVAL)?;
    let new_count = new_len.checked_next_multiple_of(PAGE).ok_or(Errno::NOMEM)? / PAGE;
    let Some((Window::Mmap, old)) = heap.locate(old_addresses) else {
        return Err(Errno::FAULT);
    };
    let Some(mapping) = heap.mapping_of(&old) else {
        return Err(Errno::FAULT);
    };

    heap.make_room()?;
    if !fixed {
        let old_count = old.end - old.start;
        if new_count <= old_count {
            heap.unmap(old.start.saturating_add(new_count)..old.end, guest.memory);
            return i64::try_from(address).map_err(|_| Errno::NOMEM);
        }
        let added = old.end..old.start.checked_add(new_count).ok_or(Errno::NOMEM)?;
        if heap.mappings().is_free(added.clone())
            && heap.map_at(added, mapping, guest.memory).is_ok()
        {
            return i64::try_from(address).map_err(|_| Errno::NOMEM);
        }
    }
    if how & MREMAP_MAYMOVE == 0 {
        return Err(Errno::NOMEM);
    }
    // Permissions in the page tables can't move along; an allocator falls back to copying by itself.
    if !heap.allows(Window::Mmap, old.clone(), READ_WRITE) {
        return Err(Errno::NOMEM);
    }
    let new = if fixed {
        let addresses = whole_pages(new_address, new_len).ok_or(Errno::INVAL)?;
        let Some((Window::Mmap, new)) = heap.locate(addresses) else {
            return Err(Errno::NOMEM);
        };
        if new.start < old.end && old.start < new.end {
            return Err(Errno::INVAL);
        }
        heap.map_at(new.clone(), mapping, guest.memory)?;
        new
    } else {
        heap.map(new_count, mapping, guest.memory)?
    };
    let copied = move_contents(heap, guest, &old, &new);
    heap.unmap(if copied.is_ok() { old } else { new.clone() }, guest.memory);
    copied?;
    i64::try_from(heap.address(Window::Mmap, new.start)).map_err(|_| Errno::NOMEM)
}

/// Copies what both ranges have room for. Zero pages are left out: the new pages are zero, and a page that is
/// not written costs the request nothing.
fn move_contents(
    heap: &Heap,
    guest: &mut Guest<'_>,
    old: &Pages,
    new: &Pages,
) -> Result<(), Errno> {
    for (from, to) in old.clone().zip(new.clone()) {
        let page: [u8; 4096] = guest.read(heap.address(Window::Mmap, from))?;
        if page.iter().any(|&byte| byte != 0) {
            guest.write(heap.address(Window::Mmap, to), &page)?;
        }
    }
    Ok(())
}

/// mprotect(2). Before the freeze it changes the page tables. After it they are final: what they allow already
/// is accepted (so a guard page or RELRO made by a request has no effect), anything more is EACCES.
pub fn mprotect(
    heap: &mut Heap,
    guest: &mut Guest<'_>,
    address: u64,
    len: u64,
    prot: u64,
) -> Value {
    let prot = flags(prot);
    if !address.is_multiple_of(PAGE) || prot & !(PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM) != 0
    {
        return Err(Errno::INVAL);
    }
    let addresses = whole_pages(address, len).ok_or(Errno::NOMEM)?;
    if addresses.is_empty() {
        return Ok(0);
    }
    let wanted = protection(prot);
    let Some((window, pages)) = heap.locate(addresses.clone()) else {
        if heap.touches_windows(addresses.clone()) {
            return Err(Errno::NOMEM);
        }
        return mprotect_program(guest.memory, addresses, wanted);
    };
    let mapped = match window {
        Window::Brk => pages.end <= heap.brk_pages(),
        Window::Mmap => heap.mappings().covers(pages.clone()),
    };
    if !mapped || heap.is_crowded() {
        return Err(Errno::NOMEM);
    }
    heap.make_room()?;
    if guest.memory.can_protect() {
        heap.protect(window, pages.clone(), wanted, guest.memory)?;
    } else if !heap.allows(window, pages.clone(), wanted) {
        return Err(Errno::ACCESS);
    }
    if window == Window::Mmap {
        heap.set_wanted(pages, wanted);
    }
    Ok(0)
}

/// The program's own segments and its stack, whose permissions only the page tables know.
fn mprotect_program(
    memory: &mut dyn UserMemory,
    addresses: std::ops::Range<u64>,
    wanted: Protection,
) -> Value {
    if memory.can_protect() {
        let len = addresses.end - addresses.start;
        return match memory.protect(addresses.start, len, wanted) {
            Ok(()) => Ok(0),
            Err(_) => Err(Errno::NOMEM),
        };
    }
    if wanted.execute {
        return Err(Errno::ACCESS);
    }
    // Asking for less changes nothing. The search ends at the first page that is not the program's; what it can
    // write it can also read.
    let allowed = |page: u64| {
        if wanted.write {
            memory.can_write(page)
        } else {
            !wanted.read || memory.read(page, &mut [0]).is_ok()
        }
    };
    if wanted.read && !addresses.step_by(4096).all(allowed) {
        return Err(Errno::ACCESS);
    }
    Ok(0)
}

/// madvise(2). `MADV_DONTNEED` zeroes anonymous memory, which allocators rely on; other advice is only advice.
pub fn madvise(
    heap: &Heap,
    stack: &std::ops::Range<u64>,
    guest: &mut Guest<'_>,
    address: u64,
    len: u64,
    advice: u64,
) -> Value {
    let advice = crate::linux::abi::int(advice);
    if !address.is_multiple_of(PAGE) {
        return Err(Errno::INVAL);
    }
    let addresses = whole_pages(address, len).ok_or(Errno::INVAL)?;
    if MADV_HARMLESS.contains(&advice) || (advice == MADV_DONTNEED && addresses.is_empty()) {
        return Ok(0);
    }
    if advice != MADV_DONTNEED {
        return Err(Errno::INVAL);
    }
    match heap.locate(addresses.clone()) {
        Some((Window::Brk, pages)) if pages.end <= heap.brk_pages() => {
            heap.zero(pages, guest.memory)?
        }
        Some((Window::Mmap, pages)) if heap.mappings().covers(pages.clone()) => {
            heap.mappings()
                .overlapping(pages)
                .filter(|(_, mapping)| !mapping.file)
                .try_for_each(|(pages, _)| heap.zero(pages, guest.memory))?;
        }
        Some(_) => return Err(Errno::NOMEM),
        None if stack.start <= addresses.start && addresses.end <= stack.end => {
            guest
                .memory
                .clear(addresses.start, addresses.end - addresses.start)?;
        }
        // The program's own segments would get their file contents back, which are not kept.
        None => return Err(Errno::INVAL),
    }
    Ok(0)
}

/// Memory for the engine: zeroed, read-write, the program's to free.
pub fn map_for_engine(heap: &mut Heap, memory: &mut dyn UserMemory, len: u64) -> Option<u64> {
    let count = len.div_ceil(PAGE).max(1);
    heap.make_room().ok()?;
    let pages = heap
        .map(
            count,
            Mapping {
                protection: READ_WRITE,
                file: false,
            },
            memory,
        )
        .ok()?;
    Some(heap.address(Window::Mmap, pages.start))
}

/// Takes away what [`map_for_engine`] has given, as munmap(2) would.
pub fn unmap_for_engine(heap: &mut Heap, memory: &mut dyn UserMemory, address: u64, len: u64) {
    let end = address.saturating_add(len.max(1));
    if let Some((Window::Mmap, pages)) = heap.locate(address..end)
        && heap.make_room().is_ok()
    {
        heap.unmap(pages, memory);
    }
}

#[cfg(test)]
mod tests;
