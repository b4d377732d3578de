//! The ways in: each writes what it hands over of a request into guest memory, and says where the program goes on. Then the
//! vCPU is pointed at the entry stub, which takes it there.

use kvm_bindings::kvm_regs;

use crate::arch::layout::REQUEST_AREA;
use crate::arch::regs::{RFLAGS, user_flags};
use crate::arch::stubs::{self, EntryBlock};
use crate::call::handlers::Handlers;
use crate::call::http::Exchange;
use crate::call::structure::{self, Written, not_written};
use crate::call::wait_point::{Circumstances, WaitPoint, WayIn};
use crate::failure::Cause;
use crate::machine::Machine;
use crate::memory::user::{BadAddress, UserMemory};

/// Bytes kept free below the frozen stack pointer: the red zone of the SysV ABI (AMD64 supplement, 3.2.2).
const RED_ZONE: u64 = 128;

/// Where the program goes on.
enum Entry {
    /// In a function with these arguments: RDI, RSI, RDX, RCX, R8, R9.
    Call(u64, [u64; 6]),
    /// Where it waits, as if its hypercall returned 0.
    Resume,
}

impl WaitPoint {
    /// Has a request enter the program with the next run. Returns the program's first instruction.
    pub fn enter(
        &self,
        machine: &mut Machine,
        exchange: &Exchange<'_>,
        circumstances: Circumstances<'_>,
    ) -> Result<u64, Cause> {
        let entry = match (circumstances.failure, self.way_in) {
            (Some(_), _) => self.on_error(machine, exchange, circumstances)?,
            (None, WayIn::Handler) => self.handler(machine, exchange, circumstances)?,
            (None, WayIn::Paused(address)) => {
                self.paused(address, machine, exchange, circumstances)?
            }
        };
        self.enter_at(machine, entry)
    }

    /// Points the vCPU at a function of the program that is no request's handler.
    pub fn enter_function(
        &self,
        machine: &mut Machine,
        function: u64,
        arguments: [u64; 6],
    ) -> Result<(), Cause> {
        self.enter_at(machine, Entry::Call(function, arguments))
            .map(|_| ())
    }

    /// The handler for requests that failed, whichever way they came.
    fn on_error(
        &self,
        machine: &mut Machine,
        exchange: &Exchange<'_>,
        circumstances: Circumstances<'_>,
    ) -> Result<Entry, Cause> {
        let written = structure::write(machine, &self.layout, exchange, circumstances)?;
        let function = self
            .handlers
            .get(Handlers::ON_ERROR)
            .ok_or(Cause::NoResponse)?;
        let arguments = [written.url, written.arg, written.failure, 0, 0, 0];
        Ok(Entry::Call(function, arguments))
    }

    /// [`WayIn::Paused`]: the structure goes where the program wants it.
    fn paused(
        &self,
        address: u64,
        machine: &mut Machine,
        exchange: &Exchange<'_>,
        circumstances: Circumstances<'_>,
    ) -> Result<Entry, Cause> {
        let written = structure::write(machine, &self.layout, exchange, circumstances)?;
        machine
            .memory
            .write(address, &written.structure.0)
            .map_err(|bad| {
                Cause::BadResponse(format!("the structure of wait_for_requests_paused: {bad}"))
            })?;
        Ok(Entry::Resume)
    }

    /// [`WayIn::Handler`]: the function that takes such a request, with its arguments.
    fn handler(
        &self,
        machine: &mut Machine,
        exchange: &Exchange<'_>,
        circumstances: Circumstances<'_>,
    ) -> Result<Entry, Cause> {
        let Written {
            url,
            arg,
            content_type,
            body,
            body_len,
            request,
            ..
        } = structure::write(machine, &self.layout, exchange, circumstances)?;
        let handlers = &self.handlers;
        if let Some(function) = handlers.get(Handlers::REQUEST) {
            return Ok(Entry::Call(function, [request, 0, 0, 0, 0, 0]));
        }
        let get = handlers.get(Handlers::GET);
        // A POST without a body is asked like a GET where that can be: programs for this interface rely on it.
        let posts = matches!(exchange.method(), "POST" | "PUT" | "PATCH") && get.is_none();
        if body_len > 0 || posts {
            // Bodies come to it by segments (post.rs). This is the end of one that is empty.
            if let Some(function) = handlers.get(Handlers::STREAM_POST) {
                return Ok(Entry::Call(function, [url, arg, content_type, 0, 0, 0]));
            }
            if let Some(function) = handlers.get(Handlers::POST) {
                let arguments = [url, arg, content_type, body, body_len, 0];
                return Ok(Entry::Call(function, arguments));
            }
            if let Some(function) = handlers.post_symbol {
                return Ok(Entry::Call(function, [url, body, body_len, 0, 0, 0]));
            }
        }
        match get {
            Some(function) => Ok(Entry::Call(function, [url, arg, 0, 0, 0, 0])),
            None if handlers.any() => Err(Cause::NotForThis),
            None => Err(Cause::NothingToCall),
        }
    }

    /// Points the vCPU at the entry stub, which goes on as told. Returns the program's first instruction.
    fn enter_at(&self, machine: &mut Machine, entry: Entry) -> Result<u64, Cause> {
        let (target, regs) = match entry {
            Entry::Call(function, arguments) => (function, self.call_frame(machine, arguments)?),
            Entry::Resume => {
                let rflags = user_flags(self.regs.rflags);
                let regs = kvm_regs {
                    rax: 0,
                    rflags,
                    ..self.regs
                };
                (self.regs.rip, regs)
            }
        };
        let block = EntryBlock {
            rip: target,
            rax: regs.rax,
            rcx: regs.rcx,
            rdx: regs.rdx,
            fork: machine.fork_number,
        };
        machine
            .memory
            .write_physical(REQUEST_AREA, &block.to_bytes())
            .map_err(not_written)?;
        let stubs = stubs::addresses();
        let rip = match (self.report.fsgsbase, self.report.protection_keys) {
            (true, true) => stubs.enter_pku,
            (true, false) => stubs.enter_fsgsbase,
            (false, _) => stubs.enter_plain,
        };
        machine.vcpu().set_regs(kvm_regs { rip, ..regs });
        Ok(target)
    }

    /// Puts a return address below the frozen program's stack, as if its own code had made the call. Gives the registers
    /// at the function's entry.
    fn call_frame(
        &self,
        machine: &mut Machine,
        [rdi, rsi, rdx, rcx, r8, r9]: [u64; 6],
    ) -> Result<kvm_regs, Cause> {
        let rsp = push_frame(machine, self.regs.rsp)
            .map_err(|bad| Cause::Machine(format!("the stack at the time of waiting: {bad}")))?;
        Ok(kvm_regs {
            rdi,
            rsi,
            rdx,
            rcx,
            r8,
            r9,
            rsp,
            rflags: RFLAGS,
            ..Default::default()
        })
    }
}

/// Puts a return address below this stack pointer, as if the code that has it had made a call. Gives the stack pointer at the
/// function's entry.
pub fn push_frame(machine: &mut Machine, rsp: u64) -> Result<u64, BadAddress> {
    let rsp = (rsp.wrapping_sub(RED_ZONE) & !15).wrapping_sub(8);
    // The 0 ends a debugger's backtrace.
    let frame = [stubs::addresses().handler_returned, 0].map(u64::to_le_bytes);
    machine.memory.write(rsp, frame.as_flattened())?;
    Ok(rsp)
}
