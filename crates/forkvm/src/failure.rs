//! Why a request or a program failed, in words for the operator's log. The client sees none of this.

use std::time::Duration;

use crate::image::elf::ElfError;
use crate::image::symbols::Symbols;
use crate::machine::probe::KvmUnavailable;

/// A processor exception of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    /// Vector, 0 to 31 (Intel SDM Vol. 3A, 6.3.1, Table 6-1).
    pub vector: u8,
    /// The error code, for the vectors that have one.
    pub error_code: Option<u64>,
    /// Where: the faulting instruction.
    pub rip: u64,
    /// The stack pointer there.
    pub rsp: u64,
    /// The address of a page fault.
    pub cr2: u64,
    /// The signal by which Linux would have ended the program, if it is one that runs as there ([`exec`](crate::exec)).
    pub signal: Option<u8>,
}

/// Vectors by name.
const NAMES: [&str; 22] = [
    "divide error",
    "debug exception",
    "non-maskable interrupt",
    "breakpoint",
    "overflow",
    "bound range exceeded",
    "invalid instruction",
    "no coprocessor",
    "double fault",
    "coprocessor overrun",
    "invalid task state",
    "segment not present",
    "stack fault",
    "general protection fault",
    "page fault",
    "reserved exception",
    "x87 error",
    "alignment check",
    "machine check",
    "SIMD error",
    "virtualisation exception",
    "control protection exception",
];

/// Vector of a page fault.
pub(crate) const PAGE_FAULT: u8 = 14;
/// Vector of `int3`.
pub(crate) const BREAKPOINT: u8 = 3;
/// Vector of a debug exception.
pub(crate) const DEBUG: u8 = 1;

impl Exception {
    /// True for the vectors that push an error code (Intel SDM Vol. 3A, 6.13; AMD APM Vol. 2, 8.2).
    pub(crate) fn has_error_code(vector: u8) -> bool {
        matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
    }

    /// One phrase: what and where.
    fn describe(&self, symbols: &Symbols, stack: &std::ops::Range<u64>) -> String {
        let name = NAMES
            .get(usize::from(self.vector))
            .copied()
            .unwrap_or("reserved exception");
        let at = symbols.describe(self.rip);
        if self.vector != PAGE_FAULT {
            let code = self.error_code.filter(|&code| code != 0);
            let code = code.map_or(String::new(), |code| format!(" (error code {code:#x})"));
            return format!("{name}{code} at {at}");
        }
        // Page-fault error code: present, write, user, reserved bit, instruction fetch (Intel SDM Vol. 3A, 4.7).
        let code = self.error_code.unwrap_or(0);
        let verb = match code & 0b1_0010 {
            0 => "reading",
            2 => "writing",
            _ => "executing",
        };
        let why = if code & 1 == 0 {
            "not mapped"
        } else {
            "not permitted"
        };
        let guard = stack.start.saturating_sub(crate::arch::layout::PAGE * 16)..stack.start;
        let hint = if guard.contains(&self.cr2) {
            ", a stack overflow"
        } else {
            ""
        };
        format!("{name} {verb} {:#x} ({why}{hint}) at {at}", self.cr2)
    }
}

/// What ended a guest's run without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// A processor exception that the program can't handle.
    Exception(Exception),
    /// It was not done by its deadline.
    Timeout,
    /// Its host had it end ([`Host::give_way`](crate::Host::give_way)).
    Stopped,
    /// It was not done within so long after its first stop for a debugger.
    DebugTimeout(Duration),
    /// The debugger ended it.
    DebuggerKilled,
    /// It was to stop for a debugger, and none can connect: why.
    NoDebugger(String),
    /// It needs more memory than it may.
    MemoryLimit,
    /// The handler returned without a response.
    NoResponse,
    /// `main()` returned this, not 0.
    MainReturned(i32),
    /// It called `exit` with this status.
    Exit(i32),
    /// It ended itself by this signal.
    Killed(i32),
    /// It has answered a system call of this number itself, by our code in its machine, and otherwise than it comes out.
    Answered(u64),
    /// It waits for something that can't come: which call, and why.
    Deadlock(&'static str),
    /// Its response is invalid: why.
    BadResponse(String),
    /// Its response is longer than it may be, both in bytes.
    LongResponse {
        /// Its length.
        len: u64,
        /// What it may have.
        most: u64,
    },
    /// Its handler did not take a segment of the request's body: what it returned, and how long that was.
    RefusedBody {
        /// What it returned.
        taken: i64,
        /// What it was given, in bytes.
        len: u64,
    },
    /// It set an invalid header: why.
    BadHeader(String),
    /// It made a hypercall that can't be made so: which, and why.
    BadCall(&'static str, &'static str),
    /// The state of a live update can't be handed over: why.
    BadState(String),
    /// It accessed an I/O port.
    BadPort(u16),
    /// It answers by the first interface's hypercall, which had two meanings in its time.
    OldApi,
    /// A request of so many bytes does not fit in its memory.
    TooLarge(u64),
    /// It has no handler for such a request.
    NotForThis,
    /// It has no handler at all.
    NothingToCall,
    /// A part of its memory did not come out of its snapshot, whose server says why
    /// ([`Server::wait_until_whole`](crate::Server::wait_until_whole)).
    Lost,
    /// The virtual machine failed: how.
    Machine(String),
}

