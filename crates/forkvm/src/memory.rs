//! Guest memory as the host sees it: mappings of the master's memfd, checked copies in and out by
//! guest-physical and by user address, and the record of pages a fork has dirtied.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, VolatileMemory, VolatileSlice};

use crate::arch::layout::{KERNEL_STACK, MONITOR, PAGE, page_down};
use crate::arch::paging::{self, Access};
use crate::linux::{BadAddress, Protection, UserMemory};

/// A guest-physical range that is not inside the machine's memory: a bug of the engine, never the guest's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest-physical range {address:#x}+{len:#x} is outside the machine's memory")]
pub struct OutOfRange {
    /// First address.
    pub address: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Why the host can't write to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// There is no such memory.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// The request has dirtied more pages than it may.
    #[error("the request is over its memory limit")]
    OverLimit,
}

/// One mapping of a machine's whole memory.
#[derive(Debug)]
pub struct Mapping {
    region: MmapRegion,
}

impl Mapping {
    fn new(
        file: &Arc<File>,
        len: u64,
        protection: i32,
        flags: i32,
    ) -> Result<Self, MmapRegionError> {
        let region = MmapRegionBuilder::new(len as usize)
            .with_file_offset(FileOffset::from_arc(file.clone(), 0))
            .with_mmap_prot(protection)
            .with_mmap_flags(flags)
            .build()?;
        Ok(Self { region })
    }

    /// The memory itself, writable: for the machine that becomes the master.
    pub fn shared(file: &Arc<File>, len: u64) -> Result<Self, MmapRegionError> {
        Self::new(
            file,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
        )
    }

    /// The sealed master, for reading. Private, since Linux before 6.7 refuses even a read-only shared mapping of a
    /// file sealed against writes.
    pub fn frozen(file: &Arc<File>, len: u64) -> Result<Self, MmapRegionError> {
        Self::new(
            file,
            len,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
        )
    }

    /// A fork: copy-on-write of the sealed master.
    pub fn fork(file: &Arc<File>, len: u64) -> Result<Self, MmapRegionError> {
        Self::new(
            file,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
        )
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.region.size() as u64
    }

    /// Host address of guest-physical 0, for KVM's memslots.
    pub fn host_address(&self) -> u64 {
        self.region.as_ptr() as u64
    }

