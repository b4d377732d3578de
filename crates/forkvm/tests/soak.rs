//! A short soak: threads and forks at once, all kinds of requests mixed, every answer checked.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::sums::pattern;
use common::{NOT_EMULATED, Tenant, emulated, few, kvm_or_skip, scaled};
use forkvm::{Quiet, Request};

/// A small generator of numbers (xorshift), so that a failure can be had again.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}

struct Tenants {
    counter: Tenant,
    crash: Tenant,
    dirty: Tenant,
    echo: Tenant,
    leak: Tenant,
}

impl Tenants {
    fn all(&self) -> [&Tenant; 5] {
        [
            &self.counter,
            &self.crash,
            &self.dirty,
            &self.echo,
            &self.leak,
        ]
    }
}

fn turn(tenants: &Tenants, ways: &[String], numbers: &mut Numbers) {
    let Tenants {
        counter,
        crash,
        dirty,
        echo,
        leak,
    } = tenants;
    match numbers.next(20) {
        0..5 => assert_eq!(counter.get("/").text(), "1\n"),
        5..8 => {
            let n = [numbers.next(60), numbers.next(60), numbers.next(1200)][numbers.next(3)];
            assert_eq!(
                dirty.get(&format!("/{n}")).text(),
                format!("wrote {n} found 0\n")
            );
        }
        8..13 => {
            let way = &ways[numbers.next(ways.len())];
            let failure = crash.failure(way);
            assert!(
                !failure.is_timeout() && !failure.is_busy(),
                "{way}: {failure}"
            );
        }
        13 => {
            let time = scaled(Duration::from_micros(numbers.next(3000) as u64));
            let url = ["/loop", "/loop-syscalls", "/lret32-loop"][numbers.next(3)];
            let request = Request {
                url: url.as_bytes(),
                ..Default::default()
            };
            let failure = crash
                .try_send(&request, Instant::now() + time, &mut Quiet)
                .unwrap_err();
            // With so little time it may not even have got a fork.
            assert!(failure.is_timeout() || failure.is_busy(), "{failure}");
        }
        14 => assert_eq!(crash.get("/ok").text(), "ok\n"),
        15 => {
            let body = pattern(numbers.next(200_000));
            assert!(echo.post("/echo", &body).body == body);
        }
        16 => {
            let n = numbers.next(300_000);
            assert!(echo.get(&format!("/size/{n}")).body == pattern(n));
        }
        17 => {
            let secret = numbers.next(1 << 30);
            match numbers.next(2) {
                0 => assert_eq!(leak.get(&format!("/plant/{secret}")).text(), "planted\n"),
                _ => drop(leak.failure(&format!("/plant-crash/{secret}"))),
            }
            // Perhaps in the same fork, perhaps in another.
            let found = leak.get(&format!("/find/{secret}"));
            assert!(!found.text().contains("yes"), "{}", found.text());
        }
        _ => assert_eq!(echo.get("/counter").text(), "1\n"),
    }
}

#[test]
fn everything_at_once() {
    kvm_or_skip!();
    let boot = |name: &str, concurrency| {
        Tenant::boot_with(name, |config| {
            config.concurrency = concurrency;
            // dirty alone has 80 MB.
            config.limits.max_memory = if name == "dirty" { 128 << 20 } else { 32 << 20 };
        })
    };
    let tenants = Tenants {
        counter: boot("counter", 2),
        crash: boot("crash", 4),
        dirty: boot("dirty", 3),
        echo: boot("echo", 2),
        leak: boot("leak", 2),
    };
    let list = tenants.crash.get("/list").text().to_owned();
    let ways: Vec<_> = list
        .lines()
        .filter_map(|line| line.strip_suffix(" fails"))
        .filter(|name| !emulated() || !NOT_EMULATED.contains(name))
        .map(|name| format!("/{name}"))
        .collect();
    let left = AtomicUsize::new(few(6000).max(200));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (tenants, ways, left) = (&tenants, &ways, &left);
            scope.spawn(move || {
                let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(thread + 1));
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                        left.checked_sub(1)
                    })
                    .is_ok()
                {
                    turn(tenants, ways, &mut numbers);
                }
            });
        }
    });
    for tenant in tenants.all() {
        let stats = tenant.stats();
        assert_eq!(
            stats.created,
            stats.forks,
            "{}: forks were lost: {stats:?}",
            tenant.config().name
        );
        tenant.assert_pristine();
    }
}
