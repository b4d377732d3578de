//! Request bodies: how much of one, and how slowly, is taken from a client.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::time::{Duration, Instant};

use varnish::vcl::BodyState;

use crate::fetch::pace::{Pace, Slow};
use crate::tenants::room::Taken;
use crate::tenants::tenant::Tenant;
use crate::varnish::fetch::Fetch;

/// Room for a body is taken, and memory allocated, at least so many bytes at a time, unless it is announced as shorter.
const STEP: usize = 64 << 10;
/// Most of a body that is read only to be thrown away, and how long that may take: a client that is still sending may lose
/// the answer when its connection is closed, but for a longer one it has to do without.
const DISCARDED: usize = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(10);

/// What limits a program's request bodies.
pub const OF_PROGRAMS: &str = "max_request_memory";

/// A request body. Counts as in memory until it is dropped.
pub struct Body {
    bytes: Vec<u8>,
    room: Option<Taken>,
}

/// Why there is no request body to hand to the guest.
#[derive(Debug, thiserror::Error)]
pub enum BadBody {
    /// More than this setting says.
    #[error("the request body is larger than {0}")]
    TooLarge(&'static str),
    /// Too many others are in memory.
    #[error(
        "no room for the request body beside the others ((concurrency + 1) x max_request_memory)"
    )]
    NoRoom,
    /// The client takes its time.
    #[error("the request body {0}")]
    Slow(#[from] Slow),
    /// The client went away, or the like.
    #[error("request body: {0}")]
    Unreadable(String),
}

impl Body {
    /// Reads the body of the fetch's request, for the tenant's program.
    pub fn of_request(fetch: &mut Fetch<'_, '_>, tenant: &Tenant) -> Result<Self, BadBody> {
        let limit = tenant.settings.config.limits.max_request_memory as usize;
        Self::of_tenant(tenant).read(fetch, limit, tenant.settings.values.max_body_time)
    }

    /// Nothing yet of a body for a tenant.
    pub fn of_tenant(tenant: &Tenant) -> Self {
        Self {
            bytes: Vec::new(),
            room: Some(Taken::nothing(&tenant.bodies)),
        }
    }

    /// Adds a piece; there will be no more than `most` bytes.
    pub fn push(&mut self, piece: &[u8], most: usize) -> Result<(), BadBody> {
        let needed = self.bytes.len().saturating_add(piece.len());
        if needed > self.bytes.capacity() {
            self.grow(needed, most)?;
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// Reads an upload, up to `limit` bytes.
    pub fn of_upload(
        fetch: &mut Fetch<'_, '_>,
        limit: usize,
        tenant: &Tenant,
    ) -> Result<Vec<u8>, BadBody> {
        let time = tenant.settings.values.max_body_time;
        Ok(Self::none().read(fetch, limit, time)?.bytes)
    }

    /// No body.
    pub fn none() -> Self {
        Self {
            bytes: Vec::new(),
            room: None,
        }
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn read(
        mut self,
        fetch: &mut Fetch<'_, '_>,
        limit: usize,
        time: Duration,
    ) -> Result<Self, BadBody> {
        if !is_there(fetch)? {
            return Ok(self);
        }
        let announced = fetch.content_length();
        if announced.is_some_and(|announced| announced > limit as u64) {
            discard(fetch);
            return Err(BadBody::TooLarge(OF_PROGRAMS));
        }
        let mut sink = Sink {
            most: announced.map_or(limit, |announced| announced as usize),
            body: &mut self,
            limit,
            pace: Pace::new(time, Instant::now()),
            refused: None,
        };
        let result = fetch.read_body(&mut sink);
        match (sink.refused, result) {
            (Some(bad), _) => Err(bad),
            (None, Err(error)) => Err(BadBody::Unreadable(error.to_string())),
            (None, Ok(_)) => Ok(self),
        }
    }
}

/// Takes a body from Varnish piece by piece, up to a limit.
struct Sink<'a> {
    body: &'a mut Body,
    limit: usize,
    /// How much may come: what is announced, or the limit.
    most: usize,
    pace: Pace,
    refused: Option<BadBody>,
}

impl Sink<'_> {
    fn take(&mut self, piece: &[u8]) -> Result<(), BadBody> {
        let needed = self.body.bytes.len().saturating_add(piece.len());
        if needed > self.limit {
            return Err(BadBody::TooLarge(OF_PROGRAMS));
        }
        self.pace.arrived(piece.len(), Instant::now())?;
        self.body.push(piece, self.most)
    }
}

impl Body {
    /// Makes room for `needed` bytes, of the `most` that may come.
    fn grow(&mut self, needed: usize, most: usize) -> Result<(), BadBody> {
        let capacity = self.bytes.capacity();
        // Twice as much each time, so that a long body isn't copied again and again; but no more than it can need, and where
        // room is short, what it needs now.
        let generous = needed.max(STEP).max(capacity.saturating_mul(2)).min(most);
        let granted = [generous.max(needed), needed].into_iter().find(|&wanted| {
            let more = (wanted - capacity) as u64;
            self.room.as_mut().is_none_or(|room| room.take_fair(more))
        });
        let granted = granted.ok_or(BadBody::NoRoom)?;
        let more = granted - self.bytes.len();
        self.bytes
            .try_reserve_exact(more)
            .map_err(|_| BadBody::NoRoom)
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if let Err(bad) = self.take(piece) {
            let error = io::Error::other(bad.to_string());
            self.refused = Some(bad);
            return Err(error);
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the fetch has a request body, and it can be read.
pub fn is_there(fetch: &Fetch<'_, '_>) -> Result<bool, BadBody> {
    let state = fetch.body_state();
    match state.map_err(|error| BadBody::Unreadable(error.to_string()))? {
        BodyState::None => Ok(false),
        BodyState::Error => Err(BadBody::Unreadable("reading it failed".into())),
        BodyState::Taken => Err(BadBody::Unreadable(
            "already consumed (use std.cache_req_body() to retry)".into(),
        )),
        _ => Ok(true),
    }
}

/// Reads what is left of a body that nobody wants, with limits. Varnish would read all of it before it sends the answer; of
/// one whose reading has failed it reads no more, and closes the connection.
pub fn discard(fetch: &mut Fetch<'_, '_>) {
    if fetch.has_body() {
        // That it fails is all there is to it.
        let _ = fetch.read_body(&mut Discard::new());
    }
}

/// What becomes of a body that nobody wants.
pub struct Discard {
    left: usize,
    pace: Pace,
}

impl Discard {
    /// From now on.
    pub fn new() -> Self {
        Self {
            left: DISCARDED,
            pace: Pace::new(DISCARD_TIME, Instant::now()),
        }
    }
}

impl Write for Discard {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let left = self.left.checked_sub(piece.len());
        self.left = left.ok_or_else(|| io::Error::other("too much of it"))?;
        self.pace
            .arrived(piece.len(), Instant::now())
            .map_err(io::Error::other)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
