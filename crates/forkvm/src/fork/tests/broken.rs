//! Resets with one step left out or undone. Each has to be found by the same look at the fork that finds nothing after
//! a whole reset: all memory compared with the master's, and what the next request sees of the machine.

#[path = "../../../tests/common/ops.rs"]
mod ops;

use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use self::ops::{ENDINGS, Ending, Finale, Op};
use crate::arch::layout::{KERNEL_STACK, USER_STUBS};
use crate::fork::tests::testing::{deadline, emulated, get, text};
use crate::fork::*;
use crate::request::Quiet;

/// What requests try to leave behind.
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec3;
/// Loads the vector and x87 registers with the secret, and other modes into their control registers.
const VECTORS: Op = Op {
    what: 5,
    a: 3,
    b: 8,
    c: u32::MAX,
    d: SECRET,
};

/// Writes the secret to pages of all kinds.
fn writes() -> Vec<Op> {
    let write = |a, b| Op {
        what: 0,
        a,
        b,
        c: 3,
        d: SECRET,
    };
    let map = Op {
        what: 1,
        a: 0,
        b: 0,
        c: 7,
        d: SECRET,
    };
    vec![map, write(0, 1), write(1, 0), write(2, 3), write(5, 0)]
}

/// The frozen guest `ops`.
fn frozen() -> Option<Arc<Master>> {
    crate::fork::tests::testing::frozen("ops", |config| config.limits.max_memory = 16 << 20)
}

/// The step of a reset that is broken.
type Breakage = dyn Fn(&mut Fork) -> bool;

impl Fork {
    fn perform(&mut self, finale: &Finale, ops: &[Op]) -> Result<Response, Cause> {
        let body = ops::body(finale, ops);
        let request = Request {
            method: "POST",
            url: b"/",
            body: &body,
            ..Default::default()
        };
        self.call(&request, None, deadline(), &mut Quiet, None)
    }

    /// What a request sees of the machine.
    fn probe(&mut self) -> Result<String, Cause> {
        let response = get(self, "/probe")?;
        Ok(text(self, &response))
    }

    /// The look at a fork that has been reset somehow. `None` if all is as at first.
    fn leftovers(&mut self, first: &str) -> Option<String> {
        match (self.differing_pages(), self.probe()) {
            (n @ 1.., _) => Some(format!("{n} pages differ")),
            (_, Err(cause)) => Some(format!("{cause:?}")),
            (_, Ok(now)) => {
                let changed = first.lines().zip(now.lines()).find(|(a, b)| a != b);
                changed.map(|(before, after)| format!("was {before}, is {after}"))
            }
        }
    }
}

/// A list, a reset with something wrong with it, and what is found then. The same list and a whole reset come first.
fn found(master: &Arc<Master>, list: (Finale, Vec<Op>), breakage: &Breakage) -> Option<String> {
    let mut fork = Fork::new(master.clone()).unwrap();
    let first = fork.probe().unwrap();
    assert!(fork.reset().is_ok());
    let _ = fork.perform(&list.0, &list.1);
    assert!(fork.reset().is_ok());
    assert_eq!(fork.leftovers(&first), None, "after {list:?}");
    assert!(fork.reset().is_ok());
    let _ = fork.perform(&list.0, &list.1);
    assert!(breakage(&mut fork), "it was not to end like this: {list:?}");
    fork.leftovers(&first)
}

fn ending(ending: Ending) -> (Finale, Vec<Op>) {
    let finale = Finale {
        general: [SECRET; 16],
        ending,
        ..Finale::default()
    };
    (finale, vec![VECTORS])
}

/// Replaces an instruction of the ring-3 stubs in this fork, everywhere. It comes back by nothing but a new fork.
fn patch(fork: &Fork, instruction: &[u8], other: &[u8]) {
    assert_eq!(instruction.len(), other.len());
    let mapping = fork.machine.memory.mapping();
    let mut code = vec![0; stubs::user().len()];
    mapping.read(USER_STUBS, &mut code).unwrap();
    let mut patched = 0;
    for at in 0..code.len() - instruction.len() {
        if code[at..].starts_with(instruction) {
            mapping.write(USER_STUBS + at as u64, other).unwrap();
            patched += 1;
        }
    }
    assert!(patched > 0, "{instruction:x?} is not in the stubs");
}

