//! Random connections to an unmodified server: whatever one did to its mappings, threads, signals and files, memory and page
//! tables are the master's after the reset, and the next connection finds and does exactly what the first one would.
//! SERVER_OPS_SECONDS: for how long.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/lists.rs"]
mod lists;
#[path = "common/server.rs"]
mod server;

use std::cell::RefCell;

use common::{emulated, kvm_or_skip};
use forkvm::{Server, ServerFork, ServerLimits};
use proptest::prelude::*;
use server::{Client, ask, boot_in, limits};

/// Kinds of operations that the guest knows (tests/guests/linux/mutable.c).
const KINDS: u8 = 22;

fn op() -> impl Strategy<Value = [u8; 8]> {
    let kind = prop_oneof![3 => 0..9u8, 1 => 9..20u8, 1 => 20..KINDS];
    (kind, any::<u8>(), any::<u16>(), any::<u32>()).prop_map(|(what, a, b, c)| {
        let ([b0, b1], [c0, c1, c2, c3]) = (b.to_le_bytes(), c.to_le_bytes());
        [what, a, b0, b1, c0, c1, c2, c3]
    })
}

fn request(ops: &[[u8; 8]]) -> Client {
    let body = ops.as_flattened();
    let head = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
    Client::new([head.as_bytes(), body].concat())
}

/// What comes of the operations, as text: the answer, or how it ended without one.
fn done(fork: &mut ServerFork, ops: &[[u8; 8]]) -> String {
    let (result, answer) = ask(fork, request(ops));
    match result {
        Ok(_) => answer.rsplit("\r\n").next().unwrap().to_owned(),
        Err(cause) => format!("{cause:?}"),
    }
}

struct Forks {
    server: std::sync::Arc<Server>,
    used: RefCell<ServerFork>,
    baseline: String,
}

impl Forks {
    fn new() -> Self {
        let limits = ServerLimits {
            max_request_memory: 16 << 20,
            ..limits()
        };
        // Little, since all of it is compared each time.
        let server = boot_in(24 << 20, "linux/mutable", limits);
        let mut used = ServerFork::new(server.clone()).unwrap();
        let baseline = done(&mut used, &[]);
        assert!(baseline.starts_with("1 "), "{baseline}");
        used.reset().unwrap();
        Self {
            server,
            used: RefCell::new(used),
            baseline,
        }
    }

    fn one(&self, ops: &[[u8; 8]]) -> Result<(), TestCaseError> {
        let mut used = self.used.borrow_mut();
        let said = done(&mut used, ops);
        if used.reset().is_err() {
            *used = ServerFork::new(self.server.clone()).unwrap();
        }
        prop_assert_eq!(used.differing_pages(), 0);
        prop_assert_eq!(used.differing_entries(), 0);
        // A fork that no connection has been to says the same.
        let mut fresh = ServerFork::new(self.server.clone()).unwrap();
        prop_assert_eq!(&done(&mut fresh, ops), &said);
        // Nor does the next one find anything of it, in what the processor remembers either.
        prop_assert_eq!(&done(&mut used, &[]), &self.baseline);
        used.reset().unwrap();
        prop_assert_eq!(used.differing_pages(), 0);
        prop_assert_eq!(used.differing_entries(), 0);
        Ok(())
    }
}

#[test]
fn nothing_of_random_connections_is_left() {
    kvm_or_skip!();
    let forks = Forks::new();
    let short = if emulated() { 60 } else { 10 };
    let time = lists::time_of("SERVER_OPS_SECONDS", short);
    let values = prop::collection::vec(op(), 0..40);
    let count = lists::for_a_while(time, 300, &values, |ops| forks.one(&ops));
    println!("{count} lists of operations");
}

/// Without this, finding nothing would mean nothing.
#[test]
fn the_comparison_sees_what_a_connection_leaves() {
    kvm_or_skip!();
    let forks = Forks::new();
    let mut fork = forks.used.borrow_mut();
    // munmap(2) of a page in slot 0, which main() had written to.
    let said = done(&mut fork, &[[2, 0, 0, 0, 0, 0, 0, 0]]);
    assert_ne!(said, forks.baseline);
    assert!(fork.differing_entries() > 0);
    assert!(fork.differing_pages() > 0);
    fork.reset().unwrap();
    assert_eq!((fork.differing_entries(), fork.differing_pages()), (0, 0));
}
