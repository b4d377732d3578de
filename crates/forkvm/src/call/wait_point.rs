//! The point at which a program waits for requests, and what comes to it there.

use kvm_bindings::{kvm_regs, kvm_sregs, kvm_vcpu_events};

use crate::arch::layout::Layout;
use crate::call::handlers::Handlers;
use crate::call::stored::Stored;
use crate::machine::probe::KvmReport;

/// A way for requests to enter the frozen program, which chose it in `main()`. What each of them takes is in `entry.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WayIn {
    /// A handler is called.
    Handler,
    /// `wait_for_requests_paused` returns, with the request in the structure at this address.
    Paused(u64),
}

/// The point at which a program waits for requests: the CPU's state and what can be called.
#[derive(Debug, Clone)]
pub struct WaitPoint {
    /// General registers, RIP behind the last hypercall.
    pub regs: kvm_regs,
    /// Segment and control registers.
    pub sregs: kvm_sregs,
    /// No pending events.
    pub events: kvm_vcpu_events,
    /// What can be called.
    pub handlers: Handlers,
    /// What of it requests may call, where it is storage.
    pub allowed: Vec<u64>,
    /// How a request gets in.
    pub way_in: WayIn,
    /// Where memory lies.
    pub layout: Layout,
    /// What the processor can do.
    pub report: KvmReport,
}

/// What a request brings beside itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Circumstances<'a> {
    /// `on_error` is to be called, for this reason.
    pub failure: Option<&'a str>,
    /// A warm-up request.
    pub warm_up: bool,
    /// The program's storage, if it may call it.
    pub storage: Option<&'a dyn Stored>,
}