/// The same look, at a fork whose entry stub lacks something. Its memory differs by that.
fn found_without(
    master: &Arc<Master>,
    list: (Finale, Vec<Op>),
    instruction: &[u8],
    other: &[u8],
) -> Option<String> {
    let mut fork = Fork::new(master.clone()).unwrap();
    let first = fork.probe().unwrap();
    assert!(fork.reset().is_ok());
    let _ = fork.perform(&list.0, &list.1);
    assert!(fork.reset().is_ok());
    patch(&fork, instruction, other);
    match fork.probe() {
        Ok(now) if now == first => None,
        Ok(now) => {
            let changed = first.lines().zip(now.lines()).find(|(a, b)| a != b);
            changed.map(|(before, after)| format!("was {before}, is {after}"))
        }
        Err(cause) => Some(format!("{cause:?}")),
    }
}

#[test]
fn any_page_left_out_is_found() {
    let Some(master) = frozen() else { return };
    let mut fork = Fork::new(master.clone()).unwrap();
    let mut found = 0;
    let finale = Finale::default();
    for nth in (0..).step_by(if emulated() { 7 } else { 1 }) {
        let _ = fork.perform(&finale, &writes());
        let differing = fork.differing_pages();
        let listed = fork.machine.memory.dirty_len();
        assert!(
            differing > 20 && listed >= differing,
            "{differing} of {listed}"
        );
        let Some(page) = fork.machine.memory.dirty().unwrap().take(nth) else {
            assert!((2..=listed).contains(&found), "{found} of {listed} pages");
            break;
        };
        assert!(fork.reset().is_ok());
        match fork.differing_pages() {
            0 => {}
            1 => found += 1,
            n => panic!("{n} pages differ, one was left out"),
        }
        fork.machine.memory.dirty().unwrap().add(page).unwrap();
        assert!(fork.reset().is_ok());
        assert_eq!(fork.differing_pages(), 0);
    }
}

#[test]
fn the_ring_0_stack_left_out_is_found() {
    let Some(master) = frozen() else { return };
    let found = found(&master, ending(Ending::Divide), &|fork| {
        let mut stack = [0; PAGE as usize];
        fork.machine
            .memory
            .mapping()
            .read(KERNEL_STACK, &mut stack)
            .unwrap();
        let reset = fork.reset().is_ok();
        fork.machine
            .memory
            .mapping()
            .write(KERNEL_STACK, &stack)
            .unwrap();
        reset
    });
    assert_eq!(found.as_deref(), Some("1 pages differ"));
}

/// C3: each part of the vector state, as the processor divides it.
#[test]
fn any_part_of_the_vector_state_left_out_is_found() {
    const ALL: [u8; 5] = [0xb8, 0xff, 0xff, 0xff, 0xff]; // mov eax, -1
    let Some(master) = frozen() else { return };
    let list = || {
        let (mut finale, ops) = ending(Ending::Respond);
        (finale.pkru, finale.set) = (0x5555_5554, 4);
        (finale, ops)
    };
    let xcr0 = master.wait_point.report.xcr0;
    for (name, bits) in [
        ("x87", 1u32),
        ("XMM", 1 << 1),
        ("MXCSR", 3 << 1),
        ("AVX", 1 << 2),
        ("AVX-512 masks", 1 << 5),
        ("upper halves of ZMM", 1 << 6),
        ("upper ZMM", 1 << 7),
    ] {
        if xcr0 & u64::from(bits) != u64::from(bits) {
            eprintln!("SKIPPED: no {name} here");
            continue;
        }
        let mut some = ALL;
        some[1..].copy_from_slice(&(!bits).to_le_bytes());
        let found = found_without(&master, list(), &ALL, &some);
        assert!(found.is_some(), "{name}");
    }
    let report = master.wait_point.report;
    if report.protection_keys && report.fsgsbase {
        // A program that denied key 0 to itself: the stub can't even load.
        let found = found_without(
            &master,
            ending(Ending::DenyKeys),
            &[0x0f, 0x01, 0xef],
            &[0x90; 3],
        );
        assert!(found.is_some(), "PKRU");
    } else {
        eprintln!("SKIPPED: no protection keys here");
    }
}

