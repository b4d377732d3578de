//! What a request was answered.

use std::sync::Arc;
use std::time::Instant;

use crate::call::http;
use crate::call::hypercall;
use crate::failure::Failure;
use crate::master::Master;
use crate::program::coming::Coming;
use crate::program::counters::Counters;
use crate::program::lease::{Lease, Usage};
use crate::program::stay::Stay;
use crate::program::streaming::Streaming;
use crate::request::{CachePolicy, Header, Host};
use crate::server::Server;
use crate::server::response;

/// How much of a body is copied at a time.
const PIECE: usize = 64 << 10;

/// A guest's answer. It holds the fork; dropping it resets the fork.
#[derive(Debug)]
pub struct Answer {
    head: Head,
    body: Body,
    /// The length of its body; 0 if it is still being made.
    len: u64,
    /// The length of its body that it tells.
    announced: Option<u64>,
    position: u64,
    failure: Option<Failure>,
    usage: Usage,
}

/// All but the body.
#[derive(Debug)]
struct Head {
    status: u16,
    content_type: Vec<u8>,
    headers: Vec<Header<'static>>,
    cache: Option<CachePolicy>,
}

/// Where the body is.
#[derive(Debug)]
enum Body {
    /// In the fork's memory, at this address.
    Guest(Lease<Master>, u64),
    /// A program makes it while it is read.
    Streaming(Box<Streaming>),
    /// A server's came through its connection; a program's was copied, from where other machines write to.
    Host(Vec<u8>, Option<Kept>),
    /// A server's that is still being made.
    Coming(Coming),
    /// Its reader has it.
    Taken,
}

/// The fork that a body on the host was made in, so that there are no more of these than forks.
#[derive(Debug)]
#[allow(dead_code, reason = "for their drop")]
enum Kept {
    Program(Lease<Master>),
    Server(Lease<Server>),
}

impl Answer {
    /// A program's, which has these counters, perhaps after this failure. A body that is still being made has until `deadline`, and its
    /// request's right to storage.
    ///
    /// # Errors
    /// [`Failure::NoRoom`]: the host has no memory for a body that has to be copied.
    pub(super) fn of_guest(
        (counters, stay): (&Arc<Counters>, Option<Stay>),
        lease: Lease<Master>,
        response: hypercall::Response,
        failure: Option<Failure>,
        deadline: Instant,
    ) -> Result<Self, Failure> {
        let announced = response.body.len();
        let usage = lease.usage();
        let (body, len) = match response.body {
            hypercall::Body::Whole(address, len) => (Body::in_guest(lease, (address, len))?, len),
            hypercall::Body::Streamed(stream) => {
                let streaming = Streaming::new(counters.clone(), lease, stream, stay, deadline);
                (Body::Streaming(Box::new(streaming)), 0)
            }
        };
        Ok(Self {
            head: Head {
                status: response.status,
                content_type: response.content_type,
                headers: response.headers,
                cache: response.cache,
            },
            announced,
            body,
            len,
            position: 0,
            failure,
            usage,
        })
    }

    /// A server's, to a request whose method is HEAD or not.
    pub(super) fn of_server(
        lease: Lease<Server>,
        head: response::Head,
        body: Vec<u8>,
        to_head: bool,
    ) -> Self {
        let (length, len) = (head.length, body.len() as u64);
        let usage = lease.usage();
        Self {
            head: of_server(head),
            len,
            announced: if to_head { length } else { Some(len) },
            body: Body::Host(body, Some(Kept::Server(lease))),
            position: 0,
            failure: None,
            usage,
        }
    }

    /// A server's, whose body is still being made, by a fork that has this to its account so far.
    pub(super) fn of_server_in_pieces(head: response::Head, coming: Coming, usage: Usage) -> Self {
        Self {
            announced: head.length,
            head: of_server(head),
            len: 0,
            body: Body::Coming(coming),
            position: 0,
            failure: None,
            usage,
        }
    }

