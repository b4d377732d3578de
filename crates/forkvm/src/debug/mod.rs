//! Live debugging: a request that stops waits for gdb, is served to it, and goes on. Other requests go on meanwhile in
//! other forks. What can be done and how: docs/debugging.md.

mod address;
mod client;
mod debuggee;
mod protocol;
mod registers;
mod session;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gdbstub::common::Signal;
use kvm_bindings::kvm_vcpu_events;

pub use address::{BadDebugAddress, DebugAddress};
use client::Listener;
use debuggee::{Debuggee, Resume, Stop};
use session::{Command, Session};

use crate::call::http::Exchange;
use crate::call::hypercall::{self, Outcome, Response};
use crate::failure::Cause;
use crate::machine::Machine;
use crate::request::Host;

/// How often a running program is looked away from, to hear whether its debugger wants it to stop.
const SLICE: Duration = Duration::from_millis(50);

/// Live debugging of a program's requests. Off unless allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debugging {
    /// Whether requests may be stopped at all. Setting `allow_debug`.
    pub allowed: bool,
    /// Where gdb may connect. Setting `debug_address`.
    pub address: DebugAddress,
    /// Longest time from a request's first stop to its end; then it fails. Setting `debug_timeout`.
    pub timeout: Duration,
    /// Whether a guest's exception stops its request before it fails. Setting `debug_exceptions`.
    pub exceptions: bool,
    /// Whether the program is booted only to be debugged. It finds `KVM_DEBUG=1` in its environment then.
    pub only: bool,
}

impl Default for Debugging {
    fn default() -> Self {
        Self {
            allowed: false,
            address: DebugAddress::default(),
            timeout: Duration::from_secs(120),
            exceptions: false,
            only: false,
        }
    }
}

/// A program's one place for a session: one request at a time is debugged.
#[derive(Debug, Default)]
pub struct Gate(AtomicBool);

/// The place, taken. Free again when dropped.
#[derive(Debug)]
pub struct Permit<'a>(&'a Gate);

impl Gate {
    /// Takes the place, if it is free.
    pub fn enter(&self) -> Option<Permit<'_>> {
        // Not `then_some`: a permit that is made and dropped would free the place.
        (!self.0.swap(true, Ordering::AcqRel)).then(|| Permit(self))
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

/// What a request's run needs to be stopped.
#[derive(Debug)]
pub struct Debugger<'a> {
    settings: &'a Debugging,
    auxiliary: &'a [u8],
    gate: &'a Gate,
    permit: Option<Permit<'a>>,
    at_entry: bool,
    stopped: bool,
}

/// Where and from what state a request starts.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// The first instruction that is the program's.
    pub entry: u64,
    /// No events.
    pub events: kvm_vcpu_events,
}

/// The debugger's side while a request runs.
enum Side<'a> {
    /// There was no stop yet.
    Waiting,
    /// It is connected; the program runs.
    Connected(Session<'a>),
    /// It went away, or there can be none. Nothing stops the program any more.
    Gone,
}

impl<'a> Debugger<'a> {
    /// For a request that stops by itself: at `breakpoint()`, or at an exception if the settings say so.
    pub fn new(settings: &'a Debugging, auxiliary: &'a [u8], gate: &'a Gate) -> Self {
        Self {
            settings,
            auxiliary,
            gate,
            permit: None,
            at_entry: false,
            stopped: false,
        }
    }

    /// For a request that is to stop at its handler's entry.
    pub fn at_entry(self, permit: Permit<'a>) -> Self {
        Self {
            permit: Some(permit),
            at_entry: true,
            ..self
        }
    }

    /// True if the request has been stopped, which uses up time and the processor's debug registers.
    pub fn has_stopped(&self) -> bool {
        self.stopped
    }

