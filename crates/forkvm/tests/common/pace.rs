//! How long things may take in tests: the one place that says so, for all packages.
//!
//! Processors and their hosts differ (between two machines of one kind a bare `KVM_RUN` took 17 and 81 µs, a fork's first
//! write to a page 5 and 100 µs), and a test shares its own with anything. So a limit in a test that is not about
//! limits is [`ENOUGH`]; and a time that is to pass, since a test is about what happens then, is [`scaled`].

// Each test binary uses a part of it.
#![allow(dead_code, clippy::expect_used)]

use std::sync::OnceLock;
use std::time::Duration;

/// A limit that nothing but a hang reaches: the longest that any test waits for takes some seconds.
pub const ENOUGH: Duration = Duration::from_secs(600);

/// [`ENOUGH`] as a setting of VCL or of JSON.
pub const ENOUGH_VCL: &str = "600s";

/// A `KVM_RUN` of the machine for which the tests' times are written.
const ROUND_TRIP: Duration = Duration::from_micros(25);

/// The most that times are stretched: in software emulation a test has to end, too.
const MOST: u32 = 20;

/// By how much a machine is slower than one with KVM of its own: FORKVM_SLOW, 1 unless set.
fn slowness() -> u32 {
    static SLOWNESS: OnceLock<u32> = OnceLock::new();
    *SLOWNESS.get_or_init(|| {
        std::env::var("FORKVM_SLOW")
            .map_or(1, |text| text.parse::<u32>().expect("FORKVM_SLOW").max(1))
    })
}

/// True in software emulation, where some things are missing and everything takes long.
pub fn emulated() -> bool {
    slowness() > 1
}

/// A number of repetitions, fewer in emulation.
pub fn few(n: usize) -> usize {
    (n / slowness() as usize).max(1)
}

/// A time in which a request is to get somewhere, or for which a test goes on: longer where a `KVM_RUN` takes longer.
pub fn scaled(time: Duration) -> Duration {
    static FACTOR: OnceLock<f64> = OnceLock::new();
    let factor = *FACTOR.get_or_init(|| {
        let measured = forkvm::probe().map_or(ROUND_TRIP, |report| report.round_trip);
        let factor = measured.as_secs_f64() / ROUND_TRIP.as_secs_f64();
        factor
            .clamp(1.0, f64::from(MOST))
            .max(f64::from(slowness().min(MOST)))
    });
    time.mul_f64(factor)
}
