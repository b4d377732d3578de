//! The program's memory as its own instructions see it. The Linux personality stands on this alone.

pub use crate::memory::access::{BadAddress, Protection, USER_END};
use crate::memory::space::address_space::AddressSpace;

/// The program's memory as its own instructions see it: user pages only, with their permissions.
/// Every access is a checked copy.
pub trait UserMemory {
    /// Copies from the program. Fails if any byte is unreadable to the program; `buf` is then unspecified.
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), BadAddress>;
    /// Copies to the program and records the pages for the reset. Fails if any byte is not writable by
    /// the program; some bytes may then have been written.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), BadAddress>;
    /// Fills with zeros, like [`UserMemory::write`], but needs no write permission of the program (it serves
    /// fresh mappings). `address` and `len` are multiples of the page size.
    fn clear(&mut self, address: u64, len: u64) -> Result<(), BadAddress>;
    /// True if the program can write this byte.
    fn can_write(&self, address: u64) -> bool;
    /// The address space, of a program that has one. Others have a heap.
    fn space(&mut self) -> Option<AddressSpace<'_>> {
        None
    }
    /// True while the page tables may still be edited: before the freeze.
    fn can_protect(&self) -> bool;
    /// Changes the permissions of whole pages (multiples of the page size). Only before the freeze; after it,
    /// or for an address that is not the program's, it fails and changes nothing.
    fn protect(&mut self, address: u64, len: u64, protection: Protection)
    -> Result<(), BadAddress>;
}
