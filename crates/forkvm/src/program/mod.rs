//! A program ready for requests, or a server: its frozen state and its forks.

mod answer;
mod coming;
mod conclusion;
mod conversation;
mod counters;
mod exchange;
mod lease;
mod posting;
mod stay;
mod streaming;
pub mod take_over;
mod turnstile;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::call::handlers::Handlers;
use crate::config::Config;
use crate::debug::{Debugger, Gate};
use crate::exec::Sandbox;
use crate::failure::{BootError, Cause, Failure};
use crate::fork::{Fork, ForkError};
use crate::image::exec::Command;
use crate::master::Master;
use crate::master::handover::HandedOver;
use crate::pool::{Origin, Pool, PoolStats, TakeError, Taken};
pub use crate::program::answer::Answer;
pub use crate::program::coming::{Coming, Piece};
use crate::program::conclusion::conclude;
use crate::program::conversation::Conversation;
pub use crate::program::conversation::Later;
use crate::program::counters::Counters;
pub use crate::program::counters::Stats;
pub use crate::program::exchange::Exchange;
use crate::program::lease::Lease;
pub use crate::program::lease::Usage;
use crate::program::posting::Posting;
use crate::program::stay::{Stay, stored};
pub use crate::program::streaming::Streaming;
use crate::program::turnstile::{Turnstile, Way};
use crate::request::{Host, Quiet, Request};
use crate::server::http_client::{self, Upload};
use crate::server::{
    Closed, Connection, Server, ServerFork, ServerLimits, Snapshot, SnapshotError, Times,
};
use crate::storage::{self, Storage};

/// A frozen program and its pool of forks.
#[derive(Debug)]
pub struct Program {
    forks: Forks,
    counters: Arc<Counters>,
    debug_gate: Gate,
    /// What its requests may call, if it has that.
    storage: Option<Arc<Storage>>,
    /// The way in for them.
    way_in: Turnstile<Program>,
}

/// The forks.
#[derive(Debug)]
enum Forks {
    /// Of a program with handlers.
    Handlers(Arc<Pool<Master>>),
    /// Of an unmodified server.
    Server(Box<Serving>),
}

/// A server's.
#[derive(Debug)]
struct Serving {
    pool: Arc<Pool<Server>>,
    config: Config,
    /// What its user wants to have as long as it.
    _keep: Option<Box<dyn Any + Send + Sync>>,
}

impl Program {
    /// Loads an ELF file, runs its `main()` and freezes it. Blocks up to `max_boot_time`. `host` gets what `main()`
    /// prints.
    ///
    /// # Errors
    /// See [`BootError`]: no KVM, not a program for us, a failing `main()`, nothing to call, stopped by `host`.
    pub fn boot(elf: &[u8], config: Config, host: &mut dyn Host) -> Result<Arc<Self>, BootError> {
        let program = Self::of(storage::boot::boot(elf, config, None, host)?)?;
        program.begin();
        Ok(program)
    }

