//! Programs whose requests find what earlier ones have left in their fork: what stays, what does not, and that a failure is the end
//! of it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::{Tenant, kvm_or_skip, scaled};
use forkvm::{Config, Quiet, Request, StorageKind, Upload};

fn boot_with(arguments: &[&str], change: impl FnOnce(&mut Config)) -> Tenant {
    Tenant::boot_with("keeps", |config| {
        config.ephemeral = false;
        config.main_arguments = arguments.iter().map(|&text| text.to_owned()).collect();
        config.limits.max_memory = 64 << 20;
        change(config);
    })
}

#[track_caller]
fn ask(tenant: &Tenant, url: &str) -> String {
    tenant.get(url).text().trim_end_matches('\n').to_owned()
}

#[test]
fn a_counter_is_kept_until_something_fails() {
    kvm_or_skip!();
    let tenant = boot_with(&[], |config| {
        config.limits.max_response_size = 2 << 20;
    });
    assert!(tenant.keeps_state());
    for url in ["/crash", "/exit", "/bad", "/long"] {
        for nth in 1..=3 {
            assert_eq!(ask(&tenant, "/count"), nth.to_string(), "before {url}");
        }
        tenant.failure(url);
    }
    assert_eq!(ask(&tenant, "/count"), "1");
    assert_eq!(ask(&tenant, "/count"), "2");
    tenant.timeout("/hang", scaled(Duration::from_millis(200)));
    assert_eq!(ask(&tenant, "/count"), "1");
}

#[test]
fn what_on_error_changes_is_not_kept() {
    kvm_or_skip!();
    let tenant = boot_with(&["--on-error"], |_| {});
    assert_eq!(ask(&tenant, "/count"), "1");
    let reply = tenant.get("/crash");
    assert_eq!((reply.status, reply.text()), (500, "failed 1\n"));
    assert!(reply.failure.is_some());
    assert_eq!(ask(&tenant, "/count"), "1");
}

#[test]
fn main_may_say_so_where_the_setting_lets_it() {
    kvm_or_skip!();
    let said = |ephemeral, control, arguments: &[&str]| {
        let tenant = boot_with(arguments, |config| {
            config.ephemeral = ephemeral;
            config.control_ephemeral = control;
        });
        let said = ask(&tenant, "/main");
        let counted = [ask(&tenant, "/count"), ask(&tenant, "/count")];
        assert_eq!(tenant.keeps_state(), counted[1] == "2");
        if !tenant.keeps_state() {
            assert_eq!(counted, ["1", "1"]);
            tenant.assert_pristine();
        }
        (said.trim_end().to_owned(), tenant.keeps_state())
    };
    let expect = |said: &str, keeps| (said.to_owned(), keeps);
    assert_eq!(said(true, false, &["--keep"]), expect("-38", false));
    assert_eq!(said(true, true, &["--keep"]), expect("0", true));
    assert_eq!(said(true, true, &[]), expect("", false));
    assert_eq!(
        said(true, true, &["--keep", "--forget"]),
        expect("0 0", false)
    );
    assert_eq!(said(true, false, &["--forget"]), expect("0", false));
    assert_eq!(said(false, false, &[]), expect("", true));
    assert_eq!(said(false, false, &["--keep"]), expect("0", true));
    // To be isolated is no right that has to be given; to take it back is.
    assert_eq!(said(false, false, &["--forget"]), expect("0", false));
    assert_eq!(
        said(false, false, &["--forget", "--keep"]),
        expect("0 -38", false)
    );
}

#[test]
fn a_request_may_be_forgotten_with_all_before_it() {
    kvm_or_skip!();
    let tenant = boot_with(&[], |_| {});
    assert_eq!(ask(&tenant, "/count"), "1");
    assert_eq!(ask(&tenant, "/forget"), "0 2");
    tenant.assert_pristine();
    assert_eq!(ask(&tenant, "/count"), "1");
    assert_eq!(ask(&tenant, "/late"), "-1");
    assert_eq!(ask(&tenant, "/count"), "2");
    let isolated = boot_with(&[], |config| config.ephemeral = true);
    assert_eq!(ask(&isolated, "/forget"), "0 1");
    assert_eq!(ask(&isolated, "/late"), "-1");
    assert_eq!(ask(&isolated, "/count"), "1");
    isolated.assert_pristine();
}

