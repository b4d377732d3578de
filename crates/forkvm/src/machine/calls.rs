//! Serving the system calls of a program: the personality says what comes of one, and the registers are set by it.

use std::time::Instant;

use kvm_bindings::{kvm_regs, kvm_sregs};

use crate::arch::regs::user_flags;
use crate::arch::stubs::SyscallEntry;
use crate::failure::Cause;
use crate::linux::{Call, Outcome};
use crate::machine::Machine;
use crate::memory::space::Space;
use crate::memory::user::{USER_END, UserMemory};
use crate::request::Host;

/// The descriptor of what a call has just opened, which programs mostly ask about next.
fn opened(call: &Call, outcome: &Outcome) -> Option<u64> {
    let opens = [libc::SYS_open, libc::SYS_openat];
    match outcome {
        Outcome::Return(fd) if opens.contains(&call.number.cast_signed()) => (*fd).try_into().ok(),
        _ => None,
    }
}

/// The call that a program makes with these registers.
pub(super) fn call_of(regs: &kvm_regs) -> Call {
    Call {
        number: regs.rax,
        args: [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9],
        rsp: regs.rsp,
    }
}

impl Machine {
    /// Serves a system call. `Some` if it ends the run.
    pub(super) fn system_call(&mut self, deadline: Instant, host: &mut dyn Host) -> Option<Cause> {
        self.offer_is_stale = true;
        let regs = self.registers_of_call();
        // Where it goes on is in RCX, by `syscall` itself or by a program that jumped to the stub.
        if self.memory.space().is_some() && regs.rcx > USER_END {
            return Some(Cause::Killed(libc::SIGSEGV));
        }
        let call = call_of(&regs);
        if self.linux.has_alarm() {
            self.linux.tick(Instant::now());
        }
        let outcome = self
            .linux
            .call(call, &mut self.memory, host, &mut self.random);
        self.opened = opened(&call, &outcome);
        if self.memory.take_lost_permission()
            && let Err(error) = self.vm.forget_translations()
        {
            return Some(Cause::Machine(format!("memslot: {error}")));
        }
        if self.memory.space().is_some() {
            let ended = self.task_outcome(call, outcome, deadline, host);
            return ended.or_else(|| self.before_going_on(deadline));
        }
        let result = match outcome {
            Outcome::Return(value) => value,
            Outcome::Block(wait) => match wait.time {
                Some(time) => match self.sleep(time, deadline, host) {
                    None => wait.result,
                    ended => {
                        // One that is run on all the same has been woken too early.
                        return self.return_from_call(-i64::from(libc::EINTR)).or(ended);
                    }
                },
                // It is the machine's only task: nobody can end the wait.
                None => return Some(Cause::Deadlock(wait.on.why_never())),
            },
            Outcome::SetFsBase(base) => return self.set_bases(Some(base), None),
            Outcome::SetGsBase(base) => return self.set_bases(None, Some(base)),
            Outcome::GetFsBase(address) => return self.get_base(address, |sregs| sregs.fs.base),
            Outcome::GetGsBase(address) => return self.get_base(address, |sregs| sregs.gs.base),
            Outcome::Exit(status) | Outcome::ExitThread(status) => {
                return Some(Cause::Exit(status));
            }
            Outcome::Killed(signal) => return Some(Cause::Killed(signal)),
            // Only of programs with an address space.
            Outcome::Yield
            | Outcome::Clone(_)
            | Outcome::Fork(_)
            | Outcome::Exec(_)
            | Outcome::ReturnFromHandler => -i64::from(libc::ENOSYS),
        };
        self.return_from_call(result)
    }

    /// Resumes the program after a system call with this in RAX.
    pub(super) fn return_from_call(&mut self, result: i64) -> Option<Cause> {
        let removals = self.memory.space().is_some_and(Space::has_removals);
        if removals || self.linux.signal_is_due() {
            // A stub runs first, which returns to ring 3 itself; or a handler.
            let regs = kvm_regs {
                rax: result as u64,
                ..self.after_call()
            };
            self.resume_user(regs);
            return None;
        }
        let mut regs = self.vcpu.regs();
        regs.rax = result as u64;
        if self.host.entry == SyscallEntry::Ring0 {
            // `sysretq` loads RFLAGS from R11, which the program may not have chosen freely: it was RFLAGS at
            // `syscall`, and stays harmless whatever it holds.
            regs.r11 = user_flags(regs.r11);
        }
        self.vcpu.set_regs(regs);
        None
    }

    pub(super) fn set_bases(&mut self, fs: Option<u64>, gs: Option<u64>) -> Option<Cause> {
        let tss_type = self.host.choice.tss_type;
        let with_bases = |mut sregs: kvm_sregs| {
            sregs.fs.base = fs.unwrap_or(sregs.fs.base);
            sregs.gs.base = gs.unwrap_or(sregs.gs.base);
            // What is read back need not be what KVM takes: kvm_amd always says that the TSS is busy.
            sregs.tr.type_ = tss_type;
            sregs
        };
        if self.memory.space().is_some() {
            let sregs = with_bases(self.vcpu.synced_sregs());
            self.vcpu.set_sregs_at_next_run(sregs);
            return self.return_from_call(0);
        }
        let sregs = self.vcpu.sregs();
        match sregs.and_then(|sregs| self.vcpu.set_sregs(&with_bases(sregs))) {
            Ok(()) => self.return_from_call(0),
            Err(error) => Some(Cause::Machine(format!("segment base: {error}"))),
        }
    }

    pub(super) fn get_base(
        &mut self,
        address: u64,
        base: impl Fn(&kvm_sregs) -> u64,
    ) -> Option<Cause> {
        match self.vcpu.sregs() {
            Ok(sregs) => {
                let written = self.memory.write(address, &base(&sregs).to_le_bytes());
                self.return_from_call(if written.is_ok() {
                    0
                } else {
                    -i64::from(libc::EFAULT)
                })
            }
            Err(error) => Some(Cause::Machine(format!("segment base: {error}"))),
        }
    }
}
