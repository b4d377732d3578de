//! Programs that boot and answer, and programs that are refused with a reason.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Recorder, Tenant, config, guest, kvm_or_skip, scaled};
use forkvm::{BootError, Config, Host, Program, Quiet, Stream};

/// Boots a guest that has to be refused.
fn refused(name: &str, change: impl FnOnce(&mut Config)) -> BootError {
    let Err(error) = Tenant::try_boot(name, change) else {
        panic!("{name} was booted")
    };
    // Whose program it is the caller knows.
    assert!(!error.to_string().contains("tenant"), "{name}: {error}");
    error
}

/// Its main() fails, with this in the reason.
fn main_fails(name: &str, reason: &str) {
    let error = refused(name, |config| {
        config.limits.max_memory = 32 << 20;
    });
    assert!(
        matches!(&error, BootError::Main { what, .. } if what.contains(reason)),
        "{name}: {error}"
    );
}

#[test]
fn examples() {
    kvm_or_skip!();
    assert_eq!(Tenant::boot("hello").get("/").text(), "Hello, World!\n");
    assert_eq!(Tenant::boot("counter").get("/").text(), "1\n");
    assert_eq!(Tenant::boot("crash").get("/ok").text(), "ok\n");
    assert!(
        Tenant::boot("page")
            .get("/")
            .text()
            .to_lowercase()
            .contains("<html")
    );
    let picture = Tenant::boot("mandelbrot").get("/");
    assert_eq!(picture.content_type, "image/png");
    assert!(picture.body.starts_with(b"\x89PNG\r\n\x1a\n"));
    assert_eq!(Tenant::boot("sqlite").get("/").status, 200);
}

#[test]
fn linked_in_every_way() {
    kvm_or_skip!();
    for name in ["hello", "hello-static-pie", "hello-lto"] {
        assert_eq!(
            Tenant::boot(name).get("/").text(),
            "Hello, World!\n",
            "{name}"
        );
    }
    for name in ["echo", "echo-stripped", "echo-static-pie", "musl-echo"] {
        let tenant = Tenant::boot(name);
        assert_eq!(tenant.get("/counter").text(), "1\n", "{name}");
        assert_eq!(tenant.get("/counter").text(), "1\n", "{name}");
    }
}

#[test]
fn symbols_for_get_and_post() {
    kvm_or_skip!();
    let tenant = Tenant::boot("post");
    assert_eq!(tenant.get("/a").text(), "get /a\n");
    assert_eq!(
        tenant.post("/b", b"123456789").text(),
        "post /b len 9 crc32 cbf43926\n"
    );
}

#[test]
fn handlers_for_get_and_post() {
    kvm_or_skip!();
    let tenant = Tenant::boot("get_post");
    assert_eq!(tenant.get("/a").text(), "get /a arg \n");
    assert_eq!(
        tenant.post("/b", b"123456789").text(),
        "post /b arg  type  len 9 crc32 cbf43926\n"
    );
}

#[test]
fn paused() {
    kvm_or_skip!();
    let tenant = Tenant::boot("paused");
    for _ in 0..3 {
        let reply = tenant.post("/a", b"123456789");
        let lines: Vec<_> = reply.text().lines().collect();
        assert_eq!(lines[0], "POST /a arg  len 9 crc32 cbf43926");
        assert!(
            ["registers ok, vectors kept", "registers ok, vectors clean"].contains(&lines[1]),
            "{}",
            reply.text()
        );
        assert_eq!(lines[2], "turn 1 local heap 1.5");
    }
}

#[test]
fn nothing_of_the_end_of_main_has_run() {
    kvm_or_skip!();
    for _ in 0..2 {
        let expected = "atexit 0 destructor 0 pending 9 stream main+request heap kept\n";
        assert_eq!(Tenant::boot("mainreturn").get("/").text(), expected);
        let expected =
            "entries 1000 destroyed 0 atexit 0\nfound 7 caught thread_local set circle 13\n";
        assert_eq!(Tenant::boot("cxx").get("/").text(), expected);
        assert_eq!(
            Tenant::boot("musl").get("/a").text(),
            "musl /a kept 18481500 3.500\n"
        );
    }
}

#[test]
fn an_exception_that_nobody_catches_ends_the_request_only() {
    kvm_or_skip!();
    let tenant = Tenant::boot("cxx");
    tenant.failure("/uncaught");
    assert_eq!(
        tenant.get("/").text().lines().next(),
        Some("entries 1000 destroyed 0 atexit 0")
    );
}

