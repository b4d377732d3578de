//! A response's body, as Varnish reads it.
#![forbid(unsafe_code)]

use forkvm::Answer;
use varnish::vcl::{VclError, VclResponse};

/// What is left of a response's body. It owns the guest's answer, and so the fork, until the fetch is over.
pub struct Response {
    body: Body,
    left: usize,
}

enum Body {
    None,
    Text(&'static str),
    Bytes(std::vec::IntoIter<u8>),
    Guest(Box<Answer>),
}

impl Response {
    /// A response without a body: HEAD, 204, 304.
    pub fn without_body() -> Self {
        Self {
            body: Body::None,
            left: 0,
        }
    }

    /// One that we make ourselves.
    pub fn text(text: &'static str) -> Self {
        Self {
            left: text.len(),
            body: Body::Text(text),
        }
    }

    /// The same, made for this response.
    pub fn bytes(bytes: Vec<u8>) -> Self {
        Self {
            left: bytes.len(),
            body: Body::Bytes(bytes.into_iter()),
        }
    }

    /// The guest's.
    pub fn guest(answer: Answer, len: usize) -> Self {
        Self {
            left: len,
            body: Body::Guest(Box::new(answer)),
        }
    }
}

impl VclResponse for Response {
    /// Fills `buf` from the start, and says with how much. 0 is the end.
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, VclError> {
        let len = buf.len().min(self.left);
        let read = match &mut self.body {
            Body::None => 0,
            Body::Text(text) => {
                let (piece, rest) = text.split_at(len);
                buf[..len].copy_from_slice(piece.as_bytes());
                *text = rest;
                len
            }
            Body::Bytes(bytes) => {
                buf[..len].copy_from_slice(&bytes.as_slice()[..len]);
                bytes.by_ref().take(len).for_each(drop);
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
