//! A user of the engine that panics in the middle of a request: its fork is thrown away, whatever it had written, and
//! the requests after it are answered as if nothing had been.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use common::{ENOUGH, Tenant, config, guest, kvm_or_skip};
use forkvm::{Config, Host, Quiet, Request, Stream};

/// Panics at the first word of this kind.
struct Panicking(Stream);

impl Host for Panicking {
    fn output(&mut self, stream: Stream, _bytes: &[u8]) {
        assert_ne!(stream, self.0, "on purpose");
    }
}

fn boot(change: impl FnOnce(&mut Config)) -> Tenant {
    Tenant::boot_with("dirty", |config| {
        config.limits.max_memory = 128 << 20;
        change(config);
    })
}

/// Sends a request whose host panics, some times over, and looks at what is left.
fn panic_at(tenant: &Tenant, url: &str, stream: Stream) {
    let request = Request {
        method: "GET",
        url: url.as_bytes(),
        ..Default::default()
    };
    for _ in 0..3 {
        let deadline = Instant::now() + ENOUGH;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let answer = tenant.answer(&request, deadline, &mut Panicking(stream));
            answer.map(|answer| answer.status())
        }));
        let panicked = outcome.expect_err("the host was not called");
        let text = panicked.downcast_ref::<String>().map_or("", |text| text);
        assert!(text.contains("on purpose"), "{text}");
        assert_eq!(tenant.differing_pages(), 0, "{url}");
        assert_eq!(tenant.get("/40").text(), "wrote 40 found 0\n", "{url}");
        tenant.assert_pristine();
    }
    // Its fork went each time, and its place was free again.
    let stats = tenant.stats();
    assert_eq!((stats.forks, stats.created), (1, 4), "{stats:?}");
}

#[test]
fn a_panic_in_a_request_costs_its_fork() {
    kvm_or_skip!();
    panic_at(&boot(|_| {}), "/30/say", Stream::Stderr);
}

#[test]
fn a_panic_in_on_error_costs_its_fork() {
    kvm_or_skip!();
    let tenant = boot(|config| config.main_arguments = vec!["on_error".into()]);
    panic_at(&tenant, "/30/crash", Stream::Stderr);
}

/// Where gdb can connect is told to the host in the middle of the request.
#[test]
fn a_panic_before_a_debugger_comes_costs_its_fork() {
    kvm_or_skip!();
    let tenant = boot(|config| {
        config.debugging.allowed = true;
        config.debugging.exceptions = true;
    });
    panic_at(&tenant, "/30/crash", Stream::Log);
}

#[test]
fn a_panic_while_the_state_is_handed_over_leaves_the_program_as_it_was() {
    kvm_or_skip!();
    let tenant = Tenant::boot("state-give-changes");
    for _ in 0..3 {
        let elf = guest("state-two");
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            tenant.boot_successor(&elf, config("t"), &mut Panicking(Stream::Stderr))
        }));
        assert!(outcome.is_err(), "the host was not called");
        assert_eq!(tenant.get("/").text(), "give-changes");
        tenant.assert_pristine();
    }
    let next = tenant.boot_successor(&guest("state-two"), config("t"), &mut Quiet);
    assert_eq!(
        Tenant::from(next.unwrap()).get("/").text(),
        "give-changes!>two"
    );
}
