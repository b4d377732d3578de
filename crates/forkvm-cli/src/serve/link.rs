//! A client's connection, with `--per-request`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use super::inside::Inside;
use super::seats::Seat;
use super::watched::Watched;

/// How much longer than the fork's own limit we wait: it knows better what to say.
pub const GRACE: Duration = Duration::from_secs(1);

/// How often it is looked whether the client of a request under way is there.
const LOOK: Duration = Duration::from_millis(100);

/// A client's connection.
pub struct Link {
    /// Its address, where it has one.
    pub peer: Option<SocketAddr>,
    /// Its seat.
    pub seat: Seat,
    /// What it shares with the others.
    pub inside: Arc<Inside>,
    begun: Notify,
}

impl Link {
    /// Of a client that has taken this seat.
    pub fn new(peer: Option<SocketAddr>, seat: Seat, inside: Arc<Inside>) -> Self {
        Self {
            peer,
            seat,
            inside,
            begun: Notify::new(),
        }
    }

    /// A request is under way from now on. False if the seat is lost already.
    pub fn begin(&self) -> bool {
        let begun = self.seat.set_busy();
        self.begun.notify_one();
        begun
    }

    /// Waits until the client is gone while a request of its is under way.
    pub async fn left(&self, client: &Watched) {
        loop {
            self.begun.notified().await;
            while self.seat.busy_since().is_some() {
                if client.is_gone() {
                    return;
                }
                sleep(LOOK).await;
            }
        }
    }

    /// How long one of its requests may take until the client has all of the answer.
    pub fn longest(&self) -> Duration {
        self.inside.current.get().max_time + 2 * GRACE
    }
}
