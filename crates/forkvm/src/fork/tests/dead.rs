//! Machines that can't go on: what the log says of them, and that they are not used again.

use crate::fork::tests::testing::{deadline, frozen, get};
use crate::fork::*;
use crate::request::Quiet;

/// As where the host takes away what it gave.
#[test]
fn memory_the_host_cannot_give_is_named() {
    let Some(master) = frozen("hostile", |_| {}) else {
        return;
    };
    let layout = &master.wait_point.layout;
    let (image, len) = (layout.image, layout.stack.start - layout.image);
    let mut fork = Fork::new(master).unwrap();
    let address = fork.machine.memory.mapping().host_address() + image;
    // SAFETY: the program's image in the fork's own mapping, of which no Rust reference exists.
    let taken = unsafe { libc::mprotect(address as *mut _, len as usize, libc::PROT_NONE) };
    assert_eq!(taken, 0);
    let result = get(&mut fork, "/main");
    let Err(Cause::Machine(text)) = &result else {
        panic!("{result:?}");
    };
    assert!(text.starts_with("KVM_RUN: Bad address"), "{text}");
    assert!(fork.reset().is_err());
    assert!(fork.reset().is_err());
}

/// An exception where there is no way to handle one.
#[test]
fn a_triple_fault_is_named() {
    let Some(master) = frozen("hostile", |_| {}) else {
        return;
    };
    let mut sregs = master.wait_point.sregs;
    sregs.idt.limit = 0;
    let mut fork = Fork::new(master).unwrap();
    let nothing_there = kvm_regs {
        rip: PAGE,
        rflags: RFLAGS,
        ..Default::default()
    };
    let vcpu = fork.machine.vcpu();
    vcpu.set_sregs_at_next_run(sregs);
    vcpu.set_regs(nothing_there);
    let result = fork
        .machine
        .watched(deadline(), |machine| machine.run(deadline(), &mut Quiet));
    assert_eq!(result, Err(Cause::Machine("a triple fault".into())));
    assert!(fork.reset().is_err());
}
