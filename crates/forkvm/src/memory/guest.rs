//! A machine's memory as the host uses it: checked copies in and out by guest-physical and by user address, every write
//! recorded for the reset.

use std::ops::Range;
use std::sync::Arc;

use crate::arch::layout::{KERNEL_STACK, MONITOR, PAGE, SHARED_WINDOW, UNLOGGED_END, page_down};
use crate::arch::paging::{self, Access};
use crate::memory::access::Touch;
use crate::memory::dirty::{DirtyPages, NoRecord};
use crate::memory::mapping::{Mapping, OutOfRange};
use crate::memory::space::Space;
use crate::memory::space::address_space::AddressSpace;
use crate::memory::space::arrival::Wanted;
use crate::memory::user::{BadAddress, Protection, UserMemory};

/// Why the host can't write to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// There is no such memory.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// The request has dirtied more pages than it may.
    #[error("the request is over its memory limit")]
    OverLimit,
    /// The write could not be recorded.
    #[error(transparent)]
    NoRecord(#[from] NoRecord),
}

/// Why a piece of a program's memory was not copied out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRead {
    /// The program can't read all of it.
    #[error(transparent)]
    BadAddress(#[from] BadAddress),
    /// It is more than the host has memory for.
    #[error("more than the host has memory for ({0} bytes)")]
    NoMemory(u64),
}

/// A machine's memory, with every write of the host recorded where a reset will need it.
#[derive(Debug)]
pub struct GuestMemory {
    pub(super) mapping: Arc<Mapping>,
    /// `None` in the machine that becomes the master.
    pub(super) dirty: Option<DirtyPages>,
    /// The address space of an unmodified program. Other programs have a heap whose tables never change.
    pub(super) space: Option<Box<Space>>,
    /// Set when a page lost a permission, until the caller made the processor forget it.
    lost_permission: bool,
}

impl GuestMemory {
    /// The memory of the machine that runs `main()`: page tables may be edited, nothing is recorded.
    pub fn booting(mapping: Mapping) -> Self {
        Self {
            mapping: Arc::new(mapping),
            dirty: None,
            space: None,
            lost_permission: false,
        }
    }

    /// The same with an address space.
    pub fn with_space(self, space: Space) -> Self {
        Self {
            space: Some(Box::new(space)),
            ..self
        }
    }

    /// The address space alone.
    pub fn into_space(self) -> Option<Space> {
        self.space.map(|space| *space)
    }

    /// The memory of a fork whose page tables are in this guest-physical range, and whose requests may each newly
    /// dirty so many pages.
    pub fn forked(
        mapping: Mapping,
        tables: &Range<u64>,
        page_limit: usize,
    ) -> Result<Self, NoRecord> {
        let pages = mapping.len() / PAGE;
        Ok(Self {
            mapping: Arc::new(mapping),
            dirty: Some(DirtyPages::new(pages, tables, page_limit)?),
            space: None,
            lost_permission: false,
        })
    }

    /// See [`Space::note_frames`].
    pub fn note_frames(&mut self) -> Result<Wanted, OutOfRange> {
        match self.space.as_deref_mut() {
            Some(space) => space.note_frames(&self.mapping),
            None => Ok(Wanted::default()),
        }
    }

    /// Guest-physical address from which on the guest's writes are logged in a fork.
    pub fn logged_from(&self) -> u64 {
        self.space
            .as_deref()
            .map_or(UNLOGGED_END, |space| space.layout().tables.end)
    }

    /// User addresses of what the program's machines share. Empty, at 0, without any.
    pub fn shared_window(&self) -> Range<u64> {
        match self.mapping.shared_area() {
            Some(area) => SHARED_WINDOW.start..SHARED_WINDOW.start + area.len(),
            None => 0..0,
        }
    }

    /// The raw mapping, which the machine's KVM has a share in.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// The pages dirtied so far; `None` in the machine that becomes the master.
    pub fn dirty(&mut self) -> Option<&mut DirtyPages> {
        self.dirty.as_mut()
    }

    /// Their numbers.
    pub fn dirty_pages(&self) -> impl Iterator<Item = u32> {
        self.dirty.iter().flat_map(DirtyPages::iter)
    }

    /// How many pages are on the list of dirtied ones.
    pub fn dirty_len(&self) -> usize {
        self.dirty.as_ref().map_or(0, DirtyPages::len)
    }

    /// From now on, pages dirtied count for a new request's limit.
    pub fn start_request(&mut self) {
        if let Some(dirty) = &mut self.dirty {
            dirty.start_request();
        }
    }

    /// How many pages the request has dirtied, as far as is known by now.
    pub fn request_pages(&self) -> usize {
        self.dirty.as_ref().map_or(0, DirtyPages::added)
    }

