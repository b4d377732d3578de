//! Warm-up: connections before the freeze, which take a server's first-time costs.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::machine::waiting::wait_until;
use crate::server::connection::{Awaited, Connection};

/// How long a server may be silent before a warm-up connection is closed.
pub const IDLE: Duration = Duration::from_secs(1);

/// A client that sends one request and throws the answer away.
pub struct Client<'a> {
    request: &'a [u8],
    deadline: Option<Instant>,
}

impl<'a> Client<'a> {
    /// Sends this, and waits until `deadline`, if there is one.
    pub fn new(request: &'a [u8], deadline: Option<Instant>) -> Self {
        Self { request, deadline }
    }
}

impl Connection for Client<'_> {
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let (now, later) = self.request.split_at(buf.len().min(self.request.len()));
        buf[..now.len()].copy_from_slice(now);
        self.request = later;
        Ok((!now.is_empty()).then_some(now.len()))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        Ok(Some(bytes.len()))
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn wait(&mut self, what: Awaited<'_>, until: Instant) -> io::Result<()> {
        wait_until(what.other, until);
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn max_silence(&self, usual: Duration) -> Duration {
        usual.min(IDLE)
    }

    fn peer(&self) -> Option<SocketAddr> {
        Some((Ipv4Addr::LOCALHOST, 1).into())
    }
}
