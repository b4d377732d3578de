//! Storage: a machine that keeps its state, which requests call. One call at a time; what fails leaves the request going, and the
//! storage with a state that it had.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{ENOUGH, Recorder, Tenant, eventually, kvm_or_skip, scaled};
use forkvm::{
    Config, Host, Owner, Quiet, Request, StorageKind, StorageOwner, StorageStats, Stream,
};
use parking_lot::Mutex;

const KINDS: [StorageKind; 2] = [StorageKind::Machine, StorageKind::Fork];

fn boot_as(kind: StorageKind, change: impl FnOnce(&mut Config)) -> Tenant {
    Tenant::boot_with("storage", |config| {
        config.storage = kind;
        config.limits.max_memory = 64 << 20;
        config.limits.max_request_memory = 16 << 20;
        config.limits.max_storage_time = ENOUGH;
        change(config);
    })
}

fn boot(kind: StorageKind) -> Tenant {
    boot_as(kind, |_| {})
}

/// What a request answers, without the line's end.
#[track_caller]
fn ask(tenant: &Tenant, url: &str) -> String {
    let reply = tenant.get(url);
    reply.text().trim_end_matches('\n').to_owned()
}

/// The same with what the log has of it.
#[track_caller]
fn ask_logged(tenant: &Tenant, url: &str) -> (String, String) {
    let mut recorder = Recorder::default();
    let request = Request {
        url: url.as_bytes(),
        ..Default::default()
    };
    let deadline = std::time::Instant::now() + ENOUGH;
    let reply = tenant.try_send(&request, deadline, &mut recorder).unwrap();
    let text = reply.text().trim_end_matches('\n').to_owned();
    (text, recorder.text(Stream::Log))
}

fn stats(tenant: &Tenant) -> StorageStats {
    tenant.stats().storage.unwrap()
}

#[test]
fn state_stays_and_requests_are_reset() {
    kvm_or_skip!();
    for kind in KINDS {
        let tenant = boot(kind);
        // The storage is there before main() of what answers requests, if it is a machine of its own.
        let (in_main, start) = match kind {
            StorageKind::Machine => ("1", 1),
            _ => ("-1", 0),
        };
        assert_eq!(ask(&tenant, "/main"), in_main);
        for nth in 1..=5 {
            assert_eq!(ask(&tenant, "/call/add"), format!("1 {}", nth + start));
        }
        assert_eq!(
            ask(&tenant, "/call/add?b=1000"),
            format!("4 {}", 1005 + start)
        );
        assert_eq!(ask(&tenant, "/call/nothing"), "0 ");
        assert_eq!(ask(&tenant, "/call/add"), format!("4 {}", 1007 + start));
        // A request that fails has made its call all the same.
        tenant.failure("/crash");
        assert_eq!(ask(&tenant, "/call/add"), format!("4 {}", 1009 + start));
        assert_eq!(ask(&tenant, "/type"), "request 0");
        let in_storage = match kind {
            StorageKind::Machine => "11 storage 1 0",
            _ => "11 request 1 0",
        };
        assert_eq!(ask(&tenant, "/call/type"), in_storage);
        assert_eq!(ask(&tenant, "/call/protect"), "6 read 7");
        tenant.assert_pristine();
    }
}

#[test]
fn buffers_arrive_and_results_come_back() {
    kvm_or_skip!();
    let tenant = boot(StorageKind::Machine);
    for (url, expected) in [
        ("/call/echo", "0 "),
        ("/call/echo?b=", "0 "),
        ("/call/echo?b=one&b=&b=two", "6 onetwo"),
        ("/call/echo?b=12345&room=5", "5 12345"),
        ("/call/lengths", "7 0 1000:"),
        ("/call/lengths?b=a&b=&b=abc&room=77", "11 3 77: 1 0 3"),
        // Where there is no room for a result none is wanted.
        ("/call/add?room=0", "0 "),
        ("/call/add", "1 3"),
        // What follows after the result was handed over, and what does not.
        ("/call/clean", "8 before 0"),
        ("/call/clean", "8 before 1"),
        ("/call/noreturn", "4 gone"),
        ("/call/get", "13 4 2 0 storage"),
        // One result.
        ("/call/twice", "5 first"),
        ("/call/get", "10 4 2 0 5 -1"),
        ("/call/three?room=100", "8 -1 -1 -1"),
        ("/call/too-long", "-1 "),
        ("/call/add", "1 5"),
        // It can't call itself, and allows nothing any more.
        ("/call/nested", "2 -1"),
        ("/call/allows", "2 -1"),
    ] {
        assert_eq!(ask(&tenant, url), expected, "{url}");
    }
    let sixty_four = format!("/call/lengths?{}", "b=x&".repeat(64));
    let expected = format!("136 64 1000:{}", " 1".repeat(64));
    assert_eq!(ask(&tenant, &sixty_four), expected);
    assert_eq!(stats(&tenant).restarts, 0);
    tenant.assert_pristine();
}

