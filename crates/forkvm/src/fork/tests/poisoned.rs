//! What a panic leaves behind is not used again.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::fork::tests::testing::{deadline, frozen, get};
use crate::fork::*;

/// A fork that has written to some pages and is about to be reset.
fn used() -> Option<Fork> {
    let master = frozen("dirty", |config| config.limits.max_memory = 128 << 20)?;
    let mut fork = Fork::new(master).unwrap();
    get(&mut fork, "/30").unwrap();
    Some(fork)
}

#[test]
fn a_panic_in_the_reset_is_caught_and_remembered() {
    let Some(mut fork) = used() else { return };
    fork.reset_panics = true;
    assert!(fork.reset().is_err());
    // Nothing is wrong with it now, but nobody can know.
    assert!(fork.reset().is_err());
    // As where a lease is dropped by another panic: a second one would end the process.
    let Some(mut fork) = used() else { return };
    fork.reset_panics = true;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        struct Lease<'a>(&'a mut Fork);
        impl Drop for Lease<'_> {
            fn drop(&mut self) {
                assert!(self.0.reset().is_err());
            }
        }
        let _lease = Lease(&mut fork);
        panic!("another one");
    }));
    assert!(panicked.is_err());
    assert!(fork.reset().is_err());
}

#[test]
fn a_run_that_panics_poisons_its_machine_and_no_other() {
    let Some(mut fork) = used() else { return };
    assert!(fork.reset().is_ok());
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        fork.machine.watched(deadline(), |_| panic!("on purpose"))
    }));
    assert!(panicked.is_err());
    assert!(fork.reset().is_err());
}
