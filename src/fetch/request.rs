//! A request as Varnish has it, made into what the engine takes.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::sync::Arc;

use forkvm::{Header, Request};
use varnish::vcl::BodyState;

use crate::tenants::tenant::{BodyRoom, Tenant};
use crate::varnish::fetch::Fetch;

/// Room for a body is taken, and memory allocated, at least so many bytes at a time.
const STEP: usize = 64 << 10;

/// What a program is asked.
pub struct Asked<'c> {
    method: String,
    url: Vec<u8>,
    arg: Vec<u8>,
    /// Where Varnish has them.
    headers: Vec<Header<'c>>,
    body: Body,
}

impl<'c> Asked<'c> {
    /// The fetch's request with its body, but with a URL and an argument of VCL's choice.
    pub fn read(
        fetch: &mut Fetch<'_, 'c>,
        url: Vec<u8>,
        arg: Vec<u8>,
        tenant: &Arc<Tenant>,
    ) -> Result<Self, BadBody> {
        Ok(Self {
            method: fetch.method(),
            url,
            arg,
            headers: headers(fetch),
            body: Body::read(fetch, tenant)?,
        })
    }

    /// The fetch's request as if it were a GET: its body is not the program's business.
    pub fn get(fetch: &Fetch<'_, 'c>) -> Self {
        let mut headers = headers(fetch);
        headers.retain(|header| !is_of_body(&header.name));
        Self {
            method: "GET".into(),
            url: fetch.url(),
            arg: Vec::new(),
            headers,
            body: Body::none(None),
        }
    }

    /// Leaves out the headers that have this value.
    pub fn conceal(&mut self, value: &[u8]) {
        let value = value.trim_ascii();
        self.headers
            .retain(|header| header.value.trim_ascii() != value);
    }

    /// Whether the answer has no body.
    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// As the engine takes it.
    pub fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            url: &self.url,
            arg: &self.arg,
            headers: &self.headers,
            body: &self.body.bytes,
        }
    }
}

/// All request headers but Proxy-Connection, the one of the connection that Varnish passes on.
fn headers<'c>(fetch: &Fetch<'_, 'c>) -> Vec<Header<'c>> {
    fetch
        .headers()
        .filter(|(name, _)| !name.eq_ignore_ascii_case("proxy-connection"))
        .map(|(name, value)| Header::new(name, value))
        .collect()
}

/// Whether a header says something about the request's body.
fn is_of_body(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("content-") || matches!(&*name, "transfer-encoding" | "expect" | "x-sha256")
}

/// A request body. Counts as in memory until it is dropped.
pub struct Body {
    bytes: Vec<u8>,
    room: Option<BodyRoom>,
}

/// Why there is no request body to hand to the guest.
#[derive(Debug, thiserror::Error)]
pub enum BadBody {
    /// More than max_request_memory.
    #[error("the request body is larger than max_request_memory")]
    TooLarge,
    /// Too many others are in memory.
    #[error("too many request bodies wait for a fork (concurrency x max_request_memory)")]
    NoRoom,
    /// The client went away, or the like.
    #[error("request body: {0}")]
    Unreadable(String),
}

impl Body {
    /// Reads the body of the fetch's request.
    fn read(fetch: &mut Fetch<'_, '_>, tenant: &Arc<Tenant>) -> Result<Self, BadBody> {
        let limit = tenant.settings.config.limits.max_request_memory as usize;
        Self::bounded(fetch, limit, Some(tenant.body_room()))
    }

    /// Reads the body of the fetch's request, up to `limit` bytes.
    pub fn bounded(
        fetch: &mut Fetch<'_, '_>,
        limit: usize,
        room: Option<BodyRoom>,
    ) -> Result<Self, BadBody> {
        let mut body = Self::none(room);
        let state = fetch
            .body_state()
            .map_err(|error| BadBody::Unreadable(error.to_string()))?;
        match state {
            BodyState::None => return Ok(body),
            BodyState::Error => return Err(BadBody::Unreadable("reading it failed".into())),
            BodyState::Taken => {
                return Err(BadBody::Unreadable(
                    "already consumed (use std.cache_req_body() to retry)".into(),
                ));
            }
            _ => {}
        }
        let announced = fetch.content_length().unwrap_or(0);
        if announced > limit as u64 {
            return Err(BadBody::TooLarge);
        }
        let mut sink = Sink {
            body: &mut body,
            limit,
            refused: None,
        };
        let result = fetch.read_body(&mut sink);
        match (sink.refused, result) {
            (Some(bad), _) => Err(bad),
            (None, Err(error)) => Err(BadBody::Unreadable(error.to_string())),
            (None, Ok(_)) => Ok(body),
        }
    }

    /// No body yet.
    fn none(room: Option<BodyRoom>) -> Self {
        Self {
            bytes: Vec::new(),
            room,
        }
    }

    /// The whole body, to be kept.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Takes a body from Varnish piece by piece, up to a limit.
struct Sink<'a> {
    body: &'a mut Body,
    limit: usize,
    refused: Option<BadBody>,
}

impl Sink<'_> {
    fn grow(&mut self, len: usize) -> Result<(), BadBody> {
        let bytes = &mut self.body.bytes;
        let needed = bytes.len().saturating_add(len);
        if needed > self.limit {
            return Err(BadBody::TooLarge);
        }
        if needed > bytes.capacity() {
            // Twice as much each time, so that a long body isn't copied again and again.
            let capacity = needed
                .max(STEP)
                .max(bytes.capacity().saturating_mul(2))
                .min(self.limit);
            let more = (capacity - bytes.capacity()) as u64;
            if self.body.room.as_mut().is_some_and(|room| !room.take(more))
                || bytes.try_reserve_exact(capacity - bytes.len()).is_err()
            {
                return Err(BadBody::NoRoom);
            }
        }
        Ok(())
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if let Err(bad) = self.grow(piece.len()) {
            let error = io::Error::other(bad.to_string());
            self.refused = Some(bad);
            return Err(error);
        }
        self.body.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
