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

/// The mapped ring of one vCPU. Counters run freely; an entry's place is the counter modulo the ring's size.
#[derive(Debug)]
pub struct DirtyRing {
    entries: *mut kvm_dirty_gfn,
    len: u32,
    /// Next entry to be looked at.
    next: u32,
    /// Next entry to be given back to KVM: all from here to `next` have been harvested and not given back.
    unreset: u32,
}

// SAFETY: the ring is plain shared memory; `&mut self` is needed to move the counters.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Maps the ring of a vCPU whose VM has a ring of `len` entries (a power of two).
    pub fn map(vcpu: &impl AsRawFd, len: u32) -> std::io::Result<Self> {
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
            len,
            next: 0,
            unreset: 0,
        })
    }

    fn bytes(len: u32) -> usize {
        len as usize * size_of::<kvm_dirty_gfn>()
    }

    fn entry(&self, counter: u32) -> (&AtomicU32, *const kvm_dirty_gfn) {
        // SAFETY: the index is below `len`, so the entry is inside the mapping; `flags` is shared with the kernel and
        // only ever accessed atomically.
        unsafe {
            let entry = self.entries.add((counter & (self.len - 1)) as usize);
            (AtomicU32::from_ptr(&raw mut (*entry).flags), entry)
        }
    }

    /// Hands every new entry's (memslot, page offset in it) to `dirtied`.
    pub fn harvest(&mut self, mut dirtied: impl FnMut(u32, u64)) {
        while self.next.wrapping_sub(self.unreset) < self.len {
            let (flags, entry) = self.entry(self.next);
            if flags.load(Ordering::Acquire) & KVM_DIRTY_GFN_F_MASK != KVM_DIRTY_GFN_F_DIRTY {
                break;
            }
            // SAFETY: inside the mapping (see `entry`); the kernel wrote the fields before it set the flag.
            let (slot, offset) = unsafe { ((*entry).slot, (*entry).offset) };
            dirtied(slot, offset);
            self.next = self.next.wrapping_add(1);
        }
    }

    /// Entries harvested and not yet given back.
    pub fn used(&self) -> u32 {
        self.next.wrapping_sub(self.unreset)
    }

    /// Entries of the ring.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Marks all harvested entries, and only those, as to be reset. The VM's ioctl does the reset.
    pub fn mark_reset(&mut self) {
        while self.unreset != self.next {
            let (flags, _) = self.entry(self.unreset);
            flags.store(KVM_DIRTY_GFN_F_RESET, Ordering::Release);
            self.unreset = self.unreset.wrapping_add(1);
        }
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, unmapped once; no reference into it outlives `self`.
        unsafe { libc::munmap(self.entries.cast(), Self::bytes(self.len)) };
    }
}
