//! A mapping of a machine's whole memory: the master's memfd, seen by the host. Copies in and out by guest-physical address.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use rustix::mm::ProtFlags;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, VolatileMemory, VolatileSlice};

use crate::arch::layout::PAGE;
use crate::memory::pieces::Pieces;
use crate::memory::shared_area::SharedArea;

/// A guest-physical range that is not inside the machine's memory: a bug of the engine, never the guest's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest-physical range {address:#x}+{len:#x} is outside the machine's memory")]
pub struct OutOfRange {
    /// First address.
    pub address: u64,
    /// Length in bytes.
    pub len: u64,
}

/// One mapping of a machine's whole memory: one range of addresses, with a file behind it or, in part, none.
#[derive(Debug)]
pub struct Mapping {
    region: MmapRegion,
    /// What a fork's is made of. Dropped last: the region only points there.
    _pieces: Option<Pieces>,
    /// What it shares with the other machines of its program, from the first address behind its own memory on.
    shared: Option<Arc<SharedArea>>,
}

impl Mapping {
    /// The memory itself, writable: for the machine that becomes the master.
    pub fn shared(file: &Arc<File>, len: u64) -> Result<Self, MmapRegionError> {
        let region = MmapRegionBuilder::new(len as usize)
            .with_file_offset(FileOffset::from_arc(file.clone(), 0))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            .build()?;
        Ok(Self {
            region,
            _pieces: None,
            shared: None,
        })
    }

    /// The same with what the program's machines share.
    pub fn with_shared(self, shared: Option<Arc<SharedArea>>) -> Self {
        Self { shared, ..self }
    }

    /// What the program's machines share, from [`Mapping::len`] on.
    pub fn shared_area(&self) -> Option<&SharedArea> {
        self.shared.as_deref()
    }

    /// The sealed master, for reading. Private, since Linux before 6.7 refuses even a read-only shared mapping of a
    /// file sealed against writes. See [`Mapping::fork`] for `unused`.
    pub fn frozen(
        file: &Arc<File>,
        len: u64,
        unused: &[Range<u64>],
    ) -> Result<Self, MmapRegionError> {
        Self::pieces(file, len, unused, ProtFlags::READ)
    }

    /// A fork: copy-on-write of the sealed master. The parts that the master has no memory for
    /// ([`unused`](crate::memory::unused)) are anonymous memory.
    pub fn fork(
        file: &Arc<File>,
        len: u64,
        unused: &[Range<u64>],
    ) -> Result<Self, MmapRegionError> {
        Self::pieces(file, len, unused, ProtFlags::READ | ProtFlags::WRITE)
    }

    fn pieces(
        file: &Arc<File>,
        len: u64,
        unused: &[Range<u64>],
        protection: ProtFlags,
    ) -> Result<Self, MmapRegionError> {
        let pieces =
            Pieces::map(file, len as usize, unused, protection).map_err(MmapRegionError::Mmap)?;
        let builder = MmapRegionBuilder::new(len as usize)
            .with_mmap_prot(protection.bits() as i32)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        // SAFETY: the pieces are a mapping of this length, and stay as long as the region.
        let region = unsafe { builder.with_raw_mmap_pointer(pieces.start()) }.build()?;
        Ok(Self {
            region,
            _pieces: Some(pieces),
            shared: None,
        })
    }

    /// Length in bytes of what is the machine's own.
    pub fn len(&self) -> u64 {
        self.region.size() as u64
    }

    /// Host address of guest-physical 0, for KVM's memslots.
    pub fn host_address(&self) -> u64 {
        self.region.as_ptr() as u64
    }

    /// A piece of what is the machine's own.
    pub fn slice(&self, address: u64, len: u64) -> Result<VolatileSlice<'_>, OutOfRange> {
        let error = OutOfRange { address, len };
        let (start, count) = (
            usize::try_from(address).map_err(|_| error)?,
            usize::try_from(len).map_err(|_| error)?,
        );
        self.region.get_slice(start, count).map_err(|_| error)
    }

    /// Copies out of the machine.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), OutOfRange> {
        match self.slice(address, buf.len() as u64) {
            Ok(own) => {
                own.copy_to(buf);
                Ok(())
            }
            Err(error) => self
                .in_shared(address)
                .and_then(|(shared, offset)| shared.read(offset, buf))
                .ok_or(error),
        }
    }

    /// Copies into the machine. Nothing is recorded: a fork is written by
    /// [`GuestMemory::write_physical`](crate::memory::guest::GuestMemory::write_physical).
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), OutOfRange> {
        match self.slice(address, bytes.len() as u64) {
            Ok(own) => {
                own.copy_from(bytes);
                Ok(())
            }
            Err(_) => self.write_shared(address, bytes),
        }
    }

    /// Copies into what the program's machines share, which no machine's record has.
    pub fn write_shared(&self, address: u64, bytes: &[u8]) -> Result<(), OutOfRange> {
        let error = OutOfRange {
            address,
            len: bytes.len() as u64,
        };
        let (shared, offset) = self.in_shared(address).ok_or(error)?;
        shared.write(offset, bytes).ok_or(error)
    }

    fn in_shared(&self, address: u64) -> Option<(&SharedArea, u64)> {
        let shared = self.shared.as_deref()?;
        Some((shared, address.checked_sub(self.len())?))
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
    pub fn copy_page(&self, from: &Mapping, page: u32) -> Result<(), OutOfRange> {
        let address = u64::from(page) * PAGE;
        from.slice(address, PAGE)?
            .copy_to_volatile_slice(self.slice(address, PAGE)?);
        Ok(())
    }

    /// Whether a page is all zero.
    pub fn is_zero(&self, page: u64) -> Result<bool, OutOfRange> {
        let mut bytes = [0; PAGE as usize];
        self.read(page, &mut bytes)?;
        Ok(bytes == [0; PAGE as usize])
    }

    /// How many pages differ from another mapping's.
    pub fn differing_pages(&self, other: &Mapping) -> usize {
        self.differing_pages_from(other, 0)
    }

    /// The same from this guest-physical address on.
    pub fn differing_pages_from(&self, other: &Mapping, first: u64) -> usize {
        let (mut mine, mut theirs) = ([0; PAGE as usize], [0; PAGE as usize]);
        (first..self.len().min(other.len()))
            .step_by(PAGE as usize)
            .filter(|&page| {
                self.read(page, &mut mine)
                    .and_then(|()| other.read(page, &mut theirs))
                    .is_err()
                    || mine != theirs
            })
            .count()
    }

    /// Gives a private mapping pages of its own here, as if they were written to (Linux 5.14).
    pub fn populate(&self, place: Range<u64>) -> std::io::Result<()> {
        let slice = self
            .slice(place.start, place.end.saturating_sub(place.start))
            .map_err(std::io::Error::other)?;
        // SAFETY: the range lies inside this mapping, as the slice was made of it. What its bytes are does not change.
        let result = unsafe {
            libc::madvise(
                slice.ptr_guard_mut().as_ptr().cast(),
                slice.len(),
                libc::MADV_POPULATE_WRITE,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    }

    /// Gives all private pages back to the host; the fork then reads the master again, and zeros where it has no memory.
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
