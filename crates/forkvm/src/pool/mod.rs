//! A program's forks: handed out last in, first out, so that a hot one is used again; made in the background when a
//! request finds none idle; given up when idle for long.

pub mod keeper;
pub mod limits;
mod origin;
pub mod queue;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::account::Account;
use crate::fork::{ForkError, ResetError};
use crate::pool::keeper::Keeper;
use crate::pool::limits::PoolLimits;
pub use crate::pool::origin::Origin;
use crate::pool::queue::Place;

/// Longest time of a warm-up request in a new fork. Others wait for the thread meanwhile.
const WARM_UP: Duration = Duration::from_millis(50);

/// The fork after a warm-up request, or one in its place if that request was its end.
fn warmed<O: Origin>(origin: &Arc<O>, mut fork: O::Fork) -> Result<O::Fork, ForkError> {
    if O::warm_up(&mut fork, WARM_UP) {
        return Ok(fork);
    }
    origin.fork()
}

/// Why there is no fork for a request.
#[derive(Debug)]
pub enum TakeError {
    /// All are in use.
    Busy,
    /// All are in use, and as many requests as may be wait already.
    QueueFull,
    /// None could be made.
    NoFork(String),
}

/// A fork for a request.
#[derive(Debug)]
pub struct Taken<F> {
    /// The fork.
    pub fork: Box<F>,
    /// How long it was waited for.
    pub waited: Duration,
    /// Why another one was given up, if nobody has been told yet.
    pub loss: Option<String>,
}

/// The forks of one program or server.
#[derive(Debug)]
pub struct Pool<O: Origin> {
    origin: Arc<O>,
    limits: PoolLimits,
    keeper: &'static Keeper,
    state: Mutex<State<O::Fork>>,
    given_back: Condvar,
}

/// An idle fork, and since when it is. It is boxed, for a fork is handed on some times in a request.
type Idle<F> = (Box<F>, Instant);

#[derive(Debug)]
struct State<F> {
    /// The one used last is at the back.
    idle: VecDeque<Idle<F>>,
    /// Forks there are: idle, in use, and being made.
    total: usize,
    being_made: usize,
    /// Forks of no use any more that are not freed yet. They are not in `total`, but still take memory.
    dying: usize,
    waiting: usize,
    created: u64,
    /// Why the last attempt to make a fork failed.
    error: Option<String>,
    /// Why the last fork that was given up for a failed reset was.
    loss: Option<String>,
}

impl<F> State<F> {
    /// With so many that are idle.
    fn new(idle: VecDeque<Idle<F>>) -> Self {
        Self {
            total: idle.len(),
            created: idle.len() as u64,
            idle,
            being_made: 0,
            dying: 0,
            waiting: 0,
            error: None,
            loss: None,
        }
    }

    /// Whether another fork may be made. One that died may have its successor before it is freed, but not without end:
    /// a program that kills its forks faster than they are freed has to wait for that.
    fn has_room(&self, concurrency: usize) -> bool {
        self.total < concurrency && self.total + self.dying < 2 * concurrency
    }
}

/// Numbers for [`crate::Stats`].
#[derive(Debug, Clone, Copy)]
pub struct PoolStats {
    pub forks: u64,
    pub idle: u64,
    pub created: u64,
    pub waiting: u64,
}

impl<O: Origin> Pool<O> {
    /// A pool with its first fork.
    pub fn new(origin: Arc<O>, limits: PoolLimits) -> Result<Arc<Self>, ForkError> {
        Self::with_keeper(origin, limits, Keeper::get().map_err(ForkError::Keeper)?)
    }

    fn with_keeper(
        origin: Arc<O>,
        limits: PoolLimits,
        keeper: &'static Keeper,
    ) -> Result<Arc<Self>, ForkError> {
        let first = Box::new(warmed(&origin, origin.fork()?)?);
        limits.account.made();
        let pool = Arc::new(Self {
            origin,
            limits,
            keeper,
            state: Mutex::new(State::new([(first, Instant::now())].into())),
            given_back: Condvar::new(),
        });
        let weak = Arc::downgrade(&pool);
        keeper.sweep(move || {
            let pool = weak.upgrade();
            if let Some(pool) = &pool {
                pool.sweep(Instant::now());
            }
            pool.is_some()
        });
        Ok(pool)
    }

