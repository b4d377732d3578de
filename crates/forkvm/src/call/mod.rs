//! A request's way into a frozen program and out again: its texts and structure are written into guest memory, the vCPU
//! is pointed at the entry stub, and the program's hypercalls are served until it responds.

pub mod handlers;
pub mod http;
pub mod hypercall;

use std::time::Instant;

use kvm_bindings::{kvm_regs, kvm_sregs, kvm_vcpu_events};

use crate::arch::layout::{Layout, MMAP_WINDOW, REQUEST_AREA, REQUEST_AREA_LEN, monitor};
use crate::arch::regs::{RFLAGS, RFLAGS_USER};
use crate::arch::stubs::{self, EntryBlock};
use crate::call::handlers::Handlers;
use crate::call::http::Exchange;
use crate::call::hypercall::{Outcome, Response};
use crate::debug::{Debugger, Start};
use crate::failure::Cause;
use crate::machine::probe::KvmReport;
use crate::machine::{Event, Machine};
use crate::memory::guest::{GuestMemory, WriteError};
use crate::memory::user::UserMemory;
use crate::request::Host;

/// Bytes kept free below the frozen stack pointer: the red zone of the SysV ABI (AMD64 supplement, 3.2.2).
const RED_ZONE: u64 = 128;
/// Bytes of `kvm_request` and of a header's entry in it (docs/guest-abi.md).
const REQUEST_STRUCT_LEN: u64 = 104;
const HEADER_ENTRY_LEN: u64 = 16;
/// Where the request starts in the request area, behind the entry block.
const STRUCT_OFFSET: u64 = 64;
/// `kvm_request.info_flags`: a warm-up request.
const INFO_WARM_UP: u16 = 1;

/// How a request gets into the frozen program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// A handler is called.
    Handlers,
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
    /// How a request gets in.
    pub waiting: Waiting,
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
}

/// What the handler is called with.
enum Entry {
    /// A function and its arguments: RDI, RSI, RDX, RCX, R8.
    Call(u64, [u64; 5]),
    /// The return of `wait_for_requests_paused`.
    Resume,
}

impl WaitPoint {
    /// Runs a request up to its response, inside of [`Machine::watched`] with the same deadline.
    pub fn call(
        &self,
        machine: &mut Machine,
        exchange: &mut Exchange<'_>,
        circumstances: Circumstances<'_>,
        deadline: Instant,
        host: &mut dyn Host,
        debugger: Option<&mut Debugger<'_>>,
    ) -> Result<Response, Cause> {
        let entry = self.enter(machine, exchange, circumstances)?;
        if let Some(debugger) = debugger {
            let start = Start {
                entry,
                events: self.events,
            };
            return debugger.run(machine, exchange, start, deadline, host);
        }
        loop {
            let number = match machine.run(deadline, host) {
                Event::Hypercall(number) => number,
                Event::SystemCall => continue,
                Event::Exception(exception) => return Err(Cause::Exception(exception)),
                Event::Ended(cause) => return Err(cause),
            };
            match hypercall::during_request(number, machine, exchange, host)? {
                Outcome::Return(result) => machine.vcpu().set_result(result as u64),
                Outcome::Respond(response) => return Ok(response),
            }
        }
    }

    /// Writes the request into guest memory and points the vCPU at the entry stub. Returns the program's first
    /// instruction.
    fn enter(
        &self,
        machine: &mut Machine,
        exchange: &Exchange<'_>,
        circumstances: Circumstances<'_>,
    ) -> Result<u64, Cause> {
        let written = self.write_request(machine, exchange, circumstances)?;
        let entry =
            self.choose_entry(machine, exchange, &written, circumstances.failure.is_some())?;
        self.enter_at(machine, entry)
    }

    /// Points the vCPU at a function of the program that is no request's handler.
    pub fn enter_function(
        &self,
        machine: &mut Machine,
        function: u64,
        arguments: [u64; 5],
    ) -> Result<(), Cause> {
        self.enter_at(machine, Entry::Call(function, arguments))
            .map(|_| ())
    }

