//! Work that takes too long for a request's thread: one thread makes forks ahead of need and looks for idle ones, another
//! frees what is not needed any more, one thing at a time. So nobody who needs a fork waits for others' to be freed.
//!
//! Both live as long as the process. A job that panics ends no thread: the panic hook reports it, and the next job follows.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;

/// How often what is to be done regularly is done.
const SWEEP: Duration = Duration::from_secs(1);
/// How often it is looked whether something may be freed.
const RETRY: Duration = Duration::from_millis(10);

type Job = Box<dyn FnOnce() + Send>;
/// Called again and again until it returns false.
type Repeated = Box<dyn FnMut() -> bool + Send>;

enum Order {
    Once(Job),
    Repeated(Repeated),
}

/// The way to the two threads.
#[derive(Debug)]
pub struct Keeper {
    making: Sender<Order>,
    freeing: Sender<Order>,
}

impl Keeper {
    /// The process's keeper; its threads are started by the first call that can.
    pub fn get() -> io::Result<&'static Self> {
        static KEEPER: OnceCell<Keeper> = OnceCell::new();
        KEEPER.get_or_try_init(Self::start)
    }

    pub(super) fn start() -> io::Result<Self> {
        Ok(Self {
            making: thread("forkvm-make", SWEEP)?,
            freeing: thread("forkvm-free", RETRY)?,
        })
    }

    /// Has something made, soon and in turn.
    pub fn make(&self, job: impl FnOnce() + Send + 'static) {
        // A thread ends with its keeper, so that a job always arrives.
        let _ = self.making.send(Order::Once(Box::new(job)));
    }

    /// Has `look` called about once a second, until it returns false. It has to be quick.
    pub fn sweep(&self, look: impl FnMut() -> bool + Send + 'static) {
        let _ = self.making.send(Order::Repeated(Box::new(look)));
    }

    /// Drops something, after all that was handed over before.
    pub fn free(&self, thing: impl Send + 'static) {
        self.free_then(thing, || ());
    }

    /// Drops something as [`Keeper::free`] does, then calls `after`.
    pub fn free_then(&self, thing: impl Send + 'static, after: impl FnOnce() + Send + 'static) {
        let job = || {
            carried_out(|| drop(thing));
            after();
        };
        let _ = self.freeing.send(Order::Once(Box::new(job)));
    }

    /// Drops something as soon as `may` says so.
    pub fn free_when<T: Send + 'static>(
        &self,
        thing: T,
        may: impl Fn(&T) -> bool + Send + 'static,
    ) {
        let wait = move || !may(&thing);
        let _ = self.freeing.send(Order::Repeated(Box::new(wait)));
    }
}

fn thread(name: &str, period: Duration) -> io::Result<Sender<Order>> {
    let (orders, inbox) = mpsc::channel();
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || keep(&inbox, period))?;
    Ok(orders)
}

fn keep(inbox: &Receiver<Order>, period: Duration) {
    let mut repeated: Vec<Repeated> = Vec::new();
    let mut last = Instant::now();
    loop {
        // With nothing to repeat there is nothing to wake up for.
        let order = if repeated.is_empty() {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(period.saturating_sub(last.elapsed()))
        };
        match order {
            Ok(Order::Once(job)) => {
                carried_out(job);
            }
            Ok(Order::Repeated(job)) => repeated.push(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if last.elapsed() >= period {
            last = Instant::now();
            repeated.retain_mut(|job| carried_out(job).unwrap_or(false));
        }
    }
}

/// What a job gives; `None` if it panicked. Nobody looks at what it left behind but its own destructors.
fn carried_out<T>(job: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(job)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Drops itself by calling something.
    struct OnDrop<F: FnMut()>(F);

    impl<F: FnMut()> Drop for OnDrop<F> {
        fn drop(&mut self) {
            self.0();
        }
    }

    #[test]
    fn what_is_slow_to_free_holds_nobody_up() {
        let keeper = Keeper::start().unwrap();
        let (made, done) = mpsc::channel();
        let (go_on, wait) = mpsc::channel::<()>();
        keeper.free(OnDrop(move || {
            let _ = wait.recv();
        }));
        keeper.make(move || made.send(()).unwrap());
        done.recv().unwrap();
        drop(go_on);
    }

    #[test]
    fn one_thing_is_freed_at_a_time() {
        let keeper = Keeper::start().unwrap();
        let (freed, done) = mpsc::channel();
        let now = Arc::new(AtomicUsize::new(0));
        for _ in 0..100 {
            let (now, freed) = (now.clone(), freed.clone());
            keeper.free(OnDrop(move || {
                freed.send(now.fetch_add(1, Ordering::SeqCst)).unwrap();
                std::thread::yield_now();
                now.fetch_sub(1, Ordering::SeqCst);
            }));
        }
        drop(freed);
        assert_eq!(done.iter().collect::<Vec<_>>(), [0; 100]);
    }

    #[test]
    fn a_panic_ends_neither_thread() {
        let keeper = Keeper::start().unwrap();
        keeper.make(|| panic!("on purpose"));
        keeper.sweep(|| panic!("on purpose"));
        keeper.free(OnDrop(|| panic!("on purpose")));
        let (done, wait) = mpsc::channel();
        let (made, freed, swept) = (done.clone(), done.clone(), done);
        keeper.make(move || made.send("made").unwrap());
        keeper.free(OnDrop(move || freed.send("freed").unwrap()));
        keeper.sweep(move || swept.send("swept").is_ok_and(|()| false));
        let mut all: Vec<_> = wait.iter().take(3).collect();
        all.sort_unstable();
        assert_eq!(all, ["freed", "made", "swept"]);
    }

    #[test]
    fn what_may_not_be_freed_yet_waits() {
        let keeper = Keeper::start().unwrap();
        let (freed, done) = mpsc::channel();
        let shared = Arc::new(OnDrop(move || freed.send(()).unwrap()));
        let also = shared.clone();
        keeper.free_when(shared, |shared| Arc::strong_count(shared) == 1);
        assert!(done.recv_timeout(RETRY * 5).is_err());
        drop(also);
        done.recv().unwrap();
    }
}
