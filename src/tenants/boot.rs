//! Boots programs: the one at a tenant's path, or an update of it that is stored.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read, Seek};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use forkvm::{BootError, Config, Fetcher, Host, Owner, Program, Stream, TakeOver};
use varnish::vcl::LogTag;

use crate::tenants::archive;
use crate::tenants::places::{self, Place};
use crate::tenants::serving::Serving;
use crate::tenants::snapshots;
use crate::tenants::source::{self, Found, NotFound};
use crate::tenants::storage::Keeper;
use crate::tenants::store::{StoreError, Stored};
use crate::tenants::tenant::{Failed, Release, State, Tenant};
use crate::tenants::version::Version;
use crate::varnish::counters;
use crate::varnish::logging::{self, Output};

/// How a boot ends that brings no program.
pub enum NotBooted {
    /// It has been stopped, and says nothing about the program.
    Stopped,
    /// The program failed.
    Unready(Unready),
}

/// Why a boot brought no program.
pub struct Unready {
    /// In words.
    pub reason: String,
    /// Which program it was. `None` if there was none.
    pub version: Option<Version>,
}

/// Boots the program of the tenant's path, or the update of it that is stored. If that does not boot, the stored ones
/// before it follow, and at last the path's. `before` is what the tenant had when this began.
pub fn boot(
    tenant: &Tenant,
    before: &State,
    file: Result<File, String>,
    place: &mut Place,
) -> Result<Release, NotBooted> {
    if let Some(reason) = tenant.fault() {
        return Err(NotBooted::Unready(Unready {
            reason,
            version: None,
        }));
    }
    let path = tenant.settings.path.display();
    let (origin, at_path, unreadable) = match source::program(tenant, file, place) {
        Ok(Found { file, program }) => (Some(file), Some(program), String::new()),
        Err(NotFound::Bad(reason) | NotFound::NotNow(reason)) => (None, None, reason),
        Err(NotFound::Stopped) => return Err(NotBooted::Stopped),
    };
    let base = at_path.as_ref().map(|elf| elf.version);
    let stored = tenant.store.programs(base, |error| {
        let text = format!("a stored update is not used: {error}");
        logging::log(LogTag::Error, tenant.name(), &text);
    });
    let programs = stored
        .map(|elf| (format!("update {}", elf.version), elf))
        .chain(at_path.map(|elf| (path.to_string(), elf)));

    let mut failed: Vec<Version> = Vec::new();
    let mut reason = unreadable;
    for (what, elf) in programs {
        let version = elf.version;
        // The path's program may be a stored one too.
        if failed.contains(&version) {
            continue;
        }
        if !failed.is_empty() {
            count_failure(before);
            let text = format!("{reason}; {what} is tried in its place");
            logging::log(LogTag::Error, tenant.name(), &text);
        }
        let failure = match start(tenant, &elf.elf, None, Purpose::Service, place) {
            Ok(program) => {
                if !tenant.state().is(before) {
                    // An update came first, which settle() finds too: what is stored is its business.
                    return Ok(Release { program, version });
                }
                tenant.set_unfit(failed.first().copied());
                if base == Some(version) {
                    if failed.is_empty() {
                        adopt(tenant, &elf);
                    }
                    *tenant.origin.lock() = origin;
                }
                check_store(tenant);
                return Ok(Release { program, version });
            }
            Err(failure) if matches!(failure.error, BootError::Stopped) => {
                return Err(NotBooted::Stopped);
            }
            Err(failure) => failure,
        };
        failed.push(version);
        reason = format!("{what}: {}", failure.in_words());
        // What the host lacks, another program would lack as well.
        if failure.is_hosts() {
            break;
        }
    }
    Err(NotBooted::Unready(Unready {
        reason,
        version: failed.first().copied(),
    }))
}

/// Counts a program that did not become ready, once however often it is tried.
fn count_failure(before: &State) {
    if !matches!(before, State::Failed(_)) {
        counters::count(|counters| &counters.boot_failures);
    }
}

