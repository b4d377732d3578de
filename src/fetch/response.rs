//! A response's body, as Varnish reads it.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use forkvm::{Coming, Failure, Piece};
use varnish::vcl::VclError;

use crate::fetch::held::Held;
use crate::fetch::streamed::Streamed;
use crate::tenants::figures::{self, Figures};
use crate::tenants::room::Taken;

/// How often it is looked whether anybody still wants a body, while nothing of it comes.
const LOOK: Duration = Duration::from_millis(100);

/// What is left of a response's body. It owns the guest's answer, and so the fork, until that is kept elsewhere or the
/// fetch is over.
pub struct Response {
    body: Body,
    /// Counts a guest's body, wherever it is.
    _room: Option<Taken>,
    /// Where it is counted what Varnish has taken.
    figures: Option<Arc<Figures>>,
    /// Why the fetch has failed since the response's head was there.
    pub late: Option<Late>,
}

/// What can be found wrong with a response when its head is out.
pub enum Late {
    /// Its header says that the body is gzip, and it is not.
    NoGzip,
    /// Its body has broken off.
    Failed(Failure),
}

enum Body {
    None,
    /// Ours, and how much has been read.
    Own(Cow<'static, [u8]>, usize),
    Guest(Held),
    /// A program makes it as it is read.
    Streamed(Box<Streamed>),
    /// A server's that is still being made, and how long it will be, if that is known.
    Coming(Coming, Option<u64>),
}

impl Response {
    /// A response without a body: HEAD, 204, 304.
    pub fn without_body() -> Self {
        Self::of(Body::None, None)
    }

    /// One that we make ourselves.
    pub fn own(bytes: Cow<'static, [u8]>) -> Self {
        Self::of(Body::Own(bytes, 0), None)
    }

    /// The guest's, which takes `room` until it is dropped.
    pub fn guest(body: Held, room: Taken) -> Self {
        Self::of(Body::Guest(body), Some(room))
    }

    /// A program's that is made while it is read.
    pub fn streamed(body: Streamed) -> Self {
        Self::of(Body::Streamed(Box::new(body)), None)
    }

    /// A server's that is still being made, of this length if that is known.
    pub fn coming(body: Coming, announced: Option<u64>) -> Self {
        Self::of(Body::Coming(body, announced), None)
    }

    /// The same, whose bytes count there.
    pub fn counted_in(mut self, figures: &Arc<Figures>) -> Self {
        self.figures = Some(figures.clone());
        self
    }

    fn of(body: Body, room: Option<Taken>) -> Self {
        Self {
            body,
            _room: room,
            figures: None,
            late: None,
        }
    }

    /// Copies what is left of the guest's body, and gives the fork back: for a body that Varnish does not take in one go.
    pub fn keep(&self) -> Result<(), VclError> {
        match &self.body {
            Body::Guest(held) => held.keep(),
            // Nobody can keep what is not made yet.
            Body::None | Body::Own(..) | Body::Streamed(_) | Body::Coming(..) => Ok(()),
        }
    }

    /// Fills `buf` from the start, and says with how much. 0 is the end. Of a body that is still being made that is what there is,
    /// once there is something, as long as it `is_wanted`: else it ends.
    pub fn read(
        &mut self,
        buf: &mut [u8],
        is_wanted: impl Fn() -> bool,
    ) -> Result<usize, VclError> {
        let read = self.read_on(buf, is_wanted)?;
        if let Some(of) = &self.figures {
            figures::add(&of.sent, read as u64);
        }
        Ok(read)
    }

    fn read_on(&mut self, buf: &mut [u8], is_wanted: impl Fn() -> bool) -> Result<usize, VclError> {
        let failure = match &mut self.body {
            Body::None => return Ok(0),
            Body::Own(bytes, at) => {
                let rest = &bytes[*at..];
                let len = buf.len().min(rest.len());
                buf[..len].copy_from_slice(&rest[..len]);
                *at += len;
                return Ok(len);
            }
            Body::Guest(held) => return held.read(buf),
            Body::Streamed(streamed) => match streamed.read(buf) {
                Ok(read) => return Ok(read),
                Err(failure) => failure,
            },
            Body::Coming(coming, _) => loop {
                match coming.read(buf, LOOK) {
                    Ok(Piece::Bytes(n)) => return Ok(n),
                    Ok(Piece::End) => return Ok(0),
                    Ok(Piece::NotYet) if is_wanted() => {}
                    Ok(Piece::NotYet) => return Ok(0),
                    Err(failure) => break failure,
                }
            },
        };
        let error = VclError::new(failure.to_string());
        self.late = Some(Late::Failed(failure));
        Err(error)
    }

    /// Bytes that are left, unless it is still being made.
    pub fn left(&self) -> Option<usize> {
        match &self.body {
            Body::None => Some(0),
            Body::Own(bytes, at) => Some(bytes.len() - at),
            Body::Guest(held) => Some(held.left()),
            Body::Streamed(_) | Body::Coming(..) => None,
        }
    }

    /// How long it is in all, if that is known before it begins.
    pub fn announced(&self) -> Option<usize> {
        let announced = match &self.body {
            Body::Coming(_, announced) => *announced,
            Body::Streamed(streamed) => streamed.announced(),
            _ => return self.left(),
        };
        announced.and_then(|len| usize::try_from(len).ok())
    }
}
