//! The way in for requests of a program with storage: it closes while the storage's state goes over to another program, and
//! whoever comes afterwards is that one's.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::failure::Failure;
use crate::pool::queue::Queue;

/// The way in to a program `P`.
#[derive(Debug)]
pub struct Turnstile<P> {
    gate: Arc<Gate>,
    /// Who answers in its place.
    successor: OnceLock<Arc<P>>,
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    inside: usize,
}

/// Where a request is to be answered.
pub enum Way<H, P> {
    /// Here, as long as it is inside.
    Here(H),
    /// By another program.
    There(Arc<P>),
}

impl<P> Turnstile<P> {
    /// An open one.
    pub fn new() -> Self {
        Self {
            gate: Arc::default(),
            successor: OnceLock::new(),
        }
    }

    /// Lets a request in, as soon as it is known where, in one of the queue's places.
    pub fn enter(&self, queue: &Queue, deadline: Instant) -> Result<Way<Inside, P>, Failure> {
        let mut state = self.gate.state.lock();
        let mut place = None;
        loop {
            if let Some(successor) = self.successor.get() {
                return Ok(Way::There(successor.clone()));
            }
            if !state.closed {
                state.inside += 1;
                return Ok(Way::Here(Inside(self.gate.clone())));
            }
            if place.is_none() {
                let waiting = queue.limit();
                place = Some(queue.enter().ok_or(Failure::QueueFull { waiting })?);
            }
            let changed = &self.gate.changed;
            if changed.wait_until(&mut state, deadline).timed_out() {
                return Err(Failure::Replaced);
            }
        }
    }

    /// Lets nobody in any more, and waits until `deadline` for those who are inside. Gives how many still are.
    pub fn close(&self, deadline: Instant) -> usize {
        let mut state = self.gate.state.lock();
        state.closed = true;
        let changed = &self.gate.changed;
        while state.inside > 0 && !changed.wait_until(&mut state, deadline).timed_out() {}
        state.inside
    }

    /// Lets requests in again.
    pub fn open(&self) {
        self.gate.state.lock().closed = false;
        self.gate.changed.notify_all();
    }

    /// Has all who come from now on be answered by another program.
    pub fn lead_to(&self, successor: Arc<P>) {
        // A program has one successor.
        let _ = self.successor.set(successor);
        // Who has found none waits by now.
        drop(self.gate.state.lock());
        self.gate.changed.notify_all();
    }
}

/// A request's stay, as long as the program runs for it.
#[derive(Debug)]
pub struct Inside(Arc<Gate>);

impl Drop for Inside {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.inside -= 1;
        if state.inside == 0 && state.closed {
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    fn late() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    #[test]
    fn who_is_inside_is_waited_for() {
        let (way, queue) = (Turnstile::<u8>::new(), Queue::new(1));
        let inside = way.enter(&queue, soon());
        assert!(matches!(inside, Ok(Way::Here(_))));
        assert_eq!(way.close(soon()), 1);
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| way.close(late()));
            drop(inside);
            assert_eq!(closing.join().unwrap(), 0);
        });
        way.open();
        assert!(matches!(way.enter(&queue, soon()), Ok(Way::Here(_))));
    }

    #[test]
    fn who_comes_when_it_is_closed_waits_in_a_place() {
        let (way, queue) = (Turnstile::<u8>::new(), Queue::new(1));
        way.close(soon());
        assert!(matches!(way.enter(&queue, soon()), Err(Failure::Replaced)));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let way = way.enter(&queue, late());
                matches!(way, Ok(Way::There(to)) if *to == 7)
            });
            while queue.waiting() == 0 {
                std::thread::yield_now();
            }
            let full = way.enter(&queue, late());
            assert!(matches!(full, Err(Failure::QueueFull { waiting: 1 })));
            way.lead_to(Arc::new(7));
            assert!(waiting.join().unwrap());
        });
        assert_eq!(queue.waiting(), 0);
    }
}
