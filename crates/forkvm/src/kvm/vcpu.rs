//! A vCPU: running it, and its registers through the run page (`KVM_CAP_SYNC_REGS`), which costs no ioctl.

use std::arch::x86_64::__cpuid_count;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use kvm_bindings::{
    CpuId, KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR,
    KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_MEMORY_FAULT, KVM_EXIT_SHUTDOWN, KVM_SYNC_X86_EVENTS,
    KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs,
    kvm_debugregs, kvm_device_attr, kvm_msr_entry, kvm_regs, kvm_run, kvm_sregs, kvm_vcpu_events,
    kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;

use super::ring::DirtyRing;
use crate::arch::layout::PAGE;
use crate::memory::mapping::Mapping;

/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`: KVM_SET_DEVICE_ATTR (Linux: include/uapi/linux/kvm.h), which kvm-ioctls has for
/// vCPUs of other architectures only.
const KVM_SET_DEVICE_ATTR: libc::c_ulong =
    1 << 30 | (size_of::<kvm_device_attr>() as libc::c_ulong) << 16 | 0xae_e1;

/// Why `KVM_RUN` came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// One `out` of four bytes to this port.
    Out(u16),
    /// Any other port access: `in`, string instructions, other widths. KVM holds a completion for it.
    OtherIo {
        /// The port.
        port: u16,
    },
    /// A signal, or `immediate_exit`.
    Interrupted,
    /// The dirty ring has no room for what the next instruction may write.
    RingFull,
    /// Anything else: the machine can't go on.
    Dead(Death),
}

/// Why a machine can't go on (Linux: Documentation/virt/kvm/api.rst, `KVM_RUN`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Death {
    /// `KVM_RUN` itself failed: the host had no memory for the guest's, for example.
    #[error("KVM_RUN: {}", std::io::Error::from_raw_os_error(*.0))]
    Failed(i32),
    /// An exception came while the processor was about to handle a double fault. KVM on AMD resets the vCPU then, so
    /// where it was is not known.
    #[error("a triple fault")]
    TripleFault,
    /// KVM had to emulate an instruction and could not, or the like.
    #[error("KVM internal error {0}")]
    Internal(u32),
    /// The processor did not accept the guest's state.
    #[error("the processor refuses to enter the guest, for reason {0:#x}")]
    NoEntry(u64),
    /// Another exit, by its number (`KVM_EXIT_*`).
    #[error("KVM exit reason {0}")]
    Unexpected(u32),
}

/// The flag by which another thread ends a run (`kvm_run.immediate_exit`), seen through a mapping of its own: whoever has this
/// need not know whether the vCPU still exists, and nobody has a reference to the same place.
#[derive(Debug)]
pub struct RunPage(NonNull<kvm_run>);

const _: () = assert!(size_of::<kvm_run>() as u64 <= PAGE);

// SAFETY: a mapping belongs to no thread.
unsafe impl Send for RunPage {}
// SAFETY: all that is accessed in it is one byte, atomically.
unsafe impl Sync for RunPage {}

impl RunPage {
    fn map(vcpu: &impl AsRawFd) -> std::io::Result<Self> {
        // SAFETY: a fresh mapping chosen by the kernel; the result is checked.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        NonNull::new(page.cast())
            .map(Self)
            .ok_or_else(|| std::io::ErrorKind::AddrNotAvailable.into())
    }

    /// The flag.
    pub fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: inside the mapping, which is there as long as `self` is; the kernel reads it as a plain byte.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.0.as_ptr()).immediate_exit) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, unmapped once; no reference into it outlives `self`.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE as usize) };
    }
}

/// XCR0's bit for PKRU (Intel SDM Vol. 1, 13.3).
const XCR0_PKRU: u64 = 1 << 9;
/// The word of an XSAVE image that says which parts are in it (Intel SDM Vol. 1, 13.4.2).
const XSTATE_BV: usize = 512 / 4;

/// A machine's one vCPU.
#[derive(Debug)]
pub struct Vcpu {
    // Before the descriptor, so that it is unmapped first.
    ring: Option<DirtyRing>,
    fd: VcpuFd,
    /// Where an XSAVE image has PKRU, if programs have that register.
    pkru_at: Option<usize>,
    /// An open vCPU is an open machine, which uses its memory.
    _memory: Arc<Mapping>,
}

/// An operating system's error as KVM's.
fn kvm_error(error: std::io::Error) -> kvm_ioctls::Error {
    kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(libc::EIO))
}

impl Vcpu {
    pub(super) fn new(
        mut fd: VcpuFd,
        cpuid: &CpuId,
        ring_entries: Option<u32>,
        memory: Arc<Mapping>,
    ) -> Result<Self, kvm_ioctls::Error> {
        fd.set_cpuid2(cpuid)?;
        let ring = ring_entries
            .map(|len| DirtyRing::map(&fd, len))
            .transpose()
            .map_err(kvm_error)?;
        fd.get_kvm_run().kvm_valid_regs = u64::from(KVM_SYNC_X86_REGS);
        Ok(Self {
            ring,
            fd,
            pkru_at: None,
            _memory: memory,
        })
    }

    /// The dirty ring, if the machine has one.
    pub fn ring(&mut self) -> Option<&mut DirtyRing> {
        self.ring.as_mut()
    }

    /// Where another thread finds the flag that ends a run.
    pub fn run_page(&self) -> Result<RunPage, kvm_ioctls::Error> {
        RunPage::map(&self.fd).map_err(kvm_error)
    }

    /// One `KVM_RUN`.
    pub fn run(&mut self) -> Exit {
        match self.fd.run().map(|_| ()) {
            Ok(()) => {}
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                return Exit::Interrupted;
            }
            Err(error) => return Exit::Dead(Death::Failed(error.errno())),
        }
        let run = self.fd.get_kvm_run();
        match run.exit_reason {
            KVM_EXIT_IO => {
                // SAFETY: exit reason KVM_EXIT_IO says that this member of the union is the valid one.
                let io = unsafe { run.__bindgen_anon_1.io };
                if u32::from(io.direction) == KVM_EXIT_IO_OUT && io.count == 1 && io.size == 4 {
                    Exit::Out(io.port)
                } else {
                    Exit::OtherIo { port: io.port }
                }
            }
            KVM_EXIT_INTR => Exit::Interrupted,
            KVM_EXIT_DIRTY_RING_FULL => Exit::RingFull,
            // KVM_RUN failed with EFAULT, and KVM says besides for which address.
            KVM_EXIT_MEMORY_FAULT => Exit::Dead(Death::Failed(libc::EFAULT)),
            KVM_EXIT_SHUTDOWN => Exit::Dead(Death::TripleFault),
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: exit reason KVM_EXIT_INTERNAL_ERROR says that this member of the union is the valid one.
                let internal = unsafe { run.__bindgen_anon_1.internal };
                Exit::Dead(Death::Internal(internal.suberror))
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: exit reason KVM_EXIT_FAIL_ENTRY says that this member of the union is the valid one.
                let entry = unsafe { run.__bindgen_anon_1.fail_entry };
                Exit::Dead(Death::NoEntry(entry.hardware_entry_failure_reason))
            }
            reason => Exit::Dead(Death::Unexpected(reason)),
        }
    }

    /// Has KVM finish what the last exit left pending, without running the guest. False if it can't.
    pub fn drain(&mut self) -> bool {
        let run = self.fd.get_kvm_run();
        run.immediate_exit = 1;
        run.kvm_dirty_regs = 0;
        let exit = self.run();
        self.fd.get_kvm_run().immediate_exit = 0;
        exit == Exit::Interrupted
    }

    /// Registers as of the last exit.
    pub fn regs(&mut self) -> kvm_regs {
        // SAFETY: the union holds plain numbers only; any bytes are a valid kvm_regs.
        unsafe { self.fd.get_kvm_run().s.regs.regs }
    }

    /// Sets the registers for the next run.
    pub fn set_regs(&mut self, regs: kvm_regs) {
        let run = self.fd.get_kvm_run();
        run.s.regs.regs = regs;
        run.kvm_dirty_regs |= u64::from(KVM_SYNC_X86_REGS);
    }

    /// Resumes after a hypercall or system call with this in RAX. RIP stays as reported: whether it is at or past
    /// the `out` differs between KVMs.
    pub fn set_result(&mut self, rax: u64) {
        let mut regs = self.regs();
        regs.rax = rax;
        self.set_regs(regs);
    }

    /// Has a hypercall return this in RDX besides.
    pub fn set_second_result(&mut self, rdx: u64) {
        let mut regs = self.regs();
        regs.rdx = rdx;
        self.set_regs(regs);
    }

    /// Has every exit leave the segment and control registers in the run page too.
    pub fn sync_sregs(&mut self) {
        self.fd.get_kvm_run().kvm_valid_regs |= u64::from(KVM_SYNC_X86_SREGS);
    }

    /// Segment and control registers as of the last exit, once [`Vcpu::sync_sregs`] was called.
    pub fn synced_sregs(&mut self) -> kvm_sregs {
        // SAFETY: the union holds plain numbers only; any bytes are a valid kvm_sregs.
        unsafe { self.fd.get_kvm_run().s.regs.sregs }
    }

    /// Sets segment and control registers for the next run.
    pub fn set_sregs_at_next_run(&mut self, sregs: kvm_sregs) {
        let run = self.fd.get_kvm_run();
        run.s.regs.sregs = sregs;
        run.kvm_dirty_regs |= u64::from(KVM_SYNC_X86_SREGS);
    }

    /// Drops whatever exceptions, interrupts or shadows are pending, at the next run.
    pub fn clear_events_at_next_run(&mut self, events: kvm_vcpu_events) {
        let run = self.fd.get_kvm_run();
        run.s.regs.events = events;
        run.kvm_dirty_regs |= u64::from(KVM_SYNC_X86_EVENTS);
    }

    /// Keeps all registers as they are, whatever was set for the next run.
    #[cfg(test)]
    pub fn keep_registers(&mut self) {
        self.fd.get_kvm_run().kvm_dirty_regs = 0;
    }

    /// Segment and control registers, by ioctl.
    pub fn sregs(&self) -> Result<kvm_sregs, kvm_ioctls::Error> {
        self.fd.get_sregs()
    }

    /// Sets segment and control registers, by ioctl.
    pub fn set_sregs(&self, sregs: &kvm_sregs) -> Result<(), kvm_ioctls::Error> {
        self.fd.set_sregs(sregs)
    }

    /// Pending events, by ioctl.
    pub fn events(&self) -> Result<kvm_vcpu_events, kvm_ioctls::Error> {
        self.fd.get_vcpu_events()
    }

    /// The vector state as an XSAVE image, by ioctl. Fails if it takes more than these bytes, as it may with AMX.
    /// On the heap, and in a stack frame of its own: varnishd's threads have little stack.
    #[inline(never)]
    pub fn xsave(&self) -> Result<Box<[u8; 4096]>, kvm_ioctls::Error> {
        let mut bytes = Box::new([0; 4096]);
        let image = self.fd.get_xsave();
        let words = &image.as_ref().map_err(|error| *error)?.region;
        for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        Ok(bytes)
    }

    /// Sets the vector state, by ioctl.
    #[inline(never)]
    pub fn set_xsave(&self, bytes: &[u8; 4096]) -> Result<(), kvm_ioctls::Error> {
        // It says whether KVM's image is longer than ours: then this fails.
        let mut image = self.fd.get_xsave();
        let image = image.as_mut().map_err(|error| *error)?;
        for (word, bytes) in image.region.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        // KVM sets all that is not in an image to its initial value but this, which it leaves as it is.
        if let Some(at) = self.pkru_at
            && let Some(parts) = image.region.get_mut(XSTATE_BV)
            && *parts & XCR0_PKRU as u32 == 0
        {
            *parts |= XCR0_PKRU as u32;
            if let Some(pkru) = image.region.get_mut(at / 4) {
                *pkru = 0;
            }
        }
        // SAFETY: KVM_GET_XSAVE has just shown that the image of this vCPU is no longer than `kvm_xsave`.
        unsafe { self.fd.set_xsave(image) }
    }

    /// XCR0, by ioctl.
    pub fn xcr0(&self) -> Result<u64, kvm_ioctls::Error> {
        // x86 has no other register of the kind, in KVM as in the SDM (Vol. 1, 13.3).
        Ok(self.fd.get_xcrs()?.xcrs[0].value)
    }

    /// Sets XCR0, by ioctl.
    pub fn set_xcr0(&mut self, value: u64) -> Result<(), kvm_ioctls::Error> {
        // CPUID.(EAX=0DH,ECX=9):EBX, in the standard format.
        self.pkru_at = (value & XCR0_PKRU != 0).then(|| __cpuid_count(0xd, 9).ebx as usize);
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0] = kvm_xcr {
            xcr: 0,
            value,
            ..Default::default()
        };
        self.fd.set_xcrs(&xcrs)
    }

    /// Sets model-specific registers, (index, value), up to the first that KVM refuses. Gives how many were set.
    pub fn set_msrs(&self, msrs: &[(u32, u64)]) -> Result<usize, kvm_ioctls::Error> {
        let entry = |&(index, data): &_| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let entries: Vec<_> = msrs.iter().map(entry).collect();
        let msrs =
            Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
        self.fd.set_msrs(&msrs)
    }

    /// Has the guest's counter be the host's, where KVM can (KVM_VCPU_TSC_OFFSET, Linux 5.16). On Intel and AMD it begins at 0 with
    /// each vCPU otherwise. Whether it is the host's the probe finds out.
    pub fn share_counter(&self) {
        let offset = 0u64;
        let attribute = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: KVM_VCPU_TSC_OFFSET.into(),
            addr: (&raw const offset).expose_provenance() as u64,
            ..Default::default()
        };
        // SAFETY: KVM reads the structure and the number that it points to, which both live until it returns.
        unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                KVM_SET_DEVICE_ATTR,
                &raw const attribute,
            )
        };
    }

    /// Puts the debug registers into their state after reset, by ioctl. Ring 3 can't write them, but a #DB sets DR6.
    pub fn clear_debug_registers(&self) -> Result<(), kvm_ioctls::Error> {
        /// DR6 and DR7 after reset (Intel SDM Vol. 3A, 10.1.1, Table 10-1).
        const DR6: u64 = 0xffff_0ff0;
        const DR7: u64 = 0x400;
        self.fd.set_debug_regs(&kvm_debugregs {
            dr6: DR6,
            dr7: DR7,
            ..Default::default()
        })
    }
}
