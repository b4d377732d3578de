//! Where `syscall` arrives in ring 3, at a stub that has nothing to do but `out`, it costs one native entry more than that
//! `out` would in its place (three trapped accesses of eleven on kvm_pvm inside a virtual machine). So before the freeze each
//! `syscall` becomes one when it first arrives. Afterwards it would be a write to undo.
//!
//! The two instructions are of one length. Code that jumps between their bytes, or reads itself, sees the change.
//!
//! A call that the dispatcher answers is dearer by an `out` than without. So before the freeze those become `syscall` again whose
//! calls it mostly will; until then there is nothing for it to answer.

use kvm_bindings::kvm_regs;

use crate::arch::dispatcher;
use crate::arch::stubs::{OUT_SYSCALL, SYSCALL, addresses};
use crate::machine::Machine;
use crate::machine::calls::call_of;
use crate::machine::sites::Sites;
use crate::memory::guest::GuestMemory;
use crate::memory::space::vmas::{Backing, Vma};
use crate::memory::user::UserMemory;

impl Machine {
    /// The registers of a program that makes a system call, as `syscall` leaves them (Intel SDM Vol. 2B, SYSCALL).
    pub(super) fn registers_of_call(&mut self) -> kvm_regs {
        let regs = self.vcpu.regs();
        if !self.host.calls_by_out {
            return regs;
        }
        let len = SYSCALL.len() as u64;
        let behind_stub = addresses().syscall_ring3 + len;
        if [behind_stub, dispatcher::addresses().behind_out].contains(&regs.rip) {
            let site = regs.rcx.wrapping_sub(len);
            self.note_site(site, &regs);
            // Where the dispatcher is there already, it may answer the next one.
            if !self.dispatches || !self.linux.is_answered(&call_of(&regs)) {
                rewrite(&mut self.memory, site);
            }
            return regs;
        }
        self.note_site(regs.rip.wrapping_sub(len), &regs);
        // The `out` of a call that was rewritten, or that the program has come to by itself.
        let regs = kvm_regs {
            rcx: regs.rip,
            r11: regs.rflags,
            ..regs
        };
        self.vcpu.set_regs(regs);
        regs
    }
}

impl Machine {
    /// Whether the `out` that has just been made is a call's: one of our code's, or of the program's where it may have them in place
    /// of `syscall`.
    pub(super) fn may_call_here(&mut self) -> bool {
        // A program with handlers has no dispatcher, nor does its vCPU's run page have the selectors. It may make its calls wherever it is.
        if self.host.calls_by_out
            || self.memory.space().is_none()
            || self.vcpu.synced_sregs().cs.selector & 3 == 0
        {
            return true;
        }
        // RIP is at the `out` or behind it.
        let len = SYSCALL.len() as u64;
        let rip = self.vcpu.regs().rip;
        [
            dispatcher::addresses().behind_out,
            addresses().syscall_ring3 + len,
        ]
        .into_iter()
        .any(|behind| rip == behind || rip == behind - len)
    }

    /// From now on notes where calls are made, for [`Machine::give_sites_back`].
    pub fn note_sites(&mut self) {
        self.sites = self.host.calls_by_out.then(Sites::default);
    }

    fn note_site(&mut self, address: u64, regs: &kvm_regs) {
        if let Some(sites) = &mut self.sites {
            sites.note(address, self.linux.is_answered(&call_of(regs)));
        }
    }

    /// What was made there so far was the start of the program.
    pub(super) fn begin_sites(&mut self) {
        if let Some(sites) = &mut self.sites {
            sites.begin();
        }
    }

    /// Has the calls of forks arrive at the dispatcher which it may answer.
    pub fn give_sites_back(&mut self) {
        let sites = self.sites.take().unwrap_or_default();
        for address in sites.to_be_answered() {
            replace(&mut self.memory, address, (OUT_SYSCALL, SYSCALL));
        }
    }
}

/// Rewrites the `syscall` at an address, if there is one and it may be changed.
fn rewrite(memory: &mut GuestMemory, address: u64) {
    replace(memory, address, (SYSCALL, OUT_SYSCALL));
}

