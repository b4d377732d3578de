//! Which listening sockets a call waits for.

use syscalls::Sysno;

use crate::linux::abi::{field_u32, field_u64, int, length};
use crate::linux::call::Call;
use crate::linux::files::fds::{Files, Kind, MORE_DESCRIPTORS};
use crate::linux::net::epoll::MOST_NESTED;
use crate::linux::net::outside::ListenerId;
use crate::linux::net::readiness::{IN, RDNORM};
use crate::linux::net::socket::{Id, State, Style};
use crate::memory::user::UserMemory;

/// The listeners without a waiting connection that a blocked call waits for.
pub fn listeners(files: &Files, memory: &dyn UserMemory, call: Call) -> Vec<ListenerId> {
    let mut found = Vec::new();
    let [first, second, ..] = call.args;
    match usize::try_from(call.number).ok().and_then(Sysno::new) {
        Some(Sysno::accept | Sysno::accept4) => descriptor(files, first, &mut found),
        Some(Sysno::poll | Sysno::ppoll) => polled(files, memory, (first, second), &mut found),
        Some(Sysno::select | Sysno::pselect6) => {
            selected(files, memory, (first, second), &mut found);
        }
        Some(Sysno::epoll_wait | Sysno::epoll_pwait | Sysno::epoll_pwait2) => {
            descriptor(files, first, &mut found);
        }
        _ => {}
    }
    found
}

fn descriptor(files: &Files, fd: u64, found: &mut Vec<ListenerId>) {
    if let Ok(file) = files.get(fd) {
        kind(files, &file.kind, 0, found);
    }
}

fn kind(files: &Files, of: &Kind, level: usize, found: &mut Vec<ListenerId>) {
    match of {
        Kind::Socket(id) if listens(files, *id) => found.push(ListenerId(*id)),
        Kind::Epoll(id) if level <= MOST_NESTED => {
            let watches = files.epolls.get(*id).map(|epoll| &epoll.watches);
            for watch in watches
                .into_iter()
                .flatten()
                .filter(|watch| watch.wants_input())
            {
                if let Some(file) = files.open_at(watch.file) {
                    kind(files, &file.kind, level + 1, found);
                }
            }
        }
        _ => {}
    }
}

fn listens(files: &Files, id: Id) -> bool {
    files.sockets.get(id).is_ok_and(|socket| {
        let idle = matches!(&socket.state, State::Listening { waiting, .. } if waiting.is_empty());
        idle && socket.nature.style == Style::Stream
    })
}

/// `struct pollfd`: descriptor, events.
fn polled(
    files: &Files,
    memory: &dyn UserMemory,
    (array, number): (u64, u64),
    found: &mut Vec<ListenerId>,
) {
    for i in 0..number.min(length(MORE_DESCRIPTORS)) {
        let mut entry = [0; 8];
        let at = array.saturating_add(i * 8);
        if memory.read(at, &mut entry).is_err() {
            return;
        }
        let wanted = u16::from_le_bytes([entry[4], entry[5]]);
        if wanted & (IN | RDNORM) != 0 {
            descriptor(files, field_u32(&entry, 0).into(), found);
        }
    }
}

/// The first set of select(2).
fn selected(
    files: &Files,
    memory: &dyn UserMemory,
    (number, set): (u64, u64),
    found: &mut Vec<ListenerId>,
) {
    let number = u64::try_from(int(number)).unwrap_or(0).min(1024);
    for fd in 0..number {
        let mut word = [0; 8];
        if set == 0
            || memory
                .read(set.saturating_add(fd / 64 * 8), &mut word)
                .is_err()
        {
            return;
        }
        if field_u64(&word, 0) >> (fd % 64) & 1 != 0 {
            descriptor(files, fd, found);
        }
    }
}
