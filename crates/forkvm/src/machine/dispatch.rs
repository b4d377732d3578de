//! Calls that the guest answers itself ([`dispatcher`]): what it may answer is told it before each run, and what it has
//! answered is carried out after it, in order, before anything else changes. The personality stays the one truth: a call that comes
//! out otherwise than the guest has said ends the program. Nothing is believed besides: a call in the queue is one that the
//! program could have made by an exit.

use std::time::Instant;

use kvm_bindings::kvm_regs;

use crate::arch::dispatcher::{self, INPUT, MOST_QUEUED, QUEUE, QUEUED, QUEUED_LEN, STATE, STATUS};
use crate::arch::regs::user_flags;
use crate::arch::stubs::{self, OUT_SYSCALL};
use crate::failure::Cause;
use crate::linux::Call;
use crate::machine::Machine;
use crate::memory::faults::FaultError;
use crate::memory::guest::WriteError;
use crate::request::Host;

impl Machine {
    /// Guest-physical address of a part of the dispatcher.
    fn dispatcher_part(&self, part: u64) -> Option<u64> {
        let space = self.memory.space().filter(|_| self.dispatches)?;
        Some(space.layout().dispatcher.start + part)
    }

    /// Tells the guest what it may answer in the run that follows, if that may have changed. Nothing, where each call is to be
    /// seen when it is made.
    pub(super) fn offer(&mut self, host: &mut dyn Host) -> Result<(), Cause> {
        let (Some(state), Some(input_at)) =
            (self.dispatcher_part(STATE), self.dispatcher_part(INPUT))
        else {
            return Ok(());
        };
        if !std::mem::take(&mut self.offer_is_stale) {
            return Ok(());
        }
        let (offer, input) = match host.traces() || self.stepping {
            true => (dispatcher::Offer::new(), Vec::new()),
            false => {
                let (mut offer, input) = self.linux.offer(self.serving);
                self.offer_status(&mut offer, host);
                (offer, input)
            }
        };
        let written = self
            .memory
            .write_physical(state + QUEUED, offer.bytes())
            .and_then(|()| self.memory.write_physical(input_at, &input));
        written.map_err(|error| match error {
            WriteError::OverLimit => Cause::MemoryLimit,
            error => Cause::Machine(error.to_string()),
        })
    }

    /// Tells about what was just opened.
    fn offer_status(&mut self, offer: &mut dispatcher::Offer, host: &mut dyn Host) {
        let Some(opened) = self.opened.take() else {
            return;
        };
        let Self {
            linux,
            memory,
            random,
            ..
        } = self;
        let at = dispatcher::address(STATUS);
        if let Some(descriptor) = linux.write_status(opened, at, memory, host, random) {
            offer.status_of(descriptor);
        }
    }

    /// Whether the guest was interrupted while it answers a call, or in a stub, which may be about one: it goes on until that is done,
    /// and what it was offered and its queue are left alone.
    pub fn is_answering(&mut self) -> bool {
        let in_stub = |selector| selector & 3 == 0;
        self.dispatches
            && (in_stub(self.vcpu.synced_sregs().cs.selector)
                || dispatcher::addresses().answers(self.vcpu.regs().rip))
    }

    /// Carries out what the guest has answered since it was last told what it may. `Some` if that is not what comes of it.
    pub(super) fn carry_out(&mut self, host: &mut dyn Host) -> Option<Cause> {
        let state = self.dispatcher_part(STATE)?;
        let failed = |error: &dyn std::fmt::Display| Some(Cause::Machine(error.to_string()));
        let mut count = [0; 4];
        if let Err(error) = self.memory.mapping().read(state + QUEUED, &mut count) {
            return failed(&error);
        }
        let count = u32::from_le_bytes(count);
        if count == 0 {
            return None;
        }
        if count > MOST_QUEUED {
            return Some(Cause::Answered(u64::MAX));
        }
        self.offer_is_stale = true;
        if let Err(error) = self.memory.write_physical(state + QUEUED, &[0; 4]) {
            return failed(&error);
        }
        // Read once: what the program does to it afterwards is nobody's concern.
        let mut bytes = vec![0; (u64::from(count) * QUEUED_LEN) as usize];
        let queue = self.dispatcher_part(QUEUE)?;
        if let Err(error) = self.memory.mapping().read(queue, &mut bytes) {
            return failed(&error);
        }
        let Self {
            linux,
            memory,
            random,
            ..
        } = self;
        let mut answered = bytes.chunks_exact(QUEUED_LEN as usize);
        let lie = answered.find_map(|entry| {
            let (call, answer) = queued(entry);
            let holds = linux.carry_out(call, answer, memory, host, random);
            (!holds).then_some(call.number)
        });
        lie.map(Cause::Answered)
    }

    /// The program has caused an exception. While a call is answered that is the call's: it is made as if nobody had tried to answer it.
    pub(super) fn fault(
        &mut self,
        (vector, fault): (u8, Option<&FaultError>),
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Option<Cause> {
        self.offer_is_stale = true;
        let ended = self.carry_out(host);
        if ended.is_some() {
            return ended;
        }
        let answers = |rip| self.dispatches && dispatcher::addresses().answers(rip);
        match self.exception_frame() {
            Some(frame) if frame.cs & 3 == 3 && answers(frame.rip) => {
                match self.call_being_answered() {
                    Some(regs) => self.resume_user(regs),
                    None => return Some(Cause::Machine("no call is being answered".into())),
                }
                self.system_call(deadline, host)
            }
            _ => self.faulted(vector, fault),
        }
    }

    /// The registers of the call that was being answered, at the end of the stub by which it would have exited.
    fn call_being_answered(&mut self) -> Option<kvm_regs> {
        let mut kept = [0; dispatcher::REGISTERS * 8];
        let state = self.dispatcher_part(STATE)?;
        self.memory.mapping().read(state, &mut kept).ok()?;
        let mut kept = kept
            .chunks_exact(8)
            .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()));
        let mut next = || kept.next();
        let (rax, rbx, rcx, rdx) = (next()?, next()?, next()?, next()?);
        let (rsi, rdi, r8, r9) = (next()?, next()?, next()?, next()?);
        let (r10, r11, rsp) = (next()?, next()?, next()?);
        Some(kvm_regs {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            rsp,
            rip: stubs::addresses().syscall_ring3 + OUT_SYSCALL.len() as u64,
            rflags: user_flags(r11),
            ..self.vcpu.regs()
        })
    }
}

/// A call in the queue, and what was answered.
fn queued(entry: &[u8]) -> (Call, i64) {
    let mut fields = entry
        .chunks_exact(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()));
    let mut next = || fields.next().unwrap_or(0);
    let call = Call {
        number: next(),
        args: std::array::from_fn(|_| next()),
        // Of no call that may be in the queue does anything depend on it.
        rsp: 0,
    };
    (call, next().cast_signed())
}
