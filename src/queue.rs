//! The queue of programs to boot: in the order they came, a few at a time, in threads that last as long as there is
//! something in it.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::boot;
use crate::refresh::refresh;
use crate::tenant::{Failed, Tenant};

/// Programs that boot at the same time. More would slow down the requests that are served meanwhile.
const AT_ONCE: usize = 2;
/// A boot that takes longer no longer counts: a `main()` that never ends must not hold up the others.
const PATIENCE: Duration = Duration::from_millis(500);
/// Boots in all, those that take longer included.
const MOST: usize = 16;

struct Job {
    /// Weak, since the VCL may be discarded before the job's turn.
    tenant: Weak<Tenant>,
    file: Result<File, String>,
}

struct Queue {
    jobs: VecDeque<Job>,
    /// When each of the boots that are under way began.
    begun: Vec<Instant>,
    /// Whether there is a thread that starts those of `jobs`.
    dispatched: bool,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    jobs: VecDeque::new(),
    begun: Vec::new(),
    dispatched: false,
});
/// A boot has ended.
static ENDED: Condvar = Condvar::new();

/// Has `tenant`'s program booted, after those that are already in the queue.
pub fn enqueue(tenant: &Arc<Tenant>, file: Result<File, String>) {
    let mut queue = QUEUE.lock();
    queue.jobs.push_back(Job {
        tenant: Arc::downgrade(tenant),
        file,
    });
    if queue.dispatched {
        return;
    }
    match spawn("kvm-boot-queue", dispatch) {
        Ok(()) => queue.dispatched = true,
        Err(reason) => {
            queue.jobs.pop_back();
            drop(queue);
            boot::settle(tenant, Err(failed(reason)), Instant::now());
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

fn failed(reason: String) -> Failed {
    Failed {
        reason: reason.into(),
        version: None,
    }
}

/// Starts what is in the queue, each at its time.
fn dispatch() {
    let mut queue = QUEUE.lock();
    while let Some(job) = next(&mut queue) {
        let begun = Instant::now();
        queue.begun.push(begun);
        MutexGuard::unlocked(&mut queue, || start(job, UnderWay(begun)));
    }
    queue.dispatched = false;
}

fn start(job: Job, under_way: UnderWay) {
    let (tenant, begun) = (job.tenant.clone(), under_way.0);
    let started = spawn("kvm-boot", move || {
        work(job);
        drop(under_way);
    });
    if let Err(reason) = started
        && let Some(tenant) = tenant.upgrade()
    {
        boot::settle(&tenant, Err(failed(reason)), begun);
    }
}

/// A boot that began then. Dropped when it is over, however it ends.
struct UnderWay(Instant);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut queue = QUEUE.lock();
        if let Some(nth) = queue.begun.iter().position(|&begun| begun == self.0) {
            queue.begun.swap_remove(nth);
        }
        ENDED.notify_all();
    }
}

/// The job whose turn it is, when it is. `None` if there are no more.
fn next(queue: &mut MutexGuard<'_, Queue>) -> Option<Job> {
    while !queue.jobs.is_empty() {
        let now = Instant::now();
        let counts_until = queue.begun.iter().map(|&begun| begun + PATIENCE);
        let counting: Vec<Instant> = counts_until.filter(|&until| until > now).collect();
        match counting.iter().min() {
            _ if queue.begun.len() >= MOST => ENDED.wait(queue),
            Some(&first) if counting.len() >= AT_ONCE => {
                ENDED.wait_until(queue, first);
            }
            _ => return queue.jobs.pop_front(),
        }
    }
    None
}

fn work(job: Job) {
    let Some(tenant) = job.tenant.upgrade() else {
        return;
    };
    let start = Instant::now();
    let result = panic::catch_unwind(AssertUnwindSafe(|| boot::boot(&tenant, job.file)))
        .unwrap_or_else(|_| Err(failed("internal error, logged separately".into())));
    boot::settle(&tenant, result, start);
    // An update that was stored since this one began to boot, by a tenant of another VCL.
    refresh(&tenant);
}
