//! A program that turns against the engine: what is refused, and with what.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Tenant, kvm_or_skip};

/// Every call that could change the engine's own pages fails, in `main()` and in requests.
#[test]
fn the_engines_pages_are_not_the_programs() {
    kvm_or_skip!();
    let tenant = Tenant::boot("hostile");
    for url in ["/main", "/monitor"] {
        let reply = tenant.get(url);
        let calls: Vec<_> = reply
            .text()
            .lines()
            .filter(|line| line.starts_with('m'))
            .collect();
        assert_eq!(calls.len(), 6 * 7, "{url}: {calls:?}");
        let done: Vec<_> = calls
            .iter()
            .filter(|line| line.ends_with(" done"))
            .collect();
        assert!(done.is_empty(), "{url}: {calls:?}");
    }
    tenant.assert_pristine();
}

#[test]
fn caching_is_a_matter_of_requests() {
    kvm_or_skip!();
    let reply = Tenant::boot("hostile").get("/main");
    assert!(
        reply.text().ends_with("set_cacheable -1\n"),
        "{}",
        reply.text()
    );
}

#[test]
fn a_response_has_headers_within_bounds() {
    kvm_or_skip!();
    let tenant = Tenant::boot("hostile");
    let failure = tenant.failure("/many-headers").to_string();
    assert!(failure.contains("too many headers"), "{failure}");
    tenant.assert_pristine();
}

/// A program can tell what it has to do without, and is not left waiting for a call that never comes.
#[test]
fn what_is_not_there_yet_says_so() {
    kvm_or_skip!();
    let tenant = Tenant::boot("hostile");
    let absent = tenant.get("/absent");
    let results: Vec<_> = absent.text().lines().collect();
    assert!(results.len() > 3, "{results:?}");
    for result in results {
        assert!(result.ends_with(" -38"), "{result}"); // ENOSYS
    }
    let in_main = tenant.get("/main");
    for slot in 0..=16 {
        let expected = match slot {
            1..=7 => 0,
            _ => -38,
        };
        let line = format!("slot {slot} {expected}");
        let found = in_main.text().lines().any(|said| said == line);
        assert!(found, "{line}: {}", in_main.text());
    }
}
