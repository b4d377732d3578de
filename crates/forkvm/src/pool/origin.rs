//! What a pool's forks are of.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fork::{Fork, ForkError, ResetError};
use crate::machine::spent::Spent;
use crate::master::Master;
use crate::request::Quiet;
use crate::server::{Server, ServerFork};

/// What a pool has forks of: a program or a server, frozen.
pub trait Origin: Debug + Send + Sync + 'static {
    /// A fork.
    type Fork: Debug + Send + 'static;

    /// Makes one.
    fn fork(self: &Arc<Self>) -> Result<Self::Fork, ForkError>;

    /// Has one serve a warm-up request, if there is to be one, for so long at most. False if it is not to be used afterwards.
    fn warm_up(fork: &mut Self::Fork, time: Duration) -> bool;

    /// One's number among those of its program, from 1; 0 of a server's.
    fn number(fork: &Self::Fork) -> u32;

    /// What one's last request has cost by now.
    fn spent(fork: &Self::Fork) -> Spent;

    /// Gets one ready for its next user: in the frozen state, unless its program keeps state.
    fn put_back(fork: &mut Self::Fork) -> Result<(), ResetError>;

    /// Gives what memory a fork has back to the host, which is not to run again: to free it takes longer.
    fn give_memory_back(fork: &Self::Fork);
}

impl Origin for Master {
    type Fork = Fork;

    fn fork(self: &Arc<Self>) -> Result<Fork, ForkError> {
        Fork::new(self.clone())
    }

    fn warm_up(fork: &mut Fork, time: Duration) -> bool {
        fork.warm_up(time)
    }

    fn number(fork: &Fork) -> u32 {
        fork.number()
    }

    fn spent(fork: &Fork) -> Spent {
        fork.spent()
    }

    fn put_back(fork: &mut Fork) -> Result<(), ResetError> {
        fork.put_back()
    }

    fn give_memory_back(fork: &Fork) {
        fork.give_memory_back();
    }
}

impl Origin for Server {
    type Fork = ServerFork;

    fn fork(self: &Arc<Self>) -> Result<ServerFork, ForkError> {
        ServerFork::new(self.clone())
    }

    fn warm_up(fork: &mut ServerFork, time: Duration) -> bool {
        fork.warm_up(Some(Instant::now() + time), &mut Quiet)
            .is_ok()
    }

    fn number(_: &ServerFork) -> u32 {
        0
    }

    fn spent(fork: &ServerFork) -> Spent {
        fork.spent()
    }

    fn put_back(fork: &mut ServerFork) -> Result<(), ResetError> {
        // Nobody looks at a fork again that a panic left half reset: its machine is poisoned.
        catch_unwind(AssertUnwindSafe(|| fork.reset())).unwrap_or(Err(ResetError::Panicked))
    }

    fn give_memory_back(fork: &ServerFork) {
        fork.give_memory_back();
    }
}
