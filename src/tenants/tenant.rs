//! A tenant: its settings, its program once that is ready, and its figures.
#![forbid(unsafe_code)]

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use forkvm::{Failure, Program, Queue};
use parking_lot::{Condvar, Mutex};

use crate::file::Identity;
use crate::tenants::fetches::Fetches;
use crate::tenants::figures::Figures;
use crate::tenants::keys::{Denied, Proof};
use crate::tenants::later::{Later, Never};
use crate::tenants::room::Room;
use crate::tenants::settings::Settings;
use crate::tenants::signature::{Action, Claim};
use crate::tenants::store::Store;
use crate::tenants::version::Version;
use crate::varnish::logging::LateOutput;

/// A tenant, shared by all VCLs that name it with the same settings and the same file.
pub struct Tenant {
    /// Later ones have greater numbers.
    pub number: u64,
    /// As given in VCL.
    pub settings: Settings,
    /// Where its updates are kept.
    pub store: Store,
    /// The file that its program was booted from. `None` if there was none.
    identity: Mutex<Option<Identity>>,
    /// That file, open, until its content is stored: it may no longer be at its path when an update is to store it.
    pub origin: Mutex<Option<File>>,
    /// A changed file that was watched, and is no program.
    rejected: Mutex<Option<Identity>>,
    /// The stored program that did not boot with its settings, which is why it runs another one.
    unfit: Mutex<Option<Version>>,
    state: Mutex<State>,
    /// What has its program booted, as long as nobody has asked for it.
    asleep: Later<()>,
    /// What has it loaded anew, as long as nobody has asked for it since that is wanted. It tells when that is done.
    stale: Later<Receiver<Never>>,
    /// Programs that updates have replaced, until their last requests are done.
    replaced: Mutex<Vec<Weak<Program>>>,
    becomes_settled: Condvar,
    /// When it began or ceased to have a program.
    changed: Mutex<SystemTime>,
    /// What is counted of its requests.
    pub figures: Arc<Figures>,
    /// Memory for request bodies, which are read before the wait for a fork: as many as can run at once may be as long as a
    /// body can be, and one more.
    pub bodies: Arc<Room>,
    /// Memory for responses' bodies, until Varnish has them and their clients have read most of them.
    pub responses: Arc<Room>,
    /// Who fetches for its programs. A server has sockets for that.
    pub fetches: Option<Arc<Fetches>>,
    /// Connections that are piped to it, which have places there.
    pub pipes: Queue,
    /// A request is being debugged.
    debugged: AtomicBool,
    /// The log says that the program's output is not logged.
    dropped: AtomicBool,
    /// Its snapshot was found to be damaged when it was in use.
    snapshot_lost: AtomicBool,
}

/// How far a tenant's program is.
#[derive(Clone)]
pub enum State {
    /// Waits for its turn to boot, or boots.
    Booting,
    /// Takes requests.
    Ready(Release),
    /// Did not become ready.
    Failed(Failed),
}

impl State {
    /// Whether it is the very same: not another program, nor another failure.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Booting, Self::Booting) => true,
            (Self::Ready(one), Self::Ready(other)) => Arc::ptr_eq(&one.program, &other.program),
            (Self::Failed(one), Self::Failed(other)) => Arc::ptr_eq(&one.reason, &other.reason),
            _ => false,
        }
    }
}

/// A program that did not become ready.
#[derive(Clone)]
pub struct Failed {
    /// Why.
    pub reason: Arc<str>,
    /// Which one. `None` if there was none.
    pub version: Option<Version>,
    /// Since when the tenant has been without one, however often it was tried.
    pub since: SystemTime,
    /// How long it took to find out.
    pub took: Duration,
}

/// A program in service.
#[derive(Clone)]
pub struct Release {
    /// The program.
    pub program: Arc<Program>,
    /// Which one.
    pub version: Version,
}

/// Why a tenant has no program for a request.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The deadline came first.
    #[error("its program still boots, max_request_time is over")]
    Booting,
    /// As many requests as may be wait for it already.
    #[error("its program still boots, and {0} requests wait for it (max_queue)")]
    QueueFull(usize),
    /// It failed to boot.
    #[error("its program is not ready: {0}")]
    Failed(Arc<str>),
}

