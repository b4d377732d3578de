//! Connections that wait for a fork.

use std::collections::VecDeque;

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

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
    /// When the last one came.
    last: Instant,
    closed: bool,
}

impl<T> Queue<T> {
    /// An empty one, for so many threads.
    pub fn new(threads: usize, backlog: usize) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                idle: threads,
                last: Instant::now(),
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
        state.last = Instant::now();
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for the next; a thread that has got one calls [`Queue::done`] when it is done with it. `None` if there is none any
    /// more, and never will be. If nothing has come for so long, for none of the threads, it does `when_long` once, and waits on.
    pub fn pop(&self, long: Duration, mut when_long: impl FnMut()) -> Option<T> {
        let mut waits_long = false;
        let mut state = self.state.lock();
        loop {
            if let Some(item) = state.waiting.pop_front() {
                state.idle = state.idle.saturating_sub(1);
                return Some(item);
            }
            if state.closed {
                return None;
            }
            match state.last.checked_add(long).filter(|_| !waits_long) {
                Some(end) if Instant::now() >= end => {
                    waits_long = true;
                    MutexGuard::unlocked(&mut state, &mut when_long);
                }
                Some(end) => {
                    self.changed.wait_until(&mut state, end);
                }
                None => self.changed.wait(&mut state),
            }
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

    fn pop<T>(queue: &Queue<T>) -> Option<T> {
        queue.pop(Duration::MAX, || panic!("it is not long"))
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let queue = Queue::new(1, 2);
        for item in 1..=3 {
            assert_eq!(queue.push(item), Ok(()));
        }
        assert_eq!(queue.push(4), Err(4));
        assert_eq!(pop(&queue), Some(1));
        // The thread is busy.
        assert_eq!((queue.push(5), queue.lengths()), (Err(5), (2, 0)));
        queue.done();
        assert_eq!(queue.push(6), Ok(()));
        queue.close();
        assert_eq!(queue.push(7), Err(7));
        let rest: [_; 4] = std::array::from_fn(|_| pop(&queue));
        assert_eq!(rest, [Some(2), Some(3), Some(6), None]);
    }

    #[test]
    fn without_a_backlog_a_thread_has_to_be_free() {
        let queue = Queue::new(1, 0);
        assert_eq!((queue.push(1), queue.push(2)), (Ok(()), Err(2)));
        assert_eq!(pop(&queue), Some(1));
        assert_eq!(queue.push(3), Err(3));
        queue.done();
        assert_eq!(queue.push(4), Ok(()));
    }

    #[test]
    fn a_thread_that_waits_is_woken() {
        let queue = Queue::new(1, 0);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| (pop(&queue), pop(&queue)));
            assert_eq!(queue.push(1), Ok(()));
            queue.close();
            assert_eq!(thread.join().ok(), Some((Some(1), None)));
        });
    }

    #[test]
    fn who_waits_long_does_something_once_and_still_gets_the_next() {
        let queue = Queue::new(1, 0);
        let mut times = 0;
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                queue.pop(Duration::from_millis(1), || {
                    times += 1;
                    tell.send(()).unwrap();
                })
            });
            told.recv().unwrap();
            assert_eq!(queue.push(1), Ok(()));
            assert_eq!(thread.join().ok(), Some(Some(1)));
        });
        assert_eq!(times, 1);
        // What is there is not waited for.
        queue.done();
        assert_eq!(queue.push(2), Ok(()));
        assert_eq!(pop(&queue), Some(2));
    }
}
