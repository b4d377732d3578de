//! Live update: another program takes a tenant's place, while the one before serves until then.
//!
//! The new program boots, takes over the state, runs its warm-up and gets its forks; it is stored; then one switch. A
//! request finishes on the program it began with, and the last one to let go of the old program leaves the freeing to the
//! engine's own thread. Whatever fails before the switch changes nothing.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use forkvm::{BootError, Program, StorageKind, TakeOver};
use parking_lot::Mutex;
use varnish::vcl::LogTag;

use crate::orders::outcome::{Done, Outcome, Refused, is_shortage};
use crate::tenants::archive;
use crate::tenants::boot::{self, BootFailure, Purpose};
use crate::tenants::figures;
use crate::tenants::places::Place;
use crate::tenants::refresh::refresh;
use crate::tenants::registry;
use crate::tenants::source::{self, Found, NotFound};
use crate::tenants::store::{Lock, Store, StoreError, Stored};
use crate::tenants::tenant::{Release, State, Tenant};
use crate::tenants::version::Version;
use crate::varnish::counters::count;
use crate::varnish::logging;

/// Time beyond two boots (the second one without state) that is waited for an update: the disk's.
const SLACK: Duration = Duration::from_secs(30);

/// Most programs of a tenant that updates have replaced and that still have requests. Each has its memory, and a server's its
/// folder on the disk.
const MOST_REPLACED: usize = 8;

/// How long what should pass soon is waited for, and how often it is looked whether it has.
const MOMENT: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);

/// Where the new program comes from.
pub enum Source {
    /// Given to us: it has to be stored.
    Given(Vec<u8>),
    /// The file that the tenant was loaded from, which has changed: storing it as well is for rollback only.
    Path,
    /// The same, fetched anew where the tenant's program is fetched.
    Anew,
    /// The store: the program before.
    Rollback,
}

/// Names of tenants that somebody does something with.
type Taken = LazyLock<Mutex<HashSet<String>>>;
/// Those that are being updated.
static UPDATED: Taken = LazyLock::new(Mutex::default);
/// Those that a program is sent for.
static UPLOADED: Taken = LazyLock::new(Mutex::default);

/// A tenant's turn to be updated, or to have a program sent for it.
pub struct Turn {
    taken: &'static Taken,
    name: String,
}

impl Turn {
    /// The turn to be updated, unless somebody has it.
    pub fn take(tenant: &Tenant) -> Result<Self, Refused> {
        Self::of(&UPDATED, tenant)
    }

    /// The turn to have a program sent for it, unless somebody has that.
    pub fn to_upload(tenant: &Tenant) -> Result<Self, Refused> {
        Self::of(&UPLOADED, tenant)
    }