impl Tenant {
    /// A tenant whose program is about to be booted.
    pub fn new(settings: Settings, identity: Option<Identity>) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let config = &settings.config;
        let at_once = (config.concurrency as u64).saturating_add(1);
        let bodies = Room::new(config.limits.max_request_memory.saturating_mul(at_once));
        let fetches = match settings.server {
            true => None,
            false => Some(Fetches::new(&settings.values, &bodies)),
        };
        let store = Store::new(
            &settings.state_dir,
            &settings.config.name,
            settings.values.keep_versions as usize,
        );
        Self {
            number: COUNT.fetch_add(1, Ordering::Relaxed),
            bodies,
            fetches,
            responses: Room::new(settings.values.max_response_memory),
            pipes: Queue::new(settings.values.max_pipes as usize),
            store,
            settings,
            identity: Mutex::new(identity),
            origin: Mutex::new(None),
            rejected: Mutex::new(None),
            unfit: Mutex::new(None),
            state: Mutex::new(State::Booting),
            asleep: Later::default(),
            stale: Later::default(),
            replaced: Mutex::default(),
            becomes_settled: Condvar::new(),
            changed: Mutex::new(SystemTime::now()),
            figures: Arc::default(),
            debugged: AtomicBool::new(false),
            dropped: AtomicBool::new(false),
            snapshot_lost: AtomicBool::new(false),
        }
    }

    /// Why no program can run with its settings now, if none can.
    pub fn fault(&self) -> Option<String> {
        let fetches = self.fetches.as_ref();
        let fault = self.settings.fault.clone();
        fault.or_else(|| fetches?.check().err())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.settings.config.name
    }

    /// Where its program's output goes when its fetch is over, or there is none; with who fetches for it.
    pub fn late_output(&self) -> LateOutput {
        LateOutput::new(self.name(), self.settings.values.stdout).with_fetcher(self.fetches.clone())
    }

    /// Whether an order may be carried out: what was sent is the tenant's key, or a signature with it of a request with
    /// this method that asks for this.
    pub fn check<'a>(
        &self,
        sent: &'a [u8],
        method: &str,
        action: Action,
    ) -> Result<Proof<'a>, Denied> {
        self.check_some(sent, &[self.claim(method, action)])
    }

    /// Whether what was sent allows some order by this method. Nothing is used up.
    pub fn check_any(&self, sent: &[u8], method: &str) -> Result<(), Denied> {
        let claims = Action::ALL.map(|action| self.claim(method, action));
        self.check_some(sent, &claims).map(drop)
    }

    fn claim<'a>(&'a self, method: &'a str, action: Action) -> Claim<'a> {
        Claim {
            tenant: self.name(),
            method,
            action,
        }
    }

    fn check_some<'a>(&self, sent: &'a [u8], claims: &[Claim<'_>]) -> Result<Proof<'a>, Denied> {
        let signed_only = self.settings.values.signed_orders;
        self.settings.key.check(sent, claims, signed_only)
    }

    /// The file of its path that it has.
    pub fn identity(&self) -> Option<Identity> {
        *self.identity.lock()
    }

    /// It has this file now.
    pub fn set_identity(&self, identity: Identity) {
        *self.identity.lock() = Some(identity);
    }

    /// The last file of its path that was no program.
    pub fn rejected(&self) -> Option<Identity> {
        *self.rejected.lock()
    }

    /// This file is no program.
    pub fn reject(&self, identity: Identity) {
        *self.rejected.lock() = Some(identity);
    }

    /// The stored program that did not boot with its settings.
    pub fn unfit(&self) -> Option<Version> {
        *self.unfit.lock()
    }

    /// This stored program does not boot with its settings; `None`: it runs the one that it should.
    pub fn set_unfit(&self, version: Option<Version>) {
        *self.unfit.lock() = version;
    }

    /// Its program is not booted before somebody asks for it, by `wake`.
    pub fn sleep(&self, wake: impl FnOnce() + Send + 'static) {
        self.asleep.set(wake);
    }

    /// Somebody asks for its program.
    pub fn wake(&self) {
        self.asleep.run();
    }

    /// Its program is to be loaded anew when somebody asks for it next, by `renew`, which does not wait for that.
    pub fn renew_later(&self, renew: impl FnOnce() -> Receiver<Never> + Send + 'static) {
        self.stale.set(renew);
    }

    /// What it has in the place of this program, should that have to be loaded anew and nobody have done so. That is waited for, as
    /// long as enough time is left for the program before.
    fn renewed(&self, release: Release, deadline: Instant) -> Release {
        let Some(done) = self.stale.run() else {
            return release;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        // Nothing ever comes: its end is what is waited for.
        let _ = done.recv_timeout(left / 2);
        match self.state() {
            State::Ready(release) => release,
            State::Booting | State::Failed(_) => release,
        }
    }

    /// Whether nobody has asked for its program yet.
    pub fn is_asleep(&self) -> bool {
        self.asleep.is_set()
    }

    /// How far its program is now.
    pub fn state(&self) -> State {
        self.state.lock().clone()
    }

    /// Whether it has no program, and none boots for the first time.
    pub fn is_failed(&self) -> bool {
        matches!(*self.state.lock(), State::Failed(_))
    }

    /// When it began or ceased to have a program.
    pub fn changed(&self) -> SystemTime {
        *self.changed.lock()
    }

    /// It has this program now, whatever was before. Ends the wait of those who want it.
    pub fn settle(&self, release: Release) {
        let before = std::mem::replace(&mut *self.state.lock(), State::Ready(release));
        self.becomes_settled.notify_all();
        match &before {
            State::Ready(release) => {
                let program = Arc::downgrade(&release.program);
                self.replaced.lock().push(program);
            }
            _ => *self.changed.lock() = SystemTime::now(),
        }
        // Not under the lock: it may be the last reference to a program.
        drop(before);
    }

    /// How many programs that updates have replaced still have requests.
    pub fn replaced(&self) -> usize {
        let mut replaced = self.replaced.lock();
        replaced.retain(|program| program.strong_count() > 0);
        replaced.len()
    }

    /// Puts a state in the place of `old`, unless that has been replaced already. Ends the wait of those who want a program.
    pub fn replace(&self, old: &State, new: State) -> bool {
        let mut state = self.state.lock();
        if !state.is(old) {
            return false;
        }
        // Not the last reference to a program: the caller has it.
        let same = std::mem::discriminant(&new) == std::mem::discriminant(old);
        *state = new;
        drop(state);
        self.becomes_settled.notify_all();
        if !same {
            *self.changed.lock() = SystemTime::now();
        }
        true
    }

    /// Its program, as soon as it is ready, if there is a place to wait in.
    pub fn program(&self, deadline: Instant) -> Result<Release, NotReady> {
        let mut state = self.state();
        if matches!(state, State::Booting) {
            self.wake();
            // The one that those are in, too, who wait for a fork.
            let queue = &self.settings.config.queue;
            let _place = queue.enter().ok_or(NotReady::QueueFull(queue.limit()))?;
            state = self.settled(deadline);
        }
        match state {
            State::Ready(release) => Ok(self.renewed(release, deadline)),
            State::Failed(failed) => Err(NotReady::Failed(failed.reason)),
            State::Booting => Err(NotReady::Booting),
        }
    }

    /// How far its program is at `deadline`, or before if it does not boot any more.
    pub fn settled(&self, deadline: Instant) -> State {
        self.wake();
        let mut state = self.state.lock();
        let mut late = false;
        loop {
            match &*state {
                State::Booting if !late => {
                    late = self
                        .becomes_settled
                        .wait_until(&mut state, deadline)
                        .timed_out();
                }
                settled => return settled.clone(),
            }
        }
    }

    /// Its snapshot is not to be used again.
    pub fn lose_snapshot(&self) {
        self.snapshot_lost.store(true, Ordering::Relaxed);
    }

    /// Whether that was said.
    pub fn snapshot_is_lost(&self) -> bool {
        self.snapshot_lost.load(Ordering::Relaxed)
    }

    /// Whether output of its program is dropped for the first time, which is worth a record.
    pub fn is_first_dropped(&self) -> bool {
        // Most requests only read it.
        !self.dropped.load(Ordering::Relaxed) && !self.dropped.swap(true, Ordering::Relaxed)
    }

    /// Whether a request would find a fork, or a place to wait in; else why not. If it fails at once, it needs none.
    pub fn has_room(&self) -> Result<(), String> {
        let queue = &self.settings.config.queue;
        match self.state() {
            State::Ready(release) if !release.program.has_room() => {
                Err(self.queue_full().to_string())
            }
            State::Booting if !queue.has_room() => {
                Err(NotReady::QueueFull(queue.limit()).to_string())
            }
            _ => Ok(()),
        }
    }

    /// What the engine says to a request for which there is neither a fork nor a place to wait in.
    pub fn queue_full(&self) -> Failure {
        Failure::QueueFull {
            waiting: self.settings.config.queue.limit(),
        }
    }
}

/// A tenant's turn to have a request debugged, in whichever program.
pub struct DebugTurn(Arc<Tenant>);

impl DebugTurn {
    /// The turn, unless another request has it.
    pub fn take(tenant: &Arc<Tenant>) -> Option<Self> {
        // Not `then_some`: that makes a turn in any case, which would end the other's when dropped.
        (!tenant.debugged.swap(true, Ordering::AcqRel)).then(|| Self(tenant.clone()))
    }
}

impl Drop for DebugTurn {
    fn drop(&mut self) {
        self.0.debugged.store(false, Ordering::Release);
    }
}
