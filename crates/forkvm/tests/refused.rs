//! Programs and settings that are refused, with a reason.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::{Tenant, config, kvm_or_skip, scaled};
use forkvm::{BootError, Config, Program, Quiet};

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