    /// Where its requests are counted.
    pub fn account(&self) -> &Account {
        &self.limits.account
    }

    /// What its forks are of.
    pub fn origin(&self) -> &Arc<O> {
        &self.origin
    }

    /// Takes a fork, waiting until `until` at most, if there is a place to wait in.
    pub fn take(self: &Arc<Self>, until: Instant) -> Result<Taken<O::Fork>, TakeError> {
        let mut state = self.state.lock();
        let account = &self.limits.account;
        let mut asked = false;
        let mut wait: Option<(Place, Instant)> = None;
        loop {
            if let Some((fork, _)) = state.idle.pop_back() {
                let loss = state.loss.take();
                let waited = wait.map_or(Duration::ZERO, |(_, since)| since.elapsed());
                account.waited(waited);
                return Ok(Taken { fork, waited, loss });
            }
            // What has just failed is not tried again at once, but for the next request.
            let may_ask = !asked || state.error.is_none();
            let has_room = state.has_room(self.limits.concurrency);
            if may_ask && has_room && state.being_made <= state.waiting {
                self.ask_for_one(&mut state);
            }
            asked = true;
            if wait.is_none() {
                let place = self.limits.queue.enter().ok_or(TakeError::QueueFull)?;
                wait = Some((place, Instant::now()));
                account.waits();
            }
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
                let has_room = state.total < self.limits.concurrency;
                return Err(match &state.error {
                    Some(error) if has_room => TakeError::NoFork(format!(
                        "all {} there are are busy, and no other could be made: {error}",
                        state.total
                    )),
                    _ => TakeError::Busy,
                });
            }
        }
    }

    fn ask_for_one(self: &Arc<Self>, state: &mut State<O::Fork>) {
        state.total += 1;
        state.being_made += 1;
        let pool = Arc::downgrade(self);
        self.keeper.make(move || {
            if let Some(pool) = pool.upgrade() {
                pool.make(O::fork);
            }
        });
    }

    /// Makes forks here and now until there are so many, as far as that goes.
    pub fn fill(&self, forks: usize, deadline: Instant) {
        let forks = forks.min(self.limits.concurrency);
        while Instant::now() < deadline {
            {
                let mut state = self.state.lock();
                if state.total >= forks {
                    return;
                }
                state.total += 1;
                state.being_made += 1;
            }
            if !self.make(O::fork) {
                return;
            }
        }
    }

    /// Takes a fork back. One that could not be put back is replaced if somebody waits.
    pub fn give_back(self: &Arc<Self>, fork: Box<O::Fork>, done: Result<(), ResetError>) {
        let mut state = self.state.lock();
        match done {
            Ok(()) => {
                self.limits.account.reset();
                state.idle.push_back((fork, Instant::now()));
                if state.waiting > 0 {
                    self.given_back.notify_one();
                }
                return;
            }
            // Its request's failure has told why.
            Err(ResetError::Ended) => {}
            Err(error) => state.loss = Some(error.to_string()),
        }
        state.total -= 1;
        state.dying += 1;
        self.ask_if_needed(&mut state);
        drop(state);
        self.limits.account.given_up(1);
        O::give_memory_back(&fork);
        let pool = Arc::downgrade(self);
        self.keeper.free_then(fork, move || {
            if let Some(pool) = pool.upgrade() {
                let mut state = pool.state.lock();
                state.dying -= 1;
                pool.ask_if_needed(&mut state);
            }
        });
    }

    /// After the loss of a fork: the next request should find one.
    fn ask_if_needed(self: &Arc<Self>, state: &mut State<O::Fork>) {
        let needed = state.waiting > state.being_made || state.total == 0;
        if needed && state.has_room(self.limits.concurrency) {
            self.ask_for_one(state);
        }
    }

    /// Has a fork freed off the request's thread.
    pub fn free(&self, fork: Box<O::Fork>) {
        self.keeper.free(fork);
    }

    /// Makes one fork that is counted already, on the keeper's thread or in [`Pool::fill`]. False if that failed.
    fn make(&self, new: impl FnOnce(&Arc<O>) -> Result<O::Fork, ForkError>) -> bool {
        let made = catch_unwind(AssertUnwindSafe(|| {
            let fork = new(&self.origin)?;
            // Who waits for it has the first request done sooner without.
            let waited_for = self.state.lock().waiting > 0;
            let fork = if waited_for {
                fork
            } else {
                warmed(&self.origin, fork)?
            };
            Ok::<_, ForkError>(Box::new(fork))
        }));
        let error = match made {
            Ok(Ok(fork)) => {
                let mut state = self.state.lock();
                state.being_made -= 1;
                state.idle.push_back((fork, Instant::now()));
                state.created += 1;
                self.limits.account.made();
                state.error = None;
                self.given_back.notify_one();
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            // The panic hook has said more.
            Err(_) => "an internal error in making it".into(),
        };
        let mut state = self.state.lock();
        state.being_made -= 1;
        state.total -= 1;
        state.error = Some(error);
        self.given_back.notify_all();
        false
    }

    /// Gives up forks that have been idle too long, all but one.
    fn sweep(&self, now: Instant) {
        let mut state = self.state.lock();
        while state.idle.len() > 1
            && let Some((_, since)) = state.idle.front()
            && now.duration_since(*since) > self.limits.idle_time
            && let Some((fork, _)) = state.idle.pop_front()
        {
            state.total -= 1;
            self.limits.account.given_up(1);
            self.free(fork);
        }
    }

    /// Looks at all idle forks.
    pub fn idle_forks<T>(&self, look: impl Fn(&O::Fork) -> T) -> Vec<T> {
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
            waiting: state.waiting as u64,
        }
    }
}

