//! Waiting for a descriptor of the host's, or only for a time.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Waits until the descriptor, if there is one, is readable; at most until this time.
pub fn wait_until(readable: Option<BorrowedFd<'_>>, until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    let Some(readable) = readable else {
        std::thread::sleep(left);
        return;
    };
    // One that is too long is without end; whoever waits looks again.
    let time = Timespec::try_from(left).ok();
    let mut waited = [PollFd::from_borrowed_fd(readable, PollFlags::IN)];
    // A signal ends the wait, and whoever waits looks again.
    let _ = poll(&mut waited, time.as_ref());
}
