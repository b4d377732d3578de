//! Bodies that a program makes while Varnish reads them. Their forks have to be back at their requests' deadlines, however
//! long VCL or a client takes.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use forkvm::{Failure, Streaming};
use parking_lot::Mutex;

use crate::fetch::due::{Due, Holder};
use crate::varnish::logging::LateOutput;

/// A program's body that is made while it is read.
pub struct Streamed {
    rest: Arc<Rest>,
    _due: Due,
    announced: Option<u64>,
    deadline: Instant,
    is_over: bool,
    output: LateOutput,
}

/// What is still to be made. Nothing while that is done, and at the end.
struct Rest(Mutex<Option<Box<Streaming>>>);

impl Holder for Rest {
    fn give_back(&self) {
        let rest = self.0.lock().take();
        // The reset takes time, which is nobody's who only reads.
        drop(rest);
    }
}

impl Streamed {
    /// What a program of this tenant makes, and prints meanwhile.
    pub fn new(streaming: Box<Streaming>, output: LateOutput) -> Self {
        let (announced, deadline) = (streaming.announced_len(), streaming.deadline());
        let rest = Arc::new(Rest(Mutex::new(Some(streaming))));
        Self {
            _due: Due::at(deadline, &rest),
            rest,
            announced,
            deadline,
            is_over: false,
            output,
        }
    }

    /// How long it is in all, if that is known.
    pub fn announced(&self) -> Option<u64> {
        self.announced
    }

    /// Fills `buf` from the start, and says with how much. 0 is the end.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<usize, Failure> {
        if self.is_over {
            return Ok(0);
        }
        let rest = self.rest.0.lock().take();
        let mut streaming = rest.ok_or(Failure::ReadSlowly)?;
        let read = streaming.read(buf, &mut self.output)?;
        self.is_over = read == 0 && !buf.is_empty();
        // After its deadline nobody else would give it back.
        if !self.is_over && Instant::now() < self.deadline {
            *self.rest.0.lock() = Some(streaming);
        }
        Ok(read)
    }
}