impl Cause {
    /// The phrase for a log line. `time` and `memory` name the limits in force with their settings.
    pub(crate) fn describe(
        &self,
        symbols: &Symbols,
        stack: &std::ops::Range<u64>,
        time: &str,
        memory: &str,
    ) -> String {
        match self {
            Self::Exception(exception) => exception.describe(symbols, stack),
            Self::Timeout => format!("not done within {time}"),
            Self::Stopped => "it was stopped from outside".into(),
            Self::DebugTimeout(time) => {
                format!("not done within {time:?} (debug_timeout) of its first stop for a debugger")
            }
            Self::DebuggerKilled => "the debugger ended it".into(),
            Self::NoDebugger(what) => what.clone(),
            Self::MemoryLimit => format!("it needs more memory than {memory}"),
            Self::NoResponse => "the handler returned without a response".into(),
            Self::MainReturned(status) => format!("it returned {status}, not 0"),
            Self::Exit(status) => format!("it called exit({status})"),
            Self::Killed(signal) => format!(
                "it ended itself by signal {signal} ({})",
                signal_name(*signal)
            ),
            Self::Answered(number) => format!(
                "system call {number} was answered otherwise than it comes out: it has written to the dispatcher's pages, or it is \
                 a defect of ours (--no-dispatcher)"
            ),
            Self::Deadlock(call) => format!("it waits for ever: {call}"),
            Self::BadResponse(what) => format!("its response is invalid: {what}"),
            Self::LongResponse { len, most } => {
                format!("its response has {len} bytes, more than {most} (max_response_size)")
            }
            Self::RefusedBody { taken, len } => format!(
                "its handler for bodies that come in segments returned {taken} for one of {len} bytes"
            ),
            Self::BadHeader(what) => format!("it set an invalid header: {what}"),
            Self::BadCall(call, why) => format!("it called {call}() {why}"),
            Self::BadState(what) => what.clone(),
            Self::BadPort(port) => format!("it accessed I/O port {port:#x}"),
            Self::OldApi => "it answers by hypercall 0xFFFF, which had two meanings in its time; \
                             rebuild it with the header of this project's guest SDK"
                .into(),
            Self::TooLarge(len) => {
                format!("a request of {len} bytes does not fit in its memory (max_memory)")
            }
            Self::NotForThis => "it has a handler for POST only".into(),
            Self::NothingToCall => "it registered no handler, and has no symbol my_backend".into(),
            Self::Lost => "its snapshot is damaged, or can't be read any more".into(),
            Self::Machine(what) => format!("the virtual machine failed: {what}"),
        }
    }
}

pub(crate) fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGABRT => "SIGABRT, abort() or a failed assertion",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL",
        libc::SIGBUS => "SIGBUS",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGTERM => "SIGTERM",
        libc::SIGKILL => "SIGKILL",
        libc::SIGPIPE => "SIGPIPE",
        _ => "see signal(7)",
    }
}

/// Which limit of the host to raise, after an error that comes of one.
pub fn what_to_raise(errno: Option<i32>) -> &'static str {
    match errno.unwrap_or_default() {
        libc::EMFILE => {
            "; the process has no more file descriptors, of which a fork takes three: raise RLIMIT_NOFILE (ulimit -n, or \
             LimitNOFILE= of the service), or lower concurrency"
        }
        libc::ENFILE => "; the host has no more file descriptors: raise fs.file-max",
        libc::EAGAIN => {
            "; no thread could be had, of which a virtual machine takes one: raise TasksMax= of the service or RLIMIT_NPROC"
        }
        libc::ENOMEM => "; no memory, or more than vm.max_map_count mappings",
        _ => "",
    }
}

