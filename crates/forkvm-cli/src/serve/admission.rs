//! A connection's way in: it gets a seat, and waits without a fork until its first bytes are there.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::time::timeout;

use super::doors::{Fresh, Listening};
use super::inside::Inside;
use super::observed::record::{Begun, Record};
use super::per_request;
use super::seats::Seat;
use super::stream::{Client, Facts, Socket};
use super::watched::Watched;

/// After a failed accept, as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the first bytes are waited for once the command is to end.
const LAST_BYTES: Duration = Duration::from_secs(1);

impl Fresh {
    /// Waits for the first bytes. False if there will be none.
    async fn first_bytes(&self) -> io::Result<bool> {
        /// Looks at the first one. A socket that is said to be ready need not be.
        fn peek(socket: impl AsFd) -> io::Result<bool> {
            let mut byte = [0; 1];
            let (_, len) = recv(socket, &mut byte, RecvFlags::PEEK)?;
            Ok(len > 0)
        }
        match self {
            Self::Tcp(stream, _) => stream.async_io(Interest::READABLE, || peek(stream)).await,
            Self::Unix(stream) => stream.async_io(Interest::READABLE, || peek(stream)).await,
        }
    }
}

/// Lets clients in by a door until the end begins, and then those that have knocked before.
pub async fn admit_all(door: Listening, inside: Arc<Inside>) {
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = door.accept() => accepted,
            () = inside.ending.begins() => return,
        };
        match accepted {
            Ok(fresh) => {
                let seat = inside.seats.take().await;
                tokio::spawn(admit(fresh, seat, inside.clone()));
            }
            Err(error) => {
                err!("forkvm: accepting a connection: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn admit(fresh: Fresh, seat: Seat, inside: Arc<Inside>) {
    if !speaks(&fresh, &seat, &inside).await {
        return;
    }
    let generation = inside.current.get();
    if generation.per_request {
        drop(generation);
        return match fresh {
            Fresh::Tcp(stream, peer) => {
                // Answers are sent as they are made.
                let _ = stream.set_nodelay(true);
                let stream = Watched::Tcp(Arc::new(stream));
                per_request::serve(stream, Some(peer), seat, inside).await;
            }
            Fresh::Unix(stream) => {
                let stream = Watched::Unix(Arc::new(stream));
                per_request::serve(stream, None, seat, inside).await;
            }
        };
    }
    if !seat.set_busy() {
        return;
    }
    let Ok((socket, peer)) = fresh.into_socket() else {
        return;
    };
    let begun = Begun::now();
    let facts = Facts {
        peer,
        begun,
        deadline: begun.instant + generation.max_time,
        ending: inside.ending.clone(),
    };
    let observer = inside.observer.clone();
    let client = Client::new(socket, facts, move |served| {
        observer.record(Record::new(begun, peer, served));
        drop(seat);
    });
    generation.forks.hand_over(client);
}

/// Waits for the first bytes. False if there are none in time.
async fn speaks(fresh: &Fresh, seat: &Seat, inside: &Inside) -> bool {
    let patience = inside.current.get().max_idle_time;
    let until = Instant::now() + patience;
    let first_bytes = async {
        let mut first_bytes = std::pin::pin!(fresh.first_bytes());
        tokio::select! {
            biased;
            bytes = &mut first_bytes => bytes.is_ok_and(|any| any),
            () = seat.lost() => false,
            () = inside.ending.begins() => {
                matches!(timeout(LAST_BYTES, first_bytes).await, Ok(Ok(true)))
            }
        }
    };
    let speaks = tokio::time::timeout_at(until.into(), first_bytes);
    speaks.await.unwrap_or(false)
}

impl Fresh {
    fn into_socket(self) -> io::Result<(Socket, Option<std::net::SocketAddr>)> {
        Ok(match self {
            Self::Tcp(stream, peer) => {
                let stream = stream.into_std()?;
                // Answers are sent as they are made.
                stream.set_nodelay(true)?;
                (Socket::Tcp(stream), Some(peer))
            }
            Self::Unix(stream) => (Socket::Unix(stream.into_std()?), None),
        })
    }
}