    /// Gives the fork back now, of a body that is there: a program's is copied, if there is memory for that.
    pub fn release(&mut self) {
        match &mut self.body {
            Body::Host(_, lease) => drop(lease.take()),
            Body::Guest(..) => {
                let mut bytes = Vec::new();
                let len = usize::try_from(self.len).unwrap_or(usize::MAX);
                if bytes.try_reserve_exact(len).is_ok() {
                    bytes.resize(len, 0);
                    self.copy_body(0, &mut bytes);
                    self.body = Body::Host(bytes, None);
                }
            }
            Body::Streaming(_) | Body::Coming(_) | Body::Taken => {}
        }
    }

    /// When the fork has to be back of a body that a program makes while it is read.
    pub fn due(&self) -> Option<Instant> {
        match &self.body {
            Body::Streaming(streaming) => Some(streaming.deadline()),
            Body::Guest(..) | Body::Host(..) | Body::Coming(_) | Body::Taken => None,
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

    /// Takes the body, if a program makes it while it is read: the other functions know nothing of it.
    pub fn take_streaming(&mut self) -> Option<Box<Streaming>> {
        match std::mem::replace(&mut self.body, Body::Taken) {
            Body::Streaming(streaming) => Some(streaming),
            body => {
                self.body = body;
                None
            }
        }
    }

    /// Has a body be made to its end that a program makes while it is read, and keeps it, for who wants it in one piece. `room`
    /// is asked for so many bytes more of memory.
    ///
    /// # Errors
    /// The program failed, or there is no room.
    pub fn complete(
        &mut self,
        host: &mut dyn Host,
        mut room: impl FnMut(u64) -> bool,
    ) -> Result<(), Failure> {
        let Body::Streaming(streaming) = &mut self.body else {
            return Ok(());
        };
        let (mut bytes, mut piece) = (Vec::new(), vec![0; PIECE]);
        while let read @ 1.. = streaming.read(&mut piece, host)? {
            if !room(read as u64) || bytes.try_reserve(read).is_err() {
                let len = (bytes.len() + read) as u64;
                return Err(Failure::NoRoom { len });
            }
            bytes.extend_from_slice(&piece[..read]);
        }
        self.len = bytes.len() as u64;
        self.announced = Some(self.len);
        self.body = Body::Host(bytes, None);
        Ok(())
    }

    /// The status, 200 to 599.
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// The content type; may be empty, and then a header. Free of control characters.
    pub fn content_type(&self) -> &[u8] {
        &self.head.content_type
    }

    /// The other headers: valid names and values, none that belong to the connection or to framing.
    pub fn headers(&self) -> &[Header<'static>] {
        &self.head.headers
    }

    /// How long it may be cached; `None` if the guest did not allow that, or only by its headers.
    pub fn cache(&self) -> Option<CachePolicy> {
        self.head.cache
    }

    /// The failure before, if this is the answer of `on_error`.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// What it has of its fork, up to the head of what is still being made.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Length of the whole body in bytes. 0 if it is still being made.
    pub fn body_len(&self) -> u64 {
        self.len
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
            Body::Guest(lease, address) => lease.look().map_or(0, |fork| {
                fork.read_piece((*address, self.len), position, buf)
            }),
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
            Body::Streaming(_) | Body::Taken => 0,
        }
    }
}

impl Body {
    /// One that is at this address and has this length, or a copy of it where other machines may write to it: whoever looks at its
    /// start and reads it later is to find the same.
    fn in_guest(lease: Lease<Master>, (address, len): (u64, u64)) -> Result<Self, Failure> {
        let fork = lease.look().filter(|fork| fork.shares(address, len));
        let Some(fork) = fork else {
            return Ok(Self::Guest(lease, address));
        };
        let no_room = || Failure::NoRoom { len };
        let mut bytes = Vec::new();
        let count = usize::try_from(len).map_err(|_| no_room())?;
        bytes.try_reserve_exact(count).map_err(|_| no_room())?;
        bytes.resize(count, 0);
        fork.read_piece((address, len), 0, &mut bytes);
        Ok(Self::Host(bytes, Some(Kept::Program(lease))))
    }
}

fn of_server(head: response::Head) -> Head {
    let mut headers = head.headers;
    http::strip_named_by_connection(&mut headers);
    http::strip_connection_headers(&mut headers);
    Head {
        status: head.status,
        // It is among the headers.
        content_type: Vec::new(),
        headers,
        cache: None,
    }
}
