//! Deadlines without a timer system call: one thread looks at the deadlines of all running vCPUs and kicks the late
//! ones out of `KVM_RUN`, by the run page's `immediate_exit` and a signal.
//!
//! The hand-shake: a vCPU's [`Watch`] holds its deadline while a request runs. To kick, the watchdog first takes the
//! deadline away (so it kicks once), sets the flag, sends the signal and says so; the request's thread, when it
//! ends the watch, waits for a kick under way and takes its signal. So no kick ever lands after its request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use once_cell::sync::{Lazy, OnceCell};
use parking_lot::Mutex;

use crate::kvm::RunPage;

/// How often deadlines are looked at while requests run: how late a kick may be.
const TICK: Duration = Duration::from_millis(5);
/// How long the watchdog goes on ticking after the last request before it parks.
const LINGER: Duration = Duration::from_secs(2);

/// States of a watch that are not a deadline. Deadlines are nanoseconds since the process's first use, plus `FIRST`.
const IDLE: u64 = 0;
const KICKING: u64 = 1;
const KICKED: u64 = 2;
const FIRST: u64 = 3;

static START: Lazy<Instant> = Lazy::new(Instant::now);
static WATCHDOG: Lazy<Watchdog> = Lazy::new(Watchdog::default);

#[derive(Default)]
struct Watchdog {
    slots: Mutex<Vec<Arc<Slot>>>,
    parked: AtomicBool,
    thread: OnceCell<std::thread::Thread>,
}

#[derive(Debug)]
struct Slot {
    state: AtomicU64,
    thread: AtomicI32,
    run_page: RunPage,
}

// SAFETY: the run page is only touched while the slot is in the watchdog's list, under its lock; `Watch` takes it off
// the list before its vCPU goes.
unsafe impl Sync for Slot {}

