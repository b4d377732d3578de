//! A program ready for requests: its master and its forks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::call::handlers::Handlers;
use crate::call::hypercall::Response;
use crate::config::Config;
use crate::debug::{Debugger, Gate};
use crate::failure::{BootError, Cause, Failure};
use crate::fork::Fork;
use crate::master::Master;
use crate::master::handover::HandedOver;
use crate::pool::{Pool, TakeError, Taken};
use crate::request::{CachePolicy, Header, Host, Quiet, Request};

/// Time `on_error` gets beyond the request's deadline, which a timeout has used up.
const ON_ERROR_TIME: Duration = Duration::from_secs(1);

/// A frozen program and its pool of forks.
#[derive(Debug)]
pub struct Program {
    pool: Arc<Pool>,
    counters: Counters,
    debug_gate: Gate,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    failures: AtomicU64,
    timeouts: AtomicU64,
    busy: AtomicU64,
}

/// A program's counters. All but `forks` and `idle` only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Forks there are, in use or idle.
    pub forks: u64,
    /// Forks waiting for a request.
    pub idle: u64,
    /// Forks made so far.
    pub created: u64,
    /// Requests that reached a fork.
    pub requests: u64,
    /// Requests that failed in the guest.
    pub failures: u64,
    /// Of these, the ones that ran out of time.
    pub timeouts: u64,
    /// Requests turned away because all forks were busy, or too many requests waited for one.
    pub busy: u64,
}

impl Program {
    /// Loads an ELF file, runs its `main()` and freezes it. Blocks up to `max_boot_time`. `host` gets what `main()`
    /// prints.
    ///
    /// # Errors
    /// See [`BootError`]: no KVM, not a program for us, a failing `main()`, nothing to call, stopped by `host`.
    pub fn boot(elf: &[u8], config: Config, host: &mut dyn Host) -> Result<Arc<Self>, BootError> {
        Self::of(Master::boot(elf, config, None, host)?)
    }

    /// Boots the program that is to take this one's place. It gets this one's state, if both have handlers for that
    /// (`on_live_update` here, `on_live_restore` there). This one goes on as before.
    ///
    /// # Errors
    /// As [`Program::boot`], and [`BootError::State`].
    pub fn boot_successor(
        &self,
        elf: &[u8],
        config: Config,
        host: &mut dyn Host,
    ) -> Result<Arc<Self>, BootError> {
        let most = config.limits.max_memory;
        let state = |deadline, host: &mut dyn Host| self.give_state(most, deadline, host);
        Self::of(Master::boot(elf, config, Some(&state), host)?)
    }

    fn of(master: Master) -> Result<Arc<Self>, BootError> {
        let pool =
            Pool::new(Arc::new(master)).map_err(|error| BootError::Host(error.to_string()))?;
        Ok(Arc::new(Self {
            pool,
            counters: Counters::default(),
            debug_gate: Gate::default(),
        }))
    }

    /// This program's state, in a fork of its own: those of the pool are for requests.
    fn give_state(
        &self,
        most: u64,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<HandedOver, BootError> {
        let master = self.pool.master();
        if master
            .wait_point
            .handlers
            .get(Handlers::ON_LIVE_UPDATE)
            .is_none()
        {
            return Ok(HandedOver::default());
        }
        let start = Instant::now();
        let mut fork =
            Fork::new(master.clone()).map_err(|error| BootError::State(error.to_string()))?;
        // A machine's making does not count, as in a boot.
        let made_in = start.elapsed();
        let failed = |cause: Cause| {
            let limits = &master.config.limits;
            let what = cause.describe(
                &master.symbols,
                &master.wait_point.layout.stack_window(),
                &format!("{:?} (max_boot_time)", limits.max_boot_time),
                &format!("{} bytes (max_request_memory)", limits.max_request_memory),
            );
            BootError::State(format!("on_live_update of the program before: {what}"))
        };
        let mut handed_over = fork
            .give_state(most, deadline + made_in, host)
            .map_err(|cause| BootError::of(cause, failed))?;
        handed_over.kept += made_in;
        Ok(handed_over)
    }

    /// Bytes of state that it got from the program before, if it did.
    pub fn restored_state(&self) -> Option<u64> {
        self.pool.master().restored
    }

    /// Makes forks on this thread until there are `forks` of them (at most `concurrency`), or none can be made, or it is
    /// `deadline`. The first requests then need not wait for them.
    pub fn fill(&self, forks: usize, deadline: Instant) {
        self.pool.fill(forks, deadline);
    }

    /// The settings it was booted with.
    pub fn config(&self) -> &Config {
        &self.pool.master().config
    }

    /// Runs one request in a fork.
    ///
    /// `deadline` is the request's end, normally its arrival plus `max_request_time`. Of that, at most `max_wait` is
    /// spent waiting for a fork, in a place of [`Config::queue`]. If the guest fails and has registered `on_error`, the answer is `on_error`'s and
    /// [`Answer::failure`] says what happened.
    ///
    /// # Errors
    /// See [`Failure`]: all forks busy, too many wait for one, the guest failed, no fork could be made.
    pub fn answer(
        self: &Arc<Self>,
        request: &Request<'_>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Answer, Failure> {
        let debugger = self.config().debugging.allowed.then(|| self.debugger());
        self.run(
            self.lease(deadline, host)?,
            request,
            deadline,
            host,
            debugger,
        )
    }

    /// Runs one request and stops it at its handler's entry for a debugger, which is told to `host` ([`Host::note`]). The
    /// time it is stopped does not count for `deadline`, but `debug_timeout` is the end. The caller's thread waits
    /// meanwhile; other requests go on, since this one has a fork of its own beside the pool's.
    ///
    /// # Errors
    /// As [`Program::answer`], and [`Failure::NotDebugged`] if debugging is not allowed or another request is being
    /// debugged.
    pub fn debug(
        self: &Arc<Self>,
        request: &Request<'_>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Answer, Failure> {
        let refused = |busy| Failure::NotDebugged { busy };
        if !self.config().debugging.allowed {
            return Err(refused(false));
        }
        let permit = self.debug_gate.enter().ok_or_else(|| refused(true))?;
        let debugger = self.debugger().at_entry(permit);
        self.run(self.own_lease()?, request, deadline, host, Some(debugger))
    }

    fn debugger(&self) -> Debugger<'_> {
        let master = self.pool.master();
        let config = &master.config;
        Debugger::new(&config.debugging, &master.auxiliary, &self.debug_gate)
    }

