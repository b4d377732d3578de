//! The queue of programs to boot: each begins in its turn, on a thread of its own, and goes on by turns with the others
//! ([`places`](crate::tenants::places)); one of a tenant at a time. Of several tenants of a name, which VCLs have that were loaded
//! one after the other, the latest comes first: it may be what mends the others. A boot that is under way makes room for it, and
//! begins again after it.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Seek;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, LazyLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use varnish::vcl::LogTag;

use crate::tenants::boot::{self, NotBooted, Unready};
use crate::tenants::places::{Place, Stop};
use crate::tenants::refresh::refresh;
use crate::tenants::snapshots;
use crate::tenants::tenant::{State, Tenant};
use crate::varnish::{counters, logging};

/// How long to wait for a thread when there is none to be had.
const RETRY: Duration = Duration::from_secs(1);

struct Job {
    /// Weak, since the VCL may be discarded before the job's turn.
    tenant: Weak<Tenant>,
    /// The tenant's.
    name: String,
    /// The tenant's.
    number: u64,
    file: Result<File, String>,
}

/// A boot that has begun.
struct Begun {
    /// Its tenant's.
    number: u64,
    stop: Arc<Stop>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Those under way, by their tenants' names.
    booting: HashMap<String, Begun>,
    /// Whether there is a thread that starts those of `jobs`.
    dispatched: bool,
}

static QUEUE: LazyLock<Mutex<Queue>> = LazyLock::new(Mutex::default);
/// Something that decides which job may start has changed: a boot has ended, or there is another job.
static CHANGED: Condvar = Condvar::new();

