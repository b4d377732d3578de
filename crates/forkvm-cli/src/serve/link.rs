//! A client's connection, with `--per-request`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::inside::Inside;
use super::seats::Seat;

/// How much longer than the fork's own limit we wait: it knows better what to say.
pub const GRACE: Duration = Duration::from_secs(1);

/// A client's connection.
pub struct Link {
    /// Its address, where it has one.
    pub peer: Option<SocketAddr>,
    /// Its seat.
    pub seat: Seat,
    /// What it shares with the others.
    pub inside: Arc<Inside>,
}

impl Link {
    /// How long one of its requests may take until the client has all of the answer.
    pub fn longest(&self) -> Duration {
        self.inside.current.get().max_time + 2 * GRACE
    }
}
