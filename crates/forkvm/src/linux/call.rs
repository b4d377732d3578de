//! A system call and what comes of it.

use std::time::Duration;

/// A system call as it arrived: number and the six argument registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// RAX.
    pub number: u64,
    /// RDI, RSI, RDX, R10, R8, R9.
    pub args: [u64; 6],
}

/// What the engine has to do after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Resume with this in RAX (an errno is negative).
    Return(i64),
    /// The calling task can't go on for now.
    Block(Wait),
    /// Set the FS base (already checked to be a user address), resume with 0.
    SetFsBase(u64),
    /// Set the GS base (already checked to be a user address), resume with 0.
    SetGsBase(u64),
    /// Write the FS base to this address, resume with 0 or EFAULT.
    GetFsBase(u64),
    /// Write the GS base to this address, resume with 0 or EFAULT.
    GetGsBase(u64),
    /// `exit` or `exit_group` with this status.
    Exit(i32),
    /// The program ended itself by this signal (`abort`, `raise`, `kill` of itself).
    Killed(i32),
}

/// What a task waits for, and how it goes on if that does not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// What would end the wait.
    pub on: WaitOn,
    /// How long it waits at most; without this only what it waits for, or the request's deadline, ends it.
    pub time: Option<Duration>,
    /// RAX once the time is over: 0, or an errno such as ETIMEDOUT (negative).
    pub result: i64,
}

/// What would end a task's wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitOn {
    /// Nothing but time.
    Time,
    /// A wake of the futex at this address.
    Futex(u64),
    /// The other end of a pipe.
    Pipe,
    /// A descriptor that becomes ready.
    Descriptor,
    /// A signal.
    Signal,
}

impl Outcome {
    /// The task sleeps, and resumes with 0.
    pub fn sleep(time: Duration) -> Self {
        Self::Block(Wait {
            on: WaitOn::Time,
            time: Some(time),
            result: 0,
        })
    }
}

impl WaitOn {
    /// Why this does not come where the task is the only one.
    pub fn why_never(self) -> &'static str {
        match self {
            Self::Time => "a sleep without an end",
            Self::Futex(_) => "futex(2): no other thread is there to end the wait",
            Self::Pipe => "a read or write of a pipe: its other end is the program itself",
            Self::Descriptor => {
                "poll(2) or select(2): only the program itself could make a descriptor ready"
            }
            Self::Signal => "a wait for a signal: nobody is there to send one",
        }
    }
}