/// Who uses a fork has the pool, so that none is in use any more. The idle ones, and what they are of, are freed on the keeper's
/// thread: that takes time.
impl<O: Origin> Drop for Pool<O> {
    fn drop(&mut self) {
        let idle = std::mem::take(&mut self.state.get_mut().idle);
        self.limits.account.given_up(idle.len());
        for (fork, _) in idle {
            self.keeper.free(fork);
        }
        // The pool that is just going has that, too, as may a fork that is being made.
        self.keeper
            .free_when(self.origin.clone(), |origin| Arc::strong_count(origin) == 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fork::tests::testing::frozen;
    use crate::master::Master;
    use std::fs::File;
    use std::time::Duration;

    fn pool_of(master: Arc<Master>) -> Arc<Pool<Master>> {
        let limits = master.config.pool_limits();
        Pool::new(master, limits).unwrap()
    }

    /// A panic in making a fork is an error like any other: who waits is told, and the next one may be made.
    #[test]
    fn a_panic_in_making_a_fork_is_an_error() {
        let Some(master) = frozen("hostile", |config| config.concurrency = 2) else {
            return;
        };
        let pool = pool_of(master);
        let held = pool.take(Instant::now()).unwrap();
        let count_one = || {
            let mut state = pool.state.lock();
            (state.total, state.being_made) = (state.total + 1, state.being_made + 1);
        };
        count_one();
        assert!(!pool.make(|_| panic!("on purpose")));
        assert_eq!((pool.stats().forks, pool.stats().created), (1, 1));
        assert!(pool.state.lock().error.is_some());
        count_one();
        assert!(pool.make(Master::fork));
        assert!(pool.take(Instant::now()).is_ok());
        drop(held);
    }

    /// A program that kills its forks gets others, but not more than there would be twice as many as it may have.
    #[test]
    fn dead_forks_that_are_not_freed_yet_count() {
        let Some(master) = frozen("hostile", |config| config.concurrency = 1) else {
            return;
        };
        let keeper = Box::leak(Box::new(Keeper::start().unwrap()));
        let limits = master.config.pool_limits();
        let pool = Pool::with_keeper(master, limits, keeper).unwrap();
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        // Freeing takes its time.
        keeper.free_then((), move || {
            let _ = wait.recv();
        });
        let soon = || Instant::now() + Duration::from_secs(60);
        for _ in 0..2 {
            let fork = pool.take(soon()).unwrap().fork;
            pool.give_back(fork, Err(ResetError::Ended));
        }
        let result = pool.take(Instant::now() + Duration::from_millis(100));
        assert!(matches!(result, Err(TakeError::Busy)), "{result:?}");
        drop(go_on);
        pool.take(soon()).unwrap();
    }

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
            limits: master.config.pool_limits(),
            origin: Arc::new(master),
            keeper: Keeper::get().unwrap(),
            state: Mutex::new(State::new(VecDeque::new())),
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
