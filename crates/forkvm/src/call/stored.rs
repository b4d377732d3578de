//! A program's storage as its machines see it: what they may ask of it, and why it is not done.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use crate::memory::guest::GuestMemory;
use crate::memory::user::BadAddress;
use crate::request::Host;

/// Most buffers of a call.
pub const MOST_BUFFERS: u64 = 64;
/// Longest data of a task.
pub const MOST_TASK_DATA: u64 = 64 << 10;

/// Why a call of storage was not carried out, or has failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotStored {
    /// There is none, or it may not be called from here.
    #[error("there is no storage to call here (setting storage; none in warm-up requests)")]
    None,
    /// It is the caller.
    #[error("storage can't call itself")]
    Nested,
    /// More buffers than a call may have.
    #[error("it has {0} buffers, more than {MOST_BUFFERS}")]
    Buffers(u64),
    /// The caller can't read its buffers, or can't write to where the result is to be.
    #[error("{what} of {len} bytes: {bad}")]
    Bad {
        /// Which.
        what: &'static str,
        /// How long it is said to be.
        len: u64,
        /// Where.
        bad: BadAddress,
    },
    /// Its buffers are too long.
    #[error("its buffers have {len} bytes, more than {most} (max_request_memory)")]
    Long {
        /// All of them.
        len: u64,
        /// What they may have.
        most: u64,
    },
    /// The storage's heap is full.
    #[error("its buffers ({0} bytes) do not fit in the storage's memory (max_memory)")]
    NoRoom(u64),
    /// The program has not allowed it.
    #[error("{0} is no function that the storage's main() has allowed (storage_allow)")]
    NotAllowed(String),
    /// The deadline was over before it had its turn.
    #[error("it did not have its turn in the request's time")]
    Busy,
    /// The storage failed in it: how.
    #[error("the storage failed: {0}")]
    Failed(String),
    /// It takes longer than the caller could wait.
    #[error(
        "it was not done by the request's deadline (max_request_time); the storage goes on with it, without a caller"
    )]
    Late,
    /// The state of a live update is refused: why.
    #[error("{0}")]
    State(String),
    /// Its host had it end.
    #[error("it was stopped")]
    Stopped,
    /// The storage is not there: why.
    #[error("the storage can't be started again: {0}")]
    Down(String),
    /// Its function gave no result that fits.
    #[error(
        "its result of {len} bytes is not within the {room} bytes that there are for it, or not in the storage's memory"
    )]
    Result {
        /// The result's length.
        len: u64,
        /// What there is for it.
        room: u64,
    },
    /// A task's data or times are out of bounds.
    #[error("a task may have {MOST_TASK_DATA} bytes of data, and times of a year")]
    BadTask,
    /// There are as many tasks as may be.
    #[error("there are {0} tasks already")]
    Tasks(usize),
}

/// A piece of the caller's memory: user address and length.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// Where it begins.
    pub address: u64,
    /// Its bytes.
    pub len: u64,
}

/// A call of a function of the storage's.
#[derive(Debug)]
pub struct StorageCall {
    /// The function's address.
    pub function: u64,
    /// What it is given.
    pub buffers: Vec<Piece>,
    /// Bytes of all of them, with their array, as the storage has them.
    pub len: u64,
    /// Room for its result.
    pub result: Piece,
    /// [`Access::loops`]
    pub loops: usize,
}

/// A task, to be run in the storage machine.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// The function's address.
    pub function: u64,
    /// What it gets.
    pub data: Vec<u8>,
    /// When it is to run first, from now on.
    pub start: Duration,
    /// After which time it is to run again, if it is.
    pub period: Option<Duration>,
    /// [`Access::loops`] of who has it run.
    pub loops: usize,
}

/// A program's storage, as its other machines see it; or its tasks only, as it sees itself.
pub trait Stored: Debug + Sync {
    /// Most bytes of a call's buffers.
    fn longest(&self) -> u64 {
        u64::MAX
    }

    /// Calls a function, whose buffers and result are in this memory. Gives the result's length.
    fn call(
        &self,
        call: &StorageCall,
        caller: &mut GuestMemory,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<u64, NotStored> {
        let _ = (call, caller, deadline, host);
        Err(NotStored::Nested)
    }

    /// Has a task run. Gives its number, from 1 on.
    fn add_task(&self, task: NewTask) -> Result<u32, NotStored>;

    /// Takes a task off the list. False if it is not on it.
    fn stop_task(&self, number: u64) -> bool;
}

/// What a program that runs may do beside what its machine is for.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// Call this storage.
    pub storage: &'a dyn Stored,
    /// How often in a row its program has asked its own Varnish by now, for the request that it runs for.
    pub loops: usize,
}