    /// Runs a request that has been entered, up to its response.
    pub fn run(
        &mut self,
        machine: &mut Machine,
        exchange: &mut Exchange<'_>,
        start: Start,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Response, Cause> {
        let entry = self.at_entry.then_some(start.entry);
        let mut debuggee = Debuggee::new(machine, self.auxiliary, start.events, entry);
        let mut run = Run {
            debugger: self,
            side: Side::Waiting,
            deadline,
            end: None,
            listen_at: Instant::now(),
            interrupt: false,
        };
        let result = run.until_response(&mut debuggee, exchange, host);
        if let Side::Connected(session) = run.side {
            let failed = match &result {
                Ok(_) => None,
                Err(Cause::Exception(exception)) => Some(session::signal(exception)),
                Err(_) => Some(Signal::SIGKILL),
            };
            session.finish(&mut debuggee, failed);
        }
        debuggee.machine.set_stepping(false);
        result
    }
}

/// A request's run under a debugger's eyes.
struct Run<'r, 'd, 'a> {
    debugger: &'r mut Debugger<'d>,
    side: Side<'a>,
    /// The request's own deadline, put off by the time it is stopped.
    deadline: Instant,
    /// The session's end, from the first stop on.
    end: Option<Instant>,
    /// When to hear the debugger next while the program runs.
    listen_at: Instant,
    /// The debugger wants the program to stop.
    interrupt: bool,
}

impl<'a> Run<'_, '_, 'a> {
    fn until_response(
        &mut self,
        debuggee: &mut Debuggee<'a>,
        exchange: &mut Exchange<'_>,
        host: &mut dyn Host,
    ) -> Result<Response, Cause> {
        loop {
            let deadline = self.deadline();
            let mut until = deadline;
            if matches!(self.side, Side::Connected(_)) {
                let now = Instant::now();
                if now >= self.listen_at {
                    self.listen_at = now + SLICE;
                    self.listen(debuggee)?;
                }
                until = until.min(self.listen_at);
            }
            let hypercall = match debuggee.run(until, deadline, host) {
                Err(Cause::Timeout) if self.is_over() => return Err(self.time_over()),
                result => result?,
            };
            if let Some(number) = hypercall {
                match self.hypercall(number, debuggee, exchange, host)? {
                    Outcome::Respond(response) => return Ok(response),
                    Outcome::Return(result) => self.after_hypercall(result, number, debuggee)?,
                }
            } else if self.interrupt && !debuggee.has_stopped() {
                debuggee.interrupt()?;
            }
            if let Some(stop) = debuggee.take_stop() {
                self.stop(stop, debuggee, host)?;
            }
        }
    }

    /// When the request has to be over.
    fn deadline(&self) -> Instant {
        self.end.map_or(self.deadline, |end| end.min(self.deadline))
    }

    fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    fn time_over(&self) -> Cause {
        Cause::DebugTimeout(self.debugger.settings.timeout)
    }

    fn hypercall(
        &mut self,
        number: u32,
        debuggee: &mut Debuggee<'a>,
        exchange: &mut Exchange<'_>,
        host: &mut dyn Host,
    ) -> Result<Outcome, Cause> {
        match number {
            hypercall::IS_DEBUG => Ok(Outcome::Return(self.debugger.at_entry.into())),
            hypercall::BREAKPOINT => Ok(Outcome::Return(0)),
            _ => {
                // What it waits for it may have until then, and not only until the debugger is heard next.
                debuggee.machine.rearm(self.deadline());
                let storage = exchange.storage;
                hypercall::during_request(number, debuggee.machine, exchange, storage, host)
            }
        }
    }

    /// Gives the program a hypercall's result, and stops it there if somebody wants that.
    fn after_hypercall(
        &self,
        result: i64,
        number: u32,
        debuggee: &mut Debuggee<'a>,
    ) -> Result<(), Cause> {
        debuggee.machine.vcpu().set_result(result as u64);
        let stop = match debuggee.resume {
            _ if number == hypercall::BREAKPOINT && !matches!(self.side, Side::Gone) => {
                Stop::Hypercall
            }
            Resume::Step(_) => Stop::Step,
            _ if self.interrupt => Stop::Interrupt,
            _ => return Ok(()),
        };
        debuggee.stop_after_hypercall(stop)
    }

    /// Hears the debugger while the program runs.
    fn listen(&mut self, debuggee: &mut Debuggee<'a>) -> Result<(), Cause> {
        match std::mem::replace(&mut self.side, Side::Gone) {
            Side::Connected(session) => {
                let command = session.listen(debuggee);
                self.obey(command, debuggee)?;
            }
            other => self.side = other,
        }
        Ok(())
    }

