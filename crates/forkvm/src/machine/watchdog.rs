//! Deadlines without a timer system call: one thread looks at the deadlines of all running vCPUs and kicks the late
//! ones out of `KVM_RUN`, by the run page's `immediate_exit` and a signal. How it and the requests' threads agree on
//! whether there is a kick is [`Handshake`]'s.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use once_cell::sync::{Lazy, OnceCell};
use parking_lot::Mutex;

use super::handshake::{Handshake, Parking};
use crate::kvm::RunPage;

/// How often deadlines are looked at while requests run: how late a kick may be.
const TICK: Duration = Duration::from_millis(5);
/// How long the watchdog goes on ticking after the last request before it parks.
const LINGER: Duration = Duration::from_secs(2);

static START: Lazy<Instant> = Lazy::new(Instant::now);
static WATCHDOG: Lazy<Watchdog> = Lazy::new(|| Watchdog {
    slots: Mutex::default(),
    parking: Parking::new(),
    thread: OnceCell::new(),
});

struct Watchdog {
    slots: Mutex<Vec<Arc<Slot>>>,
    parking: Parking,
    thread: OnceCell<std::thread::Thread>,
}

#[derive(Debug)]
struct Slot {
    handshake: Handshake,
    /// The thread that armed it.
    thread: AtomicI32,
    run_page: RunPage,
}

/// The watchdog could not start.
#[derive(Debug, thiserror::Error)]
#[error("the watchdog thread can't start: {0}")]
pub struct WatchdogError(#[from] std::io::Error);

/// A vCPU's place under the watchdog's eyes.
#[derive(Debug)]
pub struct Watch {
    slot: Arc<Slot>,
}

impl Watch {
    /// Registers a vCPU.
    pub fn new(run_page: RunPage) -> Result<Self, WatchdogError> {
        WATCHDOG.start()?;
        let slot = Arc::new(Slot {
            handshake: Handshake::new(),
            thread: AtomicI32::new(0),
            run_page,
        });
        WATCHDOG.slots.lock().push(slot.clone());
        Ok(Self { slot })
    }

    /// From now on the calling thread is kicked out of `KVM_RUN` once `deadline` is over.
    pub fn arm(&self, deadline: Instant) {
        self.slot.thread.store(this_thread(), Ordering::Relaxed);
        self.slot.handshake.arm(nanos(deadline));
        // Only after a long pause is there a thread to wake.
        if WATCHDOG.parking.wakes()
            && let Some(thread) = WATCHDOG.thread.get()
        {
            thread.unpark();
        }
    }

    /// Clears the flag after an interruption that was no kick. False if a kick came after all.
    pub fn go_on(&self) -> bool {
        self.slot.handshake.go_on(|| self.clear())
    }

    /// Ends the watch. No kick comes after it.
    pub fn disarm(&self) {
        self.slot.handshake.disarm(|| {
            // The signal is pending or taken; any system call takes it, so that it can't interrupt the caller later.
            std::thread::yield_now();
            self.clear();
        });
    }

    fn clear(&self) {
        let flag = self.slot.run_page.immediate_exit();
        flag.store(0, Ordering::SeqCst);
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
                self.parking
                    .park(|| self.look(Instant::now()), std::thread::park);
                last_active = Instant::now();
            }
            std::thread::sleep(TICK);
        }
    }

    /// Kicks the late. True if any request runs.
    fn look(&self, now: Instant) -> bool {
        let now = nanos(now);
        let slots = self.slots.lock();
        slots.iter().fold(false, |active, slot| {
            slot.handshake.look(now, || slot.kick()) | active
        })
    }
}

impl Slot {
    fn kick(&self) {
        self.run_page.immediate_exit().store(1, Ordering::SeqCst);
        if let Ok(signal) = kick_signal() {
            // SAFETY: no memory is involved. The signal goes to a thread of this process, and its handler does nothing.
            unsafe {
                libc::syscall(
                    libc::SYS_tgkill,
                    libc::getpid(),
                    self.thread.load(Ordering::Relaxed),
                    signal,
                );
            }
        }
    }
}

/// A time as the hand-shake has it.
fn nanos(time: Instant) -> u64 {
    let after_start = time.saturating_duration_since(*START);
    u64::try_from(after_start.as_nanos()).unwrap_or(u64::MAX)
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

/// Has the calling thread's writes past the process's limit of a file's size (`RLIMIT_FSIZE`) fail only, and not end the process by
/// SIGXFSZ.
pub fn hold_back_file_size_signal() {
    thread_local!(static DONE: () = {
        // SAFETY: the set is plain data, initialised by sigemptyset before use.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGXFSZ);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        }
    });
    DONE.with(|()| ());
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
