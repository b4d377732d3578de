//! Nothing of a request is there for the next one: memory, registers, vector state, what the host keeps for it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::{Tenant, emulated, few, headers, kvm_or_skip, scaled};
use forkvm::Request;

fn small(name: &str) -> Tenant {
    Tenant::boot_with(name, |config| config.limits.max_memory = 32 << 20)
}

#[test]
fn a_counter_stays_at_one() {
    kvm_or_skip!();
    let tenant = small("counter");
    for _ in 0..few(5000).max(200) {
        assert_eq!(tenant.get("/").text(), "1\n");
    }
    assert_eq!(tenant.stats().created, 1);
    tenant.assert_pristine();
}

/// Without this, finding nothing would mean nothing.
#[test]
fn the_search_for_secrets_works() {
    kvm_or_skip!();
    let reply = small("leak").get("/self-test/secret");
    for found in [
        "registers yes",
        "vectors yes",
        "stack yes",
        "below yes",
        "heap yes",
        "bss yes",
        "request yes",
    ] {
        assert!(reply.text().contains(found), "{}", reply.text());
    }
    for changed in ["mxcsr 7fc0", "control f7f", "brk no", "mmap no"] {
        assert!(reply.text().contains(changed), "{}", reply.text());
    }
}

#[test]
fn a_secret_is_not_found_by_the_next_request() {
    kvm_or_skip!();
    let tenant = small("leak");
    let planted = headers(&[("X-Secret", "PLANTED"), ("Cookie", "PLANTED")]);
    let long = [b"PLANTED".as_slice(), &vec![b'.'; 60_000], b"PLANTED"].concat();
    let expected = "registers no vectors no mxcsr 1f80 control 37f direction no stack no below no heap no bss no \
                    brk no mmap no request no\n";
    for turn in 0..few(100).max(6) {
        let secret = format!("secret{turn}");
        let ending = ["plant", "plant-crash", "plant", "plant-loop", "plant"][turn % 5];
        let url = format!("/{ending}/{secret}");
        let body = if turn % 2 == 0 {
            b"PLANTED".as_slice()
        } else {
            &long
        };
        match ending {
            "plant" => {
                let request = Request {
                    method: "POST",
                    url: url.as_bytes(),
                    arg: b"PLANTED",
                    headers: &planted,
                    body,
                };
                assert_eq!(tenant.send(&request).text(), "planted\n");
            }
            "plant-crash" => drop(tenant.failure(&url)),
            _ => drop(tenant.timeout(&url, scaled(Duration::from_millis(20)))),
        }
        if turn % 3 == 1 {
            tenant.get("/regs");
        }
        assert_eq!(
            tenant.get(&format!("/find/{secret}")).text(),
            expected,
            "after {url}"
        );
    }
    assert_eq!(tenant.stats().created, 1);
    tenant.assert_pristine();
}

#[test]
fn registers_are_the_same_in_every_request() {
    kvm_or_skip!();
    let tenant = small("leak");
    let first = tenant.get("/regs").text().to_owned();
    let vectors = first
        .lines()
        .find(|line| line.starts_with("vectors "))
        .unwrap();
    if vectors != "vectors avx512" {
        eprintln!("SKIPPED: no AVX-512 here ({vectors}); its registers and masks are not tested");
    }
    for ending in ["plant", "plant-crash", "plant-loop"] {
        for turn in 0..few(20).max(3) {
            let url = format!("/{ending}/secret{turn}");
            match ending {
                "plant" => assert_eq!(tenant.get(&url).text(), "planted\n"),
                "plant-crash" => drop(tenant.failure(&url)),
                _ => drop(tenant.timeout(&url, scaled(Duration::from_millis(20)))),
            }
            assert_eq!(tenant.get("/regs").text(), first, "after {url}");
        }
    }
    // A fork of its own starts with the same state too.
    let other = small("leak").get("/regs").text().to_owned();
    let comparable = |text: &str| {
        let random = ["fs_base"];
        text.lines()
            .filter(|line| !random.iter().any(|name| line.starts_with(name)))
            .map(String::from)
            .collect::<Vec<_>>()
    };
    assert_eq!(comparable(&other), comparable(&first));
}

/// After each way to die, the registers are those of the first request.
#[test]
fn registers_after_faults() {
    kvm_or_skip!();
    let tenant = small("crash");
    // What crash leaves behind on purpose, then what it finds: its own answers say whether it could still run.
    for dirty in [
        "avx-dirty",
        "x87-pending",
        "pkru-deny",
        "selectors-changed",
        "wrfsbase",
        "std-flag",
        "nt-ac-flags",
    ] {
        for _ in 0..3 {
            assert_eq!(tenant.get(&format!("/{dirty}")).status, 200, "{dirty}");
            assert_eq!(tenant.get("/ok").text(), "ok\n", "after {dirty}");
            tenant.failure("/in-hypercall-port");
            assert_eq!(
                tenant.get("/ok").text(),
                "ok\n",
                "after {dirty} and an `in`"
            );
        }
    }
    tenant.assert_pristine();
}

