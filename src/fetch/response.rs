//! A response's body, as Varnish reads it.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use forkvm::Answer;
use varnish::vcl::{VclError, VclResponse};

/// What is left of a response's body. It owns the guest's answer, and so the fork, until the fetch is over.
pub struct Response {
    body: Body,
    left: usize,
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
            no_gzip: false,
        }
    }

    /// One that we make ourselves.
    pub fn own(bytes: Cow<'static, [u8]>) -> Self {
        Self {
            left: bytes.len(),
            body: Body::Own(bytes),
            no_gzip: false,
        }
    }

    /// The guest's.
    pub fn guest(answer: Answer, len: usize) -> Self {
        Self {
            left: len,
            body: Body::Guest(Box::new(answer)),
            no_gzip: false,
        }
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
            return Err(format!("the body ended {} bytes too early", self.left).into());
        }
        self.left -= read;
        Ok(read)
    }

    /// Bytes that are left.
    fn len(&self) -> Option<usize> {
        Some(self.left)
    }
}
