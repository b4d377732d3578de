//! Forks that have to be back at a time, however long somebody else takes: VCL, or a client.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use varnish::vcl::LogTag;

use crate::varnish::logging;

/// How often somebody looks for what is late.
const INTERVAL: Duration = Duration::from_millis(100);
/// After so many looks at nothing there is no other before there is something.
const IDLE_LOOKS: u32 = 50;

/// What holds a fork.
pub trait Holder: Send + Sync {
    /// Gives it back: its time is over. Nothing, if somebody works with it just now.
    fn give_back(&self);
}

/// When a fork has to be back. It needs not any more when this is dropped.
pub struct Due(Key);

/// When, and the address of what holds it, since others may have the same time.
type Key = (Instant, usize);

#[derive(Default)]
struct Forks {
    due: BTreeMap<Key, Weak<dyn Holder>>,
    /// Nobody looks at them before there is another one.
    paused: bool,
}

static FORKS: Mutex<Forks> = Mutex::new(Forks {
    due: BTreeMap::new(),
    paused: false,
});
/// There are forks again.
static RESUMED: Condvar = Condvar::new();
/// Whether there is a thread that looks at them.
static RUNNING: Mutex<bool> = Mutex::new(false);

impl Due {
    /// What this holds has to be back then.
    pub fn at<H: Holder + 'static>(time: Instant, holder: &Arc<H>) -> Self {
        let key = (time, Arc::as_ptr(holder).addr());
        let weak: Weak<H> = Arc::downgrade(holder);
        let mut forks = FORKS.lock();
        forks.due.insert(key, weak);
        if mem::take(&mut forks.paused) {
            RESUMED.notify_one();
        }
        Self(key)
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        FORKS.lock().due.remove(&self.0);
    }
}

/// Begins to look after the forks, unless somebody does. To be called when a tenant has been added.
pub fn start() {
    let mut running = RUNNING.lock();
    if *running {
        return;
    }
    match thread::Builder::new()
        .name("kvm-bodies".into())
        .spawn(look_after)
    {
        Ok(_) => *running = true,
        Err(error) => logging::write(
            LogTag::Error,
            &format!("kvm: a request may hold its fork beyond its deadline, no thread: {error}"),
        ),
    }
}

fn look_after() {
    let mut idle = 0;
    loop {
        thread::sleep(INTERVAL);
        let mut forks = FORKS.lock();
        idle = if forks.due.is_empty() { idle + 1 } else { 0 };
        if idle >= IDLE_LOOKS {
            forks.paused = true;
            RESUMED.wait_while(&mut forks, |forks| forks.paused);
            idle = 0;
        }
        let now = Instant::now();
        let in_time = forks.due.split_off(&(now, usize::MAX));
        let late = mem::replace(&mut forks.due, in_time);
        drop(forks);
        for holder in late.into_values().filter_map(|holder| holder.upgrade()) {
            // Whoever works with it is told. A panic's message is all there is to say about it.
            let _ = panic::catch_unwind(AssertUnwindSafe(|| holder.give_back()));
        }
    }
}