/// FNV-1a of zeros.
fn sum_of_zeros(len: usize) -> u64 {
    (0..len).fold(0xcbf2_9ce4_8422_2325, |hash: u64, _| {
        hash.wrapping_mul(0x0100_0000_01b3)
    })
}

/// They are in the storage's heap for the call, and not afterwards.
#[test]
fn long_buffers_have_room_again_and_again() {
    kvm_or_skip!();
    let tenant = boot(StorageKind::Machine);
    for len in [4096, 65_000, 65_536, 70_000, 1 << 20, 10 << 20, 15 << 20] {
        // 64 MiB in all, so that nothing may stay.
        for _ in 0..6 {
            let expected = format!("16 {:016x}", sum_of_zeros(len));
            assert_eq!(ask(&tenant, &format!("/call/sums?zeros={len}")), expected);
        }
    }
    assert_eq!(stats(&tenant).restarts, 0);
}

#[test]
fn bad_calls_fail_and_their_requests_go_on() {
    kvm_or_skip!();
    let tenant = boot(StorageKind::Machine);
    let before = ask(&tenant, "/call/get");
    for (url, why) in [
        ("/call/forbidden", "forbidden"),
        ("/raw/0", "0x0 is no function"),
        ("/raw/400000", "is no function"),
        ("/raw/ffffffffffffffff", "is no function"),
        ("/raw/8000000000000000", "is no function"),
        ("/raw/echo?n=65", "65 buffers, more than 64"),
        (
            "/raw/echo?n=9223372036854775808",
            "9223372036854775808 buffers",
        ),
        ("/raw/echo?n=18446744073709551615", "buffers"),
        ("/raw/echo?at=8", "buffers of 1 bytes: "),
        ("/raw/echo?at=7fffffffffff", "buffers of"),
        ("/raw/echo?at=fffffffffffffff8", "buffers of"),
        ("/raw/echo?data=8", "a buffer of 3 bytes: "),
        ("/raw/echo?data=fffffffffffffffe", "a buffer of 3 bytes"),
        (
            "/raw/echo?len=8000000000000000",
            "buffers have 9223372036854775824 bytes, more than 16777216",
        ),
        (
            "/raw/echo?len=ffffffffffffffff",
            "buffers have 18446744073709551615 bytes, more than",
        ),
        ("/raw/echo?len=40000000", "buffers have 1073741840 bytes"),
        ("/raw/echo?len=f00000&data=8", "a buffer of 15728640 bytes"),
        ("/raw/echo?dst=8", "room for the result of 100 bytes: "),
        // Its own code, which can be read only.
        ("/raw/echo?dst=401000", "room for the result"),
        (
            "/raw/echo?room=8000000000000000",
            "room for the result of 9223372036854775808 bytes",
        ),
        (
            "/raw/echo?dst=fffffffffffffff0&room=ff",
            "room for the result",
        ),
        (
            "/call/echo?zeros=17000000",
            "more than 16777216 (max_request_memory)",
        ),
        ("/call/too-long", "its result of 1001 bytes"),
    ] {
        let (text, log) = ask_logged(&tenant, url);
        assert_eq!(text.trim_end(), "-1", "{url}");
        assert!(
            log.starts_with("storage_callv() failed: ") && log.contains(why),
            "{url}: {log}"
        );
        assert_eq!(log.matches("storage_callv").count(), 1, "{log}");
    }
    assert_eq!(ask(&tenant, "/call/get"), before);
    let stats = stats(&tenant);
    assert_eq!((stats.restarts, stats.failures), (0, 6));
    tenant.assert_pristine();
    let without = Tenant::boot("storage");
    let (text, log) = ask_logged(&without, "/call/add");
    assert_eq!(
        (text.as_str(), log.contains("setting storage")),
        ("-1 ", true),
        "{log}"
    );
    assert_eq!(ask(&without, "/task/tick"), "-1");
    assert_eq!(without.stats().storage, None);
}

