//! What descriptors are ready for: one answer for poll(2), select(2) and epoll(7).

use std::collections::BTreeMap;
use std::time::Instant;

use crate::linux::files::fds::{Device, Files, Kind};
use crate::linux::net::epoll::Epoll;
use crate::linux::net::readiness::{IN, NVAL, OUT, RDNORM, Readiness, WRNORM};
use crate::linux::tasks::pending::Awaited;

/// A look at the descriptors, at one time.
pub struct Look<'a> {
    files: &'a Files,
    awaited: Awaited,
    now: Instant,
    /// What was found of those that watch others, so that each is looked through once.
    watchers: BTreeMap<usize, Readiness>,
}

impl<'a> Look<'a> {
    /// A look by a task with these signals pending.
    pub fn new(files: &'a Files, awaited: Awaited) -> Self {
        Self {
            files,
            awaited,
            now: Instant::now(),
            watchers: BTreeMap::new(),
        }
    }

    /// What a descriptor is ready for.
    pub fn descriptor(&mut self, fd: u64) -> Readiness {
        match self.files.get(fd) {
            Ok(file) => self.kind(&file.kind),
            Err(_) => Readiness::always(NVAL),
        }
    }

    /// What an open file is ready for; nothing if it is gone.
    pub fn open_file(&mut self, place: usize) -> Readiness {
        let file = self.files.open_at(place);
        file.map_or(Readiness::default(), |file| self.kind(&file.kind))
    }

    fn kind(&mut self, kind: &Kind) -> Readiness {
        match kind {
            Kind::Output(_) => Readiness::always(OUT | WRNORM),
            Kind::PipeReader(pipe) => self.files.pipes.reader_readiness(*pipe),
            Kind::PipeWriter(pipe) => self.files.pipes.writer_readiness(*pipe),
            Kind::PipeBoth(pipe) => {
                let pipes = &self.files.pipes;
                Readiness {
                    events: pipes.reader_readiness(*pipe).events
                        | pipes.writer_readiness(*pipe).events,
                    ..pipes.reader_readiness(*pipe)
                }
            }
            Kind::Socket(id) => self.files.sockets.readiness(*id),
            Kind::EventFd(counter) => counter.readiness(),
            Kind::TimerFd(timer) => timer.readiness(self.now),
            Kind::SignalFd(mask) => Readiness {
                events: match self.awaited.set & mask {
                    0 => 0,
                    _ => IN | RDNORM,
                },
                arrivals: self.awaited.sent,
                openings: 0,
            },
            Kind::Pidfd(of) => Readiness::always(if of.over { IN | RDNORM } else { 0 }),
            Kind::Epoll(id) => self.watcher(*id),
            // Nothing is ever told of a watched file.
            Kind::Inotify => Readiness::default(),
            // Files never wait, and standard input is at its end.
            _ => Readiness::always(IN | OUT | RDNORM | WRNORM),
        }
    }

    /// One that watches others is ready when one of them is.
    fn watcher(&mut self, id: usize) -> Readiness {
        if let Some(found) = self.watchers.get(&id) {
            return *found;
        }
        // Should it watch itself in the end, it finds nothing there.
        self.watchers.insert(id, Readiness::default());
        let Some(Epoll { watches, changes }) = self.files.epolls.get(id) else {
            return Readiness::default();
        };
        let mut found = Readiness {
            arrivals: *changes,
            ..Readiness::default()
        };
        for watch in watches {
            let of = self.open_file(watch.file);
            if watch.due(of) != 0 {
                found.events = IN | RDNORM;
            }
            let edges = of.arrivals.wrapping_add(of.openings);
            found.arrivals = found.arrivals.wrapping_add(edges);
        }
        self.watchers.insert(id, found);
        found
    }
}

/// Whether something can be waited for at all, which epoll(7) asks.
pub fn can_wait(kind: &Kind) -> bool {
    match kind {
        Kind::Stdin
        | Kind::File(_)
        | Kind::Node(..)
        | Kind::Folder(..)
        | Kind::Handle(_)
        | Kind::Text(_) => false,
        Kind::Device(device) => matches!(device, Device::Random | Device::Urandom),
        _ => true,
    }
}
