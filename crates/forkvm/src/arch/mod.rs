//! What the x86-64 processor needs to run a program in ring 3 under our ring-0 stubs: where things lie,
//! descriptor tables, page tables, the stubs themselves and the initial registers.

pub mod context;
#[allow(unsafe_code)]
pub mod dispatcher;
pub mod layout;
pub mod monitor;
pub mod paging;
pub mod regs;
#[allow(unsafe_code)]
pub mod stubs;
pub mod tables;
#[allow(unsafe_code)]
pub mod vdso;
