//! What a processor holds of a task while another one runs.

use std::sync::Arc;

use kvm_bindings::kvm_regs;

/// Bytes of an XSAVE image as KVM gives it.
pub const VECTOR_LEN: usize = 4096;

/// The state of ring 3: what a switch saves and loads.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// General registers, RIP and RFLAGS.
    pub regs: kvm_regs,
    /// FS base.
    pub fs_base: u64,
    /// GS base.
    pub gs_base: u64,
    /// Vector state as an XSAVE image; `None` as long as the processor holds it.
    pub vector: Option<Arc<[u8; VECTOR_LEN]>>,
}