/// Has `tenant`'s program booted, after those that are already in the queue.
pub fn enqueue(tenant: &Arc<Tenant>, file: Result<File, String>) {
    let mut queue = QUEUE.lock();
    if let Some(begun) = queue.booting.get(tenant.name())
        && begun.number < tenant.number
    {
        begun.stop.say();
    }
    queue.jobs.push_back(Job {
        tenant: Arc::downgrade(tenant),
        name: tenant.name().to_owned(),
        number: tenant.number,
        file,
    });
    if queue.dispatched {
        // It sleeps if there were only jobs of tenants that boot already.
        CHANGED.notify_all();
        return;
    }
    match spawn("kvm-boot-queue", dispatch) {
        Ok(()) => queue.dispatched = true,
        Err(reason) => {
            queue.jobs.pop_back();
            drop(queue);
            no_thread(tenant, reason);
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map(drop)
        .map_err(|error| format!("no thread to boot it: {error}"))
}

fn no_thread(tenant: &Tenant, reason: String) {
    let now = Instant::now();
    boot::settle(tenant, &tenant.state(), Err(unready(reason)), now);
}

fn unready(reason: String) -> Unready {
    Unready {
        reason,
        version: None,
    }
}

/// Starts a boot whenever it is one's turn, until the queue is empty.
fn dispatch() {
    let mut queue = QUEUE.lock();
    while wait_for_job(&mut queue) {
        let place = MutexGuard::unlocked(&mut queue, Place::take);
        // Only this thread takes jobs, so it is there still.
        let Some(job) = next(&queue).and_then(|nth| queue.jobs.remove(nth)) else {
            continue;
        };
        let (job_to, job_for) = sync_channel::<(Job, Place, UnderWay)>(1);
        let spawned = spawn("kvm-boot", move || {
            if let Ok((job, place, _under_way)) = job_for.recv() {
                work(job, place);
            }
        });
        match spawned {
            Ok(()) => {
                let begun = Begun {
                    number: job.number,
                    stop: place.stop().clone(),
                };
                queue.booting.insert(job.name.clone(), begun);
                let under_way = UnderWay(job.name.clone());
                // The other end is a thread that does nothing else.
                let _ = job_to.send((job, place, under_way));
            }
            Err(_) if !queue.booting.is_empty() => {
                queue.jobs.push_front(job);
                drop(place);
                CHANGED.wait_for(&mut queue, RETRY);
            }
            Err(reason) => MutexGuard::unlocked(&mut queue, || {
                if let Some(tenant) = job.tenant.upgrade() {
                    no_thread(&tenant, reason);
                }
            }),
        }
    }
    queue.dispatched = false;
}

/// A boot of a tenant of this name. Dropped when it is over, however it ends.
struct UnderWay(String);

impl Drop for UnderWay {
    fn drop(&mut self) {
        QUEUE.lock().booting.remove(&self.0);
        CHANGED.notify_all();
    }
}

/// Returns when there is a job that may start. False if there are no more.
fn wait_for_job(queue: &mut MutexGuard<'_, Queue>) -> bool {
    while !queue.jobs.is_empty() {
        if next(queue).is_some() {
            return true;
        }
        CHANGED.wait(queue);
    }
    false
}

/// Of the first job's name that has no boot under way, the latest. A tenant that is gone needs none.
fn next(queue: &Queue) -> Option<usize> {
    let may_start = |job: &&Job| !queue.booting.contains_key(&job.name);
    let first = queue.jobs.iter().find(may_start)?;
    let of_name = queue.jobs.iter().enumerate();
    let of_name = of_name.filter(|(_, job)| job.name == first.name);
    of_name
        .max_by_key(|(_, job)| job.number)
        .map(|(nth, _)| nth)
}

/// Boots a tenant's program, as long as somebody else than this has the tenant: a VCL.
fn work(job: Job, mut place: Place) {
    let Some(tenant) = job.tenant.upgrade() else {
        return;
    };
    let start = Instant::now();
    let before = tenant.state();
    match before {
        State::Booting => {}
        State::Failed(_) => counters::count(|counters| &counters.boot_retries),
        // An update came first.
        State::Ready(_) => return,
    }
    let again = copy(&job.file);
    let others = job.tenant;
    place.only_while(move || others.strong_count() > 1);
    let stop = place.stop().clone();
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        boot::boot(&tenant, &before, job.file, &mut place)
    }));
    let result = match result {
        Ok(Ok(release)) => Ok(release),
        Ok(Err(NotBooted::Unready(unready))) => Err(unready),
        Ok(Err(NotBooted::Stopped)) => {
            drop(place);
            return put_off(tenant, again, &stop);
        }
        Err(_) => Err(unready("internal error, logged separately".into())),
    };
    let release = result.as_ref().ok().cloned();
    boot::settle(&tenant, &before, result, start);
    // What comes of a snapshot later may come slowly, and is not waited for in a boot's place.
    drop(place);
    let lost = release.filter(|release| !snapshots::is_whole(&tenant, &release.program));
    if let Some(release) = lost
        && tenant.replace(&State::Ready(release), State::Booting)
    {
        return put_off(tenant, again, &stop);
    }
    // An update that was stored since this one began to boot, by a tenant of another VCL.
    refresh(&tenant);
}

/// The same file, to be read from its start once the first has been.
fn copy(file: &Result<File, String>) -> Result<File, String> {
    let file = file.as_ref().map_err(String::clone)?;
    file.try_clone().map_err(|error| error.to_string())
}

/// A boot has been stopped. Its tenant, if there is still a VCL that has it, comes after the one that was the reason.
fn put_off(tenant: Arc<Tenant>, file: Result<File, String>, stop: &Stop) {
    // Let go of first: who finds the tenant in the registry from now on finds it here, too, or not at all.
    let by_others = Arc::downgrade(&tenant);
    drop(tenant);
    let Some(tenant) = by_others.upgrade() else {
        return;
    };
    if stop.is_said() {
        let text = "its boot begins again later: a VCL that was loaded since has another program of this name";
        logging::log(LogTag::Notice, tenant.name(), text);
    }
    let rewound = file.and_then(|mut file| match file.rewind() {
        Ok(()) => Ok(file),
        Err(error) => Err(error.to_string()),
    });
    enqueue(&tenant, rewound);
}