/// Replaces an instruction by another one, if it is there and may be changed.
fn replace(memory: &mut GuestMemory, address: u64, (old, new): ([u8; 2], [u8; 2])) {
    if memory.dirty().is_some() || is_of_shared_file(memory, address) {
        return;
    }
    let mut code = [0; SYSCALL.len()];
    if memory.read(address, &mut code).is_ok() && code == old {
        // It stays as it is where the program may not read its code.
        let _ = memory.overwrite(address, &new);
    }
}

/// True if what is written there would reach a file.
fn is_of_shared_file(memory: &GuestMemory, address: u64) -> bool {
    let reaches = |vma: &Vma| vma.shared && matches!(vma.backing, Backing::File(..));
    let last = address.saturating_add(SYSCALL.len() as u64 - 1);
    memory.space().is_some_and(|space| {
        let of = |address| space.vmas().find(address).is_some_and(reaches);
        of(address) || of(last)
    })
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;

    use super::*;
    use crate::arch::layout::PAGE;
    use crate::memory::space::vmas::PageSource;
    use crate::memory::testing::with_space;
    use crate::memory::user::Protection;

    /// A file full of calls.
    #[derive(Debug)]
    struct Calls;

    impl PageSource for Calls {
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
            for (at, byte) in (offset..).zip(buf.iter_mut()) {
                *byte = SYSCALL[at as usize % SYSCALL.len()];
            }
            Ok(buf.len())
        }

        fn path(&self) -> &[u8] {
            b"/calls"
        }

        fn identity(&self) -> (u64, u64) {
            (0, 1)
        }
    }

    fn map(memory: &mut GuestMemory, range: Range<u64>, shared: bool) {
        let vma = Vma {
            start: range.start,
            end: range.end,
            protection: Protection {
                read: true,
                write: false,
                execute: true,
            },
            shared,
            wiped: false,
            backing: Backing::File(Arc::new(Calls), 0),
        };
        memory.address_space().unwrap().map(vma).unwrap();
    }

    fn code(memory: &GuestMemory, address: u64) -> [u8; 2] {
        let mut code = [0; 2];
        memory.read(address, &mut code).unwrap();
        code
    }

    #[test]
    fn a_call_becomes_an_out_and_nothing_else_does() {
        let mut memory = with_space();
        map(&mut memory, PAGE..3 * PAGE, false);
        for address in [PAGE + 2, 2 * PAGE, PAGE + 7] {
            rewrite(&mut memory, address);
        }
        assert_eq!(code(&memory, PAGE + 2), OUT_SYSCALL);
        assert_eq!(code(&memory, 2 * PAGE), OUT_SYSCALL);
        for address in [PAGE, PAGE + 4, PAGE + 6, PAGE + 8] {
            assert_eq!(code(&memory, address), SYSCALL);
        }
        // Nothing is there.
        rewrite(&mut memory, 8 * PAGE);
        rewrite(&mut memory, u64::MAX);
    }

    #[test]
    fn one_on_two_pages_too() {
        let mut memory = with_space();
        map(&mut memory, PAGE..3 * PAGE, false);
        let address = 2 * PAGE - 1;
        memory.overwrite(address, &SYSCALL).unwrap();
        rewrite(&mut memory, address);
        assert_eq!(code(&memory, address), OUT_SYSCALL);
    }

    #[test]
    fn an_out_becomes_a_call_again() {
        let mut memory = with_space();
        map(&mut memory, PAGE..2 * PAGE, false);
        rewrite(&mut memory, PAGE);
        replace(&mut memory, PAGE, (OUT_SYSCALL, SYSCALL));
        replace(&mut memory, PAGE + 1, (OUT_SYSCALL, SYSCALL));
        assert_eq!(code(&memory, PAGE), SYSCALL);
        assert_eq!(code(&memory, PAGE + 2), SYSCALL);
    }

    #[test]
    fn a_file_that_others_see_is_left_alone() {
        let mut memory = with_space();
        map(&mut memory, PAGE..2 * PAGE, true);
        rewrite(&mut memory, PAGE);
        assert_eq!(code(&memory, PAGE), SYSCALL);
    }
}
