//! A program's forks: handed out last in, first out, so that a hot one is used again; made in the background when a
//! request finds none idle; given up when idle for long.

mod keeper;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::fork::{Fork, ForkError};
use crate::master::Master;
use crate::pool::keeper::{Job, Keeper};

/// Why there is no fork for a request.
#[derive(Debug)]
pub enum TakeError {
    /// All are in use.
    Busy,
    /// None could be made.
    NoFork(String),
}

/// The forks of one master.
#[derive(Debug)]
pub struct Pool {
    master: Arc<Master>,
    keeper: &'static Keeper,
    state: Mutex<State>,
    given_back: Condvar,
}

/// An idle fork, and since when it is. It is boxed, for a fork is handed on some times in a request.
pub type Idle = (Box<Fork>, Instant);

#[derive(Debug, Default)]
struct State {
    /// The one used last is at the back.
    idle: VecDeque<Idle>,
    /// Forks there are: idle, in use, and being made.
    total: usize,
    being_made: usize,
    waiting: usize,
    created: u64,
    /// Why the last attempt to make a fork failed.
    error: Option<String>,
}

/// Numbers for [`crate::Stats`].
#[derive(Debug, Clone, Copy)]
pub struct PoolStats {
    pub forks: u64,
    pub idle: u64,
    pub created: u64,
}

impl Pool {
    /// A pool with its first fork.
    pub fn new(master: Arc<Master>) -> Result<Arc<Self>, ForkError> {
        let keeper = Keeper::get().map_err(ForkError::Keeper)?;
        let first = Box::new(Fork::new(master.clone())?);
        let state = State {
            idle: [(first, Instant::now())].into(),
            total: 1,
            created: 1,
            ..Default::default()
        };
        let pool = Arc::new(Self {
            master,
            keeper,
            state: Mutex::new(state),
            given_back: Condvar::new(),
        });
        keeper.send(Job::Keep(Arc::downgrade(&pool)));
        Ok(pool)
    }

    /// The master.
    pub fn master(&self) -> &Arc<Master> {
        &self.master
    }

    /// Takes a fork, waiting until `until` at most.
    pub fn take(self: &Arc<Self>, until: Instant) -> Result<Box<Fork>, TakeError> {
        let mut state = self.state.lock();
        let mut asked = false;
        loop {
            if let Some((fork, _)) = state.idle.pop_back() {
                return Ok(fork);
            }
            // What has just failed is not tried again at once, but for the next request.
            let may_ask = !asked || state.error.is_none();
            let has_room = state.total < self.master.config.concurrency;
            if may_ask && has_room && state.being_made <= state.waiting {
                self.ask_for_one(&mut state);
            }
            asked = true;
            state.waiting += 1;
            let timed_out = self.given_back.wait_until(&mut state, until).timed_out();
            state.waiting -= 1;
            if !state.idle.is_empty() {
                continue;
            }
            // None is in use, so none will come back.
            if state.total == state.being_made
                && let Some(error) = &state.error
            {
                return Err(TakeError::NoFork(error.clone()));
            }
            if timed_out {
                return Err(TakeError::Busy);
            }
        }
    }

    fn ask_for_one(self: &Arc<Self>, state: &mut State) {
        state.total += 1;
        state.being_made += 1;
        self.keeper.send(Job::Make(Arc::downgrade(self)));
    }

    /// Makes forks here and now until there are so many, as far as that goes.
    pub fn fill(&self, forks: usize, deadline: Instant) {
        let forks = forks.min(self.master.config.concurrency);
        while Instant::now() < deadline {
            {
                let mut state = self.state.lock();
                if state.total >= forks {
                    return;
                }
                state.total += 1;
                state.being_made += 1;
            }
            if !self.make() {
                return;
            }
        }
    }

    /// Takes a fork back. One that is not usable any more is replaced if somebody waits.
    pub fn give_back(self: &Arc<Self>, fork: Box<Fork>, usable: bool) {
        let mut state = self.state.lock();
        if usable {
            state.idle.push_back((fork, Instant::now()));
            if state.waiting > 0 {
                self.given_back.notify_one();
            }
            return;
        }
        state.total -= 1;
        // The next request should find one.
        if state.waiting > 0 || state.total == 0 {
            self.ask_for_one(&mut state);
        }
        drop(state);
        self.free(fork);
    }

    /// Has a fork freed on the keeper's thread, off the request's.
    pub fn free(&self, fork: Box<Fork>) {
        self.keeper.send(Job::Free([(fork, Instant::now())].into()));
    }

    /// Makes one fork that is counted already, on the keeper's thread or in [`Pool::fill`]. False if that failed.
    pub fn make(&self) -> bool {
        let made = Fork::new(self.master.clone()).map(Box::new);
        let mut state = self.state.lock();
        state.being_made -= 1;
        let success = made.is_ok();
        match made {
            Ok(fork) => {
                state.idle.push_back((fork, Instant::now()));
                state.created += 1;
                state.error = None;
                self.given_back.notify_one();
            }
            Err(error) => {
                state.total -= 1;
                state.error = Some(error.to_string());
                self.given_back.notify_all();
            }
        }
        success
    }

    /// Takes out forks that have been idle too long, all but one.
    pub fn sweep(&self, now: Instant) -> VecDeque<Idle> {
        let mut state = self.state.lock();
        let mut old = VecDeque::new();
        while state.idle.len() > 1 {
            match state.idle.front() {
                Some((_, since)) if now.duration_since(*since) > self.master.config.idle_time => {}
                _ => break,
            }
            old.extend(state.idle.pop_front());
            state.total -= 1;
        }
        old
    }

    /// Gives all forks up, none of which is in use any more, and the master. They are freed on the keeper's thread: that
    /// takes time.
    pub fn close(&self) {
        let mut state = self.state.lock();
        let forks = std::mem::take(&mut state.idle);
        state.total -= forks.len();
        drop(state);
        self.keeper.send(Job::Free(forks));
        self.keeper.send(Job::Retire(self.master.clone()));
    }

    /// Looks at all idle forks.
    pub fn idle_forks<T>(&self, look: impl Fn(&Fork) -> T) -> Vec<T> {
        self.state
            .lock()
            .idle
            .iter()
            .map(|(fork, _)| look(fork))
            .collect()
    }

    /// The numbers now.
    pub fn stats(&self) -> PoolStats {
        let state = self.state.lock();
        PoolStats {
            forks: (state.total - state.being_made) as u64,
            idle: state.idle.len() as u64,
            created: state.created,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fork::tests::testing::frozen;
    use std::fs::File;
    use std::time::Duration;

    /// All who wait are told, long before they would give up.
    #[test]
    fn forks_that_cannot_be_made_are_not_waited_for() {
        let Some(master) = frozen("hostile", |config| config.limits.max_memory = 64 << 20) else {
            return;
        };
        // Its memory can't be mapped.
        let mut master = Arc::into_inner(master).unwrap();
        master.file = Arc::new(File::open("/dev/null").unwrap());
        let pool = Arc::new(Pool {
            master: Arc::new(master),
            keeper: Keeper::get().unwrap(),
            state: Mutex::default(),
            given_back: Condvar::new(),
        });
        let until = Instant::now() + Duration::from_secs(24 * 3600);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let result = pool.take(until).map(drop);
                    assert!(matches!(result, Err(TakeError::NoFork(_))), "{result:?}");
                });
            }
        });
        let stats = pool.stats();
        assert_eq!((stats.forks, stats.created), (0, 0));
    }
}
