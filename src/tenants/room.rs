//! Memory of the host that a tenant's requests may have together: for their bodies, and for those of its responses.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// So many bytes, of which each takes some.
#[derive(Debug)]
pub struct Room {
    most: u64,
    taken: AtomicU64,
}

impl Room {
    /// For so many bytes.
    pub fn new(most: u64) -> Arc<Self> {
        Arc::new(Self {
            most,
            taken: AtomicU64::new(0),
        })
    }

    /// How many of them are taken.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

/// What somebody has of a room. Given back when dropped.
#[derive(Debug)]
pub struct Taken {
    room: Arc<Room>,
    bytes: u64,
}

impl Taken {
    /// Nothing yet.
    pub fn nothing(room: &Arc<Room>) -> Self {
        Self {
            room: room.clone(),
            bytes: 0,
        }
    }

    /// Takes `more` bytes, if they are free.
    pub fn take(&mut self, more: u64) -> bool {
        self.take_if(more, |_, _| true)
    }

    /// Takes what it lacks of so many bytes in all, if that is free.
    pub fn take_all(&mut self, bytes: u64) -> bool {
        self.take(bytes.saturating_sub(self.bytes))
    }

    /// Takes `more` bytes, unless it would have more than it leaves free.
    ///
    /// So however many are slow to come to an end, there is always room for one more, if for a shorter one each time.
    pub fn take_fair(&mut self, more: u64) -> bool {
        self.take_if(more, |own, free| own <= free)
    }

    fn take_if(&mut self, more: u64, is_fair: impl Fn(u64, u64) -> bool) -> bool {
        let Some(own) = self.bytes.checked_add(more) else {
            return false;
        };
        let most = self.room.most;
        let grown = |taken: u64| {
            let taken = taken.checked_add(more)?;
            let free = most.checked_sub(taken)?;
            is_fair(own, free).then_some(taken)
        };
        // It counts, and orders nothing else.
        let relaxed = Ordering::Relaxed;
        let took = self.room.taken.fetch_update(relaxed, relaxed, grown);
        if took.is_ok() {
            self.bytes = own;
        }
        took.is_ok()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_there_is() {
        let room = Room::new(10);
        let [mut one, mut two] = [(); 2].map(|()| Taken::nothing(&room));
        assert!(one.take(7) && !two.take(4) && two.take(3));
        assert!(!one.take(1) && !one.take(u64::MAX));
        drop(one);
        assert!(two.take(7));
        drop(two);
        assert_eq!(room.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn there_is_always_some_left_for_one_more() {
        let room = Room::new(192);
        let mut all: Vec<_> = (0..6).map(|_| Taken::nothing(&room)).collect();
        // Each as much as it gets.
        let got: Vec<_> = all
            .iter_mut()
            .map(|one| (0..).take_while(|_| one.take_fair(1)).count())
            .collect();
        assert_eq!(got, [96, 48, 24, 12, 6, 3]);
    }
}