#[test]
fn a_storage_that_fails_begins_again_with_its_frozen_state() {
    kvm_or_skip!();
    for kind in KINDS {
        let tenant = boot(kind);
        let frozen = "13 0 0 0 storage";
        for (nth, (name, why)) in [
            ("crash", "invalid instruction"),
            ("crash-late", "invalid instruction"),
            ("quits", "exit(3)"),
            ("answers", "backend_response()"),
            ("greedy", "page fault"),
        ]
        .into_iter()
        .enumerate()
        {
            assert!(ask(&tenant, "/call/add?b=7").starts_with("1 "));
            assert_ne!(ask(&tenant, "/call/get"), frozen);
            let (text, log) = ask_logged(&tenant, &format!("/call/{name}"));
            assert_eq!(text.trim_end(), "-1", "{name}: {log}");
            assert!(
                log.contains("the storage failed: ") && log.contains(why),
                "{log}"
            );
            assert_eq!(ask(&tenant, "/call/get"), frozen, "{name}");
            assert_eq!(stats(&tenant).restarts, nth as u64 + 1);
        }
        tenant.assert_pristine();
    }
}

#[test]
fn an_endless_function_ends_and_the_next_call_works() {
    kvm_or_skip!();
    let tenant = boot_as(StorageKind::Machine, |config| {
        config.limits.max_storage_time = scaled(Duration::from_millis(200));
    });
    assert_eq!(ask(&tenant, "/call/add"), "1 2");
    let (text, log) = ask_logged(&tenant, "/call/endless");
    assert_eq!(text.trim_end(), "-1");
    assert!(log.contains("(max_storage_time)"), "{log}");
    // What main() of the program for requests has stored was no part of the frozen state.
    assert_eq!(ask(&tenant, "/call/add"), "1 1");
    // One that sleeps.
    let (text, log) = ask_logged(&tenant, "/call/nap?b=100000000");
    assert_eq!(text.trim_end(), "-1");
    assert!(log.contains("(max_storage_time)"), "{log}");
    assert_eq!(ask(&tenant, "/call/add"), "1 1");
    assert_eq!(stats(&tenant).restarts, 2);
}

/// A client whose time is over is no reason to lose what others have stored.
#[test]
fn a_request_out_of_time_leaves_the_storage_alone() {
    kvm_or_skip!();
    let tenant = boot(StorageKind::Machine);
    assert_eq!(ask(&tenant, "/call/add?b=41"), "2 42");
    for name in ["busy", "nap"] {
        let url = format!("/call/{name}?b=600");
        let request = Request {
            url: url.as_bytes(),
            ..Default::default()
        };
        let deadline = std::time::Instant::now() + scaled(Duration::from_millis(100));
        // It ends by its deadline; a call that sleeps until then may leave it a moment to say that it has failed.
        if let Ok(reply) = tenant.try_send(&request, deadline, &mut Quiet) {
            assert_eq!(reply.text(), "-1 \n");
        }
        // Whoever comes next waits for it.
        ask(&tenant, "/call/get");
    }
    assert_eq!(ask(&tenant, "/call/add"), "2 45");
    let stats = stats(&tenant);
    assert_eq!((stats.restarts, stats.failures), (0, 2));
    // One that waits for its turn is turned away by its deadline.
    std::thread::scope(|scope| {
        let first = scope.spawn(|| ask(&tenant, "/call/busy?b=800"));
        eventually("it runs", || self::stats(&tenant).calls == stats.calls + 1);
        let more = Tenant::from((*tenant).clone());
        let request = Request {
            url: b"/call/add",
            ..Default::default()
        };
        let deadline = std::time::Instant::now() + scaled(Duration::from_millis(100));
        assert!(more.try_send(&request, deadline, &mut Quiet).is_err());
        assert_eq!(first.join().unwrap(), "2 46");
    });
    assert_eq!(ask(&tenant, "/call/add"), "2 47");
}

/// What a program says without a caller is its owner's to log.
#[test]
fn what_goes_on_without_a_caller_is_heard() {
    kvm_or_skip!();
    #[derive(Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Host for Log {
        fn output(&mut self, stream: Stream, bytes: &[u8]) {
            if stream == Stream::Log {
                self.0.lock().extend_from_slice(bytes);
            }
        }
    }
    impl StorageOwner for Log {
        fn host(&self) -> Box<dyn Host> {
            Box::new(Log(self.0.clone()))
        }
    }
    let log = Log::default();
    let said = log.0.clone();
    let tenant = boot_as(StorageKind::Machine, |config| {
        config.storage_owner = Owner::new(log);
    });
    let request = Request {
        url: b"/call/late?b=600",
        ..Default::default()
    };
    let deadline = std::time::Instant::now() + scaled(Duration::from_millis(100));
    let _ = tenant.try_send(&request, deadline, &mut Quiet);
    assert_eq!(ask(&tenant, "/call/add?b=0"), "1 2");
    assert_eq!(*said.lock(), b"it is over");
}

