//! What a request allocates on the host does not depend on its headers: none of them is copied but into the guest.
#![allow(clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Instant;

use common::{ENOUGH, Tenant, kvm_or_skip};
use forkvm::{Header, Quiet, Request};

/// Counts what each thread allocates.
struct Counting;

thread_local!(static COUNT: Cell<usize> = const { Cell::new(0) });

// SAFETY: all is left to the system's allocator; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations(tenant: &Tenant, headers: &[Header<'_>]) -> usize {
    let request = Request {
        url: b"/counter",
        headers,
        ..Default::default()
    };
    let before = COUNT.get();
    let answer = tenant.answer(&request, Instant::now() + ENOUGH, &mut Quiet);
    assert_eq!(answer.unwrap().status(), 200);
    COUNT.get() - before
}

#[test]
fn a_header_costs_no_allocation() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    let headers = vec![Header::new("X-Some-Header", b"with a value"); 100];
    // Lists and buffers come to their size.
    for _ in 0..10 {
        allocations(&tenant, &headers);
    }
    let none = allocations(&tenant, &[]);
    assert_eq!(allocations(&tenant, &headers), none);
    assert!(none < 30, "{none} allocations");
}
