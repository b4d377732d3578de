//! A debugging session: the gdb remote protocol between a client and a stopped or running program.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use gdbstub::common::Signal;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, SingleThreadStopReason};

use super::client::{Client, Listener, Received, Waited};
use super::debuggee::{Debuggee, Stop};
use crate::failure::Exception;

/// Longest packet. gdb is told and sends none longer; another client that does is dropped.
const PACKET: usize = 4096;

type Protocol<'a> = GdbStubStateMachine<'static, Debuggee<'a>, Client>;
type Reason = SingleThreadStopReason<u64>;

/// A session with a client that has proved to be a debugger.
pub struct Session<'a>(Protocol<'a>);

/// What the debugger wants.
pub enum Command<'a> {
    /// The program is to run, or to go on running; what it may do is in [`Debuggee::resume`].
    Run(Session<'a>),
    /// The running program is to stop.
    Interrupt(Session<'a>),
    /// Nothing any more, it is gone. The program goes on without it.
    Detach,
    /// The program is to end.
    Kill,
    /// It has not said before the session's time was over.
    TimeOver,
}

/// Gives the protocol one byte. `None` if the client does not speak it. A panic in there must not be ours.
fn feed<'a>(protocol: Protocol<'a>, debuggee: &mut Debuggee<'a>, byte: u8) -> Option<Protocol<'a>> {
    let fed = catch_unwind(AssertUnwindSafe(|| match protocol {
        GdbStubStateMachine::Idle(idle) => idle.incoming_data(debuggee, byte),
        GdbStubStateMachine::Running(running) => running.incoming_data(debuggee, byte),
        other => Ok(other),
    }));
    fed.ok()?.ok()
}

fn end_of<'a>(reason: DisconnectReason) -> Command<'a> {
    match reason {
        DisconnectReason::Kill => Command::Kill,
        _ => Command::Detach,
    }
}

impl<'a> Session<'a> {
    /// Waits for a debugger until `end`. Whoever connects and says nothing, or nothing that a debugger would, is
    /// dropped as soon as somebody else comes, or at once.
    pub fn attach(listener: &Listener, debuggee: &mut Debuggee<'a>, end: Instant) -> Option<Self> {
        let mut candidate: Option<Protocol<'a>> = None;
        loop {
            let waited = match &mut candidate {
                Some(GdbStubStateMachine::Idle(idle)) => {
                    listener.wait(Some(idle.borrow_conn()), end)
                }
                _ => listener.wait(None, end),
            };
            match waited? {
                Waited::NewClient(client) => {
                    let stub = GdbStub::builder(client).packet_buffer_size(PACKET).build();
                    candidate = stub
                        .ok()
                        .and_then(|stub| stub.run_state_machine(debuggee).ok());
                }
                Waited::Bytes => {
                    candidate = candidate.and_then(|protocol| hear(protocol, debuggee));
                    if let Some(protocol) = candidate.take_if(proved) {
                        return Some(Self(protocol));
                    }
                }
            }
        }
    }

    /// Serves the debugger until it lets the program run.
    pub fn serve(self, debuggee: &mut Debuggee<'a>, end: Instant) -> Command<'a> {
        let mut protocol = self.0;
        loop {
            let fed = match protocol {
                GdbStubStateMachine::Running(_) => return Command::Run(Self(protocol)),
                GdbStubStateMachine::Disconnected(gone) => return end_of(gone.get_reason()),
                // It is stopped already: told when it is to run next.
                GdbStubStateMachine::CtrlCInterrupt(interrupt) => interrupt
                    .interrupt_handled(debuggee, Some(Reason::Signal(Signal::SIGINT)))
                    .ok(),
                GdbStubStateMachine::Idle(mut idle) => match idle.borrow_conn().receive(end) {
                    Received::Byte(byte) => feed(idle.into(), debuggee, byte),
                    Received::Nothing => return Command::TimeOver,
                    Received::Closed => None,
                },
            };
            match fed {
                Some(next) => protocol = next,
                None => return Command::Detach,
            }
        }
    }

    /// Looks whether the debugger wants something while the program runs.
    pub fn listen(self, debuggee: &mut Debuggee<'a>) -> Command<'a> {
        let mut protocol = self.0;
        loop {
            let fed = match protocol {
                GdbStubStateMachine::CtrlCInterrupt(_) => {
                    return Command::Interrupt(Self(protocol));
                }
                GdbStubStateMachine::Disconnected(gone) => return end_of(gone.get_reason()),
                GdbStubStateMachine::Idle(_) => None,
                GdbStubStateMachine::Running(mut running) => {
                    match running.borrow_conn().receive(Instant::now()) {
                        Received::Byte(byte) => feed(running.into(), debuggee, byte),
                        Received::Nothing => return Command::Run(Self(running.into())),
                        Received::Closed => None,
                    }
                }
            };
            match fed {
                Some(next) => protocol = next,
                None => return Command::Detach,
            }
        }
    }

    /// Tells the debugger that the program stopped, or ended.
    fn tell(self, debuggee: &mut Debuggee<'a>, reason: Reason) -> Option<Protocol<'a>> {
        match self.0 {
            GdbStubStateMachine::Running(running) => running.report_stop(debuggee, reason).ok(),
            GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
                interrupt.interrupt_handled(debuggee, Some(reason)).ok()
            }
            other => Some(other),
        }
    }

    /// Tells the debugger of a stop and serves it until it lets the program run.
    pub fn stop(self, debuggee: &mut Debuggee<'a>, stop: &Stop, end: Instant) -> Command<'a> {
        let reason = match stop {
            Stop::Breakpoint | Stop::Entry => Reason::SwBreak(()),
            Stop::Step => Reason::DoneStep,
            Stop::Hypercall => Reason::Signal(Signal::SIGTRAP),
            Stop::Interrupt => Reason::Signal(Signal::SIGINT),
            Stop::Exception(exception) => Reason::Signal(signal(exception)),
        };
        match self.tell(debuggee, reason) {
            Some(protocol) => Self(protocol).serve(debuggee, end),
            None => Command::Detach,
        }
    }

    /// Tells the debugger that the request is over. It may be gone; then nobody is told.
    pub fn finish(self, debuggee: &mut Debuggee<'a>, failed: Option<Signal>) {
        let reason = match failed {
            None => Reason::Exited(0),
            Some(signal) => Reason::Terminated(signal),
        };
        drop(self.tell(debuggee, reason));
    }
}

/// True if the client was answered, which it only is after a whole packet, or if it is past that already.
fn proved(protocol: &mut Protocol<'_>) -> bool {
    match protocol {
        GdbStubStateMachine::Idle(idle) => idle.borrow_conn().replied(),
        _ => true,
    }
}

/// Takes what a candidate has sent. `None` if it is gone or is no debugger.
fn hear<'a>(mut protocol: Protocol<'a>, debuggee: &mut Debuggee<'a>) -> Option<Protocol<'a>> {
    while !proved(&mut protocol) {
        let GdbStubStateMachine::Idle(mut idle) = protocol else {
            break;
        };
        protocol = match idle.borrow_conn().receive(Instant::now()) {
            Received::Byte(byte) => feed(idle.into(), debuggee, byte)?,
            Received::Nothing => return Some(idle.into()),
            Received::Closed => return None,
        };
    }
    Some(protocol)
}

/// The signal that a Linux program would get for an exception (Linux: arch/x86/kernel/traps.c).
pub fn signal(exception: &Exception) -> Signal {
    match exception.vector {
        0 | 16 | 19 => Signal::SIGFPE,
        1 | 3 => Signal::SIGTRAP,
        6 => Signal::SIGILL,
        17 => Signal::SIGBUS,
        _ => Signal::SIGSEGV,
    }
}
