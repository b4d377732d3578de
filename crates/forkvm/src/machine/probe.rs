//! What this host's KVM offers, found by trying it in a guest: where `syscall` arrives, and which instructions work.
//! CPUID is no guide here, since a guest on `kvm_pvm` sees and has the host's features whatever KVM lists.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_sregs};
use kvm_ioctls::{Cap, Kvm};
use once_cell::sync::OnceCell;

use crate::arch::dispatcher;
use crate::arch::layout::{PAGE_TABLES, UNLOGGED_END};
use crate::arch::monitor;
use crate::arch::paging::{MapRange, TablePages, tables_len};
use crate::arch::regs::{
    CR4_BASE, CR4_FSGSBASE, CR4_OSXSAVE, CR4_PKE, CR4_SMEP, CR4_UMIP, Choice, MSR_CSTAR, MSR_LSTAR,
    MSR_SFMASK, MSR_STAR, RFLAGS, SFMASK_RING0, STAR, TSS_AVAILABLE, TSS_BUSY, user_sregs,
};
use crate::arch::stubs::{self, PORT_HYPERCALL, PORT_SYSCALL, SyscallEntry};
use crate::arch::vdso;
use crate::image::exec::Features;
use crate::kvm::{Exit, Vcpu, Vm};
use crate::machine::clock::{self, Calibration};
use crate::memory::mapping::{Mapping, OutOfRange};

/// XCR0 bits of AMX (Intel SDM Vol. 1, 13.3): not offered where KVM lets us choose.
const XCR0_AMX: u64 = 3 << 17;
/// The dirty ring's smallest useful size in entries. Intel's page-modification log takes 512 and KVM 64 of them.
const RING_ENTRIES_LEAST: u32 = 1024;

/// Why no guest can run here, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum KvmUnavailable {
    /// There is no device.
    #[error(
        "/dev/kvm is missing: enable virtualisation in the firmware or the hypervisor, then `modprobe kvm_intel` or `modprobe kvm_amd`"
    )]
    NoDevice,
    /// The device is there, but not for us.
    #[error("user {user} may not use /dev/kvm: {remedy}, then log in again")]
    NotAllowed {
        /// Effective user id.
        user: u32,
        /// How the user comes to it.
        remedy: &'static str,
    },
    /// The device is there, and something beside its mode is in the way.
    #[error(
        "/dev/kvm is withheld from this process, as in a container that was not given it (`docker run --device /dev/kvm`)"
    )]
    Withheld,
    /// Another failure to open or use it.
    #[error("/dev/kvm can't be used ({step}): {source}")]
    Failed {
        /// What was being done.
        step: &'static str,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// A kernel too old for us.
    #[error("this kernel's KVM lacks {what}: Linux {since} or newer is needed")]
    Lacks {
        /// The capability.
        what: &'static str,
        /// The first Linux that has it.
        since: &'static str,
    },
    /// The processor can't do what programs need.
    #[error("guests on this machine can't use {0}")]
    NoInstruction(&'static str),
    /// No memory for the probing guest.
    #[error("no memory for a guest: {0}")]
    Memory(String),
    /// `syscall` in the probing guest arrived nowhere we know.
    #[error(
        "`syscall` in a guest does not arrive where it should ({0}); please report this with the output of `forkvm doctor`"
    )]
    NoSyscall(String),
}

impl From<OutOfRange> for KvmUnavailable {
    fn from(error: OutOfRange) -> Self {
        Self::Memory(error.to_string())
    }
}

/// What was found. All of it holds for every guest of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvmReport {
    /// `KVM_GET_API_VERSION`, 12 since Linux 2.6.
    pub api_version: i32,
    /// Where `syscall` arrives: true for ring 0 (Intel, AMD), false for ring 3 (`kvm_pvm`).
    pub syscall_enters_ring0: bool,
    /// `wrfsbase` and its like work.
    pub fsgsbase: bool,
    /// Protection keys work.
    pub protection_keys: bool,
    /// XCR0: the vector state programs may use (Intel SDM Vol. 1, 13.3).
    pub xcr0: u64,
    /// CR4 of every guest.
    pub cr4: u64,
    /// Largest dirty ring in bytes.
    pub dirty_ring_bytes: u32,
    /// Programs may tell the time from the processor's counter, without an exit: the kernel trusts it, and the guest's is the
    /// host's.
    pub counter_is_a_clock: bool,
    /// What a bare `KVM_RUN` took, from the host into the guest and back: the median of some. Between hosts of one kind of
    /// processor it differs several times over, and what a request costs differs with it.
    pub round_trip: Duration,
}

