//! What is behind a descriptor of epoll_create(2): which open files are watched, and what was told of them.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::net::readiness::{ERR, HUP, IN, OUT, RDHUP, Readiness};

/// Most descriptors of epoll_create(2), and most open files that all of them together watch.
pub const MAX_EPOLLS: usize = 64;
/// See [`MAX_EPOLLS`].
pub const MAX_WATCHES: usize = 8192;
/// How deep they may watch each other (`EP_MAX_NESTS`, fs/eventpoll.c).
pub const MOST_NESTED: usize = 4;

/// `EPOLL*` of linux/eventpoll.h.
pub const EPOLLET: u32 = 1 << 31;
pub const EPOLLONESHOT: u32 = 1 << 30;
pub const EPOLLWAKEUP: u32 = 1 << 29;
pub const EPOLLEXCLUSIVE: u32 = 1 << 28;

/// One open file that is watched.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Watch {
    /// The descriptor by which it was added.
    pub fd: i32,
    /// The open file, which duplicates of the descriptor share.
    pub file: usize,
    /// `EPOLL*`
    pub events: u32,
    /// What the program wants back.
    pub data: u64,
    /// The counts when it was told of last, if it was.
    seen: Option<(u64, u64)>,
    /// It was told of once and that was all (`EPOLLONESHOT`).
    off: bool,
}

impl Watch {
    /// One that was not told of yet.
    pub fn new(fd: i32, file: usize, events: u32, data: u64) -> Self {
        Self {
            fd,
            file,
            events,
            data,
            seen: None,
            off: false,
        }
    }

    /// What is to be told of it.
    pub fn due(&self, now: Readiness) -> u16 {
        let low = self.events.to_le_bytes();
        let wanted = u16::from_le_bytes([low[0], low[1]]) | ERR | HUP;
        let found = now.events & wanted;
        if self.off || found == 0 || self.events & EPOLLET == 0 {
            return if self.off { 0 } else { found };
        }
        let Some((arrivals, openings)) = self.seen else {
            return found;
        };
        let (arrived, opened) = (arrivals != now.arrivals, openings != now.openings);
        let reads = found & !(OUT | ERR | HUP) != 0 && arrived;
        let writes = found & OUT != 0 && opened;
        let ends = found & (ERR | HUP) != 0 && (arrived || opened);
        if reads || writes || ends { found } else { 0 }
    }

    /// It was told of.
    pub fn told(&mut self, now: Readiness) {
        if self.events & EPOLLET != 0 {
            self.seen = Some((now.arrivals, now.openings));
        }
        self.off = self.events & EPOLLONESHOT != 0;
    }

    /// Whether something to read would be told.
    pub fn wants_input(&self) -> bool {
        !self.off && self.events & u32::from(IN | RDHUP) != 0
    }
}

/// The open files that one descriptor of epoll_create(2) watches.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Epoll {
    /// Those that come first are told of first.
    pub watches: Vec<Watch>,
    /// How often they were changed.
    pub changes: u64,
}

/// All of a program.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Epolls {
    list: Vec<Option<Epoll>>,
}

impl Epolls {
    /// Whether what was read from a snapshot can be: not more of them than may watch each other in turn.
    pub fn is_sound(&self) -> bool {
        self.list.len() <= MAX_EPOLLS
    }

    /// A new one that watches nothing; `None` if there are too many.
    pub fn open(&mut self) -> Option<usize> {
        let free = self.list.iter().position(Option::is_none);
        let id = free.unwrap_or(self.list.len());
        if id >= MAX_EPOLLS {
            return None;
        }
        if id == self.list.len() {
            self.list.push(None);
        }
        *self.list.get_mut(id)? = Some(Epoll::default());
        Some(id)
    }

    /// Its last descriptor is closed.
    pub fn close(&mut self, id: usize) {
        if let Some(place) = self.list.get_mut(id) {
            *place = None;
        }
    }

    /// One of them.
    pub fn get(&self, id: usize) -> Option<&Epoll> {
        self.list.get(id)?.as_ref()
    }

    /// One of them, to change.
    pub fn get_mut(&mut self, id: usize) -> Option<&mut Epoll> {
        self.list.get_mut(id)?.as_mut()
    }

