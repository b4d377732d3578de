//! What a request was answered.

use crate::call::http;
use crate::call::hypercall::Response;
use crate::failure::Failure;
use crate::master::Master;
use crate::program::coming::Coming;
use crate::program::lease::Lease;
use crate::request::{CachePolicy, Header};
use crate::server::Server;
use crate::server::response::Head;

/// A guest's answer. It holds the fork; dropping it resets the fork.
#[derive(Debug)]
pub struct Answer {
    response: Response,
    body: Body,
    /// The length of its body that it tells.
    announced: Option<u64>,
    position: u64,
    failure: Option<Failure>,
}

/// Where the body is.
#[derive(Debug)]
enum Body {
    /// In the fork's memory.
    Guest(Lease<Master>),
    /// A server's came through its connection.
    Host(
        Vec<u8>,
        #[allow(dead_code, reason = "for its drop")] Option<Lease<Server>>,
    ),
    /// A server's that is still being made.
    Coming(Coming),
    /// Its reader has it.
    Taken,
}

impl Answer {
    /// A program's, perhaps after this failure.
    pub(super) fn of_guest(
        lease: Lease<Master>,
        response: Response,
        failure: Option<Failure>,
    ) -> Self {
        Self {
            announced: Some(response.body.1),
            response,
            body: Body::Guest(lease),
            position: 0,
            failure,
        }
    }

    /// A server's, to a request whose method is HEAD or not.
    pub(super) fn of_server(
        lease: Lease<Server>,
        head: Head,
        body: Vec<u8>,
        to_head: bool,
    ) -> Self {
        let (length, len) = (head.length, body.len() as u64);
        Self {
            response: response(head, len),
            announced: if to_head { length } else { Some(len) },
            body: Body::Host(body, Some(lease)),
            position: 0,
            failure: None,
        }
    }

    /// A server's, whose body is still being made.
    pub(super) fn of_server_in_pieces(head: Head, coming: Coming) -> Self {
        Self {
            announced: head.length,
            response: response(head, 0),
            body: Body::Coming(coming),
            position: 0,
            failure: None,
        }
    }

    /// Gives a server's fork back now: it is not needed for what is there already.
    pub fn release(&mut self) {
        if let Body::Host(_, lease) = &mut self.body {
            lease.take();
        }
    }

    /// Takes the body, if it is still being made: the other functions know nothing of what has come of it since.
    pub fn take_coming(&mut self) -> Option<Coming> {
        match std::mem::replace(&mut self.body, Body::Taken) {
            Body::Coming(coming) => Some(coming),
            body => {
                self.body = body;
                None
            }
        }
    }

    /// The status, 200 to 599.
    pub fn status(&self) -> u16 {
        self.response.status
    }

    /// The content type; may be empty, and then a header. Free of control characters.
    pub fn content_type(&self) -> &[u8] {
        &self.response.content_type
    }

    /// The other headers: valid names and values, none that belong to the connection or to framing.
    pub fn headers(&self) -> &[Header<'static>] {
        &self.response.headers
    }

    /// How long it may be cached; `None` if the guest did not allow that, or only by its headers.
    pub fn cache(&self) -> Option<CachePolicy> {
        self.response.cache
    }

    /// The failure before, if this is the answer of `on_error`.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Length of the whole body in bytes. 0 if it is still being made.
    pub fn body_len(&self) -> u64 {
        self.response.body.1
    }

    /// What Content-Length is to be: the body's length, or for HEAD what it would be for GET, if that is known.
    pub fn announced_len(&self) -> Option<u64> {
        self.announced
    }

    /// Copies the start of the body, to look at it, and says how much that is. [`Answer::read_body`] begins there all the
    /// same.
    pub fn body_start(&self, buf: &mut [u8]) -> usize {
        self.copy_body(0, buf)
    }

    /// Copies the next piece of the body. 0 at its end.
    pub fn read_body(&mut self, buf: &mut [u8]) -> usize {
        // What is still being made is read by who takes it.
        if matches!(self.body, Body::Coming(_)) {
            return 0;
        }
        let n = self.copy_body(self.position, buf);
        self.position += n as u64;
        n
    }

    fn copy_body(&self, position: u64, buf: &mut [u8]) -> usize {
        match &self.body {
            Body::Guest(lease) => lease
                .look()
                .map_or(0, |fork| fork.read_body(&self.response, position, buf)),
            Body::Host(bytes, _) => {
                let rest = usize::try_from(position)
                    .ok()
                    .and_then(|at| bytes.get(at..));
                let rest = rest.unwrap_or_default();
                let len = buf.len().min(rest.len());
                buf[..len].copy_from_slice(&rest[..len]);
                len
            }
            Body::Coming(coming) => coming.look(buf),
            Body::Taken => 0,
        }
    }
}

fn response(head: Head, len: u64) -> Response {
    let mut headers = head.headers;
    http::strip_named_by_connection(&mut headers);
    http::strip_connection_headers(&mut headers);
    Response {
        status: head.status,
        // It is among the headers.
        content_type: Vec::new(),
        headers,
        cache: None,
        body: (0, len),
    }
}