    fn run(
        &self,
        mut lease: Lease,
        request: &Request<'_>,
        deadline: Instant,
        host: &mut dyn Host,
        mut debugger: Option<Debugger<'_>>,
    ) -> Result<Answer, Failure> {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let cause = match lease
            .fork()?
            .call(request, deadline, host, debugger.as_mut())
            .and_then(|response| self.bounded(response))
        {
            Ok(response) => {
                return Ok(Answer {
                    lease,
                    response,
                    position: 0,
                    failure: None,
                });
            }
            Err(cause) => cause,
        };
        let stopped = cause == Cause::Stopped;
        let failure = self.failed(cause);
        let handlers = &self.pool.master().wait_point.handlers;
        // Whoever had it end wants no answer.
        if stopped || handlers.get(Handlers::ON_ERROR).is_none() {
            return Err(failure);
        }
        if let Err(error) = lease.fork()?.reset() {
            return Err(failed_again(
                failure,
                &format!("on_error can't be called: {error}"),
            ));
        }
        let now = Instant::now();
        // The time in a debugger is not the request's.
        let over = match debugger {
            Some(debugger) if debugger.has_stopped() => now,
            _ => deadline.min(now),
        };
        let deadline = over + ON_ERROR_TIME;
        match lease
            .fork()?
            .call_on_error(request, &failure.to_string(), deadline, host)
            .and_then(|response| self.bounded(response))
        {
            Ok(response) => Ok(Answer {
                lease,
                response,
                position: 0,
                failure: Some(failure),
            }),
            Err(second) => {
                let second = format!("on_error failed: {}", self.describe(&second));
                Err(failed_again(failure, &second))
            }
        }
    }

    /// A response that is longer than allowed is a failure like any other.
    fn bounded(&self, response: Response) -> Result<Response, Cause> {
        let (len, most) = (response.body.1, self.config().limits.max_response_size);
        match len > most {
            true => Err(Cause::LongResponse { len, most }),
            false => Ok(response),
        }
    }

    /// Whether a request would find a fork, or a place to wait for one.
    pub fn has_room(&self) -> bool {
        self.pool.stats().idle > 0 || self.config().queue.has_room()
    }

