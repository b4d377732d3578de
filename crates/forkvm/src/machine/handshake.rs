//! The hand-shake between a request's thread, which arms a watch and ends it, and the watchdog, which kicks the late: no
//! kick lands after its request, none is missed, and the watchdog that parks is woken. Nothing else is here, so that
//! `tests/handshakes.rs` can run it under loom, in every order that two threads may have.

use super::sync::{AtomicBool, AtomicU64, Ordering, fence, spin_loop};

/// States of a watch that are not a deadline. Deadlines are nanoseconds since some start, plus `FIRST`.
const IDLE: u64 = 0;
const KICKING: u64 = 1;
const KICKED: u64 = 2;
const FIRST: u64 = 3;

/// One watch. It holds its deadline while a request runs. To kick, the watchdog first takes the deadline away (so it kicks
/// once), then kicks, then says so; the request's thread, when it ends the watch, waits for a kick under way.
#[derive(Debug)]
pub struct Handshake {
    state: AtomicU64,
}

impl Handshake {
    /// One that is not armed.
    pub fn new() -> Self {
        Self {
            state: AtomicU64::new(IDLE),
        }
    }

    /// From now on a look after `deadline` (in nanoseconds) kicks. [`Parking::wakes`] is to be asked next.
    pub fn arm(&self, deadline: u64) {
        // Release: what the caller wrote for the kick, its thread's id, is there.
        self.state
            .store(deadline.saturating_add(FIRST), Ordering::Release);
    }

    /// True if the deadline is over and the kick is under way or was sent.
    pub fn kicked(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), KICKING | KICKED)
    }

    /// After an interruption that was no kick: `clear` takes back the flag that a kick sets. False if a kick has come after
    /// all, whose flag it may have taken.
    pub fn go_on(&self, clear: impl FnOnce()) -> bool {
        clear();
        // Either the kick has begun, which is seen here; or it begins later, and sets its flag after this.
        fence(Ordering::SeqCst);
        !self.kicked()
    }

    /// Ends the watch: no kick comes after it. `clear` takes back the flag of one that came.
    pub fn disarm(&self, clear: impl FnOnce()) {
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state == KICKING {
                spin_loop();
            } else if self
                .state
                .compare_exchange(state, IDLE, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
            {
                if state == KICKED {
                    clear();
                }
                return;
            }
        }
    }

    /// The watchdog's look: calls `kick` if the deadline is before `now`. True if a request runs.
    pub fn look(&self, now: u64, kick: impl FnOnce()) -> bool {
        let state = self.state.load(Ordering::Acquire);
        if state >= FIRST
            && state <= now.saturating_add(FIRST)
            && self
                .state
                .compare_exchange(state, KICKING, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        {
            fence(Ordering::SeqCst);
            kick();
            self.state.store(KICKED, Ordering::Release);
        }
        state != IDLE
    }
}

/// Whether the watchdog sleeps for longer than a tick, and has to be woken.
#[derive(Debug)]
pub struct Parking {
    parked: AtomicBool,
}

impl Parking {
    /// Of a watchdog that is awake.
    pub fn new() -> Self {
        Self {
            parked: AtomicBool::new(false),
        }
    }

    /// To be asked after [`Handshake::arm`]: whether the watchdog's thread is to be unparked.
    pub fn wakes(&self) -> bool {
        // One of the two sees the other: this the flag, or the watchdog's second look the watch.
        fence(Ordering::SeqCst);
        self.parked.load(Ordering::Relaxed)
    }

    /// Calls `park` unless `look` finds a watch that runs. It may look before a thread that armed one looks at us.
    pub fn park(&self, look: impl FnOnce() -> bool, park: impl FnOnce()) {
        self.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !look() {
            park();
        }
        self.parked.store(false, Ordering::Relaxed);
    }
}