/// Why a request got no answer from the guest. One line of `Display` says what, where, and which limit; the
/// tenant's name is for the caller to add.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No fork became free in time. The client should try again (503 with Retry-After).
    #[error(
        "all {concurrency} forks are busy (concurrency), none came free within {waited:?} (max_wait)"
    )]
    Busy {
        /// How many forks it may have.
        concurrency: usize,
        /// How long the request waited.
        waited: Duration,
    },
    /// All forks are busy, and no more requests may wait. The client should try again (503 with Retry-After).
    #[error("all forks are busy, and {waiting} requests wait for one (max_queue)")]
    QueueFull {
        /// How many may wait.
        waiting: usize,
    },
    /// Another program was to take its place, which took longer than the request's time. The client should try again (503
    /// with Retry-After).
    #[error(
        "another program is taking its place: the storage was not handed over by the request's deadline (max_request_time), or its \
         body can't be passed on as it comes"
    )]
    Replaced,
    /// The guest failed.
    #[error("request failed: {what}")]
    Guest {
        /// What ended it.
        cause: Cause,
        /// In words: what happened, where, and which limit.
        what: String,
    },
    /// The request can't be put to a server: it is the client's failure.
    #[error("the request can't be put into HTTP/1.1: {0}")]
    BadRequest(String),
    /// Nobody read the response in time, and the rest of it had no room.
    #[error(
        "its client did not read the response until the request's deadline (max_request_time), and there was no more room for it (max_response_memory)"
    )]
    NotRead,
    /// It was still being made at its deadline, since whoever reads it takes their time.
    #[error(
        "its client had not read the response at the request's deadline (max_request_time), and the program makes the rest only as it is read"
    )]
    ReadSlowly,
    /// The client should try again (503 with Retry-After).
    #[error("no room for {len} bytes of its response beside the others' (max_response_memory)")]
    NoRoom {
        /// How long it is by now.
        len: u64,
    },
    /// The request was to be debugged, and can't be.
    #[error("{}", if *.busy {
        "another request is being debugged, one at a time can be"
    } else {
        "debugging is not allowed (allow_debug)"
    })]
    NotDebugged {
        /// Another one is being debugged.
        busy: bool,
    },
    /// No fork could be made.
    #[error("no virtual machine for the request: {reason}")]
    NoFork {
        /// Why.
        reason: String,
    },
}

impl Failure {
    /// True if the request was turned away, and may go better later: all forks, all places to wait for one, all room for
    /// responses, or the one place for a debugger were taken, or the host had no memory or descriptors for a fork.
    pub fn is_busy(&self) -> bool {
        matches!(
            self,
            Self::Busy { .. }
                | Self::QueueFull { .. }
                | Self::Replaced
                | Self::NoRoom { .. }
                | Self::NoFork { .. }
                | Self::NotDebugged { busy: true, .. }
        )
    }

    /// True if it is the client's, not the guest's.
    pub fn is_of_client(&self) -> bool {
        matches!(self, Self::BadRequest(_) | Self::NotRead | Self::ReadSlowly)
    }

    /// True if the guest ran out of time.
    pub fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::Guest {
                cause: Cause::Timeout | Cause::DebugTimeout(_),
                ..
            }
        )
    }
}

/// Why a program did not become ready to answer requests. As with [`Failure`], whose it is the caller knows.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// There is no KVM for us.
    #[error(transparent)]
    Kvm(#[from] KvmUnavailable),
    /// The file is not a program we can run.
    #[error("the program can't be loaded: {0}")]
    Elf(#[from] ElfError),
    /// The settings don't fit the program or make no sense.
    #[error("{0}")]
    Setting(String),
    /// `main()` failed.
    #[error("main() failed: {what}")]
    Main {
        /// What ended it.
        cause: Cause,
        /// In words: what happened, where, and which limit.
        what: String,
    },
    /// `main()` is done but nothing can be called.
    #[error(
        "nothing to call: the program registered no handler and has no symbol my_backend{}",
        advice_for_symbols(*.stripped, .mangled.as_deref())
    )]
    NoHandler {
        /// It has no symbol table.
        stripped: bool,
        /// A my_backend with a name that only its own language knows.
        mangled: Option<String>,
    },
    /// The program is to serve, and does not.
    #[error("{0}")]
    NotServing(String),
    /// The host had it end ([`Host::give_way`](crate::Host::give_way)).
    #[error("the boot was stopped")]
    Stopped,
    /// The state of the program before could not be handed over.
    #[error("the state could not be carried over: {0}")]
    State(String),
    /// The host has no memory, descriptors or such for it.
    #[error("the host can't set up the machine: {0}")]
    Host(String),
}

impl BootError {
    /// What a boot comes to that this ended: `as_error`, unless its host had it end.
    pub(crate) fn of(cause: Cause, as_error: impl FnOnce(Cause) -> Self) -> Self {
        match cause {
            Cause::Stopped => Self::Stopped,
            cause => as_error(cause),
        }
    }
}

/// What to do about a program whose function isn't found.
fn advice_for_symbols(stripped: bool, mangled: Option<&str>) -> String {
    match mangled {
        Some(name) => format!(
            " (it has {name}: put KVM_EXPORT or extern \"C\" in front of it, in Rust #[unsafe(no_mangle)] extern \"C\")"
        ),
        None if stripped => " (it is stripped; link without -s, or register a handler)".into(),
        None => String::new(),
    }
}
