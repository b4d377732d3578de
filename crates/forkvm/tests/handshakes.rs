//! The watchdog's hand-shake in every order that its threads may have, as far as loom tells them apart.
#![allow(clippy::unwrap_used)]

#[path = "../src/machine/handshake.rs"]
mod handshake;

/// What `handshake.rs` is made of, here loom's.
mod sync {
    pub use loom::hint::spin_loop;
    pub use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
}

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use handshake::{Handshake, Parking};
use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

const DEADLINE: u64 = 10;

/// A vCPU and its thread, as far as a kick goes.
struct Vcpu {
    watch: Handshake,
    /// `kvm_run.immediate_exit`.
    flag: AtomicBool,
    /// The signal, until a system call takes it.
    signal: AtomicBool,
    /// Between `arm` and the end of `disarm`: the only time for a kick.
    armed: AtomicBool,
}

impl Vcpu {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            watch: Handshake::new(),
            flag: AtomicBool::new(false),
            signal: AtomicBool::new(false),
            armed: AtomicBool::new(false),
        })
    }

    fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
        self.watch.arm(DEADLINE);
    }

    /// `KVM_RUN` of a guest that never ends: true if it came back. A signal is taken on the way.
    fn run(&self) -> bool {
        self.signal.swap(false, Ordering::AcqRel) || self.flag.load(Ordering::Acquire)
    }

    fn clear(&self) {
        self.flag.store(false, Ordering::Release);
    }

    fn disarm(&self) {
        self.watch.disarm(|| self.clear());
        self.armed.store(false, Ordering::Relaxed);
        // The system call after a kick takes its signal.
        self.signal.store(false, Ordering::Release);
    }

    /// The watchdog's look at a time.
    fn look(&self, now: u64) -> bool {
        self.watch.look(now, || {
            assert!(
                self.armed.load(Ordering::Relaxed),
                "a kick outside of its request"
            );
            self.flag.store(true, Ordering::Release);
            self.signal.store(true, Ordering::Release);
        })
    }

    fn assert_nothing_left(&self) {
        assert!(!self.flag.load(Ordering::Acquire), "the flag is left");
        assert!(!self.signal.load(Ordering::Acquire), "the signal is left");
    }
}

/// With a bound on the switches of threads that nobody asked for: three find what there is to find, in no time.
fn model(preemptions: usize, check: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(check);
}

/// Requests that end by themselves while the watchdog looks, too early and too late.
#[test]
fn no_kick_lands_after_its_request() {
    static KICKS: AtomicUsize = AtomicUsize::new(0);
    model(3, || {
        let vcpu = Vcpu::new();
        let watchdog = thread::spawn({
            let vcpu = vcpu.clone();
            move || {
                vcpu.look(DEADLINE - 1);
                vcpu.look(DEADLINE + 1);
            }
        });
        for _ in 0..2 {
            vcpu.arm();
            if vcpu.run() {
                KICKS.fetch_add(1, Relaxed);
                assert!(vcpu.watch.kicked());
            }
            vcpu.disarm();
            vcpu.assert_nothing_left();
        }
        watchdog.join().unwrap();
        vcpu.assert_nothing_left();
    });
    // Else there was nothing to see.
    assert!(KICKS.load(Relaxed) > 0);
}

/// A signal of somebody else's comes while the kick does: the guest is stopped all the same.
#[test]
fn no_kick_is_lost_to_another_interruption() {
    static WENT_ON: AtomicUsize = AtomicUsize::new(0);
    model(3, || {
        let vcpu = Vcpu::new();
        vcpu.arm();
        let watchdog = thread::spawn({
            let vcpu = vcpu.clone();
            move || vcpu.look(DEADLINE)
        });
        // The other signal.
        let goes_on = vcpu.watch.go_on(|| vcpu.clear());
        watchdog.join().unwrap();
        // Its signal comes before the next KVM_RUN, and is taken: the flag is all there is.
        vcpu.signal.store(false, Ordering::Release);
        if goes_on {
            WENT_ON.fetch_add(1, Relaxed);
            assert!(vcpu.run(), "the guest runs on for ever");
            assert!(!vcpu.watch.go_on(|| vcpu.clear()));
        }
        vcpu.disarm();
        vcpu.assert_nothing_left();
    });
    assert!(WENT_ON.load(Relaxed) > 0);
}

/// The watchdog parks while requests arm: loom finds a deadlock if it is not woken.
#[test]
fn a_watchdog_that_parks_is_woken() {
    static PARKED: AtomicUsize = AtomicUsize::new(0);
    model(3, || {
        let vcpus = [Vcpu::new(), Vcpu::new()];
        let parking = Arc::new(Parking::new());
        let watchdog = thread::spawn({
            let (vcpus, parking) = (vcpus.clone(), parking.clone());
            move || {
                let look = || {
                    vcpus
                        .iter()
                        .fold(false, |active, vcpu| vcpu.look(0) | active)
                };
                parking.park(look, || {
                    PARKED.fetch_add(1, Relaxed);
                    thread::park();
                });
            }
        });
        let arm = |vcpu: &Vcpu, watchdog: &thread::Thread| {
            vcpu.arm();
            if parking.wakes() {
                watchdog.unpark();
            }
        };
        let thread = watchdog.thread().clone();
        vcpus.iter().for_each(|vcpu| arm(vcpu, &thread));
        watchdog.join().unwrap();
    });
    assert!(PARKED.load(Relaxed) > 0);
}
