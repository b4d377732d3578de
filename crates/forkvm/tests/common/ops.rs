//! Lists for the guest `ops` (tests/guests/ops.c), which knows the same numbers.
// Each user takes a part of it.
#![allow(dead_code)]

/// One operation. What its numbers mean is the guest's affair: any are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    pub what: u8,
    pub a: u8,
    pub b: u16,
    pub c: u32,
    pub d: u64,
}

/// How many kinds of operations there are.
pub const KINDS: u8 = 8;

impl Op {
    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0] = self.what;
        bytes[1] = self.a;
        bytes[2..4].copy_from_slice(&self.b.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.c.to_le_bytes());
        bytes[8..].copy_from_slice(&self.d.to_le_bytes());
        bytes
    }
}

/// How a list ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Ending {
    Respond,
    Ud2,
    Int3,
    Divide,
    Load,
    Store,
    Jump,
    Exit,
    Loop,
    In,
    Ins,
    Outs,
    OutByte,
    Out,
    Hlt,
    Int80,
    Syscall,
    Hypercall,
    Return,
    DenyKeys,
    Overflow,
    Step,
    StepSs,
    Align,
    Code32,
    X87,
    Simd,
    Sysenter,
    Cr0,
    Push,
    Int3At,
    Ud2At,
    SyscallAt,
    HypercallAt,
    Pages,
    RedZone,
}

/// All endings, in the guest's order.
pub const ENDINGS: [Ending; 36] = {
    use Ending::*;
    [
        Respond,
        Ud2,
        Int3,
        Divide,
        Load,
        Store,
        Jump,
        Exit,
        Loop,
        In,
        Ins,
        Outs,
        OutByte,
        Out,
        Hlt,
        Int80,
        Syscall,
        Hypercall,
        Return,
        DenyKeys,
        Overflow,
        Step,
        StepSs,
        Align,
        Code32,
        X87,
        Simd,
        Sysenter,
        Cr0,
        Push,
        Int3At,
        Ud2At,
        SyscallAt,
        HypercallAt,
        Pages,
        RedZone,
    ]
};

/// All registers at the end, and the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finale {
    /// RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 to R15.
    pub general: [u64; 16],
    pub flags: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    /// What some endings load, store to, jump to, or use as stack pointer.
    pub address: u64,
    /// DS, ES, FS, GS.
    pub selectors: [u16; 4],
    pub pkru: u32,
    pub port: u16,
    pub ending: Ending,
    /// What of the above is loaded: 1 selectors, 2 bases, 4 keys.
    pub set: u8,
}

impl Default for Finale {
    fn default() -> Self {
        Self {
            general: [0; 16],
            flags: 2,
            fs_base: 0,
            gs_base: 0,
            address: 0,
            selectors: [0; 4],
            pkru: 0,
            port: 0,
            ending: Ending::Respond,
            set: 0,
        }
    }
}

/// A request's body: the finale, then the operations.
pub fn body(finale: &Finale, ops: &[Op]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(176 + ops.len() * 16);
    let words = finale.general.iter().chain([
        &finale.flags,
        &finale.fs_base,
        &finale.gs_base,
        &finale.address,
    ]);
    bytes.extend(words.flat_map(|word| word.to_le_bytes()));
    bytes.extend(finale.selectors.iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend(finale.pkru.to_le_bytes());
    bytes.extend(finale.port.to_le_bytes());
    bytes.extend([finale.ending as u8, finale.set]);
    bytes.extend(ops.iter().flat_map(|op| op.to_bytes()));
    bytes
}
