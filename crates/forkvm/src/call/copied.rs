//! A structure that a program gives a call the address of, copied: its fields by their offsets (docs/guest-abi.md).

use crate::memory::guest::GuestMemory;
use crate::memory::user::{BadAddress, UserMemory};

/// So many bytes of it.
pub struct Copied<const LEN: usize>(pub [u8; LEN]);

impl<const LEN: usize> Copied<LEN> {
    pub fn read(memory: &GuestMemory, address: u64) -> Result<Self, BadAddress> {
        let mut bytes = [0; LEN];
        memory.read(address, &mut bytes)?;
        Ok(Self(bytes))
    }

    fn number<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }

    /// Whether a byte is not 0.
    pub fn flag(&self, at: usize) -> bool {
        self.0[at] != 0
    }

    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.number(at))
    }

    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.number(at))
    }

    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.number(at))
    }

    pub fn f32(&self, at: usize) -> f32 {
        f32::from_le_bytes(self.number(at))
    }

    /// An address and, behind it, a length.
    pub fn piece(&self, at: usize) -> (u64, u64) {
        (self.u64(at), self.u64(at + 8))
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}