#[test]
fn descriptors_folders_files_and_expressions_are_kept() {
    kvm_or_skip!();
    let tenant = boot_with(&[], |config| {
        config.writable_paths = vec!["/tmp".into()];
        config.allowed_paths = vec!["/tmp".into()];
    });
    let opened = [ask(&tenant, "/open"), ask(&tenant, "/open")];
    assert_eq!(opened, ["3", "4"]);
    assert_eq!(ask(&tenant, "/cwd"), "/");
    assert_eq!(ask(&tenant, "/cwd"), "/tmp");
    assert_eq!(ask(&tenant, "/file/1"), "1 1 1");
    assert_eq!(ask(&tenant, "/file/2"), "2 2 3");
    // Within their limits.
    for nth in 1..=64 {
        assert_eq!(ask(&tenant, "/regex"), nth.to_string());
    }
    assert_eq!(ask(&tenant, "/regex"), (-libc::ENOSPC).to_string());
    tenant.failure("/crash");
    assert_eq!(ask(&tenant, "/open"), "3");
    assert_eq!(ask(&tenant, "/cwd"), "/");
    assert_eq!(ask(&tenant, "/file/0"), "1 0 0");
    assert_eq!(ask(&tenant, "/regex"), "1");
}

/// A request's own memory goes with it: a fork takes no more of the heap for its thousandth than for its first.
#[test]
fn long_bodies_leave_nothing_in_the_heap() {
    kvm_or_skip!();
    let tenant = boot_with(&[], |_| {});
    let body = vec![7; 8 << 20];
    let first = tenant.post("/", &body);
    let place = |text: &str| text.split(' ').nth(2).unwrap().to_owned();
    for nth in 2..=20 {
        let reply = tenant.post("/", &body);
        assert!(
            reply.text().starts_with(&format!("{nth} 8388608 ")),
            "{}",
            reply.text()
        );
        assert_eq!(place(reply.text()), place(first.text()));
    }
}

#[test]
fn memory_is_kept_up_to_its_limits() {
    kvm_or_skip!();
    let tenant = boot_with(&[], |config| {
        config.limits.max_request_memory = 16 << 20;
        config.writable_paths = vec!["/tmp".into()];
        config.max_file_memory = 64 << 20;
    });
    // Each request within its own limit, all together within the machine's.
    let mut had = 0;
    while ask(&tenant, "/hoard/8").ends_with("had") {
        had += 8;
        assert!(had < 64, "more than max_memory");
    }
    assert!(had >= 40, "{had}");
    // That malloc() failed was no failure.
    let count: u64 = ask(&tenant, "/count").parse().unwrap();
    assert_eq!(count, had / 8 + 2);
}

/// What it has of files counts as well. The next request is told, and finds a new fork.
#[test]
fn what_is_kept_beyond_its_limit_is_thrown_away() {
    kvm_or_skip!();
    let tenant = boot_with(&[], |config| {
        config.limits.max_request_memory = 48 << 20;
        config.writable_paths = vec!["/tmp".into()];
        config.max_file_memory = 60 << 20;
    });
    assert_eq!(ask(&tenant, "/hoard/24"), "1 had");
    assert_eq!(ask(&tenant, "/file/20"), "2 20 20");
    assert_eq!(ask(&tenant, "/file/25"), "3 25 45");
    let mut notes = Notes::default();
    let request = Request {
        url: b"/count",
        ..Default::default()
    };
    let deadline = std::time::Instant::now() + common::ENOUGH;
    let reply = tenant.try_send(&request, deadline, &mut notes).unwrap();
    assert_eq!(reply.text(), "1\n");
    let note = notes.0.join("\n");
    assert!(note.contains("more than 67108864 (max_memory)"), "{note}");
}

#[derive(Default)]
struct Notes(Vec<String>);

impl forkvm::Host for Notes {
    fn output(&mut self, _: forkvm::Stream, _: &[u8]) {}

    fn note(&mut self, line: &str) {
        self.0.push(line.to_owned());
    }
}

