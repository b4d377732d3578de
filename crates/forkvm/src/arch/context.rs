//! What a processor holds of a task while another one runs.

use std::sync::Arc;

use kvm_bindings::kvm_regs;

/// Bytes of an XSAVE image as KVM gives it.
pub const VECTOR_LEN: usize = 4096;

/// Vector state as a program finds it at its start: all of it zero but for the control words. An image names what is not
/// in its initial state, which for these two is what it says (Intel SDM Vol. 1, 13.6 and 10.5.1, Table 10-2).
pub fn initial_vector() -> Box<[u8; VECTOR_LEN]> {
    const FCW: (usize, u16) = (0, 0x37f);
    const MXCSR: (usize, u16) = (24, 0x1f80);
    const XSTATE_BV: (usize, u16) = (512, 0b11);
    let mut image = Box::new([0; VECTOR_LEN]);
    for (at, value) in [FCW, MXCSR, XSTATE_BV] {
        image[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    image
}

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
