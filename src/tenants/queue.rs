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

use crate::tenants::boot::{self, Unready};
use crate::tenants::refresh::refresh;
use crate::tenants::tenant::{State, Tenant};
use crate::varnish::counters;

/// Programs that boot at the same time. More would slow down the requests that are served meanwhile.
const AT_ONCE: usize = 2;
/// A boot that takes longer no longer counts: a `main()` that never ends must not hold up the others.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long to wait for a thread when there is none to be had.
const RETRY: Duration = Duration::from_secs(1);

/// Boots in all, those that take longer included: they may need all of a processor each, and have a time limit too.
fn most() -> usize {
    AT_ONCE + thread::available_parallelism().map_or(1, usize::from)
}

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
            boot::settle(
                tenant,
                &tenant.state(),
                Err(unready(reason)),
                Instant::now(),
            );
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

fn unready(reason: String) -> Unready {
    Unready {
        reason,
        version: None,
    }
}

/// Starts a boot whenever it is time for one, until the queue is empty.
fn dispatch() {
    let most = most();
    let mut queue = QUEUE.lock();
    while wait_for_turn(&mut queue, most) {
        let begun = Instant::now();
        queue.begun.push(begun);
        let started = MutexGuard::unlocked(&mut queue, || {
            let under_way = UnderWay(begun);
            spawn("kvm-boot", move || {
                work();
                drop(under_way);
            })
        });
        let Err(reason) = started else { continue };
        if !queue.begun.is_empty() {
            ENDED.wait_for(&mut queue, RETRY);
        } else if let Some(job) = queue.jobs.pop_front()
            && let Some(tenant) = job.tenant.upgrade()
        {
            MutexGuard::unlocked(&mut queue, || {
                boot::settle(&tenant, &tenant.state(), Err(unready(reason)), begun);
            });
        }
    }
    queue.dispatched = false;
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

/// Returns when the first job may start. False if there are no more.
fn wait_for_turn(queue: &mut MutexGuard<'_, Queue>, most: usize) -> bool {
    while !queue.jobs.is_empty() {
        let now = Instant::now();
        let counts_until = queue.begun.iter().map(|&begun| begun + PATIENCE);
        let counting: Vec<Instant> = counts_until.filter(|&until| until > now).collect();
        match counting.iter().min() {
            _ if queue.begun.len() >= most => ENDED.wait(queue),
            Some(&first) if counting.len() >= AT_ONCE => {
                ENDED.wait_until(queue, first);
            }
            _ => return true,
        }
    }
    false
}

/// Boots the queue's first.
fn work() {
    let Some(job) = QUEUE.lock().jobs.pop_front() else {
        return;
    };
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
    let result = panic::catch_unwind(AssertUnwindSafe(|| boot::boot(&tenant, &before, job.file)))
        .unwrap_or_else(|_| Err(unready("internal error, logged separately".into())));
    boot::settle(&tenant, &before, result, start);
    // An update that was stored since this one began to boot, by a tenant of another VCL.
    refresh(&tenant);
}
