//! Connections of a client's that wait for their next request.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::connect::Connection;
use crate::target::Origin;

/// Most of them; the one that has waited longest makes room.
const MOST: usize = 32;
/// How long they wait.
const IDLE: Duration = Duration::from_secs(30);

/// What connections are good for the same requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// Whom they lead to.
    pub origin: Origin,
    /// By what name of a certificate's is not known.
    pub unverified: bool,
    /// Which way to the programs' own Varnish, by its number.
    pub own: Option<u64>,
}

/// Them.
#[derive(Default)]
pub struct Pool(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    /// The one that has waited longest is the first.
    idle: VecDeque<(Kind, Connection, Instant)>,
    /// Somebody looks after those whose time is over.
    is_swept: bool,
}

impl Pool {
    /// One that is still there. The last that came goes first.
    pub fn take(&self, kind: &Kind) -> Option<Connection> {
        let mut waiting = self.0.lock();
        waiting
            .idle
            .retain(|(_, connection, _)| connection.is_ready());
        let index = waiting.idle.iter().rposition(|(own, ..)| own == kind)?;
        waiting
            .idle
            .remove(index)
            .map(|(_, connection, _)| connection)
    }

    /// One that is ready for another request.
    pub fn give(self: &Arc<Self>, kind: Kind, connection: Connection) {
        let mut waiting = self.0.lock();
        if waiting.idle.len() >= MOST {
            waiting.idle.pop_front();
        }
        let until = Instant::now() + IDLE;
        waiting.idle.push_back((kind, connection, until));
        if !std::mem::replace(&mut waiting.is_swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self), until));
        }
    }

    /// Ends those whose time is over. When that of the next is; `None` if none is left, and nobody looks after them any more.
    fn end_old(&self) -> Option<Instant> {
        let mut waiting = self.0.lock();
        let now = Instant::now();
        waiting.idle.retain(|(_, _, until)| *until > now);
        let next = waiting.idle.front().map(|(_, _, until)| *until);
        waiting.is_swept = next.is_some();
        next
    }
}

async fn sweep(pool: Weak<Pool>, first: Instant) {
    let mut next = Some(first);
    while let Some(until) = next {
        sleep_until(until).await;
        next = pool.upgrade().and_then(|pool| pool.end_old());
    }
}
