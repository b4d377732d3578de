//! Forks in use.

use std::sync::Arc;

use crate::failure::Failure;
use crate::pool::{Origin, Pool};

/// A fork in use. Dropping it puts the fork back and gives it back to the pool, whatever happened. One that is not of the
/// pool is freed.
#[derive(Debug)]
pub struct Lease<O: Origin> {
    pool: Arc<Pool<O>>,
    fork: Option<Box<O::Fork>>,
    of_pool: bool,
}

impl<O: Origin> Lease<O> {
    /// A fork that was taken from the pool.
    pub fn of_pool(pool: Arc<Pool<O>>, fork: Box<O::Fork>) -> Self {
        Self {
            pool,
            fork: Some(fork),
            of_pool: true,
        }
    }

    /// A fork that no other request waits for.
    pub fn own(pool: Arc<Pool<O>>) -> Result<Self, Failure> {
        match pool.origin().fork() {
            Ok(fork) => Ok(Self {
                pool,
                fork: Some(Box::new(fork)),
                of_pool: false,
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
        match self.fork.take() {
            Some(mut fork) if self.of_pool => {
                let done = O::put_back(&mut fork);
                self.pool.give_back(fork, done);
            }
            Some(fork) => self.pool.free(fork),
            None => {}
        }
    }
}