#[test]
fn rust_programs() {
    kvm_or_skip!();
    for name in ["rust", "rust-stripped"] {
        let tenant = Tenant::boot(name);
        for _ in 0..2 {
            let expected = "GET /\nrequests 1 squares 999 square 144\nwords apple fig pear\nhost -\nclocks ok\n";
            assert_eq!(tenant.get("/").text(), expected, "{name}");
        }
        assert_eq!(tenant.get("/caught").text(), "caught\n", "{name}");
        assert_eq!(tenant.get("/fork").text(), "1\n", "{name}");
        assert_eq!(tenant.get("/alloc").text(), "499999500000\n", "{name}");
        assert_eq!(tenant.get("/sleep").text(), "slept\n", "{name}");
        assert!(
            tenant.get("/thread").text().starts_with("refused: "),
            "{name}"
        );
        assert!(
            tenant.get("/file").text().starts_with("refused: "),
            "{name}"
        );
        for url in ["/panic", "/index", "/overflow"] {
            let reply = tenant.get(url);
            assert_eq!(
                (reply.status, reply.text()),
                (500, &*format!("failed: {url} with a text\n")),
                "{name}"
            );
            assert!(reply.failure.is_some(), "{name}");
        }
        assert_eq!(
            (
                tenant.get("/missing").status,
                tenant.get("/missing").body.len()
            ),
            (404, 0),
            "{name}"
        );
        let policy = tenant.get("/cached").cache.unwrap();
        assert_eq!(
            (policy.ttl, policy.grace, policy.keep),
            (60.0, 10.0, 0.0),
            "{name}"
        );
    }
}

#[test]
fn output_of_main_is_handed_on() {
    kvm_or_skip!();
    let mut host = Recorder::default();
    Program::boot(&guest("rust"), config("rust"), &mut host).unwrap();
    assert_eq!(host.text(Stream::Stdout), "rust: set up\n");
    assert_eq!(host.text(Stream::Stderr), "");
}

#[test]
fn arguments_and_environment() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("echo", |config| {
        config.group = "pizza".into();
        config.main_arguments = vec!["one".into(), "".into(), "three words here".into()];
        config.environment = vec!["COLOUR=blue".into(), "EMPTY=".into()];
    });
    assert_eq!(
        tenant.get("/args").text(),
        "echo\none\n\nthree words here\n"
    );
    let environment = tenant.get("/env");
    for line in [
        "KVM_NAME=echo",
        "KVM_GROUP=pizza",
        "KVM_TYPE=request",
        "KVM_STATE=",
        "KVM_DEBUG=0",
        "LC_ALL=C",
        "LC_TYPE=C",
        "USER=root",
        "COLOUR=blue",
        "EMPTY=",
    ] {
        assert!(
            environment.text().lines().any(|found| found == line),
            "{line} is not in {}",
            environment.text()
        );
    }
    assert!(
        !environment.text().contains("PATH="),
        "the host's environment is none of its business"
    );
}

#[test]
fn a_failing_main_is_refused_with_the_reason() {
    kvm_or_skip!();
    main_fails("bad-main-returns-3", "returned 3");
    main_fails("bad-main-crashes", "page fault writing 0x0");
    main_fails("bad-main-overflows", "stack overflow");
    main_fails("bad-main-aborts", "SIGABRT");
    main_fails(
        "bad-main-exits-0",
        "exit(0); the end of main() must be a call of wait_for_requests()",
    );
    main_fails("bad-go", "needs threads");
    main_fails("bad-main-exits-1", "exit(1)");
    main_fails("bad-main-takes-memory", "SIGABRT");
}

#[test]
fn a_crash_in_main_names_the_function() {
    kvm_or_skip!();
    let error = refused("bad-main-crashes", |_| {});
    assert!(error.to_string().contains("(main+"), "{error}");
}

#[test]
fn boot_time_is_limited() {
    kvm_or_skip!();
    for name in ["bad-main-never-ends", "bad-main-sleeps"] {
        let error = refused(name, |config| {
            config.limits.max_boot_time = scaled(Duration::from_millis(200))
        });
        assert!(
            matches!(&error, BootError::Main { what, .. } if what.contains("max_boot_time")),
            "{name}: {error}"
        );
    }
}

