//! A system call and what comes of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::image::exec::Command;

/// A system call as it arrived: number and the six argument registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// RAX.
    pub number: u64,
    /// RDI, RSI, RDX, R10, R8, R9.
    pub args: [u64; 6],
    /// RSP.
    pub rsp: u64,
}

/// What the engine has to do after a call.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Another task may run.
    Yield,
    /// Go on as the child that fork(2) would make, where that is served; its id goes here.
    Fork(Option<u64>),
    /// Make a thread, and resume with its id.
    Clone(NewThread),
    /// `exit` of a thread, of the program if it is the last.
    ExitThread(i32),
    /// Go on where a signal's handler has interrupted the task.
    ReturnFromHandler,
    /// Run this program instead.
    Exec(Box<Command>),
    /// `exit_group`, or `exit` of the only thread, with this status.
    Exit(i32),
    /// The program ended itself by this signal (`abort`, `raise`, `kill` of itself).
    Killed(i32),
}

/// A thread to be made, as clone(2) has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewThread {
    /// Its stack pointer; without one it has its maker's.
    pub stack: Option<u64>,
    /// Its FS base; without one it has its maker's.
    pub tls: Option<u64>,
    /// Where its id goes for its maker.
    pub parent_tid: Option<u64>,
    /// Where its id goes for itself.
    pub child_tid: Option<u64>,
    /// Where a zero goes when it ends.
    pub clear_child_tid: Option<u64>,
}

/// What became of a task that waits, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retried {
    /// It can run.
    Runnable,
    /// It waits on.
    Waits,
    /// It waits on, but its call has done a part of its work, so that another may be able to go on.
    Moved,
    /// Its call ended the program by this signal.
    Killed(i32),
}

/// What a task waits for, and how it goes on if that does not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// What would end the wait.
    pub on: WaitOn,
    /// How long it waits at most; without this only what it waits for, or the request's deadline, ends it.
    pub time: Option<Duration>,
    /// RAX once the time is over: 0, or an errno such as ETIMEDOUT (negative).
    pub result: i64,
}

/// What would end a task's wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WaitOn {
    /// Nothing but time.
    Time,
    /// A wake of the futex at this address.
    Futex {
        /// The futex.
        address: u64,
        /// `FUTEX_WAIT_BITSET`'s bits.
        bits: u32,
    },
    /// A wake of any of the futexes that the task keeps ([`Task::futexes`](crate::linux::tasks::task::Task::futexes)).
    Futexes,
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
            Self::Futex { .. } | Self::Futexes => {
                "futex(2): no other thread is there to end the wait"
            }
            Self::Pipe => "a read or write of a pipe: its other end is the program itself",
            Self::Descriptor => {
                "a wait for a descriptor (poll(2), epoll_wait(2), accept(2), recv(2)): only the program itself could end it"
            }
            Self::Signal => "a wait for a signal: nobody is there to send one",
        }
    }
}