    /// Boots the program that is to take this one's place. It gets this one's state, if both have handlers for that
    /// (`on_live_update` here, `on_live_restore` there). This one goes on as before. Its storage's state goes over by
    /// [`Program::take_over`].
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
        Self::of(storage::boot::boot(elf, config, Some(&state), host)?)
    }

    /// Runs an unmodified server until it waits for a connection, and freezes it there. Of `config` its program's name, arguments,
    /// environment and paths do not count, which `command` and `sandbox` have. `keep` is dropped with it. Blocks up to `max_boot_time`.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn boot_server(
        command: Command,
        sandbox: &Sandbox,
        config: Config,
        keep: Option<Box<dyn Any + Send + Sync>>,
        host: &mut dyn Host,
    ) -> Result<Arc<Self>, BootError> {
        let limits = server_limits(&config).map_err(BootError::Setting)?;
        let server = Server::boot(command, sandbox, limits, host)?;
        Self::serving(server, config, keep).map_err(|error| BootError::Host(error.to_string()))
    }

    /// The same of a snapshot, without a boot.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn load_server(
        snapshot: Snapshot,
        sandbox: &Sandbox,
        config: Config,
    ) -> Result<Arc<Self>, SnapshotError> {
        let limits = server_limits(&config).map_err(SnapshotError::Setting)?;
        let server = snapshot.load(sandbox, limits)?;
        Self::serving(server, config, None).map_err(|error| SnapshotError::Host(error.to_string()))
    }

    /// The server, if it is an unmodified one.
    pub fn server(&self) -> Option<Arc<Server>> {
        match &self.forks {
            Forks::Server(serving) => Some(serving.pool.origin().clone()),
            Forks::Handlers(_) => None,
        }
    }

    fn serving(
        server: Arc<Server>,
        config: Config,
        keep: Option<Box<dyn Any + Send + Sync>>,
    ) -> Result<Arc<Self>, ForkError> {
        let pool = Pool::new(server, config.pool_limits())?;
        let serving = Serving {
            pool,
            config,
            _keep: keep,
        };
        Ok(Self::with(Forks::Server(Box::new(serving)), None))
    }

    fn of((master, storage): (Arc<Master>, Option<Arc<Storage>>)) -> Result<Arc<Self>, BootError> {
        let limits = master.config.pool_limits();
        let pool = Pool::new(master, limits).map_err(|error| BootError::Host(error.to_string()))?;
        Ok(Self::with(Forks::Handlers(pool), storage))
    }

    fn with(forks: Forks, storage: Option<Arc<Storage>>) -> Arc<Self> {
        let account = match &forks {
            Forks::Handlers(pool) => pool.account().clone(),
            Forks::Server(serving) => serving.pool.account().clone(),
        };
        Arc::new(Self {
            forks,
            counters: Arc::new(Counters::of(account)),
            debug_gate: Gate::default(),
            storage,
            way_in: Turnstile::new(),
        })
    }

    /// It is in service, and takes over from nobody: its storage's tasks may run, and it saves at the end. [`Program::boot`] has done so.
    pub fn begin(&self) {
        if let Some(storage) = &self.storage {
            storage.begin();
        }
    }

    /// Another program, which has taken over nothing of it, is in service in its place: its storage's tasks are over, and it saves no more.
    pub fn retire(&self) {
        if let Some(storage) = &self.storage {
            storage.retire();
        }
    }

    /// Has its storage save what has to outlive it, if it has a handler for that (`on_storage_save`), for its successor's `main()`. Blocks
    /// up to twice `max_storage_time`.
    ///
    /// # Errors
    /// [`BootError::State`]: why it could not be called.
    pub fn save(&self) -> Result<(), BootError> {
        match &self.storage {
            Some(storage) => storage.save().map_err(|why| {
                BootError::State(format!("on_storage_save of the program before: {why}"))
            }),
            None => Ok(()),
        }
    }

    /// This program's state, in a fork of its own: those of the pool are for requests.
    fn give_state(
        &self,
        most: u64,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<HandedOver, BootError> {
        // An unmodified server has nothing to hand over.
        let Forks::Handlers(pool) = &self.forks else {
            return Ok(HandedOver::default());
        };
        let master = pool.origin();
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
        if let Some(bytes) = self.storage.as_ref().and_then(|storage| storage.restored()) {
            return Some(bytes);
        }
        match &self.forks {
            Forks::Handlers(pool) => pool.origin().restored,
            Forks::Server(_) => None,
        }
    }

    /// Makes forks on this thread until there are `forks` of them (at most `concurrency`), or none can be made, or it is
    /// `deadline`. The first requests then need not wait for them.
    pub fn fill(&self, forks: usize, deadline: Instant) {
        match &self.forks {
            Forks::Handlers(pool) => pool.fill(forks, deadline),
            Forks::Server(serving) => serving.pool.fill(forks, deadline),
        }
    }

    /// Whether requests find what earlier ones have left in their fork: it is not isolated from them.
    pub fn keeps_state(&self) -> bool {
        match &self.forks {
            Forks::Handlers(pool) => pool.origin().keeps_state,
            Forks::Server(_) => false,
        }
    }

    /// The settings it was booted with.
    pub fn config(&self) -> &Config {
        match &self.forks {
            Forks::Handlers(pool) => &pool.origin().config,
            Forks::Server(serving) => &serving.config,
        }
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
        let stay = match self.enter(deadline)? {
            Way::There(successor) => return successor.answer(request, deadline, host),
            Way::Here(stay) => stay,
        };
        match &self.forks {
            Forks::Handlers(pool) if !self.takes_segments() || request.body.is_empty() => {
                let lease = self.lease(pool, deadline, host)?;
                let debugger = self.config().debugging.allowed.then(|| self.debugger(pool));
                self.run(lease, stay, request, (deadline, host), debugger)
            }
            _ => self
                .begin_exchange(stay, request, Upload::Whole, deadline, host)?
                .answer(deadline, None, host),
        }
    }

    /// Where a request is to be answered, which need not be here if there is storage.
    fn enter(&self, deadline: Instant) -> Result<Way<Option<Stay>, Self>, Failure> {
        let Some(storage) = &self.storage else {
            return Ok(Way::Here(None));
        };
        let way = self.way_in.enter(&self.config().queue, deadline)?;
        Ok(match way {
            Way::Here(inside) => Way::Here(Some(Stay::new(storage.clone(), inside))),
            Way::There(successor) => Way::There(successor),
        })
    }

    /// Whether it has a handler for bodies that come segment by segment, so that [`Program::exchange`] is for requests with one.
    pub fn takes_segments(&self) -> bool {
        match &self.forks {
            Forks::Handlers(pool) => {
                let handlers = &pool.origin().wait_point.handlers;
                handlers.get(Handlers::STREAM_POST).is_some()
            }
            Forks::Server(_) => false,
        }
    }

    /// Begins a request in a fork of a server, or of a program that [takes segments](Program::takes_segments), whose body may come
    /// later. As [`Program::answer`] otherwise; a server is not asked again if it fails.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn exchange(
        self: &Arc<Self>,
        request: &Request<'_>,
        upload: Upload,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Exchange, Failure> {
        match self.enter(deadline)? {
            Way::Here(stay) => self.begin_exchange(stay, request, upload, deadline, host),
            // Its body can't go there as it comes.
            Way::There(successor) if !successor.takes_segments() => Err(Failure::Replaced),
            Way::There(successor) => successor.exchange(request, upload, deadline, host),
        }
    }

    fn begin_exchange(
        self: &Arc<Self>,
        stay: Option<Stay>,
        request: &Request<'_>,
        upload: Upload,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Exchange, Failure> {
        if let Forks::Handlers(pool) = &self.forks {
            let lease = self.lease(pool, deadline, host)?;
            let owner = (&self.counters, stay);
            let posting = Posting::begin(owner, lease, request, deadline, host)?;
            return Ok(Exchange::with_program(posting));
        }
        let lease = self.lease(self.servers()?, deadline, host)?;
        let most = self.config().limits.max_response_size;
        let of = (self.clone() as _, self.counters.clone());
        let begun = Conversation::begin(of, lease, (request, upload), deadline, most)?;
        Ok(Exchange::with_server(begun))
    }

    /// The forks of a server.
    fn servers(&self) -> Result<&Arc<Pool<Server>>, Failure> {
        match &self.forks {
            Forks::Server(serving) => Ok(&serving.pool),
            Forks::Handlers(_) => Err(Failure::NoFork {
                reason: "it is no server".into(),
            }),
        }
    }

    /// Serves a connection of a client's, in a fork of a server that is made for it and freed afterwards. The two may both be silent for
    /// `idle`.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn pipe(
        self: &Arc<Self>,
        connection: &mut dyn Connection,
        idle: Duration,
        host: &mut dyn Host,
    ) -> Result<Closed, Failure> {
        let mut lease = Lease::own(self.servers()?.clone())?;
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let times = Times {
            request: idle,
            idle,
        };
        match lease.fork()?.serve_in(connection, times, host) {
            Ok(closed) => Ok(closed),
            // Nobody knows whose turn it was to say something.
            Err(Cause::Timeout) => Ok(Closed::Idle),
            Err(cause) => {
                let what = lease.pool().origin().describe(&cause);
                Err(self.counters.failed(cause, what))
            }
        }
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
        let Forks::Handlers(pool) = &self.forks else {
            return Err(refused(false));
        };
        if !self.config().debugging.allowed {
            return Err(refused(false));
        }
        if self.takes_segments() && !request.body.is_empty() {
            host.note("debugger: a handler that takes bodies by segments is not stopped at");
            return self.answer(request, deadline, host);
        }
        let stay = match self.enter(deadline)? {
            Way::There(successor) => return successor.debug(request, deadline, host),
            Way::Here(stay) => stay,
        };
        let permit = self.debug_gate.enter().ok_or_else(|| refused(true))?;
        let debugger = self.debugger(pool).at_entry(permit);
        let lease = Lease::own(pool.clone())?;
        self.run(lease, stay, request, (deadline, host), Some(debugger))
    }

    fn debugger<'a>(&'a self, pool: &'a Pool<Master>) -> Debugger<'a> {
        let auxiliary = &pool.origin().auxiliary;
        Debugger::new(&self.config().debugging, auxiliary, &self.debug_gate)
    }

    fn run(
        &self,
        mut lease: Lease<Master>,
        stay: Option<Stay>,
        request: &Request<'_>,
        (deadline, host): (Instant, &mut dyn Host),
        mut debugger: Option<Debugger<'_>>,
    ) -> Result<Answer, Failure> {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let result = lease.fork()?.call(
            request,
            stored(stay.as_ref()),
            deadline,
            host,
            debugger.as_mut(),
        );
        // The time in a debugger is not the request's.
        let deadline = match &debugger {
            Some(debugger) if debugger.has_stopped() => {
                Instant::now() + self.config().limits.max_request_time
            }
            _ => deadline,
        };
        let owner = (&self.counters, stay);
        conclude(owner, lease, result, request, deadline, host)
    }

    /// Whether a request would find a fork, or a place to wait for one.
    pub fn has_room(&self) -> bool {
        self.pool_stats().idle > 0 || self.config().queue.has_room()
    }

    fn pool_stats(&self) -> PoolStats {
        match &self.forks {
            Forks::Handlers(pool) => pool.stats(),
            Forks::Server(serving) => serving.pool.stats(),
        }
    }

    /// The counters now.
    pub fn stats(&self) -> Stats {
        let pool = self.pool_stats();
        Stats {
            forks: pool.forks,
            idle: pool.idle,
            created: pool.created,
            waiting: pool.waiting,
            storage: self.storage.as_ref().map(|storage| storage.stats()),
            ..self.counters.stats()
        }
    }

    /// For tests: how many pages of any idle fork differ from the master's. 0 unless a reset missed something. Slow.
    #[doc(hidden)]
    pub fn differing_pages(&self) -> usize {
        match &self.forks {
            Forks::Handlers(pool) => pool.idle_forks(Fork::differing_pages),
            Forks::Server(serving) => serving.pool.idle_forks(ServerFork::differing_pages),
        }
        .into_iter()
        .sum()
    }

    /// For the benchmark: the times of `n` bare `KVM_RUN` round trips of a fork, the least a request can cost.
    ///
    /// # Errors
    /// See [`Failure`]: no fork is free.
    #[doc(hidden)]
    pub fn round_trips(self: &Arc<Self>, n: usize) -> Result<Vec<Duration>, Failure> {
        let Forks::Handlers(pool) = &self.forks else {
            return Ok(Vec::new());
        };
        let until = Instant::now() + self.config().limits.max_wait;
        let mut lease = self.lease(pool, until, &mut Quiet)?;
        Ok(lease.fork()?.round_trips(n))
    }

    fn lease<O: Origin>(
        self: &Arc<Self>,
        pool: &Arc<Pool<O>>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Lease<O>, Failure> {
        let config = self.config();
        let start = Instant::now();
        match pool.take(deadline.min(start + config.limits.max_wait)) {
            Ok(Taken { fork, waited, loss }) => {
                if let Some(loss) = loss {
                    host.note(&format!("a fork was given up after its request: {loss}"));
                }
                Ok(Lease::of_pool(pool.clone(), fork, waited))
            }
            Err(TakeError::Busy) => {
                self.counters.refused();
                Err(Failure::Busy {
                    concurrency: config.concurrency,
                    waited: start.elapsed(),
                })
            }
            Err(TakeError::QueueFull) => {
                self.counters.refused();
                Err(Failure::QueueFull {
                    waiting: config.queue.limit(),
                })
            }
            Err(TakeError::NoFork(reason)) => Err(Failure::NoFork { reason }),
        }
    }
}

/// Its storage ends with it.
impl Drop for Program {
    fn drop(&mut self) {
        if let Some(storage) = self.storage.take() {
            storage.end();
        }
    }
}

/// What of a configuration a server has to know, once it is checked. An error says which setting is wrong.
fn server_limits(config: &Config) -> Result<ServerLimits, String> {
    config.check().map_err(|error| error.to_string())?;
    let limits = &config.limits;
    let request = config.warm_up.as_ref().map(|of| (of, of.request()));
    let warm_up = match &request {
        Some((warm_up, request)) => {
            let head = http_client::head(request, Upload::Whole).map_err(|bad| bad.to_string())?;
            vec![head; warm_up.num_requests as usize]
        }
        None => Vec::new(),
    };
    Ok(ServerLimits {
        max_boot_time: limits.max_boot_time,
        max_request_time: limits.max_request_time,
        // Within the request's deadline.
        max_idle_time: limits.max_request_time,
        max_request_memory: limits.max_request_memory,
        req_mem_limit_after_reset: limits.req_mem_limit_after_reset,
        warm_up,
        warm_forks: config.warm_up.as_ref().is_none_or(|warm_up| warm_up.forks),
        warm_up_time: config.warm_up_time,
        drop_connections: config.drop_connections,
    })
}
