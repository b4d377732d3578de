//! The processor time of boots: a few places that they take in turns, each for a slice of time. So a `main()` that takes
//! long, or never ends, makes the others slower, but holds up none.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Programs that boot at the same moment. More would slow down the requests that are served meanwhile.
const PLACES: usize = 2;
/// How long a boot has its place if others wait for one.
pub const SLICE: Duration = Duration::from_millis(20);
/// How often it is looked whether one that sleeps is still wanted.
const LOOK: Duration = Duration::from_millis(500);

static ALL: Places = Places::new(PLACES);

struct Places(Mutex<Inner>);

struct Inner {
    free: usize,
    /// Boots that have not begun. Each is told when a place is its own.
    fresh: VecDeque<SyncSender<()>>,
    /// Those that have had a slice.
    paused: VecDeque<SyncSender<()>>,
    /// Whose turn it is when both wait, so that neither keeps the other from getting on.
    fresh_first: bool,
}

/// Whether somebody wants a boot.
type Wanted = Box<dyn Fn() -> bool + Send>;

/// A place, until it is dropped.
pub struct Place {
    of: &'static Places,
    stop: Arc<Stop>,
    wanted: Wanted,
}

impl Place {
    /// Waits for a place for a boot that begins.
    pub fn take() -> Self {
        ALL.take()
    }

    /// What ends the boot that has this place.
    pub fn stop(&self) -> &Arc<Stop> {
        &self.stop
    }

    /// Has the boot that has this place end when `wanted` says no. It is asked again and again, since who looks through the
    /// tenants has each of them for a moment.
    pub fn only_while(&mut self, wanted: impl Fn() -> bool + Send + 'static) {
        self.wanted = Box::new(wanted);
    }

    /// Lets others have the place for so long, or if that is zero for their slice. `Break` if the boot has been stopped or
    /// nobody wants it, as [`forkvm::Host::give_way`] has it.
    pub fn give_way(&mut self, time: Duration) -> ControlFlow<()> {
        if time.is_zero() {
            self.of.pass_on();
        } else {
            self.of.0.lock().hand_on();
            self.stop.sleep(time, &self.wanted);
            self.of.come_back();
        }
        if self.stop.is_said() || !(self.wanted)() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.0.lock().hand_on();
    }
}

/// Ends a boot when it next gives way: within a slice, while its program runs or sleeps.
#[derive(Default)]
pub struct Stop {
    said: Mutex<bool>,
    wakes: Condvar,
}

impl Stop {
    /// Ends it.
    pub fn say(&self) {
        *self.said.lock() = true;
        self.wakes.notify_all();
    }

    /// Whether it is to end by this.
    pub fn is_said(&self) -> bool {
        *self.said.lock()
    }

    fn sleep(&self, time: Duration, wanted: &Wanted) {
        let end = Instant::now() + time;
        let mut said = self.said.lock();
        while !*said && wanted() && Instant::now() < end {
            let look = end.min(Instant::now() + LOOK);
            self.wakes.wait_until(&mut said, look);
        }
    }
}

impl Places {
    const fn new(free: usize) -> Self {
        Self(Mutex::new(Inner {
            free,
            fresh: VecDeque::new(),
            paused: VecDeque::new(),
            fresh_first: true,
        }))
    }

    fn take(&'static self) -> Place {
        self.wait(|inner| &mut inner.fresh);
        Place {
            of: self,
            stop: Arc::default(),
            wanted: Box::new(|| true),
        }
    }

    /// Waits for a place again, after having given it away.
    fn come_back(&self) {
        self.wait(|inner| &mut inner.paused);
    }

    fn wait(&self, line: fn(&mut Inner) -> &mut VecDeque<SyncSender<()>>) {
        let (place, granted) = sync_channel(1);
        let mut inner = self.0.lock();
        if inner.free > 0 {
            inner.free -= 1;
            return;
        }
        line(&mut inner).push_back(place);
        drop(inner);
        // Whoever has the other end keeps it until it has sent something.
        let _ = granted.recv();
    }

