//! That the command is to end: what waits on a descriptor is told, and what waits in the runtime.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::watch;

/// Whether the end has begun.
#[derive(Debug)]
pub struct Ending {
    begun: AtomicBool,
    /// Readable from then on.
    event: OwnedFd,
    watched: watch::Sender<bool>,
}

impl Ending {
    /// It has not.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            begun: AtomicBool::new(false),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            watched: watch::Sender::new(false),
        })
    }

    /// Begins it.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        // A counter of 1 has room for it, and nobody reads it.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        self.watched.send_replace(true);
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Becomes readable when it begins.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Waits for it.
    pub async fn begins(&self) {
        let mut watching = self.watched.subscribe();
        // The sender is ours: it can't be gone.
        let _ = watching.wait_for(|begun| *begun).await;
    }
}
