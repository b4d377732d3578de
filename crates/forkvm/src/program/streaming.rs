//! A response's body that its program makes part by part, on the thread of whoever reads it.

use std::sync::Arc;
use std::time::Instant;

use crate::call::stream::Stream;
use crate::failure::{Cause, Failure};
use crate::master::Master;
use crate::program::counters::Counters;
use crate::program::lease::Lease;
use crate::program::stay::{Stay, stored};
use crate::request::Host;

/// A body that is made while it is read. It holds the fork; dropping it resets the fork.
#[derive(Debug)]
pub struct Streaming {
    counters: Arc<Counters>,
    lease: Lease<Master>,
    stream: Box<Stream>,
    stay: Option<Stay>,
    /// Address and length of the part that is read, and how much of it has been.
    part: (u64, u64),
    read: u64,
    deadline: Instant,
    failed: Option<Failure>,
}

impl Streaming {
    /// One that has to be read until `deadline`.
    pub(super) fn new(
        counters: Arc<Counters>,
        lease: Lease<Master>,
        stream: Box<Stream>,
        stay: Option<Stay>,
        deadline: Instant,
    ) -> Self {
        Self {
            counters,
            lease,
            stream,
            stay,
            part: (0, 0),
            read: 0,
            deadline,
            failed: None,
        }
    }

    /// When it fails, if it has not been read by then.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// How long it will be in all, if that is known.
    pub fn announced_len(&self) -> Option<u64> {
        self.stream.len()
    }

    /// Copies what comes next to the start of `buf`, and says how much that is: 0 at the body's end, or if `buf` is empty. If
    /// there is nothing it has the program make more, whose output goes to `host`.
    ///
    /// # Errors
    /// The program failed, or the deadline is over: what has come is not all.
    pub fn read(&mut self, buf: &mut [u8], host: &mut dyn Host) -> Result<usize, Failure> {
        if let Some(failure) = &self.failed {
            return Err(failure.clone());
        }
        if buf.is_empty() {
            return Ok(0);
        }
        if self.read == self.part.1 && !self.make(host)? {
            return Ok(0);
        }
        let read = self.lease.fork()?.read_piece(self.part, self.read, buf);
        if read == 0 {
            let what = "a part of its response can't be read any more".into();
            return Err(self.fail(Cause::BadResponse(what)));
        }
        self.read += read as u64;
        Ok(read)
    }

    /// Has the program make the next part. False at the body's end.
    fn make(&mut self, host: &mut dyn Host) -> Result<bool, Failure> {
        // Whoever reads it has had the time until then.
        if Instant::now() >= self.deadline {
            self.failed = Some(Failure::ReadSlowly);
            return Err(Failure::ReadSlowly);
        }
        let most = self.lease.pool().origin().config.limits.max_response_size;
        let fork = self.lease.fork()?;
        let storage = stored(self.stay.as_ref());
        match fork.next_part(&mut self.stream, most, storage, self.deadline, host) {
            Ok(part) => {
                (self.part, self.read) = (part.unwrap_or_default(), 0);
                Ok(part.is_some())
            }
            Err(cause) => Err(self.fail(cause)),
        }
    }

    fn fail(&mut self, cause: Cause) -> Failure {
        let what = self.lease.pool().origin().describe(&cause);
        let failure = self.counters.failed(cause, what);
        self.failed = Some(failure.clone());
        failure
    }
}
