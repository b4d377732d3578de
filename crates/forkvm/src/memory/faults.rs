//! How pages come to a program with an address space: at its faults, and when the host writes to what it has not touched.

use std::ops::Range;

use crate::arch::layout::{PAGE, page_down};
use crate::arch::paging::{self, Owner};
use crate::memory::access::{BadAddress, Touch};
use crate::memory::guest::GuestMemory;
use crate::memory::mapping::{Mapping, OutOfRange};
use crate::memory::space::address_space::AddressSpace;
use crate::memory::space::arrival::{Awaited, Lost};
use crate::memory::space::vmas::{Backing, PageSource, Vma};
use crate::memory::space::{Space, SpaceError, ZEROES};

/// Pages that one fault brings in, if their VMA has so many around the address: a fault costs an exit, a page that is
/// not used afterwards costs a table entry.
const FAULT_AROUND: u64 = 16;
/// Why a page can't be had.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// No VMA is there.
    #[error("not mapped")]
    NotMapped,
    /// The VMA does not allow that.
    #[error("not permitted")]
    NotPermitted,
    /// All frames are in use.
    #[error("the machine has no memory left")]
    NoMemory,
    /// The file behind the mapping can't be read.
    #[error("the mapped file: {0}")]
    File(std::io::Error),
    /// The whole page lies past the file's end.
    #[error("past the mapped file's end")]
    PastEnd,
    /// What was in the page did not come.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// A bug of the engine.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
}

impl From<SpaceError> for FaultError {
    fn from(error: SpaceError) -> Self {
        match error {
            SpaceError::NotForPrograms { .. } | SpaceError::BeyondFiles => Self::NotMapped,
            SpaceError::TooMany(_) | SpaceError::NoRecord(_) => Self::NoMemory,
            SpaceError::Lost(lost) => Self::Lost(lost),
            SpaceError::OutOfRange(bug) => Self::OutOfRange(bug),
        }
    }
}

/// A machine's address space, as the machine itself and the loader use it.
impl GuestMemory {
    /// The address space of a program that has one; others have a heap whose tables never change.
    pub fn space(&self) -> Option<&Space> {
        self.space.as_deref()
    }

    /// The same, to take the removals from.
    pub fn space_mut(&mut self) -> Option<&mut Space> {
        self.space.as_deref_mut()
    }

