//! Live update: another program takes a tenant's place, while the one before serves until then.
//!
//! The new program boots, takes over the state, runs its warm-up and gets its forks; it is stored; then one switch. A
//! request finishes on the program it began with, and the last one to let go of the old program leaves the freeing to the
//! engine's own thread. Whatever fails before the switch changes nothing.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use forkvm::BootError;
use parking_lot::Mutex;
use varnish::vcl::LogTag;

use crate::boot::{self, BootFailure, Purpose};
use crate::counters::count;
use crate::store::{Lock, Store, StoreError, Stored};
use crate::tenant::{Release, State, Tenant};
use crate::version::Version;
use crate::{logging, registry};

/// Time beyond two boots (the second one without state) that is waited for an update: the disk's.
const SLACK: Duration = Duration::from_secs(30);

/// Where the new program comes from.
pub enum Source {
    /// Given to us: it has to be stored.
    Given(Vec<u8>),
    /// The file that the tenant was loaded from, which has changed: storing it as well is for rollback only.
    Path(Vec<u8>),
    /// The store: the program before.
    Rollback,
}

/// An update that was done.
#[derive(Debug)]
pub struct Done {
    /// What runs now.
    pub version: Version,
    /// What ran before, if something did. Equal to `version` if nothing has changed.
    pub previous: Option<Version>,
    /// Length of the file.
    pub bytes: usize,
    /// From its start until main() was done and the machine frozen.
    pub boot: Duration,
    /// From the upload's end until the switch.
    pub ready: Duration,
    /// Bytes of state that were handed over.
    pub state: Option<u64>,
}

/// Why an update was not done.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// One at a time.
    #[error("another update of this tenant is in progress")]
    Busy,
    /// There is nothing to take the place of yet.
    #[error("the tenant's first program still boots")]
    Booting,
    /// It is no program, or does not become ready.
    #[error("{reason}")]
    BadProgram {
        /// Why.
        reason: String,
        /// The last it wrote to stderr.
        stderr: Vec<u8>,
    },
    /// Not for now.
    #[error("{0}")]
    NoResources(String),
    /// Rollback without anything to go back to.
    #[error("no earlier version is kept (keep_versions)")]
    NothingBefore,
    /// It could not be stored.
    #[error("it can't be stored: {0}")]
    Store(StoreError),
    /// Nobody waits any longer.
    #[error("it is not done yet; what comes of it will be in the log")]
    TooLong,
    /// A bug.
    #[error("internal error, logged separately")]
    Internal,
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Busy(_) => Self::Busy,
            StoreError::Io { error: ref io, .. } if is_shortage(io) => {
                Self::NoResources(error.to_string())
            }
            error => Self::Store(error),
        }
    }
}

/// Whether it may go better later.
fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM)
    )
}

impl From<BootFailure> for Refused {
    fn from(failure: BootFailure) -> Self {
        match failure.error {
            BootError::Host { .. } | BootError::Kvm { .. } => Self::NoResources(failure.reason),
            _ => Self::BadProgram {
                reason: failure.reason,
                stderr: failure.stderr,
            },
        }
    }
}

/// Names of the tenants that are being updated.
static UPDATING: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);

/// A tenant's turn to be updated.
pub struct Turn(String);

impl Turn {
    /// The turn, unless somebody has it.
    pub fn take(tenant: &Tenant) -> Result<Self, Refused> {
        let name = tenant.name().to_owned();
        if UPDATING.lock().insert(name.clone()) {
            Ok(Self(name))
        } else {
            Err(Refused::Busy)
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        UPDATING.lock().remove(&self.0);
    }
}

/// Updates a tenant, and waits for it.
pub fn update(tenant: &Arc<Tenant>, source: Source, turn: Turn) -> Result<Done, Refused> {
    let of = tenant.clone();
    apart(tenant, move || {
        let outcome = caught(|| perform(&of, source));
        report(&of, &outcome);
        drop(turn);
        outcome
    })
}

/// Boots a program beside the tenant's, with the state that it would have after an update.
pub fn boot_to_debug(tenant: &Arc<Tenant>, elf: Vec<u8>) -> Result<Release, Refused> {
    let of = tenant.clone();
    apart(tenant, move || {
        caught(|| {
            let running = running(&of)?;
            let version = Version::of(&elf);
            let program = boot(&of, running.as_ref(), &elf, Purpose::Debugging)?;
            Ok(Release { program, version })
        })
    })
}

fn caught<T>(work: impl FnOnce() -> Result<T, Refused>) -> Result<T, Refused> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(Refused::Internal))
}

/// Does something on a thread of its own, and waits for it: booting takes more stack than varnishd's threads have.
fn apart<T: Send + 'static>(
    tenant: &Tenant,
    work: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    let limit = tenant.settings.config.limits.max_boot_time * 2 + SLACK;
    let (result, done) = mpsc::sync_channel(1);
    let spawned = thread::Builder::new()
        .name("kvm-update".into())
        .spawn(move || {
            // It may be nobody's any more.
            let _ = result.send(work());
        });
    if let Err(error) = spawned {
        return Err(Refused::NoResources(format!("no thread: {error}")));
    }
    match done.recv_timeout(limit) {
        Ok(outcome) => outcome,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(Refused::TooLong),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(Refused::Internal),
    }
}

