//! Control and segment registers of a machine that runs in ring 3 of 64-bit mode.

use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};

use super::layout::PAGE_TABLES;
use super::tables::{self, GDT_LEN, IDT_LEN, TASK, TSS_LIMIT, USER_CODE, USER_DATA};

/// CR0: protected mode, monitor coprocessor, extension type, numeric error, write protect (so that no ring-0 store can
/// write a read-only page), alignment mask, paging (Intel SDM Vol. 3A, 2.5).
const CR0: u64 = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18 | 1 << 31;
/// EFER: syscall enable, long mode enabled and active, no-execute enable (Intel SDM Vol. 3A, 2.2.1).
const EFER: u64 = 1 << 0 | 1 << 8 | 1 << 10 | 1 << 11;

/// CR4: physical address extension, FXSAVE and SIMD exceptions. Every 64-bit processor has these.
pub const CR4_BASE: u64 = 1 << 5 | 1 << 9 | 1 << 10;
/// CR4: `sgdt` and its like are #GP in ring 3.
pub const CR4_UMIP: u64 = 1 << 11;
/// CR4: `rdfsbase` and its like work in ring 3.
pub const CR4_FSGSBASE: u64 = 1 << 16;
/// CR4: XSAVE and its like work.
pub const CR4_OSXSAVE: u64 = 1 << 18;
/// CR4: ring 0 can't execute user pages.
pub const CR4_SMEP: u64 = 1 << 20;
/// CR4: protection keys.
pub const CR4_PKE: u64 = 1 << 22;

/// STAR: selectors loaded by `syscall` and `sysret` (Intel SDM Vol. 3A, 5.8.8).
pub const MSR_STAR: u32 = 0xc000_0081;
/// LSTAR: where `syscall` goes.
pub const MSR_LSTAR: u32 = 0xc000_0082;
/// CSTAR: where `syscall` from 32-bit code goes (AMD).
pub const MSR_CSTAR: u32 = 0xc000_0083;
/// SFMASK: RFLAGS bits that `syscall` clears.
pub const MSR_SFMASK: u32 = 0xc000_0084;
/// STAR's value: kernel selectors from 0x10, `sysret` selectors from 0x23.
pub const STAR: u64 = (tables::USER_CODE_32 as u64) << 48 | (tables::KERNEL_CODE as u64) << 32;
/// SFMASK in ring 0: trap, interrupt, direction, IOPL, nested task, alignment check.
pub const SFMASK_RING0: u64 = 1 << 8 | 1 << 9 | 1 << 10 | 3 << 12 | 1 << 14 | 1 << 18;

/// RFLAGS at the start of a program and of a request: interrupts on, and the bit that is always set.
pub const RFLAGS: u64 = 1 << 9 | 1 << 1;
/// RFLAGS a program may have given itself: carry, parity, adjust, zero, sign, direction, overflow, alignment check, ID.
pub const RFLAGS_USER: u64 =
    1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 11 | 1 << 18 | 1 << 21;

/// The flags a program can give itself, with the others as they always are.
pub const fn user_flags(flags: u64) -> u64 {
    flags & RFLAGS_USER | RFLAGS
}

/// Type of a 64-bit TSS that is in use, as it is while a task runs (Intel SDM Vol. 3A, 3.5, Table 3-2).
pub const TSS_BUSY: u8 = 11;
/// Type of a 64-bit TSS that is not in use.
pub const TSS_AVAILABLE: u8 = 9;

/// What the probe chose for all guests.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// CR4.
    pub cr4: u64,
    /// Type of the TSS.
    pub tss_type: u8,
}

/// The same registers for ring 0, to enter a stub there.
pub fn kernel_sregs(user: &kvm_sregs) -> kvm_sregs {
    let mut sregs = *user;
    (sregs.cs.selector, sregs.cs.dpl) = (tables::KERNEL_CODE, 0);
    (sregs.ss.selector, sregs.ss.dpl) = (tables::KERNEL_DATA, 0);
    sregs
}

/// The registers of ring-3 64-bit code with these FS and GS bases.
pub fn user_sregs(template: &kvm_sregs, choice: Choice, fs_base: u64, gs_base: u64) -> kvm_sregs {
    let (gdt, tss, idt) = tables::bases();
    let code = kvm_segment {
        limit: u32::MAX,
        selector: USER_CODE,
        type_: 11,
        present: 1,
        dpl: 3,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let stack = kvm_segment {
        limit: u32::MAX,
        selector: USER_DATA,
        type_: 3,
        present: 1,
        dpl: 3,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    // As Linux starts a 64-bit program: null selectors, of which only FS and GS have a base.
    let null = |base| kvm_segment {
        base,
        unusable: 1,
        ..Default::default()
    };
    kvm_sregs {
        cs: code,
        ss: stack,
        ds: null(0),
        es: null(0),
        fs: null(fs_base),
        gs: null(gs_base),
        tr: kvm_segment {
            base: tss,
            limit: TSS_LIMIT as u32,
            selector: TASK,
            type_: choice.tss_type,
            present: 1,
            ..Default::default()
        },
        ldt: null(0),
        gdt: kvm_dtable {
            base: gdt,
            limit: GDT_LEN as u16 - 1,
            ..Default::default()
        },
        idt: kvm_dtable {
            base: idt,
            limit: IDT_LEN as u16 - 1,
            ..Default::default()
        },
        cr0: CR0,
        cr2: 0,
        cr3: PAGE_TABLES,
        cr4: choice.cr4,
        efer: EFER,
        ..*template
    }
}