    /// The same, as calls use it.
    pub fn address_space(&mut self) -> Option<AddressSpace<'_>> {
        let Self {
            mapping,
            dirty,
            space,
            ..
        } = self;
        Some(AddressSpace {
            mapping,
            dirty: dirty.as_mut(),
            space: space.as_deref_mut()?,
        })
    }

    /// Brings in the page that the program faulted at, and some around it. Fine as well if it is there already: the
    /// processor had not noticed yet.
    pub fn fault(&mut self, address: u64, touch: Touch) -> Result<(), FaultError> {
        let page = page_down(address);
        let space = self.space.as_deref_mut().ok_or(FaultError::NotMapped)?;
        let vma = space.vmas.find(address).ok_or(FaultError::NotMapped)?;
        if !touch.is_allowed(vma.protection) {
            return Err(FaultError::NotPermitted);
        }
        let around = FAULT_AROUND * PAGE;
        let window = page - page % around;
        let start = window.max(vma.start);
        let end = (window + around).min(vma.end);
        match paging::next_entry(&self.mapping, page..page + PAGE) {
            Some(there) if paging::is_present(there.value) => return Ok(()),
            Some(there) if paging::is_awaited(there.value) => {
                return Ok(space.lead_to(&self.mapping, page, start..end)?);
            }
            _ => {}
        }
        let vma = vma.clone();
        let file = match &vma.backing {
            Backing::Anonymous(_) => None,
            Backing::File(file, offset) => {
                let mut bytes = vec![0; (end - start) as usize];
                let len = read_fully(&**file, offset + (start - vma.start), &mut bytes)
                    .map_err(FaultError::File)?;
                bytes.truncate(len);
                if page - start >= len as u64 {
                    return Err(FaultError::PastEnd);
                }
                Some(bytes)
            }
        };
        let whole = file
            .as_ref()
            .map_or(end, |bytes| start + bytes.len() as u64);
        for at in (start..end.min(whole)).step_by(PAGE as usize) {
            let offset = (at - start) as usize;
            let bytes = file.as_deref().map(|bytes| {
                &bytes[offset.min(bytes.len())..(offset + PAGE as usize).min(bytes.len())]
            });
            match self.bring_in(at, &vma, bytes) {
                // The pages around are a bonus.
                Err(FaultError::NoMemory) if at != page => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Gives one page a frame, unless it has one.
    fn bring_in(&mut self, page: u64, vma: &Vma, bytes: Option<&[u8]>) -> Result<(), FaultError> {
        let space = self.space.as_deref_mut().ok_or(FaultError::NotMapped)?;
        let entry = space.tables.leaf_entry(&self.mapping, page)?;
        if self.mapping.read_u64(entry)? != 0 {
            return Ok(());
        }
        space.changed = true;
        let bits = paging::leaf_bits(Owner::User, vma.protection);
        let shared = vma.shared_page(page);
        if let Some(shared) = shared
            && let Some(frame) = space.shared.find(shared)
        {
            space.shared.add(shared, frame, vma.protection.write);
            return Ok(space.set_entry(&self.mapping, page, entry, frame | bits)?);
        }
        let frame = space.frames.take().ok_or(FaultError::NoMemory)?;
        if let Some(shared) = shared {
            space
                .shared
                .add(shared, frame.address, vma.protection.write);
        }
        space.set_entry(&self.mapping, page, entry, frame.address | bits)?;
        if frame.used {
            self.write_physical(frame.address, &ZEROES)
                .map_err(|_| FaultError::NoMemory)?;
        }
        match bytes {
            Some(bytes) if !bytes.is_empty() => self
                .write_physical(frame.address, bytes)
                .map_err(|_| FaultError::NoMemory),
            _ => Ok(()),
        }
    }

    /// Reads a page that the program has not touched, without bringing it in.
    pub(super) fn read_untouched(&self, address: u64, buf: &mut [u8]) -> Result<(), BadAddress> {
        let bad = BadAddress(address);
        let space = self.space.as_deref().ok_or(bad)?;
        let vma = space
            .vmas
            .find(address)
            .filter(|vma| vma.protection.read)
            .ok_or(bad)?;
        // Its frame may not have come yet.
        let page = page_down(address);
        let own = paging::next_entry(&self.mapping, page..page + PAGE)
            .filter(|there| paging::is_awaited(there.value) || paging::is_present(there.value));
        // It may be in memory for another page.
        let shared = vma.shared_page(address);
        let frame = own
            .map(|there| paging::frame_of(there.value))
            .or_else(|| space.shared.find(shared?));
        if let Some(frame) = frame {
            space.wait_for(frame).map_err(|_| bad)?;
            let at = frame + address % PAGE;
            return self.mapping.read(at, buf).map_err(|_| bad);
        }
        buf.fill(0);
        if let Backing::File(file, offset) = &vma.backing {
            let at = offset + (address - vma.start);
            let len = read_fully(&**file, at, buf).map_err(|_| bad)? as u64;
            // What follows its end in the last page is zero; there is no page after that.
            let (end, wanted) = (at + len, at + buf.len() as u64);
            if len < buf.len() as u64 && wanted > end.next_multiple_of(PAGE) {
                return Err(bad);
            }
        }
        Ok(())
    }

    /// Copies to the program whatever its permissions, bringing pages in: for the loader.
    pub fn load(&mut self, address: u64, bytes: &[u8]) -> Result<(), FaultError> {
        let mut at = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min((page_down(at) + PAGE - at) as usize));
            let space = self.space.as_deref().ok_or(FaultError::NotMapped)?;
            let vma = space.vmas.find(at).ok_or(FaultError::NotMapped)?.clone();
            let touch = if vma.protection.read {
                Touch::Read
            } else {
                Touch::Execute
            };
            self.fault(at, touch)?;
            let physical = paging::translate(&self.mapping, at, paging::Access::Any)
                .ok_or(FaultError::NotMapped)?;
            self.write_physical(physical, now)
                .map_err(|_| FaultError::NoMemory)?;
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Puts the address space back to the master's, after memory has been. False if the fork is better thrown away.
    pub fn restore_space(&mut self, master: &Space) -> Result<bool, OutOfRange> {
        match self.space.as_deref_mut() {
            Some(space) => space.restore_from(&self.mapping, master),
            None => Ok(true),
        }
    }

    /// Zeroes what the program gave back, before the freeze: a fork then finds every free frame zero.
    pub fn clear_free_frames(&mut self) -> Result<(), OutOfRange> {
        let Some(space) = self.space.as_deref_mut() else {
            return Ok(());
        };
        for frame in space.frames.take_used() {
            self.mapping.write(frame, &ZEROES)?;
        }
        Ok(())
    }
}

impl Space {
    /// Waits for the frame of a page, whose entry then leads there, as do those around it whose frames are there already.
    fn lead_to(
        &mut self,
        mapping: &Mapping,
        page: u64,
        around: Range<u64>,
    ) -> Result<(), SpaceError> {
        let mut at = around.start;
        while let Some(there) = paging::next_entry(mapping, at..around.end) {
            at = there.address + PAGE;
            let frame = paging::frame_of(there.value);
            let is_there = |awaited: &Awaited| awaited.is_there(frame);
            let leads = paging::is_awaited(there.value)
                && (there.address == page || self.awaited.as_ref().is_none_or(is_there));
            if leads {
                let new = paging::arrived(there.value);
                self.set_entry(mapping, there.address, there.entry, new)?;
            }
        }
        Ok(())
    }
}

fn read_fully(file: &dyn PageSource, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(offset + done as u64, &mut buf[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
