//! Descriptor tables: GDT, TSS with its I/O permission bitmap, IDT. They are laid out as Linux lays its own
//! out, because `kvm_pvm` shows ring 3 Linux's selectors whatever the GDT says.

use super::layout::{GDT, IDT, KERNEL_STACK_TOP, KERNEL_STUBS, TSS, monitor};
use super::stubs;

/// Ring-0 code selector (Linux: `__KERNEL_CS`).
pub const KERNEL_CODE: u16 = 0x10;
/// Ring-0 data selector (Linux: `__KERNEL_DS`).
pub const KERNEL_DATA: u16 = 0x18;
/// Ring-3 32-bit code selector; the base of `sysret`'s selectors (Linux: `__USER32_CS`).
pub const USER_CODE_32: u16 = 0x23;
/// Ring-3 data selector (Linux: `__USER_DS`).
pub const USER_DATA: u16 = 0x2b;
/// Ring-3 64-bit code selector (Linux: `__USER_CS`).
pub const USER_CODE: u16 = 0x33;
/// Task-state selector (Linux: `GDT_ENTRY_TSS * 8`).
pub const TASK: u16 = 0x40;

/// Bytes of the GDT: nine 8-byte entries, the last a 16-byte TSS descriptor.
pub const GDT_LEN: u64 = 0x50;
/// Bytes of the IDT: the 32 architectural exceptions, 16 bytes each. `int n` beyond them is #GP.
pub const IDT_LEN: u64 = 32 * 16;

/// Bytes of a 64-bit TSS without its I/O bitmap (Intel SDM Vol. 3A, 8.7, Figure 8-11).
const TSS_BASE_LEN: usize = 0x68;
/// Bytes of the I/O bitmap: ports 0 to 255, then the byte of ones that the processor may read past the end.
const IO_BITMAP_LEN: usize = 33;
/// Limit of the TSS segment.
pub const TSS_LIMIT: u64 = (TSS_BASE_LEN + IO_BITMAP_LEN - 1) as u64;

/// The GDT's bytes.
pub fn gdt() -> Vec<u8> {
    // Flags as in Intel SDM Vol. 3A, 3.4.5: type, S, DPL, P, L, D/B, G over a flat 4 GiB segment.
    let mut entries = [0u64; 10];
    entries[usize::from(KERNEL_CODE >> 3)] = 0x00af_9b00_0000_ffff;
    entries[usize::from(KERNEL_DATA >> 3)] = 0x00cf_9300_0000_ffff;
    entries[usize::from(USER_CODE_32 >> 3)] = 0x00cf_fb00_0000_ffff;
    entries[usize::from(USER_DATA >> 3)] = 0x00cf_f300_0000_ffff;
    entries[usize::from(USER_CODE >> 3)] = 0x00af_fb00_0000_ffff;
    let base = monitor(TSS);
    // 64-bit TSS descriptor (Intel SDM Vol. 3A, 8.2.3): type 9 (available), present.
    entries[usize::from(TASK >> 3)] =
        TSS_LIMIT | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    entries[usize::from(TASK >> 3) + 1] = base >> 32;
    entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

/// The TSS's bytes. Ring 3 may reach the hypercall port, and the system-call port where `syscall` stays in ring 3.
pub fn tss(entry: stubs::SyscallEntry) -> Vec<u8> {
    let mut tss = vec![0u8; TSS_BASE_LEN + IO_BITMAP_LEN];
    let stack = monitor(KERNEL_STACK_TOP).to_le_bytes();
    tss[0x04..0x0c].copy_from_slice(&stack); // RSP0
    tss[0x24..0x2c].copy_from_slice(&stack); // IST1
    tss[0x66..0x68].copy_from_slice(&(TSS_BASE_LEN as u16).to_le_bytes()); // I/O map base
    tss[TSS_BASE_LEN..].fill(0xff);
    // `out %eax` needs the bits of four ports clear.
    tss[TSS_BASE_LEN] = match entry {
        stubs::SyscallEntry::Ring3 => 0x00,
        stubs::SyscallEntry::Ring0 => 0xf0,
    };
    tss
}

/// The IDT's bytes: every exception goes to its ring-0 stub on the stack of IST1. The IST matters: on real
/// hardware the `syscall` stub runs in ring 0 on the *user's* RSP, and an exception there must not use it.
pub fn idt() -> Vec<u8> {
    const BREAKPOINT: u64 = 3;
    const OVERFLOW: u64 = 4;
    let mut idt = Vec::with_capacity(IDT_LEN as usize);
    for vector in 0..32u64 {
        let handler = monitor(KERNEL_STUBS) + stubs::exception_offset(vector as u8);
        // `int3` and `into` may be executed by ring 3, any other `int n` is #GP.
        let dpl: u64 = if matches!(vector, BREAKPOINT | OVERFLOW) {
            3
        } else {
            0
        };
        // 64-bit interrupt gate (Intel SDM Vol. 3A, 6.14.1): type 14, present, IST 1.
        let low = handler & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | 1 << 32
            | (0x8e | dpl << 5) << 40
            | (handler >> 16 & 0xffff) << 48;
        idt.extend_from_slice(&low.to_le_bytes());
        idt.extend_from_slice(&(handler >> 32).to_le_bytes());
    }
    idt
}

/// Linear address of the GDT, TSS and IDT, for the segment registers.
pub const fn bases() -> (u64, u64, u64) {
    (monitor(GDT), monitor(TSS), monitor(IDT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_their_declared_lengths() {
        assert_eq!(gdt().len() as u64, GDT_LEN);
        assert_eq!(idt().len() as u64, IDT_LEN);
        assert_eq!(tss(stubs::SyscallEntry::Ring0).len() as u64, TSS_LIMIT + 1);
    }

    #[test]
    fn only_our_ports_are_open_to_ring_3() {
        for (entry, open) in [
            (stubs::SyscallEntry::Ring3, 8),
            (stubs::SyscallEntry::Ring0, 4),
        ] {
            let tss = tss(entry);
            let clear = tss[TSS_BASE_LEN..]
                .iter()
                .map(|byte| byte.count_zeros())
                .sum::<u32>();
            assert_eq!(clear, open);
        }
    }
}
