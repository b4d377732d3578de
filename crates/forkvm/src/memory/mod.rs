//! Guest memory: [`mapping`] is what the host has mapped, [`dirty`] what a fork wrote, [`guest`] both together with the
//! program's page tables, [`user`] what the program itself may reach.

pub mod dirty;
pub mod guest;
#[allow(unsafe_code)]
pub mod mapping;
pub mod user;