    /// How many it may.
    pub fn page_limit(&self) -> usize {
        self.dirty.as_ref().map_or(usize::MAX, DirtyPages::limit)
    }

    /// True once after permissions were taken away: the processor may still remember the old ones.
    pub fn take_lost_permission(&mut self) -> bool {
        std::mem::take(&mut self.lost_permission)
    }

    /// Writes by guest-physical address and records the pages. Writes nothing when they can't be recorded, or when that
    /// takes the request over its limit; its next look at the limit ends it.
    pub fn write_physical(&mut self, address: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let Ok(place) = self.mapping.slice(address, bytes.len() as u64) else {
            // What machines share is not put back.
            return Ok(self.mapping.write_shared(address, bytes)?);
        };
        if let Some(dirty) = &mut self.dirty
            && !bytes.is_empty()
        {
            let before = dirty.added();
            for page in address / PAGE..=(address + bytes.len() as u64 - 1) / PAGE {
                dirty.add(page as u32)?;
            }
            if dirty.added() > dirty.limit().max(before) {
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
        for page in self.dirty_pages() {
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
            let physical = self.bring_in_for(at, access).ok_or(BadAddress(at))?;
            piece(self, physical, at - address, n).map_err(|_| BadAddress(at))?;
            at += n;
        }
        Ok(())
    }

    /// The guest-physical address behind a user address, with the page brought in if it can be.
    fn bring_in_for(&mut self, address: u64, access: Access) -> Option<u64> {
        let there = paging::translate(&self.mapping, address, access);
        let Some(space) = &self.space else {
            return there;
        };
        if let Some(there) = there {
            // One that nobody may use at present is not present, whether its frame has come or not.
            if access == Access::Any {
                space.wait_for(page_down(there)).ok()?;
            }
            return Some(there);
        }
        let touch = match access {
            Access::Write => Touch::Write,
            Access::Read | Access::Any => Touch::Read,
        };
        self.fault(address, touch).ok()?;
        paging::translate(&self.mapping, address, access)
    }

    /// Checks that the program can read a whole range.
    pub fn check_readable(&self, address: u64, len: u64) -> Result<(), BadAddress> {
        let end = address.checked_add(len).ok_or(BadAddress(address))?;
        let mut at = address;
        while at < end {
            if paging::translate(&self.mapping, at, Access::Read).is_none() {
                self.read_untouched(at, &mut [])?;
            }
            at = page_end(at);
        }
        Ok(())
    }

    /// Checks that the program can write a whole range.
    pub fn check_writable(&self, address: u64, len: u64) -> Result<(), BadAddress> {
        let end = address.checked_add(len).ok_or(BadAddress(address))?;
        let mut at = address;
        while at < end {
            if !self.can_write(at) {
                return Err(BadAddress(at));
            }
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

    /// Copies a piece of the program's memory out, as long as the program says: it is looked at first, and the host is
    /// asked for memory only if the program can read all of it.
    pub fn read_vec(&self, address: u64, len: u64) -> Result<Vec<u8>, NotRead> {
        self.check_readable(address, len)?;
        let mut bytes = Vec::new();
        let count = usize::try_from(len).map_err(|_| NotRead::NoMemory(len))?;
        bytes
            .try_reserve_exact(count)
            .map_err(|_| NotRead::NoMemory(len))?;
        bytes.resize(count, 0);
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
            let offset = (at - address) as usize;
            let piece = &mut buf[offset..offset + n as usize];
            match paging::translate(&self.mapping, at, Access::Read) {
                Some(physical) => self
                    .mapping
                    .read(physical, piece)
                    .map_err(|_| BadAddress(at))?,
                None => self.read_untouched(at, piece)?,
            }
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
        match &self.space {
            Some(space) => space
                .vmas()
                .find(address)
                .is_some_and(|vma| vma.protection.write),
            None => paging::translate(&self.mapping, address, Access::Write).is_some(),
        }
    }

    fn can_protect(&self) -> bool {
        self.dirty.is_none()
    }

    fn space(&mut self) -> Option<AddressSpace<'_>> {
        self.address_space()
    }

    fn protect(
        &mut self,
        address: u64,
        len: u64,
        protection: Protection,
    ) -> Result<(), BadAddress> {
        let end = address.checked_add(len).ok_or(BadAddress(address))?;
        // Ring 3 uses some of the monitor's pages, but they are ours to the last.
        let touches = |range: &Range<u64>| address < range.end && range.start < end;
        // What machines share has the same permissions in all of them.
        if !self.can_protect() || touches(&MONITOR) || touches(&SHARED_WINDOW) {
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
