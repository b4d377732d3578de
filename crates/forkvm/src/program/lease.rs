//! Forks in use.

use std::sync::Arc;
use std::time::Duration;

use crate::failure::Failure;
use crate::machine::spent::Spent;
use crate::pool::{Origin, Pool};

/// A fork in use. Dropping it puts the fork back and gives it back to the pool, whatever happened. One that is not of the
/// pool is freed.
#[derive(Debug)]
pub struct Lease<O: Origin> {
    pool: Arc<Pool<O>>,
    fork: Option<Box<O::Fork>>,
    of_pool: bool,
    waited: Duration,
}

/// What a request has of a fork.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// The fork's number among its program's, from 1. 0 of a server's.
    pub fork: u32,
    /// How long it was waited for.
    pub waited: Duration,
    /// What it has cost by now.
    pub spent: Spent,
}

impl<O: Origin> Lease<O> {
    /// A fork that was taken from the pool, after this wait.
    pub fn of_pool(pool: Arc<Pool<O>>, fork: Box<O::Fork>, waited: Duration) -> Self {
        Self {
            pool,
            fork: Some(fork),
            of_pool: true,
            waited,
        }
    }

    /// A fork that no other request waits for.
    pub fn own(pool: Arc<Pool<O>>) -> Result<Self, Failure> {
        match pool.origin().fork() {
            Ok(fork) => Ok(Self {
                pool,
                fork: Some(Box::new(fork)),
                of_pool: false,
                waited: Duration::ZERO,
            }),
            Err(error) => Err(Failure::NoFork {
                reason: error.to_string(),
            }),
        }
    }

    /// Where it is from.
    pub fn pool(&self) -> &Arc<Pool<O>> {
        &self.pool
    }

    /// What its request has of it.
    pub fn usage(&self) -> Usage {
        let fork = self.fork.as_deref();
        Usage {
            fork: fork.map_or(0, O::number),
            waited: self.waited,
            spent: fork.map(O::spent).unwrap_or_default(),
        }
    }

    /// The fork.
    pub fn fork(&mut self) -> Result<&mut O::Fork, Failure> {
        // There is one until drop; an error instead of a panic all the same.
        self.fork.as_deref_mut().ok_or_else(|| Failure::NoFork {
            reason: "it was given back".into(),
        })
    }

    /// The same, to look at.
    pub fn look(&self) -> Option<&O::Fork> {
        self.fork.as_deref()
    }
}

impl<O: Origin> Drop for Lease<O> {
    fn drop(&mut self) {
        let Some(mut fork) = self.fork.take() else {
            return;
        };
        self.pool.account().spent(O::spent(&fork));
        if self.of_pool {
            let done = O::put_back(&mut fork);
            self.pool.give_back(fork, done);
        } else {
            self.pool.free(fork);
        }
    }
}