/// Says early that updates can't be stored.
fn check_store(tenant: &Tenant) {
    if tenant.settings.key.is_set()
        && let Err(error) = tenant.store.lock()
        && !matches!(error, StoreError::Busy(_))
    {
        let text = format!("updates will be refused, they can't be stored: {error}");
        logging::log(LogTag::Error, tenant.name(), &text);
    }
}

/// If the file at the path has replaced a stored update, that update is not to come back with the file's old content.
fn adopt(tenant: &Tenant, elf: &Stored) {
    let store = &tenant.store;
    if let Ok(Some(manifest)) = store.manifest()
        && manifest.base != Some(elf.version)
        && let Ok(lock) = store.lock()
        && let Err(error) = store.commit(&lock, tenant.name(), elf, Some(elf.version), None)
    {
        let text = format!("the replaced update is still stored: {error}");
        logging::log(LogTag::Notice, tenant.name(), &text);
    }
}

/// A program that did not boot.
pub struct BootFailure {
    /// What kind of failure.
    pub error: BootError,
    /// In words.
    pub reason: String,
    /// The last it wrote to stderr.
    pub stderr: Vec<u8>,
}

impl BootFailure {
    /// Whether it is the host that has no KVM, memory or descriptors for it: nothing is wrong with the program.
    pub fn is_hosts(&self) -> bool {
        matches!(self.error, BootError::Host { .. } | BootError::Kvm { .. })
    }

    /// Why, and what the program had to say.
    fn in_words(&self) -> String {
        let said = logging::last_lines(&self.stderr);
        let reason = &self.reason;
        match said.len() {
            0 => reason.clone(),
            _ => format!("{reason}; its stderr ends in: {}", said.join(" | ")),
        }
    }
}

/// Said of each program that keeps state.
const NOT_ISOLATED: &str = "requests of this tenant are not isolated from each other: each fork goes on with what its requests \
     leave (ephemeral = false, or make_ephemeral(false) in main())";

/// What a program is booted for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To answer requests.
    Service,
    /// To be debugged, and nothing else.
    Debugging,
}

/// A boot's output, and its turns.
struct Boot<'a> {
    output: Output<'a, fn(&str)>,
    /// Nothing, if it takes none.
    place: Option<&'a mut Place>,
}

impl<'a> Boot<'a> {
    /// Of a program of the tenant's, in this place.
    fn of(tenant: &'a Tenant, place: Option<&'a mut Place>) -> Self {
        let output = Output::of_boot(tenant.name(), tenant.settings.values.stdout);
        Self {
            output: output.with_fetcher(tenant.fetches.clone()),
            place,
        }
    }

    /// Ends the output, and says what came of it.
    fn conclude<T>(self, tenant: &Tenant, result: Result<T, BootError>) -> Result<T, BootFailure> {
        let written = self.output.finish();
        if written.dropped && tenant.is_first_dropped() {
            logging::log(LogTag::Notice, tenant.name(), logging::DROPPED);
        }
        let stderr = written.stderr;
        result.map_err(|error| BootFailure {
            reason: error.to_string(),
            error,
            stderr,
        })
    }
}

impl Host for Boot<'_> {
    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        self.output.output(stream, bytes);
    }

    fn note(&mut self, line: &str) {
        self.output.note(line);
    }

    fn fetcher(&self) -> Option<Arc<dyn Fetcher>> {
        self.output.fetcher()
    }

    fn slice(&self) -> Option<Duration> {
        self.place.as_ref().map(|_| places::SLICE)
    }

    fn give_way(&mut self, time: Duration) -> ControlFlow<()> {
        match &mut self.place {
            Some(place) => place.give_way(time),
            None => {
                thread::sleep(time);
                ControlFlow::Continue(())
            }
        }
    }
}