    fn of(taken: &'static Taken, tenant: &Tenant) -> Result<Self, Refused> {
        let name = tenant.name().to_owned();
        if taken.lock().insert(name.clone()) {
            Ok(Self { taken, name })
        } else {
            Err(Refused::Busy)
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.taken.lock().remove(&self.name);
    }
}

/// Updates a tenant, and waits for it.
pub fn update(tenant: &Arc<Tenant>, source: Source, turn: Turn) -> Outcome {
    awaited(tenant, |result| {
        begin(tenant, source, turn, move |outcome, turn| {
            // Whoever gets the outcome may begin the next one.
            drop(turn);
            // It may be nobody's any more.
            let _ = result.send(outcome);
        })
    })
}

/// Boots a program beside the tenant's, with the state that it would have after an update, and waits for it.
pub fn boot_to_debug(tenant: &Arc<Tenant>, elf: Vec<u8>) -> Result<Release, Refused> {
    let of = tenant.clone();
    awaited(tenant, |result| {
        on_own_thread(move || {
            let booted = caught(|| {
                let (running, _) = latest(&of)?;
                let version = Version::of(&elf);
                let program = boot(&of, running.as_ref(), &elf, Purpose::Debugging)?;
                Ok(Release { program, version })
            });
            let _ = result.send(booted);
        })
    })
}

/// Waits for what `begin` begins.
fn awaited<T>(
    tenant: &Tenant,
    begin: impl FnOnce(SyncSender<Result<T, Refused>>) -> Result<(), Refused>,
) -> Result<T, Refused> {
    // Of its storage, too, whose state may go over besides.
    let boots = match tenant.settings.values.storage {
        StorageKind::None => 2,
        _ => 5,
    };
    let limit = tenant.settings.config.limits.max_boot_time * boots + SLACK;
    let (result, done) = mpsc::sync_channel(1);
    begin(result)?;
    match done.recv_timeout(limit) {
        Ok(outcome) => outcome,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(Refused::TooLong),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(Refused::Internal),
    }
}

/// Begins to update a tenant. `then` is told what came of it.
pub fn begin(
    tenant: &Arc<Tenant>,
    source: Source,
    turn: Turn,
    then: impl FnOnce(Outcome, Turn) + Send + 'static,
) -> Result<(), Refused> {
    let of = tenant.clone();
    let begun = on_own_thread(move || {
        let is_rollback = matches!(source, Source::Rollback);
        let outcome = caught(|| perform(&of, source));
        if is_rollback && outcome.as_ref().is_ok_and(Done::changed) {
            figures::count(&of.figures.rollbacks);
        }
        report(&of, &outcome);
        let done = outcome.is_ok();
        then(outcome, turn);
        if done {
            // Nobody waits for these: their boots may take longer than the update did.
            registry::of_same_store(&of).iter().for_each(refresh);
        }
    });
    begun.inspect_err(|refused| report_refused(tenant, refused))
}

/// Does something on a thread of its own: booting takes more stack than varnishd's threads have.
fn on_own_thread(work: impl FnOnce() + Send + 'static) -> Result<(), Refused> {
    match thread::Builder::new().name("kvm-update".into()).spawn(work) {
        Ok(_) => Ok(()),
        Err(error) => Err(Refused::NoResources(format!("no thread: {error}"))),
    }
}

fn caught<T>(work: impl FnOnce() -> Result<T, Refused>) -> Result<T, Refused> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(Refused::Internal))
}

fn report(tenant: &Tenant, outcome: &Outcome) {
    match outcome {
        Ok(done) if !done.changed() => {}
        Ok(done) => {
            count(|counters| &counters.updates);
            figures::count(&tenant.figures.updates);
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
        Err(refused) => report_refused(tenant, refused),
    }
}

fn report_refused(tenant: &Tenant, refused: &Refused) {
    count(|counters| &counters.update_failures);
    figures::count(&tenant.figures.update_failures);
    let text = format!("not updated: {refused}");
    logging::log(LogTag::Error, tenant.name(), &text);
    if let Refused::BadProgram { stderr, .. } = refused {
        for line in logging::records(stderr) {
            let text = format!("not updated, stderr: {line}");
            logging::log(LogTag::Error, tenant.name(), &text);
        }
    }
}

fn perform(tenant: &Tenant, source: Source) -> Outcome {
    let start = Instant::now();
    await_replaced(tenant)?;
    let (running, latest) = latest(tenant)?;
    // Before the boot, so that a folder that can't be written is known early.
    let lock = match (lock(&tenant.store), &source) {
        (Ok(lock), _) => Some(lock),
        (Err(error), Source::Path | Source::Anew) => {
            not_kept(tenant, &error);
            None
        }
        (Err(error), _) => return Err(error.into()),
    };
    let change = Change {
        tenant,
        running,
        lock,
        start,
    };
    match source {
        Source::Given(elf) => change.put(&Stored::new(elf), How::Given),
        Source::Path => change.follow(source::at_path),
        Source::Anew => change.follow(source::anew),
        Source::Rollback => change.go_back(latest),
    }
}

/// How a program came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Given,
    Path,
    Rollback,
}

/// A tenant's program about to be changed.
struct Change<'t> {
    tenant: &'t Tenant,
    running: Option<Release>,
    /// The store, if it can be written.
    lock: Option<Lock>,
    start: Instant,
}

