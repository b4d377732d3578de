//! New forks are warm: they have what requests write, and a warm-up request has put it into the processor's tables.

use std::os::unix::fs::FileExt;

use crate::config::{Config, WarmUp};
use crate::fork::tests::testing::{ENOUGH, frozen, get};
use crate::fork::*;
use crate::master::warm_ups::FIRST_PAUSE;
use crate::pool::Pool;

/// No warm-up before the freeze, one in each fork.
fn in_forks(url: &str) -> impl FnOnce(&mut Config) {
    let warm_up = WarmUp {
        num_requests: 0,
        url: url.into(),
        ..Default::default()
    };
    |config| config.warm_up = Some(warm_up)
}

#[test]
fn after_a_warm_up_the_first_request_adds_no_page() {
    let Some(master) = frozen("linuxy", in_forks("/")) else {
        return;
    };
    let mut cold = Fork::new(master.clone()).unwrap();
    get(&mut cold, "/").unwrap();
    assert!(cold.machine.memory.request_pages() > 0);

    let mut warm = Fork::new(master).unwrap();
    assert!(warm.warm_up(Duration::from_secs(10)));
    assert_eq!(warm.differing_pages(), 0);
    get(&mut warm, "/").unwrap();
    assert_eq!(warm.machine.memory.request_pages(), 0);
}

/// Whether a fork has memory of its own for a page (Linux: Documentation/admin-guide/mm/pagemap.rst).
fn is_private(fork: &Fork, page: u32) -> bool {
    const PRESENT: u64 = 1 << 63;
    const SHARED: u64 = 1 << 61;
    let address = fork.machine.memory.mapping().host_address() / PAGE + u64::from(page);
    let mut entry = [0; 8];
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    pagemap.read_exact_at(&mut entry, address * 8).unwrap();
    u64::from_le_bytes(entry) & (PRESENT | SHARED) == PRESENT
}

#[test]
fn a_new_fork_has_what_earlier_ones_wrote_and_reads_the_same() {
    let Some(master) = frozen("linuxy", |_| {}) else {
        return;
    };
    let mut first = Fork::new(master.clone()).unwrap();
    get(&mut first, "/").unwrap();
    first.reset().unwrap();
    let second = Fork::new(master).unwrap();
    let written: Vec<_> = first.machine.memory.dirty_pages().collect();
    assert!(!written.is_empty());
    assert!(written.iter().all(|&page| is_private(&second, page)));
    assert_eq!(second.differing_pages(), 0);
}

#[test]
fn a_warm_up_that_does_not_end_holds_nobody_up_twice() {
    let Some(master) = frozen("version-a", in_forks("/slow/100000")) else {
        return;
    };
    let before = Instant::now();
    let pool = Pool::new(master.clone(), master.config.pool_limits()).unwrap();
    assert!(!master.warm_ups.are_due(before));
    let mut fork = pool.take(Instant::now() + ENOUGH).unwrap().fork;
    assert_eq!(fork.differing_pages(), 0);
    get(&mut fork, "/").unwrap();
    // It is not tried again soon, however long all this took.
    let mut next = Fork::new(master.clone()).unwrap();
    master.warm_ups.failed(Instant::now() + ENOUGH);
    assert!(next.warm_up(ENOUGH));
    assert_eq!(next.machine.memory.dirty_len(), 0);
}

#[test]
fn a_warm_up_that_was_slow_once_is_tried_again() {
    let Some(master) = frozen("linuxy", in_forks("/")) else {
        return;
    };
    master.warm_ups.failed(Instant::now() - FIRST_PAUSE);
    let mut fork = Fork::new(master.clone()).unwrap();
    assert!(fork.warm_up(ENOUGH));
    assert_ne!(fork.machine.memory.dirty_len(), 0);
    // Now that one ran, a next one that does not has none skipped but for the first pause.
    master.warm_ups.failed(Instant::now() - FIRST_PAUSE);
    assert!(master.warm_ups.are_due(Instant::now()));
}