    /// Gives a place to the next, if somebody waits, and waits for another.
    fn pass_on(&self) {
        let (place, granted) = sync_channel(1);
        let mut inner = self.0.lock();
        if inner.fresh.is_empty() && inner.paused.is_empty() {
            return;
        }
        inner.paused.push_back(place);
        inner.hand_on();
        drop(inner);
        let _ = granted.recv();
    }
}

impl Inner {
    fn hand_on(&mut self) {
        while let Some(next) = self.next() {
            // It fails only if nobody waits any more.
            if next.send(()).is_ok() {
                return;
            }
        }
        self.free += 1;
    }

    fn next(&mut self) -> Option<SyncSender<()>> {
        let (first, second) = if self.fresh_first {
            (&mut self.fresh, &mut self.paused)
        } else {
            (&mut self.paused, &mut self.fresh)
        };
        self.fresh_first = !self.fresh_first;
        first.pop_front().or_else(|| second.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    fn places(count: usize) -> &'static Places {
        Box::leak(Box::new(Places::new(count)))
    }

    #[test]
    fn what_never_ends_holds_up_nobody() {
        let places = places(2);
        let over = Arc::new(AtomicBool::new(false));
        let spinners: Vec<_> = (0..8)
            .map(|_| {
                let over = over.clone();
                thread::spawn(move || {
                    let mut place = places.take();
                    while !over.load(Ordering::SeqCst) {
                        assert!(place.give_way(Duration::ZERO).is_continue());
                    }
                })
            })
            .collect();
        // One after the other, each with some slices: all while the eight go on.
        for _ in 0..20 {
            let mut place = places.take();
            (0..3).for_each(|_| assert!(place.give_way(Duration::ZERO).is_continue()));
        }
        over.store(true, Ordering::SeqCst);
        spinners
            .into_iter()
            .for_each(|spinner| spinner.join().unwrap());
        assert_eq!(places.0.lock().free, 2);
    }

    #[test]
    fn never_more_than_there_are() {
        let places = places(2);
        let inside = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..8)
            .map(|nth| {
                let inside = inside.clone();
                thread::spawn(move || {
                    for _ in 0..50 {
                        let mut place = places.take();
                        for turn in 0..10 {
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
                            thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                            let time = Duration::from_micros((nth + turn) % 3);
                            assert!(place.give_way(time).is_continue());
                        }
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_eq!(places.0.lock().free, 2);
    }

    #[test]
    fn what_is_stopped_ends_and_leaves_its_place() {
        let places = places(1);
        for time in [Duration::ZERO, Duration::from_secs(24 * 3600)] {
            let mut place = places.take();
            let stop = place.stop().clone();
            let boot = thread::spawn(move || while place.give_way(time).is_continue() {});
            stop.say();
            boot.join().unwrap();
            assert_eq!(places.0.lock().free, 1);
        }
    }

    #[test]
    fn what_nobody_wants_any_more_ends() {
        let places = places(1);
        for time in [Duration::ZERO, Duration::from_secs(24 * 3600)] {
            let mut place = places.take();
            let wanted = Arc::new(());
            let by = Arc::downgrade(&wanted);
            place.only_while(move || by.strong_count() > 0);
            let (begun, begins) = sync_channel(1);
            let boot = thread::spawn(move || {
                begun.send(()).unwrap();
                while place.give_way(time).is_continue() {}
            });
            begins.recv().unwrap();
            // Whoever had it at the time when the others let go of it.
            let for_a_moment = wanted.clone();
            drop(wanted);
            assert!(!boot.is_finished());
            drop(for_a_moment);
            boot.join().unwrap();
            assert_eq!(places.0.lock().free, 1);
        }
    }

    #[test]
    fn who_sleeps_has_none() {
        let places = places(1);
        let mut sleeper = places.take();
        let (woken, wakes) = sync_channel(0);
        thread::scope(|scope| {
            scope.spawn(move || {
                assert!(sleeper.give_way(Duration::from_millis(1)).is_continue());
                // Not before the other one's end.
                woken.send(()).unwrap();
            });
            let place = places.take();
            assert!(wakes.recv_timeout(Duration::from_millis(50)).is_err());
            drop(place);
            wakes.recv().unwrap();
        });
    }
}
