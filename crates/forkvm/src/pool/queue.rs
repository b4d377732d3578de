//! Who waits: so many requests of a tenant, and no more, since each holds a thread of its caller's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many requests may wait at once, and how many do. Its clones are one queue: what is booted with clones of one
/// [`crate::Config`] shares a limit, and its owner may count there what waits for something else of the tenant's.
#[derive(Debug, Clone)]
pub struct Queue(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    limit: usize,
    waiting: AtomicUsize,
}

/// Equal limits: who waits is no setting.
impl PartialEq for Queue {
    fn eq(&self, other: &Self) -> bool {
        self.limit() == other.limit()
    }
}

impl Eq for Queue {}

impl Queue {
    /// An empty one for `limit` requests; with 0 none waits.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Counted {
            limit,
            waiting: AtomicUsize::new(0),
        }))
    }

    /// How many may wait.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// Whether there is a place to wait in.
    pub fn has_room(&self) -> bool {
        self.waiting() < self.limit()
    }

    /// A place to wait in, unless all are taken.
    pub fn enter(&self) -> Option<Place> {
        let more = |waiting| (waiting < self.0.limit).then_some(waiting + 1);
        // It counts, and orders nothing else.
        self.0
            .waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        Some(Place(self.clone()))
    }
}

/// A place in a queue, given up when dropped.
#[derive(Debug)]
pub struct Place(Queue);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_given_up() {
        let queue = Queue::new(2);
        let (first, _second) = (queue.enter().unwrap(), queue.clone().enter().unwrap());
        assert!(queue.enter().is_none());
        drop(first);
        assert!(queue.clone().enter().is_some());
        assert!(Queue::new(0).enter().is_none());
    }

    /// As many as there are places, however many ask at once.
    #[test]
    fn a_crowd_gets_no_more() {
        let queue = Queue::new(7);
        let places: Vec<_> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..16).map(|_| scope.spawn(|| queue.enter())).collect();
            asking
                .into_iter()
                .filter_map(|one| one.join().unwrap())
                .collect()
        });
        assert_eq!(places.len(), 7);
    }
}