/// C4. Where KVM puts the selectors back itself there is nothing to find.
#[test]
fn selectors_left_out_are_found() {
    let Some(master) = frozen() else { return };
    if !master.wait_point.report.fsgsbase {
        eprintln!("SKIPPED: the host resets the selectors here");
        return;
    }
    let mut list = ending(Ending::Respond);
    (list.0.selectors, list.0.set) = ([0x2b; 4], 1);
    for (name, instruction) in [
        ("ds", [0x8e, 0xd8]),
        ("es", [0x8e, 0xc0]),
        ("fs", [0x8e, 0xe0]),
        ("gs", [0x8e, 0xe8]),
    ] {
        let found = found_without(&master, list.clone(), &instruction, &[0x90; 2]);
        let kept_by_kvm = !master.wait_point.report.syscall_enters_ring0;
        assert_eq!(found.is_some(), kept_by_kvm, "{name}: {found:?}");
    }
}

/// C4 again: what a request loads may be seen by another machine on the same thread, if that one's stub lets it.
#[test]
fn selectors_of_another_machine_are_not_seen() {
    let Some(master) = frozen() else { return };
    let mut list = ending(Ending::Respond);
    (list.0.selectors, list.0.set) = ([0x2b; 4], 1);
    let [mut one, mut other] = [(); 2].map(|()| Fork::new(master.clone()).unwrap());
    let first = other.probe().unwrap();
    assert!(other.reset().is_ok());
    let _ = one.perform(&list.0, &list.1);
    assert_eq!(other.probe().unwrap(), first);
    assert!(other.reset().is_ok());
    if master.wait_point.report.syscall_enters_ring0 || !master.wait_point.report.fsgsbase {
        return;
    }
    patch(&other, &[0x8e, 0xd8], &[0x90; 2]);
    assert!(one.reset().is_ok());
    let _ = one.perform(&list.0, &list.1);
    let seen = other.probe().unwrap();
    assert!(seen.contains("ds 2b"), "KVM keeps them apart now: {seen}");
}

/// C1: the completion that an `in` leaves behind beats the next request's registers.
#[test]
fn an_undrained_port_access_is_found() {
    let Some(master) = frozen() else { return };
    // Elsewhere KVM itself drops that of a plain `in` when RIP has changed.
    let on_pvm = !master.wait_point.report.syscall_enters_ring0;
    for (kind, kept) in [(Ending::In, on_pvm), (Ending::Ins, true)] {
        let (mut finale, ops) = ending(kind);
        finale.address = 0x7f00_0000_0000;
        let found = found(&master, (finale, ops), &|fork| {
            fork.machine.forget_residue();
            fork.reset().is_ok()
        });
        assert_eq!(found.is_some(), kept, "{kind:?}: {found:?}");
    }
}

/// C2: entries that are given back to KVM without having been looked at.
#[test]
fn entries_given_back_unseen_are_found() {
    let Some(master) = frozen() else { return };
    let mut fork = Fork::new(master.clone()).unwrap();
    let body = ops::body(&Finale::default(), &writes());
    let request = Request {
        method: "POST",
        url: b"/",
        body: &body,
        ..Default::default()
    };
    for lose in [false, true] {
        let deadline = deadline();
        let exchange = &mut Exchange::new(&request);
        let about = Circumstances::default();
        fork.machine.watched(deadline, |machine| {
            let wait_point = &master.wait_point;
            wait_point
                .call(machine, exchange, about, deadline, &mut Quiet, None)
                .unwrap();
            if lose {
                machine.vcpu().ring().unwrap().harvest(|_, _| {});
            }
        });
        assert!(fork.reset().is_ok());
        assert_eq!(fork.differing_pages() > 0, lose);
        // For the second turn, all pages are to be logged again.
        fork.machine.shrink().unwrap();
    }
}

