//! Connections that wait for a fork.

use std::collections::VecDeque;

use parking_lot::{Condvar, Mutex};

/// A queue of what waits for one of several threads.
#[derive(Debug)]
pub struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    /// How many may wait beyond those that a thread is there for.
    backlog: usize,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<T>,
    /// Threads that have nothing to do, or are about to take what waits.
    idle: usize,
    closed: bool,
}

impl<T> Queue<T> {
    /// An empty one, for so many threads.
    pub fn new(threads: usize, backlog: usize) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                idle: threads,
                closed: false,
            }),
            changed: Condvar::new(),
            backlog,
        }
    }

    /// Has something wait.
    ///
    /// # Errors
    /// Too much waits already: it is given back.
    pub fn push(&self, item: T) -> Result<(), T> {
        let mut state = self.state.lock();
        if state.closed || state.waiting.len() >= self.backlog.saturating_add(state.idle) {
            return Err(item);
        }
        state.waiting.push_back(item);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for the next; a thread that has got one calls [`Queue::done`] when it is done with it. `None` if there is none any
    /// more, and never will be.
    pub fn pop(&self) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            if let Some(item) = state.waiting.pop_front() {
                state.idle = state.idle.saturating_sub(1);
                return Some(item);
            }
            if state.closed {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }

    /// A thread has nothing to do again.
    pub fn done(&self) {
        self.state.lock().idle += 1;
    }

    /// Takes nothing more. What waits is still given out.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// How much waits, and how many threads do.
    pub fn lengths(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.waiting.len(), state.idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_wait_and_no_more() {
        let queue = Queue::new(1, 2);
        for item in 1..=3 {
            assert_eq!(queue.push(item), Ok(()));
        }
        assert_eq!(queue.push(4), Err(4));
        assert_eq!(queue.pop(), Some(1));
        // The thread is busy.
        assert_eq!((queue.push(5), queue.lengths()), (Err(5), (2, 0)));
        queue.done();
        assert_eq!(queue.push(6), Ok(()));
        queue.close();
        assert_eq!(queue.push(7), Err(7));
        let rest = [queue.pop(), queue.pop(), queue.pop(), queue.pop()];
        assert_eq!(rest, [Some(2), Some(3), Some(6), None]);
    }

    #[test]
    fn without_a_backlog_a_thread_has_to_be_free() {
        let queue = Queue::new(1, 0);
        assert_eq!((queue.push(1), queue.push(2)), (Ok(()), Err(2)));
        assert_eq!(queue.pop(), Some(1));
        assert_eq!(queue.push(3), Err(3));
        queue.done();
        assert_eq!(queue.push(4), Ok(()));
    }

    #[test]
    fn a_thread_that_waits_is_woken() {
        let queue = Queue::new(1, 0);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| (queue.pop(), queue.pop()));
            assert_eq!(queue.push(1), Ok(()));
            queue.close();
            assert_eq!(thread.join().ok(), Some((Some(1), None)));
        });
    }
}
