//! A machine whose program has an address space: its page faults, and table entries that lost something.

use kvm_bindings::{kvm_regs, kvm_sregs};

use crate::arch::layout::{CLEARED_FOR, KERNEL_STACK_TOP, REMOVALS, monitor};
use crate::arch::regs::{kernel_sregs, user_flags, user_sregs};
use crate::arch::stubs::{self, Cleared, SyscallEntry};
use crate::arch::tables::{USER_CODE, USER_DATA};
use crate::failure::Cause;
use crate::machine::Machine;
use crate::memory::access::Touch;
use crate::memory::faults::FaultError;
use crate::memory::space::{MOST_REMOVALS, Removal};

/// RFLAGS after a removal's stub has started: the bit that is always set.
const RFLAGS_RING0: u64 = 1 << 1;

/// Page-fault error code (Intel SDM Vol. 3A, 4.7).
const FAULT_WRITE: u64 = 1 << 1;
const FAULT_FETCH: u64 = 1 << 4;

impl Machine {
    /// The segment registers of ring 3 with the bases that the program has now.
    fn user_sregs_now(&mut self) -> kvm_sregs {
        let now = self.vcpu.synced_sregs();
        user_sregs(&now, self.host.choice, now.fs.base, now.gs.base)
    }

    /// The registers with which the program goes on after the system call that it just made.
    pub(super) fn after_call(&mut self) -> kvm_regs {
        let regs = self.vcpu.regs();
        kvm_regs {
            rip: regs.rcx,
            rflags: user_flags(regs.r11),
            ..regs
        }
    }

    /// Has the next run go on in ring 3 with these registers, whatever the last exit was.
    pub(super) fn resume_user(&mut self, regs: kvm_regs) {
        let sregs = self.user_sregs_now();
        self.vcpu.set_sregs_at_next_run(sregs);
        self.vcpu.set_regs(regs);
    }

    /// Brings in the page that the program faulted at and resumes it. The error is the program's own fault.
    pub(super) fn page_fault(&mut self) -> Result<(), FaultError> {
        let (Some(frame), Some(code)) = (self.exception_frame(), self.pushed(5)) else {
            return Err(FaultError::NotMapped);
        };
        let touch = if code & FAULT_FETCH != 0 {
            Touch::Execute
        } else if code & FAULT_WRITE != 0 {
            Touch::Write
        } else {
            Touch::Read
        };
        let address = self.vcpu.synced_sregs().cr2;
        // Only ring 3 touches what may be missing.
        if frame.cs & 3 != 3 {
            return Err(FaultError::NotPermitted);
        }
        self.memory.fault(address, touch)?;
        let regs = kvm_regs {
            rip: frame.rip,
            rsp: frame.rsp,
            rflags: user_flags(frame.rflags),
            ..self.vcpu.regs()
        };
        self.resume_user(regs);
        Ok(())
    }

    /// Has the run that follows begin without the selectors that another connection, or another machine, has left in the
    /// processor. Where KVM keeps them apart there are none.
    pub(super) fn clear_selectors(&mut self) -> Result<(), Cause> {
        let foreign = std::mem::take(&mut self.foreign_selectors);
        let host = self.host;
        if !foreign || host.entry == SyscallEntry::Ring0 || !host.report.fsgsbase {
            return Ok(());
        }
        let sregs = self.vcpu.synced_sregs();
        let regs = self.vcpu.regs();
        let after = Cleared {
            fs_base: sregs.fs.base,
            gs_base: sregs.gs.base,
            r11: regs.r11,
            rip: regs.rip,
        };
        self.memory
            .mapping()
            .write(CLEARED_FOR, &after.to_bytes())
            .map_err(|error| Cause::Machine(error.to_string()))?;
        self.vcpu.set_regs(kvm_regs {
            rip: stubs::addresses().clear_selectors,
            ..regs
        });
        Ok(())
    }

    /// Makes the processor notice the table entries that lost something, in the run that follows: the stub in ring 0
    /// rewrites them and goes on where the program would have.
    pub(super) fn apply_removals(&mut self) -> Result<(), Cause> {
        let Some(space) = self.memory.space_mut().filter(|space| space.has_removals()) else {
            return Ok(());
        };
        let removals = space.take_removals();
        if removals.len() > MOST_REMOVALS {
            return self
                .vm
                .forget_translations()
                .map_err(|error| Cause::Machine(format!("memslot: {error}")));
        }
        let failed = |error: &dyn std::fmt::Display| Cause::Machine(error.to_string());
        let pair = |removal: &Removal| [monitor(removal.entry), removal.address];
        let bytes: Vec<u8> = removals
            .iter()
            .flat_map(pair)
            .flat_map(u64::to_le_bytes)
            .collect();
        let regs = self.vcpu.regs();
        let stack = [
            regs.rsi,
            regs.rdi,
            regs.rcx,
            regs.rax,
            regs.rip,
            USER_CODE.into(),
            regs.rflags,
            regs.rsp,
            USER_DATA.into(),
        ]
        .map(u64::to_le_bytes);
        let stack = stack.as_flattened();
        let top = KERNEL_STACK_TOP - stack.len() as u64;
        let mapping = self.memory.mapping();
        mapping
            .write(REMOVALS, &bytes)
            .and_then(|()| mapping.write(top, stack))
            .map_err(|error| failed(&error))?;
        let sregs = kernel_sregs(&self.user_sregs_now());
        self.vcpu.set_sregs_at_next_run(sregs);
        self.vcpu.set_regs(kvm_regs {
            rip: stubs::addresses().remove,
            rsp: monitor(top),
            rsi: monitor(REMOVALS),
            rcx: removals.len() as u64,
            rflags: RFLAGS_RING0,
            ..regs
        });
        Ok(())
    }
}
