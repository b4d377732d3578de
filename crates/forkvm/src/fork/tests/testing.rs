//! Frozen guests for unit tests that look at what no program sees.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::call::hypercall::Response;
use crate::config::Config;
use crate::failure::Cause;
use crate::fork::Fork;
use crate::master::Master;
use crate::request::{Quiet, Request};

/// A frozen guest of the tests. `None`, which is a skip, where there is no KVM; in CI that is a failure.
pub fn frozen(guest: &str, change: impl FnOnce(&mut Config)) -> Option<Arc<Master>> {
    if let Err(error) = crate::machine::probe::probe() {
        assert!(std::env::var_os("CI").is_none(), "{error}");
        eprintln!("SKIPPED: {error}");
        return None;
    }
    let guests = std::env::var_os("GUESTS_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests"),
        Into::into,
    );
    let elf = std::fs::read(guests.join("test").join(guest)).expect("`make test-guests` first");
    let mut config = Config::new(guest);
    config.limits.max_boot_time = Duration::from_secs(600);
    change(&mut config);
    Some(Arc::new(
        Master::boot(&elf, config, None, &mut Quiet).unwrap(),
    ))
}

/// FORKVM_SLOW: by how much this machine is slower than one with KVM of its own.
pub fn slowness() -> u32 {
    std::env::var("FORKVM_SLOW").map_or(1, |text| text.parse().unwrap())
}

/// Time enough for any request.
pub fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(2) * slowness().min(5)
}

/// A GET of this URL, not reset afterwards.
pub fn get(fork: &mut Fork, url: &str) -> Result<Response, Cause> {
    let request = Request {
        method: "GET",
        url: url.as_bytes(),
        ..Default::default()
    };
    fork.call(&request, deadline(), &mut Quiet, None)
}