#[test]
fn nothing_to_call() {
    kvm_or_skip!();
    for (name, is_stripped) in [("bad-no-handler", false), ("bad-stripped", true)] {
        let error = refused(name, |_| {});
        assert!(
            matches!(error, BootError::NoHandler { stripped, .. } if stripped == is_stripped),
            "{name}: {error}"
        );
        assert_eq!(
            error.to_string().contains("stripped"),
            is_stripped,
            "{name}: {error}"
        );
    }
}

#[test]
fn a_function_with_a_mangled_name_is_no_symbol() {
    kvm_or_skip!();
    let error = refused("bad-mangled", |_| {}).to_string();
    assert!(error.contains("_Z10my_backendPKc"), "{error}");
    assert!(error.contains("KVM_EXPORT"), "{error}");
}

/// It says that it is ready; that there is nothing to call is each request's failure.
#[test]
fn waiting_without_a_handler_is_ready() {
    kvm_or_skip!();
    let tenant = Tenant::boot("waits-without-handler");
    let failure = tenant.failure("/").to_string();
    assert!(failure.contains("registered no handler"), "{failure}");
    tenant.assert_pristine();
}

/// Every other bad program there is: no ELF of ours, headers that lie, segments that can't be.
#[test]
fn bad_files_are_refused() {
    kvm_or_skip!();
    common::guest("bad-text");
    let mut seen = 0;
    for entry in std::fs::read_dir(common::guests_dir().join("test")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let elsewhere = [
            "bad-main-",
            "bad-no-handler",
            "bad-mangled",
            "bad-go",
            "bad-stripped",
            "bad-symbol-",
        ];
        if !name.starts_with("bad-")
            || name.ends_with(".tmp")
            || elsewhere.iter().any(|other| name.starts_with(other))
        {
            continue;
        }
        let error = refused(&name, |_| {});
        match name.as_str() {
            // Too big for max_memory, a setting.
            "bad-big-bss" | "bad-memsz-huge" => {
                assert!(error.to_string().contains("max_memory"), "{name}: {error}");
            }
            // Without its section headers it has no symbols.
            "bad-shoff-wild" => assert!(
                matches!(error, BootError::NoHandler { .. }),
                "{name}: {error}"
            ),
            // Where it starts there is nothing: main() is never reached.
            _ if name.starts_with("bad-entry-") => {
                assert!(
                    matches!(error, BootError::Elf { .. } | BootError::Main { .. }),
                    "{name}: {error}"
                );
            }
            _ => assert!(matches!(error, BootError::Elf { .. }), "{name}: {error}"),
        }
        eprintln!("{error}");
        seen += 1;
    }
    assert!(seen > 40, "only {seen} bad programs");
}

/// A my_backend outside of the program's code: refused, or each request fails.
#[test]
fn a_handler_that_is_no_code() {
    kvm_or_skip!();
    for name in ["bad-symbol-null", "bad-symbol-outside", "bad-symbol-kernel"] {
        match Tenant::try_boot(name, |_| {}) {
            Ok(tenant) => drop(tenant.failure("/")),
            Err(error) => assert!(
                matches!(error, BootError::NoHandler { .. }),
                "{name}: {error}"
            ),
        }
    }
}

#[test]
fn a_dynamic_program_is_told_to_link_statically() {
    kvm_or_skip!();
    for name in ["bad-dynamic", "bad-dynamic-pie"] {
        let error = refused(name, |_| {});
        assert!(error.to_string().contains("-static"), "{error}");
    }
    let error = refused("bad-dynamic-rust", |_| {});
    assert!(error.to_string().contains("+crt-static"), "{error}");
}

#[test]
fn memory_is_limited() {
    kvm_or_skip!();
    let error = refused("hello", |config| config.limits.max_memory = 1 << 20);
    assert!(
        matches!(&error, BootError::Setting(what) if what.contains("max_memory")),
        "{error}"
    );
    for limit in [0, 1, 4095, 4096, 100_000] {
        refused("hello", |config| config.limits.max_memory = limit);
    }
    for limit in [4 << 20, (8 << 20) + 1, 32 << 20, 1 << 30] {
        let tenant = Tenant::boot_with("hello", |config| config.limits.max_memory = limit);
        assert_eq!(tenant.get("/").text(), "Hello, World!\n", "{limit}");
    }
    assert!(
        Tenant::try_boot("hello", |config| config.limits.max_memory = u64::MAX).is_err(),
        "more memory than there are addresses"
    );
}

