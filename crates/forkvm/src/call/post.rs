//! A request whose body its program takes segment by segment, while it comes.

use std::time::Instant;

use crate::call::function::{self, Ended};
use crate::call::handlers::Handlers;
use crate::call::http::Exchange;
use crate::call::hypercall::Response;
use crate::call::stored::Stored;
use crate::call::structure::{self, Place};
use crate::call::wait_point::{Circumstances, WaitPoint};
use crate::failure::Cause;
use crate::machine::Machine;
use crate::request::{Host, Request};

/// The longest segment.
pub const SEGMENT: usize = 64 << 10;

/// A request whose body is coming.
#[derive(Debug)]
pub struct Post {
    exchange: Exchange<'static>,
    /// The URL, the argument and the content type in the program's memory.
    texts: [u64; 3],
    /// Room for a segment there.
    segment: Place,
    /// How much has come.
    offset: u64,
}

impl WaitPoint {
    /// Has the program's memory hold what its handler is told of a request, but for its body. Inside of [`Machine::watched`].
    pub fn begin_post(&self, machine: &mut Machine, request: &Request<'_>) -> Result<Post, Cause> {
        let request = Request {
            body: &[],
            ..*request
        };
        let mut exchange = Exchange::new(&request);
        let written = structure::write(machine, &self.layout, &exchange, Circumstances::default())?;
        Ok(Post {
            exchange: exchange.keep(),
            texts: [written.url, written.arg, written.content_type],
            segment: structure::place_for_request(machine, &self.layout, SEGMENT as u64)?,
            offset: 0,
        })
    }

    /// Calls the handler with a segment of at most [`SEGMENT`] bytes, or none at the body's end. The response, if it answers.
    /// Inside of [`Machine::watched_on`] with the same deadline.
    pub fn post(
        &self,
        machine: &mut Machine,
        post: &mut Post,
        segment: &[u8],
        storage: Option<&dyn Stored>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Option<Response>, Cause> {
        let handler = self.handlers.get(Handlers::STREAM_POST);
        let handler = handler.ok_or(Cause::NothingToCall)?;
        let len = segment.len() as u64;
        let address = match segment {
            [] => 0,
            _ => {
                let mut place = post.segment;
                place.bytes(&mut machine.memory, segment)?
            }
        };
        let [url, arg, content_type] = post.texts;
        // As every call from outside finds the processor.
        machine.vcpu().set_sregs_at_next_run(self.sregs);
        machine.vcpu().clear_events_at_next_run(self.events);
        let arguments = [url, arg, content_type, address, len, post.offset];
        self.enter_function(machine, handler, arguments)?;
        match function::run(machine, &mut post.exchange, storage, deadline, host)? {
            Ended::Responded(response) => Ok(Some(response)),
            Ended::Returned(..) if len == 0 => Err(Cause::NoResponse),
            Ended::Returned(taken, _) if taken == len => {
                post.offset += len;
                Ok(None)
            }
            Ended::Returned(taken, _) => Err(Cause::RefusedBody {
                taken: taken as i64,
                len,
            }),
        }
    }
}