impl Change<'_> {
    fn previous(&self) -> Option<Version> {
        self.running.as_ref().map(|release| release.version)
    }

    fn unchanged(&self, version: Version, bytes: usize) -> Done {
        Done {
            version,
            previous: self.previous(),
            bytes,
            boot: Duration::ZERO,
            ready: Duration::ZERO,
            state: None,
        }
    }

    /// The file at the path is a new one, but it holds what it held when the stored update, which runs, took its place.
    fn is_touch(&self, elf: &Stored) -> Option<Done> {
        let runs = self.previous()?;
        let manifest = self.tenant.store.manifest().ok()??;
        let stored_runs = [Some(runs), self.tenant.unfit()].contains(&Some(manifest.current));
        (manifest.base == Some(elf.version) && stored_runs)
            .then(|| self.unchanged(runs, elf.elf.len()))
    }

    /// Takes over what is at the path.
    fn follow(&self, find: fn(&Tenant) -> Result<Found, NotFound>) -> Outcome {
        if let Some(folder) = self.folder() {
            return self.renew(&folder);
        }
        let elf = find(self.tenant).map_err(refused)?.program;
        match self.is_touch(&elf) {
            Some(unchanged) => Ok(unchanged),
            None => self.put(&elf, How::Path),
        }
    }

    /// The archive of the folder that runs, if one does.
    fn folder(&self) -> Option<Stored> {
        let stored = self.tenant.store.read(self.previous()?).ok()?;
        archive::is_archive(&stored.elf).then_some(stored)
    }

    /// Boots the folder that runs with the program at the path, which has changed, unless it has one of its own.
    fn renew(&self, folder: &Stored) -> Outcome {
        let unchanged = self.unchanged(folder.version, folder.elf.len());
        if self.tenant.settings.is_in_folder() {
            return Ok(unchanged);
        }
        let (program, boot) = self.boot(folder)?;
        self.tenant.settle(Release {
            program,
            version: folder.version,
        });
        let ready = self.start.elapsed();
        let path = self.tenant.settings.path.display();
        let text = format!("{path} has changed, ready after {} ms", ready.as_millis());
        logging::log(LogTag::Notice, self.tenant.name(), &text);
        Ok(Done {
            boot,
            ready,
            ..unchanged
        })
    }

    /// The program before `latest`, or if that does not boot any more the one before it.
    fn go_back(&self, latest: Option<Version>) -> Outcome {
        let store = &self.tenant.store;
        let mut before = store.before(latest)?.ok_or(Refused::NothingBefore)?;
        loop {
            let outcome = self.put(&before, How::Rollback);
            let Err(refused @ Refused::BadProgram { .. }) = &outcome else {
                return outcome;
            };
            let Some(earlier) = store.before(Some(before.version))? else {
                return outcome;
            };
            let text = format!(
                "{} is tried, since {} did not boot: {refused}",
                earlier.version.short(),
                before.version.short()
            );
            logging::log(LogTag::Error, self.tenant.name(), &text);
            before = earlier;
        }
    }

    /// Boots a program, stores it, and has it take over.
    fn put(&self, elf: &Stored, how: How) -> Outcome {
        let tenant = self.tenant;
        let unchanged = self.unchanged(elf.version, elf.elf.len());
        if unchanged.previous == Some(elf.version) {
            // It runs in the place of a stored one that did not boot: now it is asked for.
            if tenant.unfit().is_some() {
                self.store(elf, how)?;
                tenant.set_unfit(None);
            }
            return Ok(unchanged);
        }

        let (program, boot) = self.boot(elf)?;
        let taken = self.take_over(&program)?;
        self.store(elf, how)?;
        let state = program.restored_state();
        match taken {
            Some(taken) => taken.complete(),
            None => {
                self.running
                    .iter()
                    .for_each(|running| running.program.retire());
                program.begin();
            }
        }
        tenant.settle(Release {
            program,
            version: elf.version,
        });
        let ready = self.start.elapsed();
        tenant.set_unfit(None);
        Ok(Done {
            boot,
            ready,
            state,
            ..unchanged
        })
    }

    /// Boots a program, with as many forks as the old one has come to need. Says how long its boot took.
    fn boot(&self, elf: &Stored) -> Result<(Arc<Program>, Duration), BootFailure> {
        let running = self.running.as_ref();
        if let Some(running) = running {
            match boot::saved(&running.program) {
                Err(failure) if may_go_without_state(self.tenant, &failure) => {}
                saved => saved?,
            }
        }
        let program = boot(self.tenant, running, &elf.elf, Purpose::Service)?;
        let boot = self.start.elapsed();
        if let Some(running) = running {
            let forks = running.program.stats().forks as usize;
            let limit = self.tenant.settings.config.limits.max_boot_time;
            // From now: until here it may have waited for the store, and for others that boot.
            program.fill(forks, Instant::now() + limit);
        }
        Ok((program, boot))
    }

    /// Has a program's storage take over from the one before. From now until the switch requests wait.
    fn take_over(&self, program: &Arc<Program>) -> Result<Option<TakeOver<'_>>, BootFailure> {
        let Some(running) = &self.running else {
            return Ok(None);
        };
        match boot::take_over(self.tenant, program, &running.program) {
            Err(failure) if may_go_without_state(self.tenant, &failure) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Stores a program. The path's own is whole where it is, so that one goes live all the same if that fails.
    fn store(&self, elf: &Stored, how: How) -> Result<(), StoreError> {
        let Some(lock) = &self.lock else {
            return Ok(());
        };
        match self.write(lock, elf, how) {
            Err(error) if how == How::Path && !is_shortage(&error) => {
                not_kept(self.tenant, &error);
                Ok(())
            }
            result => result,
        }
    }

    fn write(&self, lock: &Lock, elf: &Stored, how: How) -> Result<(), StoreError> {
        let (tenant, previous) = (self.tenant, self.previous());
        let base = match how {
            // The file may have changed again meanwhile.
            How::Path => Some(elf.version),
            How::Given | How::Rollback => source::version_of_path(tenant),
        };
        if how == How::Rollback {
            return tenant.store.go_back(lock, tenant.name(), elf.version, base);
        }
        // The first update's program before is not in the store yet.
        if let Some(previous) = previous
            && !tenant.store.has(previous)
            && let Some(before) = boot::read_origin(tenant)
            && before.version == previous
        {
            tenant.store.keep_before(lock, &before)?;
        }
        tenant
            .store
            .commit(lock, tenant.name(), elf, base, previous)?;
        tenant.origin.lock().take();
        Ok(())
    }
}