#[test]
fn a_path_that_is_allowed_but_not_there() {
    kvm_or_skip!();
    let error = refused("hello", |config| {
        config.allowed_paths = vec!["/no/such/folder".into()]
    });
    let BootError::Setting(what) = &error else {
        panic!("{error}")
    };
    assert!(
        what.contains("allowed_paths") && what.contains("/no/such/folder"),
        "{error}"
    );
}

#[test]
fn settings_that_make_no_sense() {
    kvm_or_skip!();
    let nul = |config: &mut Config| config.main_arguments = vec!["a\0b".into()];
    drop(Tenant::try_boot("echo", nul).map(|tenant| tenant.get("/args").status));
    let long = |config: &mut Config| config.main_arguments = vec!["x".repeat(10 << 20)];
    let error = Tenant::try_boot("hello", long).err().unwrap();
    assert!(error.to_string().contains("main_arguments"), "{error}");
    assert!(Program::boot(b"", config("nothing"), &mut Quiet).is_err());
}

/// The engine checks its limits itself, whatever its user lets through.
#[test]
fn limits_that_no_machine_can_keep() {
    kvm_or_skip!();
    for memory in [u64::MAX, u64::MAX - 4095, 1 << 44, (1 << 44) - 1, 1 << 40] {
        let error = Tenant::try_boot("hello", |config| config.limits.max_memory = memory);
        let error = error.err().unwrap().to_string();
        assert!(error.contains("max_memory"), "{memory:#x}: {error}");
    }
    type Change = fn(&mut Config);
    let changes: [(&str, Change); 4] = [
        ("concurrency", |config| config.concurrency = 0),
        ("max_boot_time", |config| {
            config.limits.max_boot_time = Duration::MAX
        }),
        ("max_wait", |config| config.limits.max_wait = Duration::MAX),
        ("debug_timeout", |config| {
            config.debugging.timeout = Duration::MAX
        }),
    ];
    for (name, change) in changes {
        let error = Tenant::try_boot("hello", change).err().unwrap().to_string();
        assert!(error.contains(name), "{name}: {error}");
    }
    // What a request may have is bounded by what there is.
    let most = Tenant::boot_with("hello", |config| {
        config.limits.max_request_memory = u64::MAX;
        config.limits.req_mem_limit_after_reset = u64::MAX;
        config.limits.max_request_time = Duration::from_secs(3600);
    });
    assert_eq!(most.get("/").status, 200);
}

/// A host with others to run, who keep a program from running on for a while, the first few times.
struct Shared {
    slices: u32,
    sleeps: u32,
}

const KEPT: Duration = Duration::from_millis(600);

impl Host for Shared {
    fn output(&mut self, _stream: Stream, _bytes: &[u8]) {}

    fn slice(&self) -> Option<Duration> {
        Some(Duration::from_millis(10))
    }

    fn give_way(&mut self, time: Duration) {
        if time.is_zero() {
            self.slices += 1;
            if self.slices <= 4 {
                std::thread::sleep(KEPT);
            }
        } else {
            self.sleeps += 1;
        }
    }
}

fn boot_shared(name: &str, time: Duration) -> (Result<Arc<Program>, BootError>, Shared) {
    let mut config = config(name);
    config.limits.max_boot_time = time;
    let mut host = Shared {
        slices: 0,
        sleeps: 0,
    };
    let booted = Program::boot(&guest(name), config, &mut host);
    (booted, host)
}

#[test]
fn a_boot_gives_way_at_each_slices_end_and_has_its_whole_time() {
    kvm_or_skip!();
    let (booted, host) = boot_shared("bad-main-never-ends", KEPT * 2);
    let error = booted.unwrap_err().to_string();
    assert!(error.contains("max_boot_time"), "{error}");
    // It was kept for twice its time, which did not count.
    assert!(host.slices >= 4, "{} slices", host.slices);
    assert_eq!(host.sleeps, 0);
}

#[test]
fn a_boot_that_sleeps_gives_way() {
    kvm_or_skip!();
    let (booted, host) = boot_shared("bad-main-sleeps", Duration::from_millis(300));
    assert!(booted.is_err());
    assert!(host.sleeps > 0);
}
