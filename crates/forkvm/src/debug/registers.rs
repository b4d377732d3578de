//! The registers as gdb sees them, and where KVM keeps them.

use gdbstub::arch::{Arch, Registers};
use gdbstub_arch::x86::reg::{F80, X86_64CoreRegs};
use kvm_bindings::kvm_regs;

use crate::arch::regs::user_flags;

/// RFLAGS.TF: a debug exception after each instruction (Intel SDM Vol. 1, 3.4.3.3).
pub const TRAP_FLAG: u64 = 1 << 8;
/// First address that is no program's.
pub const USER_END: u64 = 1 << 47;

/// x86-64 with SSE, AVX and the segment bases, as `target.xml` says.
#[derive(Debug)]
pub enum X86_64 {}

impl Arch for X86_64 {
    type Usize = u64;
    type Registers = CpuRegisters;
    type RegId = ();
    type BreakpointKind = usize;

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("target.xml"))
    }
}

/// All registers of `target.xml`, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuRegisters {
    /// General registers, x87 and SSE.
    pub core: X86_64CoreRegs,
    /// Of Linux: the number of a system call under way. There never is one.
    pub orig_rax: u64,
    /// FS base: the thread's own data.
    pub fs_base: u64,
    /// GS base.
    pub gs_base: u64,
    /// Upper halves of YMM0 to YMM15.
    pub ymm_high: [u128; 16],
}

/// Bytes of [`X86_64CoreRegs`] in gdb's form.
const CORE_LEN: usize = 0x218;

impl Registers for CpuRegisters {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.core.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.core.gdb_serialize(&mut write_byte);
        let numbers = [self.orig_rax, self.fs_base, self.gs_base];
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
        let vectors = self.ymm_high.iter().flat_map(|half| half.to_le_bytes());
        bytes.chain(vectors).for_each(|byte| write_byte(Some(byte)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let (core, rest) = bytes.split_at_checked(CORE_LEN).ok_or(())?;
        self.core.gdb_deserialize(core)?;
        let (numbers, vectors) = rest.split_at_checked(24).ok_or(())?;
        let mut numbers = numbers.as_chunks::<8>().0.iter();
        for place in [&mut self.orig_rax, &mut self.fs_base, &mut self.gs_base] {
            *place = u64::from_le_bytes(*numbers.next().ok_or(())?);
        }
        let vectors = vectors.as_chunks::<16>().0;
        for (place, bytes) in self.ymm_high.iter_mut().zip(vectors) {
            *place = u128::from_le_bytes(*bytes);
        }
        Ok(())
    }
}

impl CpuRegisters {
    /// Takes over the general registers.
    pub fn load_general(&mut self, regs: &kvm_regs) {
        self.core.regs = [
            regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.rsp,
            regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ];
        self.core.rip = regs.rip;
        self.core.eflags = regs.rflags as u32;
    }

    /// The general registers. Flags that a program can't give itself are as they always are.
    pub fn general(&self) -> kvm_regs {
        let [
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rbp,
            rsp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
        ] = self.core.regs;
        kvm_regs {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip: self.core.rip,
            rflags: user_flags(self.core.eflags.into()),
        }
    }
}

/// The vector state as KVM gives it: an XSAVE image in its standard format (Intel SDM Vol. 1, 13.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VectorState {
    bytes: Box<[u8; 4096]>,
    /// Where the upper halves of YMM are; none without AVX.
    avx: Option<usize>,
}

/// Places in the legacy region of an XSAVE image (Intel SDM Vol. 1, 10.5.1, Table 10-2).
const FCW: usize = 0;
const FSW: usize = 2;
const FTW: usize = 4;
const FOP: usize = 6;
const FIP: usize = 8;
const FDP: usize = 16;
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;
/// XSTATE_BV in the header: which components are not in their initial state.
const XSTATE_BV: usize = 512;
const X87_AND_SSE: u64 = 0b11;
const AVX: u64 = 0b100;
/// MXCSR bits that exist everywhere; setting another is a fault in the host kernel's check.
const MXCSR_BITS: u32 = 0xffff;

impl VectorState {
    /// From what KVM gave.
    pub fn new(bytes: Box<[u8; 4096]>) -> Self {
        // CPUID.(EAX=0DH,ECX=2): size in EAX and offset in EBX of the upper halves of YMM.
        let leaf = std::arch::x86_64::__cpuid_count(0xd, 2);
        let offset = leaf.ebx as usize;
        let avx =
            (leaf.eax >= 256 && offset >= 576 && offset + 256 <= bytes.len()).then_some(offset);
        Self { bytes, avx }
    }