    fn slice(&self, address: u64, len: u64) -> Result<VolatileSlice<'_>, OutOfRange> {
        let error = OutOfRange { address, len };
        let (start, count) = (
            usize::try_from(address).map_err(|_| error)?,
            usize::try_from(len).map_err(|_| error)?,
        );
        self.region.get_slice(start, count).map_err(|_| error)
    }

    /// Copies out of the machine.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), OutOfRange> {
        self.slice(address, buf.len() as u64)?.copy_to(buf);
        Ok(())
    }

    /// Copies into the machine. Nothing is recorded: see [`GuestMemory`] for writes to a fork.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), OutOfRange> {
        self.slice(address, bytes.len() as u64)?.copy_from(bytes);
        Ok(())
    }

    /// Reads a little-endian number.
    pub fn read_u64(&self, address: u64) -> Result<u64, OutOfRange> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes a little-endian number.
    pub fn write_u64(&self, address: u64, value: u64) -> Result<(), OutOfRange> {
        self.write(address, &value.to_le_bytes())
    }

    /// Copies one page from the same place of another mapping.
    fn copy_page(&self, from: &Mapping, page: u32) -> Result<(), OutOfRange> {
        let address = u64::from(page) * PAGE;
        from.slice(address, PAGE)?
            .copy_to_volatile_slice(self.slice(address, PAGE)?);
        Ok(())
    }

    /// How many pages differ from another mapping's.
    pub fn differing_pages(&self, other: &Mapping) -> usize {
        let (mut mine, mut theirs) = ([0; PAGE as usize], [0; PAGE as usize]);
        (0..self.len().min(other.len()))
            .step_by(PAGE as usize)
            .filter(|&page| {
                self.read(page, &mut mine)
                    .and_then(|()| other.read(page, &mut theirs))
                    .is_err()
                    || mine != theirs
            })
            .count()
    }

    /// Gives all private pages back to the host; the fork then reads the master again.
    pub fn drop_private_pages(&self) -> std::io::Result<()> {
        // SAFETY: the range is exactly this mapping, and private pages hold nothing but guest memory, of which no
        // Rust reference exists.
        let result = unsafe {
            libc::madvise(
                self.region.as_ptr().cast(),
                self.region.size(),
                libc::MADV_DONTNEED,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    }
}

/// The pages a fork may differ from the master in, each once.
///
/// Page tables are never among them: nobody changes them after the freeze. KVM on AMD names them all the same, because
/// with nested paging the processor's walk counts as a write (AMD APM Vol. 2, 15.25).
#[derive(Debug)]
pub struct DirtyPages {
    list: Vec<u32>,
    seen: Vec<u64>,
    /// How many there were when the request began: those are mapped and not logged again.
    at_start: usize,
    /// A request may add this many.
    limit: usize,
}

impl DirtyPages {
    fn new(pages: u64, tables: &Range<u64>, limit: usize) -> Self {
        let mut new = Self {
            list: Vec::with_capacity(64),
            seen: vec![0; pages.div_ceil(64) as usize],
            at_start: 0,
            limit,
        };
        // As if they had been seen already.
        for page in tables.start / PAGE..tables.end / PAGE {
            new.seen[page as usize / 64] |= 1 << (page % 64);
        }
        new
    }

    /// Adds a page. A page number outside the machine is ignored.
    pub fn add(&mut self, page: u32) {
        let (word, bit) = (page as usize / 64, 1u64 << (page % 64));
        if let Some(word) = self.seen.get_mut(word)
            && *word & bit == 0
        {
            *word |= bit;
            self.list.push(page);
        }
    }

    /// How many pages there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// How many the request has added.
    fn added(&self) -> usize {
        self.list.len() - self.at_start
    }

    /// Takes one off the list: it will not be put back.
    #[cfg(test)]
    pub fn take(&mut self, nth: usize) -> Option<u32> {
        let page = (nth < self.list.len()).then(|| self.list.remove(nth))?;
        self.seen[page as usize / 64] &= !(1 << (page % 64));
        Some(page)
    }

    fn clear(&mut self) {
        for &page in &self.list {
            self.seen[page as usize / 64] &= !(1 << (page % 64));
        }
        self.list = Vec::with_capacity(64);
        self.at_start = 0;
    }
}

/// A machine's memory, with every write of the host recorded where a reset will need it.
#[derive(Debug)]
pub struct GuestMemory {
    mapping: Mapping,
    /// `None` in the machine that becomes the master.
    dirty: Option<DirtyPages>,
    /// Set when a page lost a permission, until the caller made the processor forget it.
    lost_permission: bool,
}

impl GuestMemory {
    /// The memory of the machine that runs `main()`: page tables may be edited, nothing is recorded.
    pub fn booting(mapping: Mapping) -> Self {
        Self {
            mapping,
            dirty: None,
            lost_permission: false,
        }
    }

    /// The memory of a fork whose page tables are in this guest-physical range, and whose requests may each newly
    /// dirty so many pages.
    pub fn forked(mapping: Mapping, tables: &Range<u64>, page_limit: usize) -> Self {
        let pages = mapping.len() / PAGE;
        Self {
            mapping,
            dirty: Some(DirtyPages::new(pages, tables, page_limit)),
            lost_permission: false,
        }
    }

    /// The raw mapping.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The pages dirtied so far; `None` in the machine that becomes the master.
    pub fn dirty(&mut self) -> Option<&mut DirtyPages> {
        self.dirty.as_mut()
    }

    /// How many pages are on the list of dirtied ones.
    pub fn dirty_len(&self) -> usize {
        self.dirty.as_ref().map_or(0, DirtyPages::len)
    }

    /// From now on, pages dirtied count for a new request's limit.
    pub fn start_request(&mut self) {
        if let Some(dirty) = &mut self.dirty {
            dirty.at_start = dirty.len();
        }
    }

    /// How many pages the request has dirtied, as far as is known by now.
    pub fn request_pages(&self) -> usize {
        self.dirty.as_ref().map_or(0, DirtyPages::added)
    }

    /// How many it may.
    pub fn page_limit(&self) -> usize {
        self.dirty.as_ref().map_or(usize::MAX, |dirty| dirty.limit)
    }

    /// True once after permissions were taken away: the processor may still remember the old ones.
    pub fn take_lost_permission(&mut self) -> bool {
        std::mem::take(&mut self.lost_permission)
    }

    /// Writes by guest-physical address and records the pages. Writes nothing when that takes the request over its
    /// limit; its next look at the limit ends it.
    pub fn write_physical(&mut self, address: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let place = self.mapping.slice(address, bytes.len() as u64)?;
        if let Some(dirty) = &mut self.dirty
            && !bytes.is_empty()
        {
            for page in address / PAGE..=(address + bytes.len() as u64 - 1) / PAGE {
                dirty.add(page as u32);
            }
            if dirty.added() > dirty.limit {
                return Err(WriteError::OverLimit);
            }
        }
        place.copy_from(bytes);
        Ok(())
    }

    /// Copies every dirtied page back from the master. The pages stay mapped and on the list: they are not logged
    /// again. The ring-0 stack, which is in the unlogged slot, always comes back.
    pub fn restore(&mut self, master: &Mapping) -> Result<(), OutOfRange> {
        self.mapping
            .copy_page(master, (KERNEL_STACK / PAGE) as u32)?;
        for &page in self.dirty.iter().flat_map(|dirty| &dirty.list) {
            self.mapping.copy_page(master, page)?;
        }
        Ok(())
    }

    /// Forgets the list and gives the pages back. The caller has had KVM write-protect them all again.
    pub fn shrink(&mut self) -> std::io::Result<()> {
        self.mapping.drop_private_pages()?;
        if let Some(dirty) = &mut self.dirty {
            dirty.clear();
        }
        Ok(())
    }

    /// Calls `piece` with each physically contiguous piece of a user range: guest-physical address, offset, length.
    fn pieces(
        &mut self,
        address: u64,
        len: u64,
        access: Access,
        mut piece: impl FnMut(&mut Self, u64, u64, u64) -> Result<(), WriteError>,
    ) -> Result<(), BadAddress> {
        let end = address.checked_add(len).ok_or(BadAddress(address))?;
        let mut at = address;
        while at < end {
            let n = page_end(at).min(end) - at;
            let physical = paging::translate(&self.mapping, at, access).ok_or(BadAddress(at))?;
            piece(self, physical, at - address, n).map_err(|_| BadAddress(at))?;
            at += n;
        }
        Ok(())
    }

    /// Checks that the program can read a whole range.
    pub fn check_readable(&self, address: u64, len: u64) -> Result<(), BadAddress> {
        let end = address.checked_add(len).ok_or(BadAddress(address))?;
        let mut at = address;
        while at < end {
            paging::translate(&self.mapping, at, Access::Read).ok_or(BadAddress(at))?;
            at = page_end(at);
        }
        Ok(())
    }

    /// Writes over memory that the program can at least read, as a debugger does: its code, too.
    pub fn overwrite(&mut self, address: u64, bytes: &[u8]) -> Result<(), BadAddress> {
        self.check_readable(address, bytes.len() as u64)?;
        self.pieces(
            address,
            bytes.len() as u64,
            Access::Read,
            |memory, physical, offset, n| {
                memory.write_physical(physical, &bytes[offset as usize..(offset + n) as usize])
            },
        )
    }

    /// Copies a bounded piece of the program's memory out. Fails if the program can't read all of it.
    pub fn read_vec(&self, address: u64, len: usize) -> Result<Vec<u8>, BadAddress> {
        let mut bytes = vec![0; len];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a number at a user address.
    pub fn read_u64(&self, address: u64) -> Result<u64, BadAddress> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// First address after the page of `at`; the last address of all for the last page, which is nobody's.
fn page_end(at: u64) -> u64 {
    page_down(at).saturating_add(PAGE)
}

impl UserMemory for GuestMemory {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), BadAddress> {
        let end = address
            .checked_add(buf.len() as u64)
            .ok_or(BadAddress(address))?;
        let mut at = address;
        while at < end {
            let n = page_end(at).min(end) - at;
            let physical =
                paging::translate(&self.mapping, at, Access::Read).ok_or(BadAddress(at))?;
            let offset = (at - address) as usize;
            self.mapping
                .read(physical, &mut buf[offset..offset + n as usize])
                .map_err(|_| BadAddress(at))?;
            at += n;
        }
        Ok(())
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), BadAddress> {
        self.pieces(
            address,
            bytes.len() as u64,
            Access::Write,
            |memory, physical, offset, n| {
                memory.write_physical(physical, &bytes[offset as usize..(offset + n) as usize])
            },
        )
    }

    fn clear(&mut self, address: u64, len: u64) -> Result<(), BadAddress> {
        const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
        self.pieces(address, len, Access::Any, |memory, physical, _, n| {
            // A page that is clear already need not become one to be reset.
            let mut now = ZEROS;
            let now = &mut now[..n as usize];
            memory.mapping.read(physical, now)?;
            if now.iter().all(|&byte| byte == 0) {
                return Ok(());
            }
            memory.write_physical(physical, &ZEROS[..n as usize])
        })
    }

    fn can_write(&self, address: u64) -> bool {
        paging::translate(&self.mapping, address, Access::Write).is_some()
    }

    fn can_protect(&self) -> bool {
        self.dirty.is_none()
    }

    fn protect(
        &mut self,
        address: u64,
        len: u64,
        protection: Protection,
    ) -> Result<(), BadAddress> {
        let end = address.checked_add(len).ok_or(BadAddress(address))?;
        // Ring 3 uses some of the monitor's pages, but they are ours to the last.
        if !self.can_protect() || (address < MONITOR.end && MONITOR.start < end) {
            return Err(BadAddress(address));
        }
        // All or nothing: look before editing.
        for at in (address..end).step_by(PAGE as usize) {
            paging::translate(&self.mapping, at, Access::Any).ok_or(BadAddress(at))?;
        }
        for at in (address..end).step_by(PAGE as usize) {
            self.lost_permission |=
                paging::protect(&self.mapping, at, protection).ok_or(BadAddress(at))?;
        }
        Ok(())
    }
}