/// Boots a program with the tenant's settings; as successor of `before`, whose state it gets.
pub fn start(
    tenant: &Tenant,
    elf: &[u8],
    before: Option<&Program>,
    purpose: Purpose,
    place: &mut Place,
) -> Result<Arc<Program>, BootFailure> {
    if let Some(fault) = tenant.fault() {
        return Err(BootFailure {
            error: BootError::Setting(fault.clone()),
            reason: fault,
            stderr: Vec::new(),
        });
    }
    let mut config = tenant.settings.config.clone();
    config.debugging.only = purpose == Purpose::Debugging;
    config.storage_owner = Owner::new(Keeper::new(tenant, purpose == Purpose::Service));
    let mut boot = Boot::of(tenant, Some(place));
    let result = match before {
        _ if tenant.settings.server => serve(tenant, elf, config, &mut boot),
        _ if archive::is_archive(elf) => Err(BootError::Setting(
            "it is an archive of a folder, which only servers have".into(),
        )),
        Some(before) => before.boot_successor(elf, config, &mut boot),
        None => Program::boot(elf, config, &mut boot),
    };
    let program = boot.conclude(tenant, result)?;
    if program.keeps_state() && purpose == Purpose::Service {
        logging::log(LogTag::Notice, tenant.name(), NOT_ISOLATED);
    }
    Ok(program)
}

/// The same for a program that takes another one's place: one that comes from a snapshot comes as a whole, or is booted.
pub fn start_whole(
    tenant: &Tenant,
    elf: &[u8],
    before: Option<&Program>,
    purpose: Purpose,
    place: &mut Place,
) -> Result<Arc<Program>, BootFailure> {
    let program = start(tenant, elf, before, purpose, place)?;
    if snapshots::is_whole(tenant, &program) {
        return Ok(program);
    }
    start(tenant, elf, before, purpose, place)
}

/// Has a program's storage save, for the `main()` of the program after it.
pub fn saved(program: &Program) -> Result<(), BootFailure> {
    program.save().map_err(|error| BootFailure {
        reason: error.to_string(),
        error,
        stderr: Vec::new(),
    })
}

/// Has a program's storage take over the state of the one before. That takes no boot's place: requests wait for its end, and it for them.
pub fn take_over<'a>(
    tenant: &Tenant,
    program: &Arc<Program>,
    before: &'a Arc<Program>,
) -> Result<TakeOver<'a>, BootFailure> {
    let mut boot = Boot::of(tenant, None);
    let result = program.take_over(before, &mut boot);
    boot.conclude(tenant, result)
}

/// Boots an unmodified server, which has no state to take over. What it is booted from may be a folder's archive.
fn serve(
    tenant: &Tenant,
    program: &[u8],
    config: Config,
    host: &mut dyn Host,
) -> Result<Arc<Program>, BootError> {
    let serving = Serving::new(tenant, program, host)?;
    snapshots::start(tenant, program, serving, config, host)
}

/// The program that the tenant was booted from, as long as it may not be stored.
pub fn read_origin(tenant: &Tenant) -> Option<Stored> {
    let mut origin = tenant.origin.lock();
    let file = origin.as_mut()?;
    file.rewind().ok()?;
    read_file(tenant, file).ok().map(Stored::new)
}

/// A program that the tenant could run.
pub fn read_file(tenant: &Tenant, file: impl Read) -> Result<Vec<u8>, String> {
    source::read_file(&tenant.settings, file).map_err(|error| error.to_string())
}

/// Makes the result of a boot known that began at `start`, when the tenant had `before`.
pub fn settle(tenant: &Tenant, before: &State, result: Result<Release, Unready>, start: Instant) {
    let took = start.elapsed();
    match result {
        Ok(release) => {
            counters::count(|counters| &counters.boots);
            if tenant.replace(before, State::Ready(release)) {
                let text = format!("ready after {} ms", took.as_millis());
                logging::log(LogTag::Notice, tenant.name(), &text);
            }
        }
        Err(unready) => {
            count_failure(before);
            let text = format!("program not ready: {}", unready.reason);
            let since = match before {
                State::Failed(failed) => failed.since,
                _ => SystemTime::now(),
            };
            let failed = Failed {
                reason: unready.reason.into(),
                version: unready.version,
                since,
                took,
            };
            if tenant.replace(before, State::Failed(failed)) {
                logging::log(LogTag::Error, tenant.name(), &text);
            }
        }
    }
}