/// C2: neither exceptions nor page tables get into the ring.
#[test]
fn exceptions_fill_no_ring() {
    let Some(master) = frozen() else { return };
    let mut fork = Fork::new(master.clone()).unwrap();
    let finale = ending(Ending::Divide).0;
    let used = |fork: &mut Fork| fork.machine.vcpu().ring().unwrap().used();
    let _ = fork.perform(&finale, &[]);
    assert!(fork.reset().is_ok());
    let before = used(&mut fork);
    for _ in 0..50 {
        let _ = fork.perform(&finale, &[]);
        assert!(fork.reset().is_ok());
    }
    assert_eq!(used(&mut fork), before);
    let tables = &master.wait_point.layout.tables;
    while let Some(page) = fork.machine.memory.dirty().unwrap().take(0) {
        let address = u64::from(page) * PAGE;
        assert!(!tables.contains(&address), "a page table: {address:#x}");
        assert!(address >= USER_STUBS, "a descriptor table: {address:#x}");
    }
}

#[test]
fn registers_left_out_are_found() {
    let Some(master) = frozen() else { return };
    // In ring 0, in the stub of an exception.
    let found = found(&master, ending(Ending::Divide), &|fork| {
        let reset = fork.reset().is_ok();
        fork.machine.vcpu().keep_registers();
        reset
    });
    assert!(found.is_some());
}

#[test]
fn the_personality_left_out_is_found() {
    let Some(master) = frozen() else { return };
    let change = |b, c, d| Op {
        what: 4,
        a: 10,
        b,
        c,
        d,
    };
    let open = Op {
        what: 3,
        a: 0,
        b: 8,
        c: 5,
        d: 1,
    };
    let map = Op {
        what: 1,
        a: 0,
        b: 0,
        c: 3,
        d: 0,
    };
    let brk = Op {
        what: 2,
        a: 0,
        b: 2,
        c: 8192,
        d: 0,
    };
    for op in [
        change(1, 0o123, 0),  // umask
        change(2, 0, SECRET), // signal handler
        change(3, 0, SECRET), // signal mask
        change(4, 0, SECRET), // signal stack
        change(5, 0, SECRET), // name
        open,
        map,
        brk,
    ] {
        let found = found(&master, (Finale::default(), vec![op]), &|fork| {
            let kept = fork.machine.linux.clone();
            let reset = fork.reset().is_ok();
            fork.machine.linux = kept;
            reset
        });
        assert!(found.is_some(), "{op:?}");
    }
}

/// Whatever a request did: the master's memory is what it was, and nobody can map it to write.
#[test]
fn the_master_never_changes() {
    let Some(master) = frozen() else { return };
    let sum = || {
        let mut hasher = DefaultHasher::new();
        let mut page = [0; PAGE as usize];
        for address in (0..master.memory.len()).step_by(PAGE as usize) {
            master.memory.read(address, &mut page).unwrap();
            hasher.write(&page);
        }
        hasher.finish()
    };
    let before = sum();
    assert!(Mapping::shared(&master.file, master.memory.len()).is_err());
    let mut fork = Fork::new(master.clone()).unwrap();
    for kind in ENDINGS {
        if kind == Ending::Loop {
            continue;
        }
        for address in [0x7e00_0000_8000, 0x40_1000, 0x7f00_0000_0000, 1 << 63] {
            let (mut finale, mut ops) = ending(kind);
            finale.address = address;
            ops.extend(writes());
            let _ = fork.perform(&finale, &ops);
            if fork.reset().is_err() {
                fork = Fork::new(master.clone()).unwrap();
            }
        }
    }
    assert_eq!(sum(), before);
}