fn not_kept(tenant: &Tenant, error: &StoreError) {
    let text = format!("the changed program can't be kept for rollback: {error}");
    logging::log(LogTag::Notice, tenant.name(), &text);
}

fn refused(none: NotFound) -> Refused {
    match none {
        NotFound::Bad(reason) => Refused::BadProgram {
            reason,
            stderr: Vec::new(),
        },
        NotFound::NotNow(reason) => Refused::NoResources(reason),
        NotFound::Stopped => Refused::NoResources("it was stopped".into()),
    }
}

/// Waits a moment for the end of requests of replaced programs, if those are many.
fn await_replaced(tenant: &Tenant) -> Result<(), Refused> {
    let deadline = Instant::now() + MOMENT;
    while tenant.replaced() >= MOST_REPLACED {
        if Instant::now() >= deadline {
            let text = format!("{MOST_REPLACED} programs before still have requests");
            return Err(Refused::NoResources(text));
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// Locks the store. A tenant that boots holds it for a moment, which is no update.
fn lock(store: &Store) -> Result<Lock, StoreError> {
    let deadline = Instant::now() + MOMENT;
    loop {
        match store.lock() {
            Err(StoreError::Busy(_)) if Instant::now() < deadline => {
                thread::sleep(LOOK);
            }
            result => return result,
        }
    }
}

/// What runs now, and its version. If its program failed to boot, which an update may mend, nothing and that one's.
fn latest(tenant: &Tenant) -> Result<(Option<Release>, Option<Version>), Refused> {
    let deadline = Instant::now() + tenant.settings.config.limits.max_boot_time;
    match tenant.settled(deadline) {
        State::Ready(release) => {
            let version = release.version;
            Ok((Some(release), Some(version)))
        }
        State::Failed(failed) => Ok((None, failed.version)),
        State::Booting => Err(Refused::Booting),
    }
}

/// Whether an update goes on though no state goes over; says so.
fn may_go_without_state(tenant: &Tenant, failure: &BootFailure) -> bool {
    let may = matches!(failure.error, BootError::State { .. })
        && tenant.settings.values.update_without_state;
    if may {
        let text = format!("goes on without state: {}", failure.reason);
        logging::log(LogTag::Notice, tenant.name(), &text);
    }
    may
}

fn boot(
    tenant: &Tenant,
    running: Option<&Release>,
    elf: &[u8],
    purpose: Purpose,
) -> Result<Arc<Program>, BootFailure> {
    let before = running.map(|release| &*release.program);
    let mut place = Place::take();
    let result = boot::start_whole(tenant, elf, before, purpose, &mut place);
    match result {
        Err(failure) if may_go_without_state(tenant, &failure) => {
            // From the beginning: half a state may be worse than none.
            boot::start(tenant, elf, None, purpose, &mut place)
        }
        result => result,
    }
}
