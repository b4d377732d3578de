//! The file descriptors of KVM: the machine and its memslots, the vCPU and its run page, the dirty ring.

mod ring;
mod vcpu;
mod vm;

pub use vcpu::{Death, Exit, RunPage, Vcpu};
pub use vm::{Vm, open};
