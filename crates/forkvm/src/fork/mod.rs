//! A fork: a machine whose memory is the master's, copy-on-write. It runs one request at a time and is put back to the
//! master's state after each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_regs;

use crate::arch::layout::PAGE;
use crate::arch::regs::RFLAGS;
use crate::arch::stubs::{self, PORT_HYPERCALL};
use crate::call::Circumstances;
use crate::call::http::{self, Exchange};
use crate::call::hypercall::{Body, Response};
use crate::call::post::Post;
use crate::call::stored::Stored;
use crate::call::stream::Stream;
use crate::debug::Debugger;
use crate::failure::{Cause, DEBUG};
use crate::fork::shrink::ShrinkPolicy;
use crate::kvm::Exit;
use crate::machine::spent::Spent;
use crate::machine::{Machine, MachineError};
use crate::master::Master;
use crate::master::handover::HandedOver;
use crate::master::numbers::Number;
use crate::memory::dirty::NoRecord;
use crate::memory::guest::GuestMemory;
use crate::memory::mapping::{Mapping, OutOfRange};
use crate::memory::user::UserMemory;
use crate::request::{Host, Quiet, Request};

pub mod shrink;
#[cfg(test)]
pub(crate) mod tests;

/// Why a fork could not be made or put back.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// Its memory could not be mapped.
    #[error("mapping its memory: {0}")]
    Map(#[from] vm_memory::mmap::MmapRegionError),
    /// What it writes could not be recorded.
    #[error(transparent)]
    Record(#[from] NoRecord),
    /// KVM refused.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// KVM refused its registers.
    #[error("its registers: {0}")]
    Registers(#[from] kvm_ioctls::Error),
    /// Its master's memory is not all there.
    #[error("the snapshot is damaged, or can't be read any more")]
    Lost,
    /// What the master's tables say can't be.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// A thread that makes or frees forks could not be started.
    #[error("a thread that makes or frees forks: {0}")]
    Keeper(std::io::Error),
}

/// Why a fork can't be used again after a request.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// Its machine ended in a way that nothing brings back. The request's failure says how.
    #[error("its machine can't go on")]
    Ended,
    /// KVM or the kernel refused something.
    #[error("its reset failed: {0}")]
    Host(#[from] std::io::Error),
    /// A panic, of which the panic hook has said more.
    #[error("an internal error in its reset")]
    Panicked,
    /// Its program keeps state, and has kept too much.
    #[error(
        "what its requests have left is {kept} bytes, more than {most} (max_memory); the next one there finds the frozen program"
    )]
    Full {
        /// Memory and files.
        kept: u64,
        /// What it may be.
        most: u64,
    },
}

/// A fork of a master.
#[derive(Debug)]
pub struct Fork {
    machine: Machine,
    master: Arc<Master>,
    _number: Number,
    shrink: ShrinkPolicy,
    /// The last exception set the debug registers.
    debug_registers_dirty: bool,
    /// The last request went over its memory limit.
    over_limit: bool,
    /// All that it has run since it was like its master has come to its end: if its program keeps state, that may stay.
    is_sound: bool,
    /// The next reset panics in its middle.
    #[cfg(test)]
    reset_panics: bool,
}

/// Does it, and makes a panic an error: nobody looks at a fork again that one left half done, since its machine is poisoned.
fn caught(work: impl FnOnce() -> Result<(), ResetError>) -> Result<(), ResetError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(ResetError::Panicked))
}

