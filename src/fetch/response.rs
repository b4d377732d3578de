//! A response's body, as Varnish reads it.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use forkvm::Answer;
use varnish::vcl::{VclError, VclResponse};

use crate::tenants::tenant::ResponseRoom;

/// What is left of a response's body. It owns the guest's answer, and so the fork, until that is kept elsewhere or the
/// fetch is over.
pub struct Response {
    body: Body,
    left: usize,
    /// Counts a guest's body, wherever it is.
    _room: Option<ResponseRoom>,
    /// Its header says that the body is gzip, and it is not.
    pub no_gzip: bool,
}

enum Body {
    None,
    Own(Cow<'static, [u8]>),
    Guest(Box<Answer>),
}

impl Response {
    /// A response without a body: HEAD, 204, 304.
    pub fn without_body() -> Self {
        Self {
            body: Body::None,
            left: 0,
            _room: None,
            no_gzip: false,
        }
    }

    /// One that we make ourselves.
    pub fn own(bytes: Cow<'static, [u8]>) -> Self {
        Self {
            left: bytes.len(),
            body: Body::Own(bytes),
            _room: None,
            no_gzip: false,
        }
    }

    /// The guest's, which takes `room` until it is dropped.
    pub fn guest(answer: Answer, len: usize, room: ResponseRoom) -> Self {
        Self {
            left: len,
            body: Body::Guest(Box::new(answer)),
            _room: Some(room),
            no_gzip: false,
        }
    }

    /// Copies what is left of the guest's body, and gives the fork back: for a body that Varnish does not take in one go.
    pub fn keep(&mut self) -> Result<(), VclError> {
        let Body::Guest(answer) = &mut self.body else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(self.left)
            .map_err(|_| format!("no memory for a response of {} bytes", self.left))?;
        bytes.resize(self.left, 0);
        let mut at = 0;
        while at < bytes.len() {
            match answer.read_body(&mut bytes[at..]) {
                0 => return Err(ended_early(bytes.len() - at)),
                read => at += read,
            }
        }
        self.body = Body::Own(bytes.into());
        Ok(())
    }
}

impl VclResponse for Response {
    /// Fills `buf` from the start, and says with how much. 0 is the end.
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, VclError> {
        let len = buf.len().min(self.left);
        let read = match &mut self.body {
            Body::None => 0,
            Body::Own(bytes) => {
                let rest = &bytes[bytes.len() - self.left..];
                buf[..len].copy_from_slice(&rest[..len]);
                len
            }
            Body::Guest(answer) => answer.read_body(&mut buf[..len]),
        };
        if read == 0 && self.left > 0 {
            return Err(ended_early(self.left));
        }
        self.left -= read;
        Ok(read)
    }

    /// Bytes that are left.
    fn len(&self) -> Option<usize> {
        Some(self.left)
    }
}

fn ended_early(left: usize) -> VclError {
    format!("the body ended {left} bytes too early").into()
}
