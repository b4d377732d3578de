//! Guest memory: [`mapping`] is what the host has mapped, [`arena`] what files have, [`dirty`] what a fork wrote, [`guest`] both together with the
//! program's page tables, [`learned`] what requests write, [`space`] the address space of unmodified programs, [`unused`] what a master has no memory for,
//! [`shared_area`] what all machines of a program have together, [`user`] what the program itself may reach.

pub mod access;
#[allow(unsafe_code)]
pub mod arena;
pub mod dirty;
pub mod faults;

pub mod guest;
pub mod learned;
#[allow(unsafe_code)]
pub mod mapping;
#[allow(unsafe_code)]
mod pieces;
#[allow(unsafe_code)]
pub mod shared_area;
pub mod space;
#[cfg(test)]
pub mod testing;
pub mod unused;
pub mod user;