impl Fork {
    /// Forks a master.
    pub fn new(master: Arc<Master>) -> Result<Self, ForkError> {
        let mapping = Mapping::fork(&master.file, master.memory.len(), &master.unused)?;
        let mapping = mapping.with_shared(master.shared.clone());
        master.learned.populate(&mapping);
        let limits = &master.config.limits;
        let pages = |bytes: u64| usize::try_from(bytes / PAGE).unwrap_or(usize::MAX);
        let page_limit = pages(limits.max_request_memory);
        let memory = GuestMemory::forked(mapping, &master.wait_point.layout.tables, page_limit)?;
        let shrink = ShrinkPolicy::new(pages(limits.req_mem_limit_after_reset));
        let ring = master.host.ring_entries(page_limit as u64);
        let mut machine =
            Machine::new(master.host, memory, master.linux.clone(), Some(ring), false)?;
        machine.regexes = master.regexes.clone();
        let number = master.numbers.take();
        machine.fork_number = number.get();
        machine.keeps_state = master.keeps_state;
        let wait_point = &master.wait_point;
        machine.vcpu().set_sregs(&wait_point.sregs)?;
        machine.vcpu().set_sregs_at_next_run(wait_point.sregs);
        machine.vcpu().clear_events_at_next_run(wait_point.events);
        Ok(Self {
            machine,
            master,
            _number: number,
            shrink,
            debug_registers_dirty: false,
            over_limit: false,
            is_sound: true,
            #[cfg(test)]
            reset_panics: false,
        })
    }

    /// Runs a request up to its response, under a debugger's eyes if there is one.
    pub fn call(
        &mut self,
        request: &Request<'_>,
        storage: Option<&dyn Stored>,
        deadline: Instant,
        host: &mut dyn Host,
        debugger: Option<&mut Debugger<'_>>,
    ) -> Result<Response, Cause> {
        let circumstances = Circumstances {
            storage,
            ..Default::default()
        };
        self.run(request, circumstances, deadline, host, debugger)
    }

