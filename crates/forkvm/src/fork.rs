//! A fork: a machine whose memory is the master's, copy-on-write. It runs one request at a time and is put back to the
//! master's state after each.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_regs;

use crate::arch::layout::{MMAP_WINDOW, PAGE, REQUEST_AREA, REQUEST_AREA_LEN, monitor};
use crate::arch::regs::{RFLAGS, RFLAGS_USER};
use crate::arch::stubs::{self, EntryBlock, PORT_HYPERCALL};
use crate::failure::{Cause, DEBUG};
use crate::http::{self, Exchange};
use crate::hypercall::{self, Response, Step};
use crate::kvm::Exit;
use crate::machine::{Event, Machine, MachineError};
use crate::master::{Handlers, Master, Waiting};
use crate::memory::{GuestMemory, Mapping, OutOfRange};
use crate::linux::UserMemory;
use crate::request::{Host, Request};

/// A fork with more dirtied pages than this gives them back before its next request: each costs a copy at every reset.
const SHRINK_PAGES: usize = 2048;
/// Bytes kept free below the frozen stack pointer: the red zone of the SysV ABI (AMD64 supplement, 3.2.2).
const RED_ZONE: u64 = 128;

/// Why a fork could not be made or put back.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// Its memory could not be mapped.
    #[error("mapping its memory: {0}")]
    Map(#[from] vm_memory::mmap::MmapRegionError),
    /// KVM refused.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// KVM refused its registers.
    #[error("its registers: {0}")]
    Registers(#[from] kvm_ioctls::Error),
}

/// A fork of a master.
#[derive(Debug)]
pub struct Fork {
    machine: Machine,
    master: Arc<Master>,
    random: RandomState,
    requests: u64,
    /// The last exception set the debug registers.
    debug_registers_dirty: bool,
    /// The last request went over its memory limit.
    over_limit: bool,
}

/// What the handler is called with.
enum Entry {
    /// A function and its arguments: RDI, RSI, RDX, RCX, R8.
    Call(u64, [u64; 5]),
    /// The return of `wait_for_requests_paused`.
    Resume,
}

impl Fork {
    /// Forks a master.
    pub fn new(master: Arc<Master>) -> Result<Self, ForkError> {
        let memory = GuestMemory::forked(Mapping::fork(&master.file, master.memory.len())?);
        let page_limit = usize::try_from(master.config.limits.max_request_memory / PAGE).unwrap_or(usize::MAX);
        let ring = master.host.ring_entries(page_limit as u64);
        let mut machine = Machine::new(master.host, memory, master.linux.clone(), Some(ring), page_limit)?;
        machine.vcpu().set_sregs(&master.sregs)?;
        machine.vcpu().set_sregs_at_next_run(master.sregs);
        machine.vcpu().clear_events_at_next_run(master.events);
        Ok(Self {
            machine,
            master,
            random: RandomState::new(),
            requests: 0,
            debug_registers_dirty: false,
            over_limit: false,
        })
    }

    /// Runs a request up to its response.
    pub fn call(&mut self, request: &Request<'_>, deadline: Instant, host: &mut dyn Host) -> Result<Response, Cause> {
        self.run(request, None, deadline, host)
    }

    /// Runs the program's `on_error` handler for a request that failed.
    pub fn call_on_error(
        &mut self,
        request: &Request<'_>,
        failure: &str,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Response, Cause> {
        self.run(request, Some(failure), deadline, host)
    }

    /// Copies from the body of a response of this fork.
    pub fn read_body(&self, response: &Response, position: u64, buf: &mut [u8]) -> usize {
        let (address, len) = response.body;
        let n = buf.len().min(usize::try_from(len.saturating_sub(position)).unwrap_or(usize::MAX));
        // The range was checked when the guest responded, and the guest has not run since.
        match self.machine.memory.read(address + position, &mut buf[..n]) {
            Ok(()) => n,
            Err(_) => 0,
        }
    }

    fn run(
        &mut self,
        request: &Request<'_>,
        failure: Option<&str>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Response, Cause> {
        self.machine.start(deadline);
        let mut exchange = Exchange::new(request);
        let result = self
            .enter(&exchange, failure)
            .and_then(|()| self.serve(&mut exchange, deadline, host));
        self.machine.stop();
        self.machine.harvest();
        self.over_limit = self.machine.over_memory_limit();
        let mut response = result?;
        if self.over_limit {
            return Err(Cause::MemoryLimit);
        }
        http::strip_connection_headers(&mut response.headers);
        Ok(response)
    }

    fn serve(
        &mut self,
        exchange: &mut Exchange<'_>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Response, Cause> {
        loop {
            let number = match self.machine.run(deadline, host) {
                Event::Hypercall(number) => number,
                Event::Exception(exception) => {
                    self.debug_registers_dirty |= exception.vector == DEBUG;
                    return Err(Cause::Exception(exception));
                }
                Event::Ended(cause) => return Err(cause),
            };
            match hypercall::during_request(number, &mut self.machine, exchange, host) {
                Step::Resume(result) => self.machine.vcpu().set_result(result as u64),
                Step::Respond(response) => return Ok(response),
                Step::Fail(cause) => return Err(cause),
            }
        }
    }

    /// Writes the request into guest memory and points the vCPU at the entry stub.
    fn enter(&mut self, exchange: &Exchange<'_>, failure: Option<&str>) -> Result<(), Cause> {
        let written = self.write_request(exchange, failure)?;
        let entry = self.choose_entry(exchange, &written, failure.is_some())?;
        let (target, mut regs) = match entry {
            Entry::Call(function, [rdi, rsi, rdx, rcx, r8]) => {
                // Below the frozen program's stack, as if its own code had made the call.
                let rsp = ((self.master.regs.rsp - RED_ZONE) & !15) - 8;
                let handler_returned = stubs::addresses().handler_returned.to_le_bytes();
                self.machine
                    .memory
                    .write(rsp, &handler_returned)
                    .map_err(|bad| Cause::Machine(format!("the frozen stack: {bad}")))?;
                let regs = kvm_regs { rdi, rsi, rdx, rcx, r8, rsp, rflags: RFLAGS, ..Default::default() };
                (function, regs)
            }
            Entry::Resume => {
                let frozen = self.master.regs;
                (frozen.rip, kvm_regs { rax: 0, rflags: frozen.rflags & RFLAGS_USER | RFLAGS, ..frozen })
            }
        };
        let block = EntryBlock { rip: target, rax: regs.rax, rcx: regs.rcx, rdx: regs.rdx };
        self.machine.memory.write_physical(REQUEST_AREA, &block.to_bytes()).map_err(engine_bug)?;
        let report = &self.master.host.report;
        let stubs = stubs::addresses();
        regs.rip = match (report.fsgsbase, report.protection_keys) {
            (true, true) => stubs.enter_pku,
            (true, false) => stubs.enter_fsgsbase,
            (false, _) => stubs.enter_plain,
        };
        self.machine.vcpu().set_regs(regs);
        Ok(())
    }

    /// Which function takes this request, with which arguments.
    fn choose_entry(&mut self, exchange: &Exchange<'_>, written: &Written, error: bool) -> Result<Entry, Cause> {
        let handlers = &self.master.handlers;
        let Written { url, arg, content_type, body, body_len, failure, request, structure } = *written;
        if error {
            let function = handlers.get(Handlers::ON_ERROR).ok_or(Cause::NoResponse)?;
            return Ok(Entry::Call(function, [url, arg, failure, 0, 0]));
        }
        if let Waiting::Paused(address) = self.master.waiting {
            self.machine
                .memory
                .write(address, &structure.0)
                .map_err(|bad| Cause::BadResponse(format!("the structure of wait_for_requests_paused: {bad}")))?;
            return Ok(Entry::Resume);
        }
        if let Some(function) = handlers.get(Handlers::REQUEST) {
            return Ok(Entry::Call(function, [request, 0, 0, 0, 0]));
        }
        let has_body = matches!(exchange.method(), "POST" | "PUT" | "PATCH") || body_len > 0;
        match (handlers.get(Handlers::POST), handlers.post_symbol, handlers.get(Handlers::GET)) {
            (Some(function), _, _) if has_body => Ok(Entry::Call(function, [url, arg, content_type, body, body_len])),
            (_, Some(function), _) if has_body => Ok(Entry::Call(function, [url, body, body_len, 0, 0])),
            (_, _, Some(function)) => Ok(Entry::Call(function, [url, arg, 0, 0, 0])),
            _ => Err(Cause::NotForThis),
        }
    }

    /// Writes the request's texts, its structure and its body into the request area, or into the heap if they are
    /// too long for it.
    fn write_request(&mut self, exchange: &Exchange<'_>, failure: Option<&str>) -> Result<Written, Cause> {
        let request = exchange.request;
        let method = exchange.method();
        let content_type = request
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("content-type"))
            .map_or(&[][..], |header| &header.value);
        let short = |len: usize| u16::try_from(len).map_err(|_| Cause::TooLarge(len as u64));
        let lengths =
            [short(method.len())?, short(request.url.len())?, short(request.arg.len())?, short(content_type.len())?];
        let header_count = short(request.headers.len())?;

        let header_bytes: usize =
            request.headers.iter().map(|header| header.name.len() + header.value.len() + 3).sum();
        let texts = method.len() + request.url.len() + request.arg.len() + content_type.len() + 4;
        let needed = REQUEST_STRUCT_LEN
            + HEADER_ENTRY_LEN * u64::from(header_count)
            + (header_bytes + texts + failure.map_or(0, str::len) + 1 + request.body.len()) as u64;
        let mut place = self.place(needed)?;

        // First the structure and the headers' entries, which are written when the texts behind them have their places.
        let structure_at = place;
        let entries = place.address + REQUEST_STRUCT_LEN;
        let mut entry = place.physical + REQUEST_STRUCT_LEN;
        place.skip(REQUEST_STRUCT_LEN + HEADER_ENTRY_LEN * u64::from(header_count));
        let memory = &mut self.machine.memory;
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
            memory.write_physical(entry, &bytes).map_err(engine_bug)?;
            entry += HEADER_ENTRY_LEN;
        }
        let failure = place.text(memory, &[failure.unwrap_or_default().as_bytes()])?;
        let body = place.bytes(memory, request.body)?;

        self.requests += 1;
        let mut bytes = RequestStruct([0; REQUEST_STRUCT_LEN as usize]);
        for (at, value) in [(0, method_at), (8, url), (16, arg), (24, content_type_at), (40, body)] {
            bytes.put(at, &value.to_le_bytes());
        }
        for (at, value) in [32, 34, 36, 38].into_iter().zip(lengths) {
            bytes.put(at, &value.to_le_bytes());
        }
        bytes.put(48, &(request.body.len() as u64).to_le_bytes());
        bytes.put(56, &entries.to_le_bytes());
        bytes.put(64, &header_count.to_le_bytes());
        // SipHash with keys of this fork's own: unforeseeable numbers without a system call.
        for (at, salt) in [(72, 0u64), (80, 1)] {
            bytes.put(at, &self.random.hash_one((self.requests, salt)).to_le_bytes());
        }
        memory.write_physical(structure_at.physical, &bytes.0).map_err(engine_bug)?;
        Ok(Written {
            url,
            arg,
            content_type: content_type_at,
            body,
            body_len: request.body.len() as u64,
            failure,
            request: structure_at.address,
            structure: bytes,
        })
    }

    /// A place for `len` bytes: the request area, else fresh pages of the heap.
    fn place(&mut self, len: u64) -> Result<Place, Cause> {
        if len <= REQUEST_AREA_LEN - STRUCT_OFFSET {
            let physical = REQUEST_AREA + STRUCT_OFFSET;
            return Ok(Place { address: monitor(physical), physical });
        }
        let address = self
            .machine
            .linux
            .map_for_engine(len, &mut self.machine.memory)
            .ok_or(Cause::TooLarge(len))?;
        Ok(Place { address, physical: self.master.layout.heap.start + (address - MMAP_WINDOW) })
    }

    /// Puts the fork back to the master's state. False if it can't be used again.
    pub fn reset(&mut self) -> bool {
        self.try_reset().unwrap_or(false)
    }

    fn try_reset(&mut self) -> std::io::Result<bool> {
        if !self.machine.settle() {
            return Ok(false);
        }
        if self.over_limit || self.machine.memory.dirty_len() > SHRINK_PAGES {
            self.machine.shrink()?;
            self.over_limit = false;
        } else {
            self.machine.memory.restore(&self.master.memory).map_err(std::io::Error::other)?;
            self.machine.keep_ring_low()?;
        }
        self.machine.linux.restore_from(&self.master.linux);
        if std::mem::take(&mut self.debug_registers_dirty) {
            self.machine.vcpu().clear_debug_registers().map_err(std::io::Error::from)?;
        }
        self.machine.vcpu().set_sregs_at_next_run(self.master.sregs);
        self.machine.vcpu().clear_events_at_next_run(self.master.events);
        Ok(true)
    }

    /// Times `n` bare round trips: one `out` in ring 3, nothing written, nothing reset. What a request costs at least.
    pub fn round_trips(&mut self, n: usize) -> Vec<Duration> {
        let regs = kvm_regs { rip: stubs::addresses().round_trip, rflags: RFLAGS, ..Default::default() };
        self.machine.vcpu().set_regs(regs);
        let mut times = Vec::with_capacity(n);
        while times.len() < n {
            let start = Instant::now();
            if self.machine.vcpu().run() == Exit::Out(PORT_HYPERCALL) {
                times.push(start.elapsed());
            }
        }
        times
    }

    /// How many pages of the fork's memory differ from the master's. After a reset there are none. Reads all memory.
    pub fn differing_pages(&self) -> usize {
        self.machine.memory.mapping().differing_pages(&self.master.memory)
    }
}

fn engine_bug(error: OutOfRange) -> Cause {
    Cause::Machine(error.to_string())
}

/// Bytes of `kvm_request` and of a header's entry in it (docs/guest-abi.md).
const REQUEST_STRUCT_LEN: u64 = 104;
const HEADER_ENTRY_LEN: u64 = 16;
/// Where the request starts in the request area, behind the entry block.
const STRUCT_OFFSET: u64 = 64;

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
        memory.write_physical(self.physical, bytes).map_err(engine_bug)?;
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
