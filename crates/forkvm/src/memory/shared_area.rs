//! Memory that all machines of a program share: its forks, and its storage. It is mapped once for all of them and is no
//! machine's own, so no reset touches it.
//!
//! While the host looks at it other machines run, and other threads of the host write to it for theirs. So all that the host
//! does here are atomic accesses to single bytes: whoever wants more of it that belongs together copies it, and looks at the copy.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::FileOffset;
use vm_memory::VolatileMemory;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

/// The memory, all zero at first.
#[derive(Debug)]
pub struct SharedArea {
    region: MmapRegion,
}

impl SharedArea {
    /// So many bytes, which are whole pages, and not none.
    pub fn new(len: u64) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("forkvm-shared", flags)?);
        file.set_len(len)?;
        // Nobody can make it shorter, which would be SIGBUS for who has it mapped.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let size = usize::try_from(len).map_err(io::Error::other)?;
        let region = MmapRegionBuilder::new(size)
            .with_file_offset(FileOffset::new(file, 0))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            .build();
        Ok(Self {
            region: region.map_err(io::Error::other)?,
        })
    }

    /// Its bytes.
    pub fn len(&self) -> u64 {
        self.region.size() as u64
    }

    /// Where the host has it, for KVM's memslots.
    pub fn host_address(&self) -> u64 {
        self.region.as_ptr() as u64
    }

    /// Copies from it. `None` if that is not all in it.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Option<()> {
        let from = self.bytes(offset, buf.len())?;
        for (to, from) in buf.iter_mut().zip(from) {
            *to = from.load(Ordering::Relaxed);
        }
        Some(())
    }

    /// Copies to it.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Option<()> {
        let to = self.bytes(offset, bytes.len())?;
        for (to, from) in to.iter().zip(bytes) {
            to.store(*from, Ordering::Relaxed);
        }
        Some(())
    }

    fn bytes(&self, offset: u64, len: usize) -> Option<&[AtomicU8]> {
        let piece = self
            .region
            .get_slice(usize::try_from(offset).ok()?, len)
            .ok()?;
        // SAFETY: the piece lies inside the mapping, which stays as long as `self`. This is the only way that the process gets at
        // it, so all of its accesses are atomic; machines are no part of it, and may do with the bytes as they like.
        Some(unsafe { std::slice::from_raw_parts(piece.ptr_guard_mut().as_ptr().cast(), len) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_it_can_be_copied() {
        let area = SharedArea::new(8192).unwrap();
        assert_eq!(area.len(), 8192);
        let mut bytes = [1; 5];
        assert_eq!(area.read(8187, &mut bytes), Some(()));
        assert_eq!(bytes, [0; 5]);
        assert_eq!(area.write(4094, b"hello"), Some(()));
        assert_eq!(area.read(4094, &mut bytes), Some(()));
        assert_eq!(&bytes, b"hello");
        assert_eq!(area.read(8192, &mut []), Some(()));
    }

    #[test]
    fn what_is_not_all_in_it_can_not() {
        let area = SharedArea::new(4096).unwrap();
        for offset in [4095, 4096, 1 << 40, u64::MAX - 1, u64::MAX] {
            assert_eq!(area.read(offset, &mut [0; 2]), None, "{offset}");
            assert_eq!(area.write(offset, &[7; 2]), None, "{offset}");
        }
        let mut last = [1];
        assert_eq!(area.read(4095, &mut last), Some(()));
        assert_eq!(last, [0]);
    }
}