    /// Runs the program's `on_error` handler for a request that failed.
    pub fn call_on_error(
        &mut self,
        request: &Request<'_>,
        failure: &str,
        storage: Option<&dyn Stored>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Response, Cause> {
        let circumstances = Circumstances {
            failure: Some(failure),
            storage,
            ..Default::default()
        };
        self.run(request, circumstances, deadline, host, None)
    }

    /// Runs a warm-up request, if the program has them, for so long at most: a new fork's first request costs many times a
    /// later one, since its pages are not in the processor's tables. False if it is not to be used afterwards.
    pub fn warm_up(&mut self, time: Duration) -> bool {
        let master = self.master.clone();
        let Some(warm_up) = master.config.warm_up.as_ref().filter(|of| of.forks) else {
            return true;
        };
        if !master.warm_ups.are_due(Instant::now()) {
            return true;
        }
        let time = time.min(master.config.limits.max_request_time);
        let circumstances = Circumstances {
            warm_up: true,
            ..Default::default()
        };
        let deadline = Instant::now() + time;
        let result = self.run(
            &warm_up.request(),
            circumstances,
            deadline,
            &mut Quiet,
            None,
        );
        let result = result.and_then(|response| match response.body {
            Body::Whole(..) => Ok(()),
            Body::Streamed(mut stream) => self
                .next_part(&mut stream, u64::MAX, None, deadline, &mut Quiet)
                .map(drop),
        });
        let usable = self.reset().is_ok();
        if result.is_err() || !usable {
            master.warm_ups.failed(Instant::now());
        } else {
            master.warm_ups.ran();
        }
        usable
    }

    /// Runs the program's `on_live_update` handler, whose state may have `most` bytes. It is part of another program's
    /// boot, and shares the processor as that does.
    pub fn give_state(
        &mut self,
        most: u64,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<HandedOver, Cause> {
        let wait_point = &self.master.wait_point;
        self.machine.set_slice(host.slice());
        let state = self.machine.watched(deadline, |machine| {
            wait_point.give_state(machine, most, None, deadline, host)
        })?;
        let kept = self.machine.kept();
        Ok(HandedOver { state, kept })
    }

    /// Gives what memory it has back to the host, where it is not to run again. To free the machine takes longer.
    pub fn give_memory_back(&self) {
        // What is left is given back with the machine.
        let _ = self.machine.memory.mapping().drop_private_pages();
    }

    /// Copies from a piece of its memory, of this address and length, from this position on: of a response that it has
    /// made. Returns how much that is, 0 at the piece's end.
    pub fn read_piece(&self, (address, len): (u64, u64), position: u64, buf: &mut [u8]) -> usize {
        let n = buf
            .len()
            .min(usize::try_from(len.saturating_sub(position)).unwrap_or(usize::MAX));
        // The range was checked when the guest gave it, and the guest has not run since.
        match self.machine.memory.read(address + position, &mut buf[..n]) {
            Ok(()) => n,
            Err(_) => 0,
        }
    }

    /// Whether other machines write to some of such a piece.
    pub fn shares(&self, address: u64, len: u64) -> bool {
        let shared = self.machine.memory.shared_window();
        address < shared.end && shared.start < address.saturating_add(len)
    }

    /// Begins a request whose body comes segment by segment.
    pub fn begin_post(&mut self, request: &Request<'_>, deadline: Instant) -> Result<Post, Cause> {
        // Until the body has come to its end.
        self.is_sound = false;
        let wait_point = &self.master.wait_point;
        let result = self
            .machine
            .watched(deadline, |machine| wait_point.begin_post(machine, request));
        self.conclude(result)
    }

    /// Has its program take a segment, or the end of such a body ([`WaitPoint::post`](crate::call::WaitPoint::post)).
    pub fn post(
        &mut self,
        post: &mut Post,
        segment: &[u8],
        storage: Option<&dyn Stored>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Option<Response>, Cause> {
        let wait_point = &self.master.wait_point;
        let result = self.machine.watched_on(deadline, |machine| {
            wait_point.post(machine, post, segment, storage, deadline, host)
        });
        let mut response = self.conclude(result)?;
        if let Some(response) = &mut response {
            self.is_sound = true;
            http::strip_connection_headers(&mut response.headers);
        }
        Ok(response)
    }

    /// Has its program make the next part of a response of `most` bytes at most ([`Stream::next_part`]).
    pub fn next_part(
        &mut self,
        stream: &mut Stream,
        most: u64,
        storage: Option<&dyn Stored>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Option<(u64, u64)>, Cause> {
        let result = self.machine.watched_on(deadline, |machine| {
            stream.next_part(most, machine, storage, deadline, host)
        });
        let result = self.conclude(result);
        self.is_sound &= result.is_ok();
        result
    }

    /// Its request has failed, though it has run to its end.
    pub fn has_failed(&mut self) {
        self.is_sound = false;
    }

    fn run(
        &mut self,
        request: &Request<'_>,
        circumstances: Circumstances<'_>,
        deadline: Instant,
        host: &mut dyn Host,
        mut debugger: Option<&mut Debugger<'_>>,
    ) -> Result<Response, Cause> {
        self.is_sound = false;
        let mut exchange = Exchange::new(request);
        exchange.storage = circumstances.storage;
        let (wait_point, debugged) = (&self.master.wait_point, debugger.as_deref_mut());
        let result = self.machine.watched(deadline, |machine| {
            wait_point.call(
                machine,
                &mut exchange,
                circumstances,
                deadline,
                host,
                debugged,
            )
        });
        self.debug_registers_dirty |= debugger.is_some_and(|debugger| debugger.has_stopped());
        let mut response = self.conclude(result)?;
        // What `on_error` leaves is of a request that has failed.
        self.is_sound = circumstances.failure.is_none();
        http::strip_connection_headers(&mut response.headers);
        Ok(response)
    }

    /// Notes what its reset has to know of a run that is over, and finds what has really ended it.
    fn conclude<T>(&mut self, result: Result<T, Cause>) -> Result<T, Cause> {
        self.over_limit = self.machine.over_memory_limit();
        if let Err(Cause::Exception(exception)) = &result {
            self.debug_registers_dirty |= exception.vector == DEBUG;
        }
        // What the engine could not write or read then was for want of memory.
        if self.over_limit
            && matches!(
                result,
                Ok(_) | Err(Cause::Machine(_) | Cause::BadResponse(_))
            )
        {
            return Err(Cause::MemoryLimit);
        }
        result
    }

    /// Gets the fork ready for its next request: in the master's state, or, if its program keeps state and nothing has failed, as
    /// it is. The same holds after an error as of [`Fork::reset`].
    pub fn put_back(&mut self) -> Result<(), ResetError> {
        if self.machine.keeps_state && self.is_sound {
            caught(|| self.keep())
        } else {
            self.reset()
        }
    }

    /// Puts the fork back to the master's state. After an error it is not to be used again, also after a panic on the
    /// way: forks are reset where their leases are dropped, maybe by another panic.
    pub fn reset(&mut self) -> Result<(), ResetError> {
        caught(|| self.try_reset())
    }

    /// Leaves to the next request what this one has changed, but for the processor's state and what was this one's alone.
    fn keep(&mut self) -> Result<(), ResetError> {
        if !self.machine.settle() {
            return Err(ResetError::Ended);
        }
        self.machine.set_poisoned(true);
        self.machine.free_request_memory();
        self.machine.linux.begin_connection();
        let pages = self.machine.memory.dirty_len() as u64;
        let kept = (pages * PAGE).saturating_add(self.machine.linux.file_memory());
        let most = self.master.config.limits.max_memory;
        if kept > most {
            return Err(ResetError::Full { kept, most });
        }
        self.machine.keep_ring_low()?;
        self.ready_processor()?;
        self.machine.set_poisoned(false);
        Ok(())
    }

    fn try_reset(&mut self) -> Result<(), ResetError> {
        if !self.machine.settle() {
            return Err(ResetError::Ended);
        }
        self.machine.set_poisoned(true);
        if self.shrink.is_due(self.machine.memory.dirty_len()) || self.over_limit {
            self.machine.shrink()?;
            self.over_limit = false;
        } else {
            let memory = &mut self.machine.memory;
            memory
                .restore(&self.master.memory)
                .map_err(std::io::Error::other)?;
            self.master.learned.learn(memory.dirty_pages());
            self.machine.keep_ring_low()?;
        }
        #[cfg(test)]
        assert!(!std::mem::take(&mut self.reset_panics), "on purpose");
        self.machine.linux.restore_from(&self.master.linux);
        self.machine.regexes.restore_from(&self.master.regexes);
        self.machine.request_memory.clear();
        self.machine.keeps_state = self.master.keeps_state;
        self.is_sound = true;
        self.ready_processor()?;
        self.machine.set_poisoned(false);
        Ok(())
    }

    /// Has the processor begin its next request as the master's is.
    fn ready_processor(&mut self) -> Result<(), ResetError> {
        if self.debug_registers_dirty {
            self.machine
                .vcpu()
                .clear_debug_registers()
                .map_err(std::io::Error::from)?;
            self.debug_registers_dirty = false;
        }
        let wait_point = &self.master.wait_point;
        self.machine.vcpu().set_sregs_at_next_run(wait_point.sregs);
        self.machine
            .vcpu()
            .clear_events_at_next_run(wait_point.events);
        self.machine.begin_account();
        Ok(())
    }

    /// Its number among its program's forks, from 1.
    pub fn number(&self) -> u32 {
        self.machine.fork_number
    }

    /// What its last request has cost by now. To be asked before the reset.
    pub fn spent(&self) -> Spent {
        self.machine.spent()
    }

    /// Times `n` bare round trips: one `out` in ring 3, nothing written, nothing reset. What a request costs at least.
    pub fn round_trips(&mut self, n: usize) -> Vec<Duration> {
        let regs = kvm_regs {
            rip: stubs::addresses().round_trip,
            rflags: RFLAGS,
            ..Default::default()
        };
        self.machine.vcpu().set_regs(regs);
        let mut times = Vec::with_capacity(n);
        while times.len() < n {
            let start = Instant::now();
            match self.machine.vcpu().run() {
                Exit::Out(PORT_HYPERCALL) => times.push(start.elapsed()),
                Exit::Interrupted => {}
                _ => break,
            }
        }
        times
    }

    /// How many pages of the fork's memory differ from the master's. After a reset there are none. Reads all memory.
    pub fn differing_pages(&self) -> usize {
        self.machine
            .memory
            .mapping()
            .differing_pages(&self.master.memory)
    }
}