#[test]
fn streamed_responses_keep_what_they_made() {
    kvm_or_skip!();
    let tenant = boot_with(&[], |_| {});
    assert_eq!(tenant.get("/stream/2").body.len(), 20_000);
    assert_eq!(ask(&tenant, "/count"), "4");
    // Nobody reads it to its end: that is the client's affair.
    let request = Request {
        url: b"/stream/100",
        ..Default::default()
    };
    let deadline = std::time::Instant::now() + common::ENOUGH;
    let mut answer = tenant.answer(&request, deadline, &mut Quiet).unwrap();
    let mut streaming = answer.take_streaming().unwrap();
    assert_eq!(streaming.read(&mut [0; 100], &mut Quiet).unwrap(), 100);
    drop(streaming);
    assert_eq!(ask(&tenant, "/count"), "6");
    // One that fails half-way is a failure.
    tenant.failure("/stream/3");
    assert_eq!(ask(&tenant, "/count"), "1");
}

/// The body is out before the next request runs in its fork.
#[test]
fn a_response_that_is_read_late_is_its_own() {
    kvm_or_skip!();
    let tenant = boot_with(&[], |config| config.concurrency = 2);
    let request = Request {
        url: b"/echo",
        ..Default::default()
    };
    let deadline = std::time::Instant::now() + common::ENOUGH;
    let mut first = tenant.answer(&request, deadline, &mut Quiet).unwrap();
    let mut second = tenant.answer(&request, deadline, &mut Quiet).unwrap();
    // Given back, by a copy, while the other one is held.
    second.release();
    let third = tenant.get("/echo");
    assert!(third.body.iter().all(|&byte| byte == b'c'));
    for answer in [&mut first, &mut second] {
        let mut body = vec![0; 1 << 20];
        assert_eq!(answer.read_body(&mut body), 1 << 20);
        assert!(body.iter().all(|&byte| byte == b'b'));
    }
}

#[test]
fn forks_have_each_their_own() {
    kvm_or_skip!();
    let tenant = boot_with(&[], |config| config.concurrency = 2);
    let request = Request {
        url: b"/echo",
        ..Default::default()
    };
    let deadline = std::time::Instant::now() + common::ENOUGH;
    let held = tenant.answer(&request, deadline, &mut Quiet).unwrap();
    assert_eq!(ask(&tenant, "/count"), "1");
    assert_eq!(ask(&tenant, "/count"), "2");
    drop(held);
    // The one that was used last.
    assert_eq!(ask(&tenant, "/count"), "2");
    assert_eq!(ask(&tenant, "/count"), "3");
}

/// A body that breaks off leaves its handler in the middle of something.
#[test]
fn a_body_that_does_not_come_to_its_end_is_forgotten() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("segments", |config| config.ephemeral = false);
    let deadline = || std::time::Instant::now() + common::ENOUGH;
    let request = Request {
        method: "POST",
        url: b"/sum",
        ..Default::default()
    };
    let begin = || {
        let begun = tenant.exchange(&request, Upload::Chunked, deadline(), &mut Quiet);
        let mut exchange = begun.unwrap();
        let bytes = [7; 100_000];
        assert!(exchange.feed(&bytes, deadline(), &mut Quiet).unwrap());
        exchange
    };
    drop(begin());
    assert_eq!(tenant.get("/").text(), "get / 0\n");
    let answer = begin().answer(deadline(), None, &mut Quiet).unwrap();
    assert_eq!(answer.status(), 200);
    drop(answer);
    // Behind what it has said before.
    assert!(tenant.get("/").text().ends_with("get / 100000\n"));
}

/// Its own machine is none of the forks'.
#[test]
fn storage_goes_on_beside_it() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("storage", |config| {
        config.ephemeral = false;
        config.storage = StorageKind::Machine;
        config.limits.max_storage_time = common::ENOUGH;
    });
    // The text of this program's answers is kept with the rest, and grows.
    for nth in 2..=4 {
        let reply = tenant.get("/call/add");
        assert!(
            reply.text().ends_with(&format!("1 {nth}\n")),
            "{}",
            reply.text()
        );
        assert_eq!(reply.text().lines().count(), nth - 1);
    }
    // It has made its call all the same.
    tenant.failure("/crash");
    assert_eq!(tenant.get("/call/add").text(), "1 6\n");
}