/// The opened device and what every machine needs of the probe.
#[derive(Debug)]
pub(crate) struct KvmHost {
    pub kvm: Kvm,
    pub cpuid: CpuId,
    pub report: KvmReport,
    pub entry: SyscallEntry,
    /// Whether an `out` of the program's may stand in `syscall`'s place: both arrive in ring 3, and leave RIP behind them.
    pub calls_by_out: bool,
    pub choice: Choice,
    pub calibration: Calibration,
}

/// Opens /dev/kvm and probes it, once in a process. Fails with what to do; a later call tries again.
pub fn probe() -> Result<KvmReport, KvmUnavailable> {
    host().map(|host| host.report)
}

/// The probed device.
pub(crate) fn host() -> Result<&'static KvmHost, KvmUnavailable> {
    static HOST: OnceCell<KvmHost> = OnceCell::new();
    HOST.get_or_try_init(KvmHost::open)
}

/// Adds the step to KVM's error.
fn failed(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmUnavailable {
    move |source| KvmUnavailable::Failed { step, source }
}

impl KvmHost {
    fn open() -> Result<Self, KvmUnavailable> {
        let kvm = crate::kvm::open().map_err(|source| match source.errno() {
            libc::ENOENT | libc::ENXIO | libc::ENODEV => KvmUnavailable::NoDevice,
            libc::EPERM => KvmUnavailable::Withheld,
            libc::EACCES => KvmUnavailable::NotAllowed {
                user: rustix::process::geteuid().as_raw(),
                remedy: remedy(),
            },
            _ => KvmUnavailable::Failed {
                step: "open",
                source,
            },
        })?;
        if !kvm.check_extension(Cap::SyncRegs) {
            return Err(KvmUnavailable::Lacks {
                what: "KVM_CAP_SYNC_REGS",
                since: "4.17",
            });
        }
        let ring = [
            kvm_bindings::KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
            kvm_bindings::KVM_CAP_DIRTY_LOG_RING,
        ]
        .map(|cap| kvm.check_extension_raw(cap.into()))
        .into_iter()
        .max()
        .and_then(|bytes| u32::try_from(bytes).ok())
        .unwrap_or(0);
        if ring < RING_ENTRIES_LEAST * 16 {
            return Err(KvmUnavailable::Lacks {
                what: "the dirty ring (KVM_CAP_DIRTY_LOG_RING)",
                since: "5.11",
            });
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        let report = KvmReport {
            api_version: kvm.get_api_version(),
            syscall_enters_ring0: false,
            fsgsbase: false,
            protection_keys: false,
            xcr0: 0,
            cr4: CR4_BASE,
            dirty_ring_bytes: ring,
            counter_is_a_clock: false,
            round_trip: Duration::ZERO,
        };
        let mut host = Self {
            kvm,
            cpuid,
            report,
            entry: SyscallEntry::Ring3,
            calls_by_out: false,
            choice: Choice {
                cr4: CR4_BASE,
                tss_type: TSS_BUSY,
            },
            calibration: Calibration::new(),
        };
        host.probe()?;
        Ok(host)
    }

    fn probe(&mut self) -> Result<(), KvmUnavailable> {
        let mut guest = ProbeGuest::new(self)?;
        let addresses = stubs::addresses();
        let stopped_at;
        (self.entry, stopped_at) = guest.syscall_entry(addresses.probe_syscall)?;
        self.report.syscall_enters_ring0 = self.entry == SyscallEntry::Ring0;
        let behind_out = addresses.syscall_ring3 + stubs::OUT_SYSCALL.len() as u64;
        self.calls_by_out = self.entry == SyscallEntry::Ring3 && stopped_at == behind_out;

        if !guest.ring3_out(addresses.round_trip)? {
            return Err(KvmUnavailable::NoInstruction("`out` in ring 3"));
        }
        self.report.round_trip = guest.round_trip(addresses.round_trip)?;
        if !guest.try_with(CR4_OSXSAVE, addresses.probe_xsave)? {
            return Err(KvmUnavailable::NoInstruction("XSAVE"));
        }
        // XGETBV's low half; nothing above bit 31 is defined.
        self.report.xcr0 = guest.vcpu.regs().rax & 0xffff_ffff;
        self.report.fsgsbase = guest.try_with(CR4_FSGSBASE, addresses.probe_fsgsbase)?;
        self.report.protection_keys = guest.try_with(CR4_PKE, addresses.probe_pku)?;
        self.report.counter_is_a_clock =
            clock::kernel_trusts_counter() && guest.has_host_counter(addresses.probe_counter)?;
        guest.accept(CR4_UMIP);
        // With SMEP kvm_pvm loops at a ring-3 `syscall`; where `syscall` enters ring 0 it is one more lock on the door.
        if self.entry == SyscallEntry::Ring0 {
            guest.accept(CR4_SMEP);
        }
        self.choice = guest.choice;
        self.report.cr4 = guest.choice.cr4;
        Ok(())
    }

    /// Gives a new vCPU its CPUID-independent state: XCR0 and the MSRs of `syscall`, which leads to the dispatcher or out.
    pub fn prepare(&self, vcpu: &mut Vcpu, dispatches: bool) -> Result<(), kvm_ioctls::Error> {
        let addresses = stubs::addresses();
        let (lstar, mask) = match (self.entry, dispatches) {
            (SyscallEntry::Ring3, true) => (dispatcher::addresses().ring3, 0),
            (SyscallEntry::Ring3, false) => (addresses.syscall_ring3, 0),
            (SyscallEntry::Ring0, true) => (addresses.dispatch_ring0, SFMASK_RING0),
            (SyscallEntry::Ring0, false) => (addresses.syscall_ring0, SFMASK_RING0),
        };
        prepare(
            &self.kvm,
            &self.cpuid,
            vcpu,
            lstar,
            mask,
            addresses.syscall_32,
        )
    }

    /// What programs may use of the processor.
    pub fn features(&self) -> Features {
        Features {
            fsgsbase: self.report.fsgsbase,
            counter_is_a_clock: self.report.counter_is_a_clock,
        }
    }

    /// Length of a dirty ring, in entries, for a request limit of this many pages.
    pub fn ring_entries(&self, pages: u64) -> u32 {
        /// Largest ring asked for: the limit is then checked every 4,096 pages or less.
        const MOST: u64 = 4096;
        let wanted = pages
            .next_power_of_two()
            .clamp(u64::from(RING_ENTRIES_LEAST), MOST);
        (wanted as u32).min(self.report.dirty_ring_bytes / 16)
    }
}

/// How a user may come to use /dev/kvm, whose group is there for that or is root's.
fn remedy() -> &'static str {
    const READ_WRITE: u32 = 0o060;
    match std::fs::metadata("/dev/kvm") {
        Ok(device) if device.gid() != 0 && device.mode() & READ_WRITE == READ_WRITE => {
            "add the user to its group (`usermod -aG $(stat -c %G /dev/kvm) NAME`)"
        }
        _ => {
            "it is root's alone; give it a group (`groupadd -f kvm; chgrp kvm /dev/kvm; chmod 660 /dev/kvm`, by a \
             udev rule if it is to last) and add the user to that (`usermod -aG kvm NAME`)"
        }
    }
}

fn prepare(
    kvm: &Kvm,
    cpuid: &CpuId,
    vcpu: &mut Vcpu,
    lstar: u64,
    mask: u64,
    cstar: u64,
) -> Result<(), kvm_ioctls::Error> {
    let needed = [(MSR_STAR, STAR), (MSR_LSTAR, lstar), (MSR_SFMASK, mask)];
    // Intel has no CSTAR in 64-bit mode; a refusal does no harm, since `syscall` from 32-bit code is then #UD.
    let optional = [(MSR_CSTAR, cstar)];
    // One call, since on some KVMs each costs 6 us and more of a fork's making.
    if vcpu.set_msrs(&[&needed[..], &optional].concat())? < needed.len() {
        return Err(kvm_ioctls::Error::new(libc::EINVAL));
    }
    // CPUID.(EAX=0DH,ECX=0):EDX:EAX, the XCR0 bits that KVM supports.
    let supported = cpuid
        .as_slice()
        .iter()
        .find(|leaf| leaf.function == 0xd && leaf.index == 0)
        .map_or(0, |leaf| u64::from(leaf.edx) << 32 | u64::from(leaf.eax));
    if supported != 0 && kvm.check_extension(Cap::Xcrs) {
        vcpu.set_xcr0(supported & !XCR0_AMX)?;
    }
    Ok(())
}

/// The smallest guest: the monitor alone.
struct ProbeGuest {
    vcpu: Vcpu,
    template: kvm_sregs,
    choice: Choice,
}

impl ProbeGuest {
    fn new(host: &KvmHost) -> Result<Self, KvmUnavailable> {
        let ranges = monitor::ranges();
        let tables =
            PAGE_TABLES..PAGE_TABLES + tables_len(ranges.iter().map(MapRange::virtual_range));
        let memory = |error: std::io::Error| KvmUnavailable::Memory(error.to_string());
        let file: File = rustix::fs::memfd_create("forkvm-probe", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|error| memory(error.into()))?
            .into();
        file.set_len(tables.end).map_err(memory)?;
        let mapping = Mapping::shared(&Arc::new(file), tables.end)
            .map(Arc::new)
            .map_err(|error| KvmUnavailable::Memory(error.to_string()))?;
        // Ring 3 may use the system-call port in this guest, wherever `syscall` turns out to arrive.
        monitor::install(&mapping, SyscallEntry::Ring3)?;
        let mut tables = TablePages::new(tables);
        ranges
            .iter()
            .try_for_each(|range| tables.map(&mapping, range))?;
        let vm =
            Vm::new(&host.kvm, mapping, UNLOGGED_END, None).map_err(failed("KVM_CREATE_VM"))?;
        let mut vcpu = vm.vcpu(&host.cpuid).map_err(failed("KVM_CREATE_VCPU"))?;
        let addresses = stubs::addresses();
        prepare(
            &host.kvm,
            &host.cpuid,
            &mut vcpu,
            addresses.syscall_ring3,
            0,
            addresses.syscall_32,
        )
        .map_err(failed("KVM_SET_MSRS"))?;
        vcpu.share_counter();
        let template = vcpu.sregs().map_err(failed("KVM_GET_SREGS"))?;
        Ok(Self {
            vcpu,
            template,
            choice: host.choice,
        })
    }

    /// Runs ring-3 code at `address` until it exits.
    fn run(&mut self, address: u64) -> Result<Exit, KvmUnavailable> {
        self.vcpu
            .set_sregs(&user_sregs(&self.template, self.choice, 0, 0))
            .map_err(failed("KVM_SET_SREGS"))?;
        self.vcpu.set_regs(kvm_regs {
            rip: address,
            rflags: RFLAGS,
            ..Default::default()
        });
        loop {
            match self.vcpu.run() {
                Exit::Interrupted => {}
                exit => return Ok(exit),
            }
        }
    }

    /// Where `syscall` arrives, and where RIP is when its stub has made its `out`.
    fn syscall_entry(&mut self, address: u64) -> Result<(SyscallEntry, u64), KvmUnavailable> {
        let exit = self.run(address)?;
        if exit != Exit::Out(PORT_SYSCALL) {
            return Err(KvmUnavailable::NoSyscall(format!("{exit:?}")));
        }
        let sregs = self.vcpu.sregs().map_err(failed("KVM_GET_SREGS"))?;
        let entry = if sregs.cs.dpl == 3 {
            SyscallEntry::Ring3
        } else {
            SyscallEntry::Ring0
        };
        // The exit was in the middle of something; finish it before the next probe.
        let stopped_at = self.vcpu.regs().rip;
        self.vcpu.drain();
        Ok((entry, stopped_at))
    }

    /// Finds out whether `out` works in ring 3. QEMU's software emulation, our test bed for `kvm_amd`, heeds the I/O
    /// bitmap only of a TSS that is not in use; Intel's processors don't enter a guest with one.
    fn ring3_out(&mut self, address: u64) -> Result<bool, KvmUnavailable> {
        for tss_type in [TSS_BUSY, TSS_AVAILABLE] {
            self.choice.tss_type = tss_type;
            let works = self.run(address)? == Exit::Out(PORT_HYPERCALL);
            self.vcpu.drain();
            if works {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Times ring-3 code that does nothing but `out`.
    fn round_trip(&mut self, address: u64) -> Result<Duration, KvmUnavailable> {
        /// An odd number, for a median; few, since the first program waits for it.
        const TRIPS: usize = 31;
        self.run(address)?;
        let mut times = [Duration::ZERO; TRIPS];
        for time in &mut times {
            let start = Instant::now();
            self.vcpu.run();
            *time = start.elapsed();
        }
        self.vcpu.drain();
        times.sort_unstable();
        Ok(times[TRIPS / 2])
    }

    /// Whether the guest's counter is the host's.
    fn has_host_counter(&mut self, address: u64) -> Result<bool, KvmUnavailable> {
        let before = vdso::counter();
        let works = self.run(address)? == Exit::Out(PORT_HYPERCALL);
        let there = self.vcpu.regs().rax;
        self.vcpu.drain();
        Ok(works && (before..=vdso::counter()).contains(&there))
    }

    /// Sets a CR4 bit if KVM takes it.
    fn accept(&mut self, bit: u64) -> bool {
        let choice = Choice {
            cr4: self.choice.cr4 | bit,
            ..self.choice
        };
        let taken = self
            .vcpu
            .set_sregs(&user_sregs(&self.template, choice, 0, 0))
            .is_ok();
        if taken {
            self.choice = choice;
        }
        taken
    }

    /// Tries a probe with a CR4 bit, which stays set if the instruction works.
    fn try_with(&mut self, bit: u64, address: u64) -> Result<bool, KvmUnavailable> {
        let before = self.choice.cr4;
        self.accept(bit);
        let works = self.run(address)? == Exit::Out(PORT_HYPERCALL);
        self.vcpu.drain();
        if !works {
            self.choice.cr4 = before;
        }
        Ok(works)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_never_smaller_than_what_intel_needs() {
        let Ok(host) = host() else { return };
        assert_eq!(host.ring_entries(1), 1024);
        assert_eq!(host.ring_entries(1 << 20), 4096);
    }
}
