//! A virtual machine: its memslots and its dirty ring's size.

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_MEM_LOG_DIRTY_PAGES, KVMIO,
    kvm_dirty_gfn, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};

use super::vcpu::Vcpu;
use crate::memory::mapping::Mapping;

/// Memslot of everything the program can write, dirty-logged in forks.
pub const LOGGED_SLOT: u32 = 0;
/// Memslot of descriptor tables and ring-0 stack, never logged. Only where the other one is.
const UNLOGGED_SLOT: u32 = 1;
/// Memslot of what all machines of a program share, never logged. Only where there is some.
const SHARED_SLOT: u32 = 2;

/// `_IO(KVMIO, 0xc7)`: KVM_RESET_DIRTY_RINGS (Linux: include/uapi/linux/kvm.h), which kvm-ioctls does not have.
const KVM_RESET_DIRTY_RINGS: libc::c_ulong = (KVMIO as libc::c_ulong) << 8 | 0xc7;

/// Opens /dev/kvm.
pub fn open() -> Result<Kvm, kvm_ioctls::Error> {
    Kvm::new()
}

/// A machine whose memory is mapped.
#[derive(Debug)]
pub struct Vm {
    // Before the memory that it has KVM use.
    fd: VmFd,
    /// Guest-physical address at which the logged slot begins. 0 if nothing is logged.
    logged_from: u64,
    ring_entries: Option<u32>,
    memory: Arc<Mapping>,
}

impl Vm {
    /// A machine over `memory`. With `ring_entries` (a power of two) what it writes from `logged_from` on is recorded in a
    /// dirty ring of that many entries. Without, all its own memory is one slot: each slot that is set waits for a grace period
    /// of the kernel's, which its worker may be late for by seconds where many threads want the processor.
    pub fn new(
        kvm: &Kvm,
        memory: Arc<Mapping>,
        logged_from: u64,
        ring_entries: Option<u32>,
    ) -> Result<Self, kvm_ioctls::Error> {
        let vm = Self {
            fd: kvm.create_vm()?,
            logged_from: ring_entries.map_or(0, |_| logged_from),
            ring_entries,
            memory,
        };
        if let Some(entries) = ring_entries {
            vm.enable_ring(entries)?;
        }
        if vm.logged_from > 0 {
            vm.set_slot(UNLOGGED_SLOT, 0, 0..vm.logged_from)?;
        }
        vm.map_logged()?;
        vm.map_shared()?;
        Ok(vm)
    }

    fn enable_ring(&self, entries: u32) -> Result<(), kvm_ioctls::Error> {
        let bytes = u64::from(entries) * size_of::<kvm_dirty_gfn>() as u64;
        // Since Linux 6.1 the capability has a name that promises acquire/release order; x86 has it under either.
        let enable = |cap| {
            self.fd.enable_cap(&kvm_enable_cap {
                cap,
                args: [bytes, 0, 0, 0],
                ..Default::default()
            })
        };
        enable(KVM_CAP_DIRTY_LOG_RING_ACQ_REL).or_else(|_| enable(KVM_CAP_DIRTY_LOG_RING))
    }

    fn map_logged(&self) -> Result<(), kvm_ioctls::Error> {
        let flags = if self.ring_entries.is_some() {
            KVM_MEM_LOG_DIRTY_PAGES
        } else {
            0
        };
        self.set_slot(LOGGED_SLOT, flags, self.logged_from..self.memory.len())
    }

    fn set_slot(&self, slot: u32, flags: u32, place: Range<u64>) -> Result<(), kvm_ioctls::Error> {
        if place.start > place.end || place.end > self.memory.len() {
            return Err(kvm_ioctls::Error::new(libc::EINVAL));
        }
        let host_address = self.memory.host_address() + place.start;
        self.set_region(slot, flags, place, host_address)
    }

    /// Behind its own memory.
    fn map_shared(&self) -> Result<(), kvm_ioctls::Error> {
        let Some(area) = self.memory.shared_area() else {
            return Ok(());
        };
        let start = self.memory.len();
        self.set_region(
            SHARED_SLOT,
            0,
            start..start + area.len(),
            area.host_address(),
        )
    }

    /// The addresses of the host are those of a piece of `memory`, or of what it shares.
    fn set_region(
        &self,
        slot: u32,
        flags: u32,
        place: Range<u64>,
        host_address: u64,
    ) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: place.start,
            memory_size: place.end - place.start,
            userspace_addr: host_address,
        };
        // SAFETY: the range lies inside the mapping (both callers see to that), or inside the shared one that it holds. KVM looks memory up by this address only while a
        // vCPU runs, for which its descriptor is needed, or a call on this VM's is served: both have a share in the mapping
        // and let go of it after their descriptor is closed. A mapping of the vCPU, such as a run page, may keep the machine
        // longer; when the memory is unmapped KVM then forgets its translations (as an MMU notifier), and never looks
        // for them again. The guest may do with the memory as it likes, since no reference into it exists.
        unsafe { self.fd.set_user_memory_region(region) }
    }

    /// Makes the processor forget all it knows of the page tables, by taking the memory away and giving it again.
    /// Needed after the host took a permission away in them: KVM's shadow page tables (and a real TLB) only pick
    /// up permissions that are added.
    pub fn forget_translations(&self) -> Result<(), kvm_ioctls::Error> {
        self.set_slot(LOGGED_SLOT, 0, self.logged_from..self.logged_from)?;
        self.map_logged()
    }

    /// The machine's one vCPU.
    pub fn vcpu(&self, cpuid: &CpuId) -> Result<Vcpu, kvm_ioctls::Error> {
        let fd = self.fd.create_vcpu(0)?;
        Vcpu::new(fd, cpuid, self.ring_entries, self.memory.clone())
    }

    /// Has KVM write-protect the pages of all ring entries marked for reset, so that they are logged again.
    pub fn reset_dirty_rings(&self) -> std::io::Result<()> {
        // SAFETY: the ioctl takes no argument and touches only the rings of this VM's vCPU.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_RESET_DIRTY_RINGS, 0) };
        if result < 0 {
            Err(std::io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}
