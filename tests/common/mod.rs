//! What the tests against a real Varnish share: where things are, and how many run at a time.
// Each test binary uses a part of it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

#[path = "../../crates/forkvm/tests/common/batch_gdb.rs"]
pub mod batch_gdb;
pub mod client;
pub mod gdb;
pub mod holdings;
#[path = "../../crates/forkvm/tests/common/pace.rs"]
pub mod pace;
pub mod updates;
#[path = "../../crates/forkvm-fetch/tests/common/upstream.rs"]
pub mod upstream;
pub mod varnishd;

use std::env;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub use pace::{ENOUGH, ENOUGH_VCL};

/// A file of the profile that is tested. `cargo test` does not build it, `cargo build --workspace` does.
pub fn built(name: &str) -> PathBuf {
    // target/PROFILE/deps/this-test
    let this = env::current_exe().unwrap();
    let file = this.ancestors().nth(2).unwrap().join(name);
    assert!(
        file.exists(),
        "{} is not there: cargo build --workspace first, in the same profile",
        file.display()
    );
    file
}

/// The VMOD.
pub fn vmod() -> PathBuf {
    built("libvmod_kvm.so")
}

/// The guest programs: the examples, and those of the tests in test/.
pub fn guests() -> PathBuf {
    let guests = env::var_os("GUESTS_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guests"),
        PathBuf::from,
    );
    for (guest, target) in [("hello", "guests"), ("test/echo", "test-guests")] {
        assert!(
            guests.join(guest).exists(),
            "{} has no {guest}: make {target} first",
            guests.display()
        );
    }
    guests
}

/// One of Varnish's programs.
pub fn program(name: &str, variable: &str) -> PathBuf {
    env::var_os(variable).map_or_else(|| name.into(), PathBuf::from)
}

/// Whether a test that needs KVM can run. Without KVM it is skipped, but in CI that is a failure.
pub fn have_kvm() -> bool {
    let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") else {
        return true;
    };
    assert!(env::var_os("CI").is_none(), "/dev/kvm: {error}");
    eprintln!("SKIPPED, /dev/kvm: {error}");
    false
}

/// A number in the environment: how much a soak is to do.
pub fn variable(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// A small generator of numbers (xorshift).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Waits for something that happens in its own time.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + ENOUGH;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not after {ENOUGH:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A folder that is gone after the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(test: &str) -> Self {
        let path = env::temp_dir().join(format!("kvm-test.{}.{test}", process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How many Varnishes run at the same time: a child that starts late fails its manager's handshake.
static FREE: (Mutex<usize>, Condvar) = (Mutex::new(2), Condvar::new());

/// The right to run one.
pub struct Slot;

impl Slot {
    pub fn take() -> Self {
        let mut free = FREE
            .1
            .wait_while(FREE.0.lock().unwrap(), |free| *free == 0)
            .unwrap();
        *free -= 1;
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *FREE.0.lock().unwrap() += 1;
        FREE.1.notify_one();
    }
}