    /// For KVM.
    pub fn bytes(&self) -> &[u8; 4096] {
        &self.bytes
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        if let Some(place) = self.bytes.get(at..at + N) {
            bytes.copy_from_slice(place);
        }
        bytes
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn get_u16(&self, at: usize) -> u32 {
        u16::from_le_bytes(self.get(at)).into()
    }

    fn get_u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.get(at))
    }

    /// Copies it into gdb's registers.
    pub fn load_into(&self, registers: &mut CpuRegisters) {
        let core = &mut registers.core;
        for (index, st) in core.st.iter_mut().enumerate() {
            *st = self.get(ST + index * 16);
        }
        for (index, xmm) in core.xmm.iter_mut().enumerate() {
            *xmm = u128::from_le_bytes(self.get(XMM + index * 16));
        }
        core.mxcsr = self.get_u32(MXCSR);
        let fpu = &mut core.fpu;
        (fpu.fctrl, fpu.fstat) = (self.get_u16(FCW), self.get_u16(FSW));
        fpu.ftag = full_tags(self.bytes[FTW], fpu.fstat, &core.st);
        fpu.fop = self.get_u16(FOP);
        (fpu.fioff, fpu.fiseg) = (self.get_u32(FIP), self.get_u32(FIP + 4));
        (fpu.fooff, fpu.foseg) = (self.get_u32(FDP), self.get_u32(FDP + 4));
        if let Some(avx) = self.avx {
            for (index, half) in registers.ymm_high.iter_mut().enumerate() {
                *half = u128::from_le_bytes(self.get(avx + index * 16));
            }
        }
    }

    /// Takes what gdb changed. Instruction and data pointers of the x87 stay.
    pub fn store_from(&mut self, registers: &CpuRegisters) {
        let core = &registers.core;
        for (index, st) in core.st.iter().enumerate() {
            self.put(ST + index * 16, st);
        }
        for (index, xmm) in core.xmm.iter().enumerate() {
            self.put(XMM + index * 16, &xmm.to_le_bytes());
        }
        self.put(MXCSR, &(core.mxcsr & MXCSR_BITS).to_le_bytes());
        self.put(FCW, &(core.fpu.fctrl as u16).to_le_bytes());
        self.put(FSW, &(core.fpu.fstat as u16).to_le_bytes());
        self.put(FTW, &[short_tags(core.fpu.ftag)]);
        let mut components = u64::from_le_bytes(self.get(XSTATE_BV)) | X87_AND_SSE;
        if let Some(avx) = self.avx {
            for (index, half) in registers.ymm_high.iter().enumerate() {
                self.put(avx + index * 16, &half.to_le_bytes());
            }
            components |= AVX;
        }
        self.put(XSTATE_BV, &components.to_le_bytes());
    }
}

/// The x87 tag word with two bits a register (0 valid, 1 zero, 2 special, 3 empty) from the one that XSAVE keeps, with a
/// bit for each register that is not empty (Intel SDM Vol. 1, 8.1.7 and 10.5.1.1).
fn full_tags(short: u8, status: u32, st: &[F80; 8]) -> u32 {
    let top = (status >> 11 & 7) as usize;
    (0..8).fold(0, |tags, register| {
        let tag = if short >> register & 1 == 0 {
            3
        } else {
            tag_of(&st[(register + 8 - top) % 8])
        };
        tags | tag << (2 * register)
    })
}

fn tag_of(value: &F80) -> u32 {
    let exponent = u16::from_le_bytes([value[8], value[9]]) & 0x7fff;
    let integer_bit = value[7] & 0x80 != 0;
    match exponent {
        0 if value[..8].iter().all(|&byte| byte == 0) => 1,
        0 | 0x7fff => 2,
        _ if integer_bit => 0,
        _ => 2,
    }
}

fn short_tags(full: u32) -> u8 {
    (0..8).fold(0, |tags, register| {
        tags | u8::from(full >> (2 * register) & 3 != 3) << register
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_go_to_gdb_and_back() {
        let mut registers = CpuRegisters {
            orig_rax: 1,
            fs_base: 2,
            gs_base: 3,
            ..Default::default()
        };
        registers.core.rip = 4;
        registers.ymm_high[15] = 5;
        let mut bytes = Vec::new();
        registers.gdb_serialize(|byte| bytes.push(byte.unwrap_or(0)));
        let mut back = CpuRegisters::default();
        assert_eq!(back.gdb_deserialize(&bytes), Ok(()));
        assert_eq!(back, registers);
        for len in [0, 1, CORE_LEN, CORE_LEN + 8] {
            let _ = CpuRegisters::default().gdb_deserialize(&bytes[..len]);
        }
    }

    #[test]
    fn the_description_has_every_byte_of_the_registers() {
        let mut len = 0;
        CpuRegisters::default().gdb_serialize(|_| len += 1);
        let description = X86_64::target_description_xml().unwrap_or_default();
        let bits: usize = description
            .split("bitsize=\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next()?.parse::<usize>().ok())
            .sum();
        assert_eq!(bits, len * 8);
    }

    #[test]
    fn vector_state_survives_a_round_trip() {
        let mut bytes = Box::new([0; 4096]);
        for (index, byte) in bytes[..XMM + 256].iter_mut().enumerate() {
            *byte = index as u8;
        }
        // Not all of these bytes are registers: reserved ones, and those of MXCSR that don't exist, are kept or zero.
        let mut state = VectorState::new(bytes);
        let mut registers = CpuRegisters::default();
        state.load_into(&mut registers);
        state.store_from(&registers);
        let mut again = CpuRegisters::default();
        state.load_into(&mut again);
        registers.core.mxcsr &= MXCSR_BITS;
        assert_eq!(again, registers);
    }

    #[test]
    fn tags_of_the_x87() {
        let one: F80 = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f];
        let mut st = [[0; 10]; 8];
        st[0] = one;
        // One value pushed: register 7, top 7.
        assert_eq!(full_tags(0x80, 7 << 11, &st), 0x3fff);
        assert_eq!(short_tags(0x3fff), 0x80);
        st[0] = [0; 10];
        assert_eq!(full_tags(0x80, 7 << 11, &st), 0x7fff);
        assert_eq!(full_tags(0, 0, &st), 0xffff);
    }
}