fn report(tenant: &Tenant, outcome: &Result<Done, Refused>) {
    match outcome {
        Ok(done) if done.previous == Some(done.version) => {}
        Ok(done) => {
            count(|counters| &counters.updates);
            let was = done
                .previous
                .map_or_else(|| "nothing".into(), |version| version.short());
            let text = format!(
                "updated to {} from {was}, ready after {} ms",
                done.version.short(),
                done.ready.as_millis()
            );
            logging::log(LogTag::Notice, tenant.name(), &text);
        }
        Err(refused) => {
            count(|counters| &counters.update_failures);
            let text = format!("not updated: {refused}");
            logging::log(LogTag::Error, tenant.name(), &text);
            if let Refused::BadProgram { stderr, .. } = refused {
                for line in logging::records(stderr) {
                    let text = format!("not updated, stderr: {line}");
                    logging::log(LogTag::Error, tenant.name(), &text);
                }
            }
        }
    }
}

fn perform(tenant: &Arc<Tenant>, source: Source) -> Result<Done, Refused> {
    let start = Instant::now();
    let running = running(tenant)?;
    let previous = running.as_ref().map(|release| release.version);
    // Before the boot, so that a folder that can't be written is known early.
    let lock = match (lock(&tenant.store), &source) {
        (Ok(lock), _) => Some(lock),
        (Err(error), Source::Path(_)) => {
            let text = format!("the changed program can't be kept for rollback: {error}");
            logging::log(LogTag::Notice, tenant.name(), &text);
            None
        }
        (Err(error), _) => return Err(error.into()),
    };
    let (elf, rollback) = match source {
        Source::Given(elf) | Source::Path(elf) => (Stored::new(elf), false),
        Source::Rollback => {
            let before = tenant.store.before(previous)?;
            (before.ok_or(Refused::NothingBefore)?, true)
        }
    };
    let unchanged = Done {
        version: elf.version,
        previous,
        bytes: elf.elf.len(),
        boot: Duration::ZERO,
        ready: Duration::ZERO,
        state: None,
    };
    if previous == Some(elf.version) {
        return Ok(unchanged);
    }

    let program = boot(tenant, running.as_ref(), &elf.elf, Purpose::Service)?;
    let boot = start.elapsed();
    if let Some(running) = &running {
        // As many as the old one has come to need.
        let forks = running.program.stats().forks as usize;
        program.fill(forks, start + tenant.settings.config.limits.max_boot_time);
    }
    if let Some(lock) = &lock {
        store(tenant, lock, &elf, previous, rollback)?;
    }
    let state = program.restored_state();
    tenant.settle(State::Ready(Release {
        program,
        version: elf.version,
    }));
    tenant.outdated.store(false, Ordering::Relaxed);
    for other in registry::of_same_store(tenant) {
        refresh(&other);
    }
    Ok(Done {
        boot,
        ready: start.elapsed(),
        state,
        ..unchanged
    })
}

/// Locks the store. A tenant that boots holds it for a moment, which is no update.
fn lock(store: &Store) -> Result<Lock, StoreError> {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        match store.lock() {
            Err(StoreError::Busy(_)) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// What runs now. `None` if its program failed to boot, which an update may mend.
fn running(tenant: &Tenant) -> Result<Option<Release>, Refused> {
    let deadline = Instant::now() + tenant.settings.config.limits.max_boot_time;
    match tenant.settled(deadline) {
        State::Ready(release) => Ok(Some(release)),
        State::Failed(_) => Ok(None),
        State::Booting => Err(Refused::Booting),
    }
}

fn boot(
    tenant: &Tenant,
    running: Option<&Release>,
    elf: &[u8],
    purpose: Purpose,
) -> Result<Arc<forkvm::Program>, BootFailure> {
    let before = running.map(|release| &*release.program);
    let result = boot::start(tenant, elf, before, purpose);
    match result {
        Err(failure) if matches!(failure.error, BootError::State { .. }) => {
            if !tenant.settings.update_without_state {
                return Err(failure);
            }
            let text = format!("goes on without state: {}", failure.reason);
            logging::log(LogTag::Notice, tenant.name(), &text);
            // From the beginning: half a state may be worse than none.
            boot::start(tenant, elf, None, purpose)
        }
        result => result,
    }
}

fn store(
    tenant: &Tenant,
    lock: &Lock,
    elf: &Stored,
    previous: Option<Version>,
    rollback: bool,
) -> Result<(), StoreError> {
    let base = boot::version_of_path(tenant);
    if rollback {
        return tenant.store.go_back(lock, tenant.name(), elf.version, base);
    }
    // The first update's program before is not in the store yet, but in path, unless that was replaced meanwhile.
    if let Some(previous) = previous
        && base == Some(previous)
        && !tenant.store.has(previous)
        && let Ok(before) = boot::read_path(tenant).map(Stored::new)
        && before.version == previous
    {
        tenant.store.keep_before(lock, &before)?;
    }
    tenant
        .store
        .commit(lock, tenant.name(), elf, base, previous)
}

/// Gives a tenant the stored program, if it runs another one: after an update of a tenant of the same name with other
/// settings (those of another VCL), of which this one did not know.
pub fn refresh(tenant: &Tenant) {
    let State::Ready(release) = tenant.state() else {
        return;
    };
    if !matches!(tenant.store.manifest(), Ok(Some(_))) {
        return;
    }
    let base = boot::version_of_path(tenant);
    let Some(stored) = tenant.store.choose(base, |_| {}) else {
        return;
    };
    if stored.version == release.version {
        return;
    }
    match boot::start(tenant, &stored.elf, None, Purpose::Service) {
        Ok(program) => {
            let version = stored.version;
            tenant.settle(State::Ready(Release { program, version }));
            let text = format!("updated to {}, for another VCL", version.short());
            logging::log(LogTag::Notice, tenant.name(), &text);
        }
        Err(failure) => {
            // Whoever loads a VCL with these settings gets to know the reason again.
            tenant.outdated.store(true, Ordering::Relaxed);
            let text = format!("not updated for another VCL: {}", failure.reason);
            logging::log(LogTag::Error, tenant.name(), &text);
        }
    }
}
