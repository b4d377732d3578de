//! The queue of programs to boot: each begins in its turn, on a thread of its own, and goes on by turns with the others
//! ([`places`](crate::tenants::places)); one of a tenant at a time.
#![forbid(unsafe_code)]

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, LazyLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::tenants::boot::{self, Unready};
use crate::tenants::places::Place;
use crate::tenants::refresh::refresh;
use crate::tenants::tenant::{State, Tenant};
use crate::varnish::counters;

/// How long to wait for a thread when there is none to be had.
const RETRY: Duration = Duration::from_secs(1);

struct Job {
    /// Weak, since the VCL may be discarded before the job's turn.
    tenant: Weak<Tenant>,
    /// The tenant's.
    name: String,
    file: Result<File, String>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// The names of tenants whose program boots. There may be several tenants of a name, of several VCLs.
    booting: HashSet<String>,
    /// Whether there is a thread that starts those of `jobs`.
    dispatched: bool,
}

static QUEUE: LazyLock<Mutex<Queue>> = LazyLock::new(Mutex::default);
/// Something that decides which job may start has changed: a boot has ended, or there is another job.
static CHANGED: Condvar = Condvar::new();

/// Has `tenant`'s program booted, after those that are already in the queue.
pub fn enqueue(tenant: &Arc<Tenant>, file: Result<File, String>) {
    let mut queue = QUEUE.lock();
    queue.jobs.push_back(Job {
        tenant: Arc::downgrade(tenant),
        name: tenant.name().to_owned(),
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
                queue.booting.insert(job.name.clone());
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

/// The first job of a tenant that has no boot under way. A tenant that is gone needs none.
fn next(queue: &Queue) -> Option<usize> {
    let may_start = |job: &Job| !queue.booting.contains(&job.name);
    queue.jobs.iter().position(may_start)
}

/// Boots a tenant's program.
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
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        boot::boot(&tenant, &before, job.file, &mut place)
    }))
    .unwrap_or_else(|_| Err(unready("internal error, logged separately".into())));
    drop(place);
    boot::settle(&tenant, &before, result, start);
    // An update that was stored since this one began to boot, by a tenant of another VCL.
    refresh(&tenant);
}