    /// The counters now.
    pub fn stats(&self) -> Stats {
        let pool = self.pool.stats();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            forks: pool.forks,
            idle: pool.idle,
            created: pool.created,
            requests: get(&self.counters.requests),
            failures: get(&self.counters.failures),
            timeouts: get(&self.counters.timeouts),
            busy: get(&self.counters.busy),
        }
    }

    /// For tests: how many pages of any idle fork differ from the master's. 0 unless a reset missed something. Slow.
    #[doc(hidden)]
    pub fn differing_pages(&self) -> usize {
        self.pool
            .idle_forks(Fork::differing_pages)
            .into_iter()
            .sum()
    }

    /// For the benchmark: the times of `n` bare `KVM_RUN` round trips of a fork, the least a request can cost.
    ///
    /// # Errors
    /// See [`Failure`]: no fork is free.
    #[doc(hidden)]
    pub fn round_trips(self: &Arc<Self>, n: usize) -> Result<Vec<Duration>, Failure> {
        let mut lease = self.lease(Instant::now() + self.config().limits.max_wait, &mut Quiet)?;
        Ok(lease.fork()?.round_trips(n))
    }

    fn lease(self: &Arc<Self>, deadline: Instant, host: &mut dyn Host) -> Result<Lease, Failure> {
        let config = self.config();
        let start = Instant::now();
        match self.pool.take(deadline.min(start + config.limits.max_wait)) {
            Ok(Taken { fork, loss }) => {
                if let Some(loss) = loss {
                    host.note(&format!("a fork was given up after its request: {loss}"));
                }
                Ok(Lease {
                    program: self.clone(),
                    fork: Some(fork),
                    of_pool: true,
                })
            }
            Err(TakeError::Busy) => {
                self.counters.busy.fetch_add(1, Ordering::Relaxed);
                Err(Failure::Busy {
                    concurrency: config.concurrency,
                    waited: start.elapsed(),
                })
            }
            Err(TakeError::QueueFull) => {
                self.counters.busy.fetch_add(1, Ordering::Relaxed);
                Err(Failure::QueueFull {
                    waiting: config.queue.limit(),
                })
            }
            Err(TakeError::NoFork(reason)) => Err(Failure::NoFork { reason }),
        }
    }

    /// A fork that no other request waits for.
    fn own_lease(self: &Arc<Self>) -> Result<Lease, Failure> {
        match Fork::new(self.pool.master().clone()) {
            Ok(fork) => Ok(Lease {
                program: self.clone(),
                fork: Some(Box::new(fork)),
                of_pool: false,
            }),
            Err(error) => Err(Failure::NoFork {
                reason: error.to_string(),
            }),
        }
    }

    fn describe(&self, cause: &Cause) -> String {
        let master = self.pool.master();
        let limits = &master.config.limits;
        let time = format!("{:?} (max_request_time)", limits.max_request_time);
        let memory = format!("{} bytes (max_request_memory)", limits.max_request_memory);
        cause.describe(
            &master.symbols,
            &master.wait_point.layout.stack_window(),
            &time,
            &memory,
        )
    }

    fn failed(&self, cause: Cause) -> Failure {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        let what = self.describe(&cause);
        let failure = Failure::Guest { cause, what };
        if failure.is_timeout() {
            self.counters.timeouts.fetch_add(1, Ordering::Relaxed);
        }
        failure
    }
}

/// A failure that is not all: what else went wrong is told with it.
fn failed_again(first: Failure, second: &str) -> Failure {
    match first {
        Failure::Guest { cause, what } => Failure::Guest {
            cause,
            what: format!("{what}; then {second}"),
        },
        other => other,
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.pool.close();
    }
}

/// A fork in use. Dropping it resets the fork and gives it back to the pool, whatever happened. One that is not of the
/// pool is freed.
#[derive(Debug)]
struct Lease {
    program: Arc<Program>,
    fork: Option<Box<Fork>>,
    of_pool: bool,
}

impl Lease {
    fn fork(&mut self) -> Result<&mut Fork, Failure> {
        // There is one until drop; an error instead of a panic all the same.
        self.fork.as_deref_mut().ok_or_else(|| Failure::NoFork {
            reason: "it was given back".into(),
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        match self.fork.take() {
            Some(mut fork) if self.of_pool => {
                let reset = fork.reset();
                self.program.pool.give_back(fork, reset);
            }
            Some(fork) => self.program.pool.free(fork),
            None => {}
        }
    }
}

/// A guest's answer. It holds the fork, whose memory has the body; dropping it resets the fork.
#[derive(Debug)]
pub struct Answer {
    lease: Lease,
    response: Response,
    position: u64,
    failure: Option<Failure>,
}

impl Answer {
    /// The status, 200 to 599.
    pub fn status(&self) -> u16 {
        self.response.status
    }

    /// The content type; may be empty. Free of control characters.
    pub fn content_type(&self) -> &[u8] {
        &self.response.content_type
    }

    /// The other headers: valid names and values, none that belong to the connection or to framing.
    pub fn headers(&self) -> &[Header<'static>] {
        &self.response.headers
    }

    /// How long it may be cached; `None` if the guest did not allow that.
    pub fn cache(&self) -> Option<CachePolicy> {
        self.response.cache
    }

    /// The failure before, if this is the answer of `on_error`.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Length of the whole body in bytes.
    pub fn body_len(&self) -> u64 {
        self.response.body.1
    }

    /// Copies the start of the body, to look at it, and says how much that is. [`Answer::read_body`] begins there all the
    /// same.
    pub fn body_start(&self, buf: &mut [u8]) -> usize {
        self.copy_body(0, buf)
    }

    /// Copies the next piece of the body out of guest memory. 0 at its end.
    pub fn read_body(&mut self, buf: &mut [u8]) -> usize {
        let n = self.copy_body(self.position, buf);
        self.position += n as u64;
        n
    }

    fn copy_body(&self, position: u64, buf: &mut [u8]) -> usize {
        let fork = self.lease.fork.as_ref();
        fork.map_or(0, |fork| fork.read_body(&self.response, position, buf))
    }
}