    /// The program stopped: the debugger's turn.
    fn stop(
        &mut self,
        stop: Stop,
        debuggee: &mut Debuggee<'a>,
        host: &mut dyn Host,
    ) -> Result<(), Cause> {
        let stopped = Instant::now();
        self.interrupt = false;
        let command = match std::mem::replace(&mut self.side, Side::Gone) {
            Side::Connected(session) => {
                let end = self.end.unwrap_or(stopped);
                session.stop(debuggee, &stop, end)
            }
            Side::Waiting if self.may_stop(&stop) => self.attach(&stop, debuggee, host)?,
            side => {
                // Nobody to show it to: the program ends or goes on as without a debugger.
                self.side = side;
                return match stop {
                    Stop::Exception(exception) => Err(Cause::Exception(exception)),
                    _ => Ok(()),
                };
            }
        };
        self.deadline += stopped.elapsed();
        match (&command, &debuggee.resume, stop) {
            (Command::Run(_), Resume::Die(_), Stop::Exception(exception)) => {
                self.obey(command, debuggee)?;
                Err(Cause::Exception(exception))
            }
            (Command::Run(_), Resume::Die(_), _) => {
                self.obey(command, debuggee)?;
                Err(Cause::DebuggerKilled)
            }
            _ => self.obey(command, debuggee),
        }
    }

    fn obey(&mut self, command: Command<'a>, debuggee: &mut Debuggee<'a>) -> Result<(), Cause> {
        match command {
            Command::Run(session) => {
                self.side = Side::Connected(session);
                Ok(())
            }
            Command::Interrupt(session) => {
                self.side = Side::Connected(session);
                self.interrupt = true;
                Ok(())
            }
            Command::Detach => {
                debuggee.detach();
                self.side = Side::Gone;
                Ok(())
            }
            Command::Kill => Err(Cause::DebuggerKilled),
            Command::TimeOver => Err(self.time_over()),
        }
    }

    /// True if this stop is one to wait for a debugger at, and no other request of the program is being debugged.
    fn may_stop(&mut self, stop: &Stop) -> bool {
        let wanted = match stop {
            Stop::Exception(_) => self.debugger.settings.exceptions || self.debugger.at_entry,
            _ => true,
        };
        let gate = self.debugger.gate;
        wanted && {
            if self.debugger.permit.is_none() {
                self.debugger.permit = gate.enter();
            }
            self.debugger.permit.is_some()
        }
    }

    /// The first stop: says where gdb can connect, and waits for it.
    fn attach(
        &mut self,
        stop: &Stop,
        debuggee: &mut Debuggee<'a>,
        host: &mut dyn Host,
    ) -> Result<Command<'a>, Cause> {
        let Debugging {
            address, timeout, ..
        } = self.debugger.settings;
        self.debugger.stopped = true;
        let end = Instant::now() + *timeout;
        self.end = Some(end);
        let listener = match Listener::open(address) {
            Ok(listener) => listener,
            Err(error) => {
                host.note(&format!(
                    "debugger: nobody can debug it at {address} (debug_address): {error}"
                ));
                return match stop {
                    // Without the address: whoever is told why the request failed need not know paths of this host.
                    Stop::Entry => Err(Cause::NoDebugger(format!(
                        "nobody can debug it at debug_address: {error}"
                    ))),
                    Stop::Exception(exception) => Err(Cause::Exception(exception.clone())),
                    _ => Ok(Command::Detach),
                };
            }
        };
        let at = listener.address();
        let why = match stop {
            Stop::Entry => "at its handler's entry".into(),
            Stop::Hypercall => "at breakpoint()".into(),
            Stop::Exception(exception) => format!(
                "at {:#x} after exception {} ({})",
                exception.rip,
                exception.vector,
                session::signal(exception)
            ),
            _ => "where it stopped".to_owned(),
        };
        host.note(&format!(
            "debugger: waits {why} for gdb on {at}, {timeout:?} (debug_timeout) at most \
             (gdb PROGRAM -ex 'target remote {at}')"
        ));
        match Session::attach(&listener, debuggee, end) {
            Some(session) => {
                drop(listener);
                Ok(session.serve(debuggee, end))
            }
            None => Err(match stop {
                Stop::Exception(exception) => Cause::Exception(exception.clone()),
                _ => self.time_over(),
            }),
        }
    }
}
