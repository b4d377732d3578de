//! Boots programs in the background: a queue, and a few threads that live as long as there is something in it.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Instant;

use forkvm::{BootError, Program};
use parking_lot::Mutex;
use varnish::vcl::LogTag;

use crate::logging::{self, BootOutput};
use crate::store::{StoreError, Stored};
use crate::tenant::{Release, State, Tenant};
use crate::version::Version;
use crate::{counters, registry, update};

/// Programs that boot at the same time. More would slow down the requests that are served meanwhile.
const THREADS: usize = 2;

struct Job {
    /// Weak, since the VCL may be discarded before the job's turn.
    tenant: Weak<Tenant>,
    file: Result<File, String>,
}

struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    jobs: VecDeque::new(),
    threads: 0,
});

/// Has `tenant`'s program booted, after those that are already in the queue.
pub fn enqueue(tenant: &Arc<Tenant>, file: Result<File, String>) {
    let mut queue = QUEUE.lock();
    queue.jobs.push_back(Job {
        tenant: Arc::downgrade(tenant),
        file,
    });
    if queue.threads == THREADS {
        return;
    }
    match thread::Builder::new().name("kvm-boot".into()).spawn(work) {
        Ok(_) => queue.threads += 1,
        // Another thread takes the job.
        Err(_) if queue.threads > 0 => {}
        Err(error) => {
            queue.jobs.pop_back();
            drop(queue);
            settle(
                tenant,
                Err(format!("no thread to boot it: {error}")),
                Instant::now(),
            );
        }
    }
}

fn work() {
    loop {
        let mut queue = QUEUE.lock();
        let Some(job) = queue.jobs.pop_front() else {
            queue.threads -= 1;
            return;
        };
        drop(queue);
        let Some(tenant) = job.tenant.upgrade() else {
            continue;
        };
        let start = Instant::now();
        let result = panic::catch_unwind(AssertUnwindSafe(|| boot(&tenant, job.file)))
            .unwrap_or_else(|_| Err("internal error, logged separately".into()));
        settle(&tenant, result, start);
        // An update that was stored since this one began to boot, by a tenant of another VCL.
        let _ = panic::catch_unwind(AssertUnwindSafe(|| update::refresh(&tenant)));
    }
}

/// Boots the program of the tenant's path, or the update of it that is stored.
fn boot(tenant: &Tenant, file: Result<File, String>) -> Result<Release, String> {
    let path = tenant.settings.path.display();
    let elf = file.and_then(|file| read_file(tenant, file));
    let base = elf.as_ref().ok().map(|elf| Version::of(elf));
    let stored = tenant.store.choose(base, |error| {
        let text = format!("a stored update is not used: {error}");
        logging::log(LogTag::Error, tenant.name(), &text);
    });
    let (what, elf) = match (stored, elf, base) {
        (Some(stored), _, _) => (format!("update {}", stored.version), stored),
        (None, Ok(elf), Some(version)) => (path.to_string(), Stored { version, elf }),
        (None, elf, _) => return Err(format!("{path}: {}", elf.err().unwrap_or_default())),
    };
    let program = start(tenant, &elf.elf, None, Purpose::Service).map_err(|failure| {
        let said: Vec<String> = logging::records(&failure.stderr).collect();
        let reason = failure.reason;
        match said.len() {
            0 => format!("{what}: {reason}"),
            _ => format!("{what}: {reason}; its stderr ends in: {}", said.join(" | ")),
        }
    })?;
    let version = elf.version;
    if base == Some(version) {
        adopt(tenant, &elf);
    }
    if tenant.settings.key.is_set()
        && let Err(error) = tenant.store.lock()
        && !matches!(error, StoreError::Busy(_))
    {
        let text = format!("updates will be refused, they can't be stored: {error}");
        logging::log(LogTag::Error, tenant.name(), &text);
    }
    Ok(Release { program, version })
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
    /// In words, without the tenant's name.
    pub reason: String,
    /// The last it wrote to stderr.
    pub stderr: Vec<u8>,
}

/// What a program is booted for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To answer requests.
    Service,
    /// To be debugged, and nothing else.
    Debugging,
}

/// Boots a program with the tenant's settings; in the place of `before`, whose state it gets.
pub fn start(
    tenant: &Tenant,
    elf: &[u8],
    before: Option<&Program>,
    purpose: Purpose,
) -> Result<Arc<Program>, BootFailure> {
    let mut config = tenant.settings.config.clone();
    config.debugging.only = purpose == Purpose::Debugging;
    let mut output = BootOutput::new(tenant.name(), tenant.settings.stdout);
    let result = match before {
        Some(before) => before.boot_successor(elf, config, &mut output),
        None => Program::boot(elf, config, &mut output),
    };
    let stderr = output.finish();
    result.map_err(|error| BootFailure {
        reason: logging::without_tenant(tenant.name(), &error.to_string()).to_owned(),
        error,
        stderr,
    })
}

/// The program that is at the tenant's path now.
pub fn read_path(tenant: &Tenant) -> Result<Vec<u8>, String> {
    registry::open(&tenant.settings.path)
        .and_then(|(file, _)| read_file(tenant, file))
        .map_err(|reason| format!("{}: {reason}", tenant.settings.path.display()))
}

/// Which program is at the tenant's path now.
pub fn version_of_path(tenant: &Tenant) -> Option<Version> {
    let (file, _) = registry::open(&tenant.settings.path).ok()?;
    Version::of_file(file).ok()
}

/// A program that the tenant could run.
pub fn read_file(tenant: &Tenant, file: File) -> Result<Vec<u8>, String> {
    read(file, tenant.settings.config.limits.max_memory).map_err(|error| error.to_string())
}

fn read(file: File, max: u64) -> io::Result<Vec<u8>> {
    let mut elf = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut elf)?;
    if elf.len() as u64 > max {
        return Err(io::Error::other(format!(
            "is larger than max_memory ({max} bytes)"
        )));
    }
    Ok(elf)
}

fn settle(tenant: &Tenant, result: Result<Release, String>, start: Instant) {
    match result {
        Ok(release) => {
            counters::count(|counters| &counters.boots);
            tenant.settle(State::Ready(release));
            let text = format!("ready after {} ms", start.elapsed().as_millis());
            logging::log(LogTag::Notice, tenant.name(), &text);
        }
        Err(reason) => {
            counters::count(|counters| &counters.boot_failures);
            logging::log(
                LogTag::Error,
                tenant.name(),
                &format!("program not ready: {reason}"),
            );
            tenant.settle(State::Failed(reason.into()));
        }
    }
}
