//! Frozen guests for unit tests that look at what no program sees.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::call::hypercall::{Body, Response};
use crate::config::Config;
use crate::failure::Cause;
use crate::fork::Fork;
use crate::master::Master;
use crate::master::role::Role;
use crate::request::{Quiet, Request};

#[path = "../../../tests/common/pace.rs"]
mod pace;
pub use pace::{ENOUGH, emulated};

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
    config.limits.max_boot_time = ENOUGH;
    change(&mut config);
    Some(Arc::new(
        Master::boot(&elf, config, Role::requests(None), None, &mut Quiet).unwrap(),
    ))
}

/// Time enough for any request.
pub fn deadline() -> Instant {
    Instant::now() + ENOUGH
}

/// A GET of this URL, not reset afterwards.
pub fn get(fork: &mut Fork, url: &str) -> Result<Response, Cause> {
    let request = Request {
        method: "GET",
        url: url.as_bytes(),
        ..Default::default()
    };
    fork.call(&request, None, deadline(), &mut Quiet, None)
}

/// What a response's body is, as text.
pub fn text(fork: &Fork, response: &Response) -> String {
    let Body::Whole(address, len) = response.body else {
        panic!("{response:?}");
    };
    let mut text = vec![0; len as usize];
    fork.read_piece((address, len), 0, &mut text);
    String::from_utf8(text).unwrap()
}