/// The watchdog could not start.
#[derive(Debug, thiserror::Error)]
#[error("the watchdog thread can't start: {0}")]
pub struct WatchdogError(#[from] std::io::Error);

/// A vCPU's place under the watchdog's eyes. It has to be dropped before the vCPU.
#[derive(Debug)]
pub struct Watch {
    slot: Arc<Slot>,
}

impl Watch {
    /// Registers a vCPU.
    pub fn new(run_page: RunPage) -> Result<Self, WatchdogError> {
        WATCHDOG.start()?;
        let slot = Arc::new(Slot {
            state: AtomicU64::new(IDLE),
            thread: AtomicI32::new(0),
            run_page,
        });
        WATCHDOG.slots.lock().push(slot.clone());
        Ok(Self { slot })
    }

    /// From now on the calling thread is kicked out of `KVM_RUN` once `deadline` is over.
    pub fn arm(&self, deadline: Instant) {
        let after_start = deadline.saturating_duration_since(*START);
        let nanos = u64::try_from(after_start.as_nanos()).unwrap_or(u64::MAX - FIRST);
        self.slot.thread.store(this_thread(), Ordering::Relaxed);
        self.slot
            .state
            .store(nanos.saturating_add(FIRST), Ordering::SeqCst);
        // Only after a long pause is there a thread to wake.
        if WATCHDOG.parked.load(Ordering::SeqCst)
            && let Some(thread) = WATCHDOG.thread.get()
        {
            thread.unpark();
        }
    }

    /// True if the deadline is over and the kick was sent.
    pub fn kicked(&self) -> bool {
        matches!(self.slot.state.load(Ordering::SeqCst), KICKING | KICKED)
    }

    /// Clears the flag after an interruption that was no kick. True if a kick came after all.
    pub fn go_on(&self) -> bool {
        // SAFETY: `self` is dropped before its vCPU.
        let flag = unsafe { self.slot.run_page.immediate_exit() };
        flag.store(0, Ordering::SeqCst);
        !self.kicked()
    }

    /// Ends the watch. No kick comes after it.
    pub fn disarm(&self) {
        loop {
            let state = self.slot.state.load(Ordering::SeqCst);
            if state == KICKING {
                std::hint::spin_loop();
                continue;
            }
            if self
                .slot
                .state
                .compare_exchange(state, IDLE, Ordering::SeqCst, Ordering::SeqCst)
                .is_err()
            {
                continue;
            }
            if state == KICKED {
                // The signal is pending or taken; any system call takes it, so that it can't interrupt the caller later.
                std::thread::yield_now();
                // SAFETY: `self` is dropped before its vCPU.
                unsafe { self.slot.run_page.immediate_exit() }.store(0, Ordering::SeqCst);
            }
            return;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.disarm();
        WATCHDOG
            .slots
            .lock()
            .retain(|slot| !Arc::ptr_eq(slot, &self.slot));
    }
}

impl Watchdog {
    fn start(&self) -> Result<(), WatchdogError> {
        self.thread
            .get_or_try_init(|| {
                Lazy::force(&START);
                kick_signal()?;
                let builder = std::thread::Builder::new().name("forkvm-watchdog".into());
                builder
                    .spawn(|| WATCHDOG.watch())
                    .map(|handle| handle.thread().clone())
            })
            .map(|_| ())
            .map_err(WatchdogError)
    }

    fn watch(&self) {
        let mut last_active = Instant::now();
        loop {
            let now = Instant::now();
            if self.look(now) {
                last_active = now;
            } else if now.duration_since(last_active) > LINGER {
                self.parked.store(true, Ordering::SeqCst);
                // Look again: a watch armed before the flag was set did not see it.
                if !self.look(Instant::now()) {
                    std::thread::park();
                }
                self.parked.store(false, Ordering::SeqCst);
                last_active = Instant::now();
            }
            std::thread::sleep(TICK);
        }
    }

    /// Kicks the late. True if any request runs.
    fn look(&self, now: Instant) -> bool {
        let now = u64::try_from(now.duration_since(*START).as_nanos())
            .unwrap_or(u64::MAX)
            .saturating_add(FIRST);
        let mut active = false;
        for slot in self.slots.lock().iter() {
            let state = slot.state.load(Ordering::SeqCst);
            active |= state != IDLE;
            if state >= FIRST && state <= now {
                slot.kick(state);
            }
        }
        active
    }
}

impl Slot {
    fn kick(&self, deadline: u64) {
        if self
            .state
            .compare_exchange(deadline, KICKING, Ordering::SeqCst, Ordering::SeqCst)
            .is_err()
        {
            return;
        }
        // SAFETY: the slot is in the list, so its `Watch` and with it the vCPU still exist.
        unsafe { self.run_page.immediate_exit() }.store(1, Ordering::SeqCst);
        if let Ok(signal) = kick_signal() {
            // SAFETY: no memory is involved. The thread is waiting in `disarm` at the least, so its id is still its own.
            unsafe {
                libc::syscall(
                    libc::SYS_tgkill,
                    libc::getpid(),
                    self.thread.load(Ordering::Relaxed),
                    signal,
                );
            }
        }
        self.state.store(KICKED, Ordering::SeqCst);
    }
}

extern "C" fn do_nothing(_signal: libc::c_int) {}

/// The real-time signal for kicks: one that nobody in the process uses. Its handler does nothing, without SA_RESTART.
fn kick_signal() -> std::io::Result<libc::c_int> {
    static SIGNAL: OnceCell<libc::c_int> = OnceCell::new();
    SIGNAL
        .get_or_try_init(|| {
            for signal in (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev() {
                // SAFETY: both structures are plain data, valid when zeroed, and live across the calls.
                unsafe {
                    let mut old: libc::sigaction = std::mem::zeroed();
                    if libc::sigaction(signal, std::ptr::null(), &mut old) == 0
                        && old.sa_sigaction == libc::SIG_DFL
                    {
                        let mut new: libc::sigaction = std::mem::zeroed();
                        new.sa_sigaction = do_nothing as *const () as usize;
                        if libc::sigaction(signal, &new, std::ptr::null_mut()) == 0 {
                            return Ok(signal);
                        }
                    }
                }
            }
            Err(std::io::Error::other("no real-time signal is free"))
        })
        .copied()
}

/// The calling thread's id. On a thread's first request it also lets the kick signal through.
fn this_thread() -> i32 {
    thread_local!(static ID: i32 = {
        if let Ok(signal) = kick_signal() {
            // SAFETY: the set is plain data, initialised by sigemptyset before use.
            unsafe {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&mut set);
                libc::sigaddset(&mut set, signal);
                libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
            }
        }
        rustix::thread::gettid().as_raw_nonzero().get()
    });
    ID.with(|id| *id)
}
