//! A program's forks: handed out last in, first out, so that a hot one is used again; made in the background when a
//! request finds none idle; given up when idle for long.

use std::collections::VecDeque;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;
use parking_lot::{Condvar, Mutex};

use crate::fork::{Fork, ForkError};
use crate::master::Master;

/// How often idle forks are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// How often it is looked whether a retired master can be freed.
const RETIRE: Duration = Duration::from_millis(10);

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
    state: Mutex<State>,
    given_back: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The one used last is at the back.
    idle: VecDeque<(Fork, Instant)>,
    /// Forks there are: idle, in use, and being made.
    total: usize,
    being_made: usize,
    waiting: usize,
    created: u64,
    /// Why the last attempt to make a fork failed.
    error: Option<String>,
    closed: bool,
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
        let first = Fork::new(master.clone())?;
        let state = State {
            idle: [(first, Instant::now())].into(),
            total: 1,
            created: 1,
            ..Default::default()
        };
        let pool = Arc::new(Self {
            master,
            state: Mutex::new(state),
            given_back: Condvar::new(),
        });
        keeper().send(Job::Keep(Arc::downgrade(&pool)));
        Ok(pool)
    }

    /// The master.
    pub fn master(&self) -> &Arc<Master> {
        &self.master
    }

    /// Takes a fork, waiting until `until` at most.
    pub fn take(self: &Arc<Self>, until: Instant) -> Result<Fork, TakeError> {
        let mut state = self.state.lock();
        loop {
            if let Some((fork, _)) = state.idle.pop_back() {
                return Ok(fork);
            }
            if state.total < self.master.config.concurrency && state.being_made <= state.waiting {
                self.ask_for_one(&mut state);
            }
            state.waiting += 1;
            let timed_out = self.given_back.wait_until(&mut state, until).timed_out();
            state.waiting -= 1;
            if timed_out && state.idle.is_empty() {
                return Err(match state.error.take().filter(|_| state.total == 0) {
                    Some(error) => TakeError::NoFork(error),
                    None => TakeError::Busy,
                });
            }
        }
    }

    fn ask_for_one(self: &Arc<Self>, state: &mut State) {
        state.total += 1;
        state.being_made += 1;
        keeper().send(Job::Make(Arc::downgrade(self)));
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
    pub fn give_back(self: &Arc<Self>, fork: Fork, usable: bool) {
        let mut state = self.state.lock();
        if usable && !state.closed {
            state.idle.push_back((fork, Instant::now()));
            if state.waiting > 0 {
                self.given_back.notify_one();
            }
            return;
        }
        state.total -= 1;
        // The next request should find one.
        if (state.waiting > 0 || state.total == 0) && !state.closed {
            self.ask_for_one(&mut state);
        }
        drop(state);
        keeper().send(Job::Free(vec![fork]));
    }

    /// Makes one fork that is counted already, on the keeper's thread or in [`Pool::fill`]. False if that failed.
    fn make(&self) -> bool {
        let made = Fork::new(self.master.clone());
        let mut state = self.state.lock();
        state.being_made -= 1;
        let success = made.is_ok();
        match made {
            Ok(fork) => {
                state.idle.push_back((fork, Instant::now()));
                state.created += 1;
                state.error = None;
            }
            Err(error) => {
                state.total -= 1;
                state.error = Some(error.to_string());
            }
        }
        self.given_back.notify_one();
        success
    }

    /// Takes out forks that have been idle too long, all but one.
    fn sweep(&self, now: Instant) -> Vec<Fork> {
        let mut state = self.state.lock();
        let mut old = Vec::new();
        while state.idle.len() > 1 {
            match state.idle.front() {
                Some((_, since)) if now.duration_since(*since) > self.master.config.idle_time => {}
                _ => break,
            }
            old.extend(state.idle.pop_front().map(|(fork, _)| fork));
            state.total -= 1;
        }
        old
    }

    /// Gives all idle forks up; those in use follow when they come back. Freed on the keeper's thread.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let forks: Vec<Fork> = state.idle.drain(..).map(|(fork, _)| fork).collect();
        state.total -= forks.len();
        drop(state);
        keeper().send(Job::Free(forks));
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

/// Work for the keeper's thread.
enum Job {
    /// A new pool to sweep.
    Keep(Weak<Pool>),
    /// A fork to be made.
    Make(Weak<Pool>),
    /// Forks to be freed, off the request's thread.
    Free(Vec<Fork>),
    /// A master that nobody needs any more, but forks that are still to be freed.
    Retire(Arc<Master>),
}

/// Has a fork of no pool freed on the keeper's thread, off the request's.
pub fn free(fork: Fork) {
    keeper().send(Job::Free(vec![fork]));
}

/// Has a master freed on the keeper's thread, which is the last to let go of it: freeing its memory takes time.
pub fn retire(master: Arc<Master>) {
    keeper().send(Job::Retire(master));
}

/// The one thread that makes and frees forks.
struct Keeper {
    jobs: Option<Sender<Job>>,
}

impl Keeper {
    /// Hands over a job; without a thread it is done here and now.
    fn send(&self, job: Job) {
        match &self.jobs {
            Some(jobs) => {
                if let Err(mpsc::SendError(job)) = jobs.send(job) {
                    job.perform();
                }
            }
            None => job.perform(),
        }
    }
}

impl Job {
    fn perform(self) {
        match self {
            Self::Make(pool) => {
                if let Some(pool) = pool.upgrade() {
                    pool.make();
                }
            }
            Self::Free(forks) => drop(forks),
            // Without a keeper whoever is last frees it.
            Self::Keep(_) | Self::Retire(_) => {}
        }
    }
}

fn keeper() -> &'static Keeper {
    static KEEPER: OnceCell<Keeper> = OnceCell::new();
    KEEPER.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("forkvm-keeper".into())
            .spawn(move || {
                let mut pools: Vec<Weak<Pool>> = Vec::new();
                let mut retired: Vec<Arc<Master>> = Vec::new();
                let mut swept = Instant::now();
                loop {
                    // With no pool there is nothing to sweep: sleep until there is.
                    let job = if !retired.is_empty() {
                        inbox.recv_timeout(RETIRE)
                    } else if pools.is_empty() {
                        inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
                    } else {
                        inbox.recv_timeout(SWEEP)
                    };
                    match job {
                        Ok(Job::Keep(pool)) => pools.push(pool),
                        Ok(Job::Retire(master)) => retired.push(master),
                        Ok(job) => job.perform(),
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                    // Nobody can get a new reference to one of these any more.
                    retired.retain(|master| Arc::strong_count(master) > 1);
                    let now = Instant::now();
                    if now.duration_since(swept) >= SWEEP {
                        swept = now;
                        pools.retain(|pool| pool.strong_count() > 0);
                        for pool in pools.iter().filter_map(Weak::upgrade) {
                            drop(pool.sweep(now));
                        }
                    }
                }
            });
        Keeper {
            jobs: thread.is_ok().then_some(jobs),
        }
    })
}