    fn enter_at(&self, machine: &mut Machine, entry: Entry) -> Result<u64, Cause> {
        let (target, mut regs) = match entry {
            Entry::Call(function, [rdi, rsi, rdx, rcx, r8]) => {
                // Below the frozen program's stack, as if its own code had made the call.
                let rsp = (self.regs.rsp.wrapping_sub(RED_ZONE) & !15).wrapping_sub(8);
                // The 0 ends a debugger's backtrace.
                let frame = [stubs::addresses().handler_returned, 0].map(u64::to_le_bytes);
                machine
                    .memory
                    .write(rsp, frame.as_flattened())
                    .map_err(|bad| {
                        Cause::Machine(format!("the stack at the time of waiting: {bad}"))
                    })?;
                (
                    function,
                    kvm_regs {
                        rdi,
                        rsi,
                        rdx,
                        rcx,
                        r8,
                        rsp,
                        rflags: RFLAGS,
                        ..Default::default()
                    },
                )
            }
            Entry::Resume => {
                let rflags = self.regs.rflags & RFLAGS_USER | RFLAGS;
                (
                    self.regs.rip,
                    kvm_regs {
                        rax: 0,
                        rflags,
                        ..self.regs
                    },
                )
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
        regs.rip = match (self.report.fsgsbase, self.report.protection_keys) {
            (true, true) => stubs.enter_pku,
            (true, false) => stubs.enter_fsgsbase,
            (false, _) => stubs.enter_plain,
        };
        machine.vcpu().set_regs(regs);
        Ok(target)
    }

    /// Which function takes this request, with which arguments.
    fn choose_entry(
        &self,
        machine: &mut Machine,
        exchange: &Exchange<'_>,
        written: &Written,
        error: bool,
    ) -> Result<Entry, Cause> {
        let handlers = &self.handlers;
        let Written {
            url,
            arg,
            content_type,
            body,
            body_len,
            failure,
            request,
            structure,
        } = *written;
        if error {
            let function = handlers.get(Handlers::ON_ERROR).ok_or(Cause::NoResponse)?;
            return Ok(Entry::Call(function, [url, arg, failure, 0, 0]));
        }
        if let Waiting::Paused(address) = self.waiting {
            machine.memory.write(address, &structure.0).map_err(|bad| {
                Cause::BadResponse(format!("the structure of wait_for_requests_paused: {bad}"))
            })?;
            return Ok(Entry::Resume);
        }
        if let Some(function) = handlers.get(Handlers::REQUEST) {
            return Ok(Entry::Call(function, [request, 0, 0, 0, 0]));
        }
        let get = handlers.get(Handlers::GET);
        // A POST without a body is asked like a GET where that can be: programs for this interface rely on it.
        let posts = matches!(exchange.method(), "POST" | "PUT" | "PATCH") && get.is_none();
        if body_len > 0 || posts {
            if let Some(function) = handlers.get(Handlers::POST) {
                let arguments = [url, arg, content_type, body, body_len];
                return Ok(Entry::Call(function, arguments));
            }
            if let Some(function) = handlers.post_symbol {
                return Ok(Entry::Call(function, [url, body, body_len, 0, 0]));
            }
        }
        match get {
            Some(function) => Ok(Entry::Call(function, [url, arg, 0, 0, 0])),
            None if handlers.any() => Err(Cause::NotForThis),
            None => Err(Cause::NothingToCall),
        }
    }

    /// Writes the request's texts, its structure and its body into the request area, or into the heap if they are
    /// too long for it.
    fn write_request(
        &self,
        machine: &mut Machine,
        exchange: &Exchange<'_>,
        circumstances: Circumstances<'_>,
    ) -> Result<Written, Cause> {
        let request = exchange.request;
        let method = exchange.method();
        let content_type = request
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("content-type"))
            .map_or(&[][..], |header| &header.value);
        // `on_error` is told what failed, and gets no body: that may be as long as the request's memory.
        let (failure, body) = match circumstances.failure {
            Some(failure) => (failure, &[][..]),
            None => ("", request.body),
        };
        let short = |len: usize| u16::try_from(len).map_err(|_| Cause::TooLarge(len as u64));
        let lengths = [
            short(method.len())?,
            short(request.url.len())?,
            short(request.arg.len())?,
            short(content_type.len())?,
        ];
        let header_count = short(request.headers.len())?;

        let header_bytes: usize = request
            .headers
            .iter()
            .map(|header| header.name.len() + header.value.len() + 3)
            .sum();
        let texts = method.len()
            + request.url.len()
            + request.arg.len()
            + content_type.len()
            + failure.len()
            + 5;
        let structures = REQUEST_STRUCT_LEN + HEADER_ENTRY_LEN * u64::from(header_count);
        let mut place = self.place(
            machine,
            structures + (header_bytes + texts + body.len()) as u64,
        )?;

        // First the structure and the headers' entries, which are written when the texts behind them have their places.
        let structure_at = place;
        let entries = place.address + REQUEST_STRUCT_LEN;
        let mut entry = place.physical + REQUEST_STRUCT_LEN;
        place.skip(structures);
        let memory = &mut machine.memory;
        let method_at = place.text(memory, &[method.as_bytes()])?;
        let url = place.text(memory, &[request.url])?;
        let arg = place.text(memory, &[request.arg])?;
        let content_type_at = place.text(memory, &[content_type])?;
        for header in request.headers {
            let line = place.text(memory, &[header.name.as_bytes(), b": ", &header.value])?;
            let mut bytes = [0u8; HEADER_ENTRY_LEN as usize];
            bytes[..8].copy_from_slice(&line.to_le_bytes());
            bytes[8..12].copy_from_slice(&(header.name.len() as u32).to_le_bytes());
            let len = header.name.len() + 2 + header.value.len();
            bytes[12..].copy_from_slice(&(len as u32).to_le_bytes());
            memory.write_physical(entry, &bytes).map_err(not_written)?;
            entry += HEADER_ENTRY_LEN;
        }
        let failure = place.text(memory, &[failure.as_bytes()])?;
        let body_at = place.bytes(memory, body)?;

        let mut bytes = RequestStruct([0; REQUEST_STRUCT_LEN as usize]);
        for (at, value) in [
            (0, method_at),
            (8, url),
            (16, arg),
            (24, content_type_at),
            (40, body_at),
        ] {
            bytes.put(at, &value.to_le_bytes());
        }
        for (at, value) in [32, 34, 36, 38].into_iter().zip(lengths) {
            bytes.put(at, &value.to_le_bytes());
        }
        bytes.put(48, &(body.len() as u64).to_le_bytes());
        bytes.put(56, &entries.to_le_bytes());
        bytes.put(64, &header_count.to_le_bytes());
        bytes.put(
            66,
            &(if circumstances.warm_up {
                INFO_WARM_UP
            } else {
                0
            })
            .to_le_bytes(),
        );
        bytes.put(72, &machine.random.number().to_le_bytes());
        bytes.put(80, &machine.random.number().to_le_bytes());
        memory
            .write_physical(structure_at.physical, &bytes.0)
            .map_err(not_written)?;
        Ok(Written {
            url,
            arg,
            content_type: content_type_at,
            body: body_at,
            body_len: body.len() as u64,
            failure,
            request: structure_at.address,
            structure: bytes,
        })
    }

    /// A place for `len` bytes: the request area, else fresh pages of the heap.
    fn place(&self, machine: &mut Machine, len: u64) -> Result<Place, Cause> {
        if len <= REQUEST_AREA_LEN - STRUCT_OFFSET {
            let physical = REQUEST_AREA + STRUCT_OFFSET;
            return Ok(Place {
                address: monitor(physical),
                physical,
            });
        }
        let address = machine
            .linux
            .map_for_engine(len, &mut machine.memory)
            .ok_or(Cause::TooLarge(len))?;
        Ok(Place {
            address,
            physical: self.layout.heap.start + (address - MMAP_WINDOW),
        })
    }
}

fn not_written(error: WriteError) -> Cause {
    match error {
        WriteError::OverLimit => Cause::MemoryLimit,
        WriteError::OutOfRange(bug) => Cause::Machine(bug.to_string()),
    }
}

/// A `kvm_request`.
#[derive(Debug, Clone, Copy)]
struct RequestStruct([u8; REQUEST_STRUCT_LEN as usize]);

impl RequestStruct {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// User addresses of what was written.
#[derive(Debug, Clone, Copy)]
struct Written {
    url: u64,
    arg: u64,
    content_type: u64,
    body: u64,
    body_len: u64,
    failure: u64,
    request: u64,
    /// What is at `request`.
    structure: RequestStruct,
}

/// A run of guest memory being filled.
#[derive(Debug, Clone, Copy)]
struct Place {
    address: u64,
    physical: u64,
}

impl Place {
    /// Leaves room.
    fn skip(&mut self, len: u64) {
        (self.address, self.physical) = (self.address + len, self.physical + len);
    }

    /// Writes bytes and returns their user address.
    fn bytes(&mut self, memory: &mut GuestMemory, bytes: &[u8]) -> Result<u64, Cause> {
        let address = self.address;
        memory
            .write_physical(self.physical, bytes)
            .map_err(not_written)?;
        self.skip(bytes.len() as u64);
        Ok(address)
    }

    /// Writes pieces as one NUL-terminated text and returns its user address.
    fn text(&mut self, memory: &mut GuestMemory, pieces: &[&[u8]]) -> Result<u64, Cause> {
        let address = self.address;
        for piece in pieces {
            self.bytes(memory, piece)?;
        }
        self.bytes(memory, &[0])?;
        Ok(address)
    }
}