/// Few pages, more than the ring holds, more than a fork keeps, more than a request may have.
#[test]
fn dirtied_pages_come_back() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("dirty", |config| config.limits.max_memory = 128 << 20);
    for n in [1, 10, 300, 1, 3000, 5000, 2, 10_000, 0] {
        for _ in 0..if emulated() { 1 } else { 2 } {
            assert_eq!(
                tenant.get(&format!("/{n}")).text(),
                format!("wrote {n} found 0\n")
            );
        }
        // Comparing all memory takes long in emulation.
        if !emulated() || n == 5000 {
            assert_eq!(tenant.differing_pages(), 0, "after {n} pages");
        }
    }
    let failure = tenant.failure("/20000");
    assert!(
        failure.to_string().contains("max_request_memory"),
        "{failure}"
    );
    tenant.assert_pristine();
    assert_eq!(tenant.get("/10").text(), "wrote 10 found 0\n");
    assert_eq!(tenant.get("/5000").text(), "wrote 5000 found 0\n");
    tenant.assert_pristine();
    assert_eq!(tenant.stats().created, 1);
}

/// One page more or less around the sizes that matter to the ring and the list.
#[test]
fn page_counts_around_the_limits() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("dirty", |config| {
        config.limits.max_memory = 128 << 20;
        config.limits.max_request_memory = 20 << 20; // 5120 pages
    });
    let step = if emulated() { 79 } else { 9 };
    for middle in [512, 1024, 2048, 4096] {
        for n in (middle - 40..middle + 40).step_by(step) {
            assert_eq!(
                tenant.get(&format!("/{n}")).text(),
                format!("wrote {n} found 0\n")
            );
        }
        if !emulated() {
            assert_eq!(tenant.differing_pages(), 0, "around {middle}");
        }
    }
    let (mut served, mut refused) = (0, 0);
    for n in (5000..5200).step_by(if emulated() { 199 } else { 29 }) {
        match tenant.try_get(&format!("/{n}")) {
            Ok(reply) => {
                assert_eq!(reply.text(), format!("wrote {n} found 0\n"));
                served += 1;
            }
            Err(failure) => {
                assert!(
                    failure.to_string().contains("max_request_memory"),
                    "{failure}"
                );
                refused += 1;
            }
        }
    }
    assert!(
        served > 0 && refused > 0,
        "{served} served, {refused} refused"
    );
    tenant.assert_pristine();
}

#[test]
fn what_the_host_keeps_for_a_request_ends_with_it() {
    kvm_or_skip!();
    let dir = std::env::temp_dir().join(format!("forkvm-isolation-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("file");
    std::fs::write(&file, "the text of a file").unwrap();
    let tenant = Tenant::boot_with("linuxy", |config| {
        config.limits.max_memory = 64 << 20;
        config.allowed_paths = vec![dir.clone().into()];
        config.main_arguments = vec![file.to_str().unwrap().into()];
    });
    let state = format!("/state?path={}", dir.display());
    let first = tenant.get(&state).text().to_owned();
    for line in ["cwd / ", "handler no ", "blocked no ", "stdout-flags 0 "] {
        assert!(first.contains(line), "{line} is not in {first}");
    }
    for _ in 0..few(30).max(2) {
        assert_eq!(tenant.get(&state).text(), first);
        assert_eq!(
            tenant.get("/main-file").text(),
            "read 8 the text offset 8 \n"
        );
        for url in ["/mmap", "/brk", "/dup", "/sigaction"] {
            tenant.get(url);
        }
    }
    tenant.get("/malloc");
    assert_eq!(tenant.get(&state).text(), first);
    assert_eq!(tenant.get("/cwd").text(), "/\n");
    let random = |reply: common::Reply| reply.text().to_owned();
    assert_ne!(random(tenant.get("/random")), random(tenant.get("/random")));
    tenant.assert_pristine();
    std::fs::remove_dir_all(&dir).unwrap();
}

/// A request's memory limit counts what the request itself dirtied, not what the fork has dirtied before.
#[test]
fn the_memory_limit_is_each_requests_own() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("dirty", |config| {
        config.limits.max_memory = 128 << 20;
        config.limits.max_request_memory = 12 << 20; // 3072 pages
    });
    for _ in 0..few(5) {
        assert_eq!(tenant.get("/1900").text(), "wrote 1900 found 0\n");
        assert_eq!(tenant.get("/2900").text(), "wrote 2900 found 0\n");
    }
    tenant.assert_pristine();
}