    /// Watches something more. `EEXIST` if it is watched by that descriptor already, `ENOSPC` if there is too much.
    pub fn add(&mut self, id: usize, watch: Watch) -> Result<(), Errno> {
        let all: usize = self
            .list
            .iter()
            .flatten()
            .map(|epoll| epoll.watches.len())
            .sum();
        let epoll = self.get_mut(id).ok_or(Errno::BADF)?;
        let same = |other: &Watch| (other.fd, other.file) == (watch.fd, watch.file);
        if epoll.watches.iter().any(same) {
            return Err(Errno::EXIST);
        }
        if all >= MAX_WATCHES {
            return Err(Errno::NOSPC);
        }
        epoll.watches.push(watch);
        epoll.changes = epoll.changes.wrapping_add(1);
        Ok(())
    }

    /// Changes what is watched for. `ENOENT` if that descriptor is not.
    pub fn modify(&mut self, id: usize, watch: Watch) -> Result<(), Errno> {
        let epoll = self.get_mut(id).ok_or(Errno::BADF)?;
        let same = |other: &&mut Watch| (other.fd, other.file) == (watch.fd, watch.file);
        let place = epoll.watches.iter_mut().find(same).ok_or(Errno::NOENT)?;
        if place.events & EPOLLEXCLUSIVE != 0 {
            return Err(Errno::INVAL);
        }
        *place = watch;
        epoll.changes = epoll.changes.wrapping_add(1);
        Ok(())
    }

    /// Watches something no more.
    pub fn remove(&mut self, id: usize, fd: i32, file: usize) -> Result<(), Errno> {
        let epoll = self.get_mut(id).ok_or(Errno::BADF)?;
        let same = |other: &Watch| (other.fd, other.file) == (fd, file);
        let place = epoll.watches.iter().position(same).ok_or(Errno::NOENT)?;
        epoll.watches.remove(place);
        Ok(())
    }

    /// An open file is gone.
    pub fn forget(&mut self, file: usize) {
        for epoll in self.list.iter_mut().flatten() {
            epoll.watches.retain(|watch| watch.file != file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(events: u16, arrivals: u64, openings: u64) -> Readiness {
        Readiness {
            events,
            arrivals,
            openings,
        }
    }

    #[test]
    fn edges_are_told_once() {
        let mut watch = Watch::new(3, 3, EPOLLET | u32::from(IN | OUT), 7);
        assert_eq!(watch.due(ready(OUT, 0, 0)), OUT);
        watch.told(ready(OUT, 0, 0));
        assert_eq!(watch.due(ready(OUT, 0, 0)), 0);
        assert_eq!(watch.due(ready(IN | OUT, 1, 0)), IN | OUT);
        watch.told(ready(IN | OUT, 1, 0));
        assert_eq!(watch.due(ready(IN | OUT, 1, 0)), 0);
        assert_eq!(watch.due(ready(IN | OUT, 1, 1)), IN | OUT);
        // Nothing came: the room is no news to those who wait for input.
        let mut reader = Watch::new(3, 3, EPOLLET | u32::from(IN), 7);
        reader.told(ready(IN, 1, 0));
        assert_eq!(reader.due(ready(IN | OUT, 1, 1)), 0);
        assert_eq!(reader.due(ready(IN | HUP, 1, 1)), IN | HUP);
    }

    #[test]
    fn levels_are_told_as_long_as_they_hold() {
        let mut watch = Watch::new(3, 3, IN.into(), 7);
        watch.told(ready(IN, 1, 0));
        assert_eq!(watch.due(ready(IN | OUT, 1, 0)), IN);
        let mut once = Watch::new(3, 3, EPOLLONESHOT | u32::from(IN), 7);
        once.told(ready(IN, 1, 0));
        assert_eq!(once.due(ready(IN, 2, 0)), 0);
    }

    #[test]
    fn watches_have_a_limit() {
        let mut epolls = Epolls::default();
        let ids: Vec<usize> = (0..MAX_EPOLLS).map(|_| epolls.open().unwrap()).collect();
        assert_eq!(epolls.open(), None);
        for file in 0..MAX_WATCHES {
            let id = ids[file % ids.len()];
            epolls.add(id, Watch::new(0, file, 1, 0)).unwrap();
        }
        let more = Watch::new(0, MAX_WATCHES, 1, 0);
        assert_eq!(epolls.add(0, more.clone()), Err(Errno::NOSPC));
        epolls.forget(5);
        epolls.add(0, more.clone()).unwrap();
        assert_eq!(epolls.add(0, more), Err(Errno::EXIST));
        epolls.close(0);
        assert_eq!(epolls.open(), Some(0));
        assert_eq!(epolls.remove(0, 0, 0), Err(Errno::NOENT));
    }
}
