//! A response whose body the program makes part by part, by a callback that the host calls whenever somebody wants more.

use kvm_bindings::kvm_regs;

use crate::call::http::Exchange;

/// A response that has begun. How it goes on is in `part.rs`.
#[derive(Debug)]
pub struct Stream {
    pub(super) callback: u64,
    pub(super) argument: u64,
    /// The stack pointer of the handler that began it, whose variables the callback may use.
    pub(super) rsp: u64,
    pub(super) length: Option<u64>,
    /// How much the callback has given.
    pub(super) written: u64,
    pub(super) is_over: bool,
    pub(super) exchange: Exchange<'static>,
}

impl Stream {
    /// As a program begins one, of this length if it is known.
    pub fn begin(exchange: &mut Exchange<'_>, regs: &kvm_regs, length: Option<u64>) -> Self {
        let mut exchange = exchange.keep();
        exchange.is_answered = true;
        Self {
            callback: regs.r8,
            argument: regs.r9,
            rsp: regs.rsp,
            length,
            written: 0,
            is_over: false,
            exchange,
        }
    }

    /// How long it will be, if that is known.
    pub fn len(&self) -> Option<u64> {
        self.length
    }
}