/// Only the time that a request is stopped puts its end off.
#[test]
fn where_debugging_is_allowed_a_call_has_its_requests_time() {
    kvm_or_skip!();
    let tenant = boot_as(StorageKind::Machine, |config| {
        config.debugging.allowed = true;
        config.debugging.timeout = ENOUGH;
    });
    let request = Request {
        url: b"/call/nap?b=3000",
        ..Default::default()
    };
    let deadline = std::time::Instant::now() + scaled(Duration::from_millis(100));
    let _ = tenant.try_send(&request, deadline, &mut Quiet);
    assert_eq!(stats(&tenant).failures, 1);
    assert_eq!(ask(&tenant, "/call/add"), "1 3");
}

#[test]
fn a_call_costs_two_runs_of_the_storages_machine_at_most() {
    kvm_or_skip!();
    let tenant = boot(StorageKind::Machine);
    ask(&tenant, "/call/add");
    let exits = |url: &str| {
        let before = stats(&tenant).exits;
        ask(&tenant, url);
        stats(&tenant).exits - before
    };
    // The result, and the function's end.
    assert_eq!(exits("/call/add"), 2);
    assert_eq!(exits("/call/echo?b=abc&b=def"), 2);
    assert_eq!(exits("/call/sums?zeros=100000"), 2);
    assert_eq!(exits("/call/noreturn"), 1);
    assert_eq!(exits("/call/nothing"), 1);
    assert_eq!(exits("/many/100"), 200);
}

#[test]
fn calls_of_many_requests_are_counted_exactly() {
    kvm_or_skip!();
    let tenant = boot_as(StorageKind::Machine, |config| {
        config.concurrency = 8;
        config.queue = forkvm::Queue::new(1000);
    });
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..20 {
                    ask(&tenant, "/many/5");
                }
            });
        }
    });
    assert_eq!(ask(&tenant, "/call/add?b=0"), "4 1601");
    assert_eq!((stats(&tenant).failures, stats(&tenant).restarts), (0, 0));
}

#[test]
fn a_storage_that_does_not_boot_is_no_program() {
    kvm_or_skip!();
    let error = Tenant::try_boot("storage", |config| {
        config.storage = StorageKind::Machine;
        config.main_arguments = vec!["--storage-fails".into()];
    });
    let error = error.map(drop).unwrap_err().to_string();
    assert!(error.contains("as storage: it returned 3"), "{error}");
}

#[test]
fn rust_programs_have_storage() {
    kvm_or_skip!();
    for name in ["rust", "rust-stripped"] {
        let tenant = Tenant::boot_with(name, |config| config.storage = StorageKind::Machine);
        assert_eq!(ask(&tenant, "/storage"), "/storage 0");
        let body = vec![7; 100_000];
        let told = tenant.post("/storage?b", &body);
        assert_eq!(told.text(), "/storage 0, /storage?b 100000\n");
        assert_eq!(ask(&tenant, "/later"), "true");
        eventually("the task has run", || stats(&tenant).tasks == 1);
        let all = ask(&tenant, "/storage?c");
        assert_eq!(all, "/storage 0, /storage?b 100000, tick 5, /storage?c 0");
        assert_eq!(ask(&tenant, "/storage-panics"), "None");
        assert_eq!(ask(&tenant, "/storage"), "/storage 0", "{name}");
    }
}

/// A response that is made part by part, when the handler has ended.
#[test]
fn parts_of_a_response_come_from_storage() {
    kvm_or_skip!();
    let tenant = boot(StorageKind::Machine);
    let deadline = std::time::Instant::now() + ENOUGH;
    let request = Request {
        url: b"/streamed",
        ..Default::default()
    };
    let mut answer = tenant.answer(&request, deadline, &mut Quiet).unwrap();
    let mut streaming = answer.take_streaming().unwrap();
    let (mut body, mut piece) = (Vec::new(), [0; 10]);
    while let n @ 1.. = streaming.read(&mut piece, &mut Quiet).unwrap() {
        body.extend_from_slice(&piece[..n]);
    }
    assert_eq!(body, b"234");
    drop(streaming);
    assert_eq!(ask(&tenant, "/call/add"), "1 5");
}
