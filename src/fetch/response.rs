//! A response's body, as Varnish reads it.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use varnish::vcl::{VclError, VclResponse};

use crate::fetch::held::Held;
use crate::tenants::room::Taken;

/// What is left of a response's body. It owns the guest's answer, and so the fork, until that is kept elsewhere or the
/// fetch is over.
pub struct Response {
    body: Body,
    /// Counts a guest's body, wherever it is.
    _room: Option<Taken>,
    /// Its header says that the body is gzip, and it is not.
    pub no_gzip: bool,
}

enum Body {
    None,
    /// Ours, and how much has been read.
    Own(Cow<'static, [u8]>, usize),
    Guest(Held),
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

    fn of(body: Body, room: Option<Taken>) -> Self {
        Self {
            body,
            _room: room,
            no_gzip: false,
        }
    }

    /// Copies what is left of the guest's body, and gives the fork back: for a body that Varnish does not take in one go.
    pub fn keep(&self) -> Result<(), VclError> {
        match &self.body {
            Body::Guest(held) => held.keep(),
            Body::None | Body::Own(..) => Ok(()),
        }
    }
}

impl VclResponse for Response {
    /// Fills `buf` from the start, and says with how much. 0 is the end.
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, VclError> {
        match &mut self.body {
            Body::None => Ok(0),
            Body::Own(bytes, at) => {
                let rest = &bytes[*at..];
                let len = buf.len().min(rest.len());
                buf[..len].copy_from_slice(&rest[..len]);
                *at += len;
                Ok(len)
            }
            Body::Guest(held) => held.read(buf),
        }
    }

    /// Bytes that are left.
    fn len(&self) -> Option<usize> {
        Some(match &self.body {
            Body::None => 0,
            Body::Own(bytes, at) => bytes.len() - at,
            Body::Guest(held) => held.left(),
        })
    }
}
