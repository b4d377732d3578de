//! Nothing is used up: descriptors, mappings, threads, memory. One test, since it looks at the whole process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use common::{Tenant, eventually, few, kvm_or_skip, scaled};

/// What this process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    mappings: usize,
    threads: usize,
    anonymous_kib: u64,
    /// Memory of the masters' memfds, mapped or not.
    memfd_kib: u64,
}

impl Held {
    fn memory_kib(&self) -> u64 {
        self.anonymous_kib + self.memfd_kib
    }
}

/// All memory of memfds that this process has open.
fn memfd_kib() -> u64 {
    let entries = fs::read_dir("/proc/self/fd").unwrap();
    let blocks = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = fs::read_link(&path).ok()?;
        name.to_str()?.starts_with("/memfd:").then_some(())?;
        Some(fs::metadata(&path).ok()?.blocks())
    });
    blocks.sum::<u64>() / 2
}

fn held() -> Held {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    Held {
        descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
        mappings: fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .count(),
        threads: field("Threads:") as usize,
        anonymous_kib: field("RssAnon:"),
        memfd_kib: memfd_kib(),
    }
}

fn requests(tenant: &Tenant, crash: &Tenant, n: usize) {
    for turn in 0..n {
        match turn % 10 {
            0 => assert_eq!(tenant.get("/size/5000").body.len(), 5000),
            1 => assert_eq!(tenant.post("/echo", &[7; 100_000]).body.len(), 100_000),
            2 => drop(crash.failure("/null-write")),
            3 => drop(crash.failure("/in-hypercall-port")),
            4 => assert_eq!(crash.get("/unknown-syscall").text(), "-38\n"),
            5 if turn % 500 == 5 => drop(crash.timeout("/loop", scaled(Duration::from_millis(5)))),
            _ => assert_eq!(tenant.get("/counter").text(), "1\n"),
        }
    }
}

/// One request that reads or writes all its heap leaves the host's memory where it was, but for what a fork may keep.
fn whole_heaps_are_given_back() {
    let tenant = Tenant::boot_with("dirty", |config| {
        config.limits.max_memory = 256 << 20;
        config.limits.max_request_memory = 256 << 20;
        config.limits.max_request_time = scaled(Duration::from_secs(60));
    });
    assert_eq!(tenant.get("/10").text(), "wrote 10 found 0\n");
    let before = held();
    let kept = tenant.config().limits.req_mem_limit_after_reset >> 10;
    for (url, answer) in [
        ("/40000/peek", "read 40000 found 0\n"),
        ("/40000/heap", "wrote 40000 found 0\n"),
        ("/20000", "wrote 20000 found 0\n"),
        ("/2000/heap", "wrote 2000 found 0\n"),
        ("/40000/heap", "wrote 40000 found 0\n"),
    ] {
        assert_eq!(tenant.get(url).text(), answer);
        let after = held();
        // A little for the allocator, the list of pages, and short holes of the file.
        assert!(
            after.memory_kib() <= before.memory_kib() + kept + 1024,
            "{url}: {before:?} {after:?}"
        );
        assert!(
            after.memfd_kib <= before.memfd_kib + 1024,
            "{url}: {before:?} {after:?}"
        );
        // To compare all memory is no reason to fill it, either.
        tenant.assert_pristine();
        assert!(
            held().memfd_kib <= before.memfd_kib + 1024,
            "{url}: {before:?} {:?}",
            held()
        );
    }
}

#[test]
fn nothing_leaks() {
    kvm_or_skip!();
    whole_heaps_are_given_back();
    let boot = |name: &str| Tenant::boot_with(name, |config| config.limits.max_memory = 32 << 20);
    let first = held();
    {
        let (echo, crash) = (boot("echo"), boot("crash"));
        requests(&echo, &crash, 1000);
        let before = held();
        requests(&echo, &crash, 10_000);
        let after = held();
        assert_eq!(
            after.descriptors, before.descriptors,
            "{before:?} {after:?}"
        );
        assert_eq!(after.threads, before.threads, "{before:?} {after:?}");
        assert!(
            after.mappings <= before.mappings + 4,
            "{before:?} {after:?}"
        );
        assert!(
            after.memory_kib() <= before.memory_kib() + 2048,
            "{before:?} {after:?}"
        );
        assert_eq!((echo.stats().created, crash.stats().created), (1, 1));
    }

    // The first program leaves the probe's descriptor and the engine's three threads. All others leave nothing.
    eventually("the first programs are gone", || {
        held().mappings <= first.mappings + 20
    });
    let cycle = || {
        let tenant = Tenant::boot_with("counter", |config| {
            config.concurrency = 3;
            config.limits.max_memory = 32 << 20;
        });
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    (0..few(50).max(3)).for_each(|_| assert_eq!(tenant.get("/").text(), "1\n"))
                });
            }
        });
        assert!(
            Tenant::try_boot("bad-main-crashes", |config| config.limits.max_memory =
                32 << 20)
            .is_err()
        );
        assert!(Tenant::try_boot("bad-text", |_| {}).is_err());
    };
    (0..3).for_each(|_| cycle());
    // Forks are freed on a thread of their own.
    eventually("their forks are gone", || {
        held().mappings <= first.mappings + 20
    });
    let before = held();
    (0..few(30).max(4)).for_each(|_| cycle());
    eventually("descriptors, mappings and threads are given back", || {
        let now = held();
        now.descriptors <= before.descriptors
            && now.mappings <= before.mappings + 4
            && now.threads <= before.threads
    });
    let after = held();
    assert!(
        after.memory_kib() <= before.memory_kib() + 4096,
        "{before:?} {after:?}"
    );
}
