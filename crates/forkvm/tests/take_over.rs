//! Live update of a program with storage: what is stored goes over, and no call is lost; or nothing changes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{ENOUGH, Recorder, Tenant, config, eventually, guest, kvm_or_skip, scaled};
use forkvm::{BootError, Config, Failure, Quiet, Request, StorageKind, Stream, Upload};

fn settings(kind: StorageKind) -> Config {
    let mut config = config("storage");
    config.storage = kind;
    config.concurrency = 4;
    config.queue = forkvm::Queue::new(100);
    config.limits.max_memory = 64 << 20;
    config.limits.max_storage_time = ENOUGH;
    if kind == StorageKind::Fork {
        config.environment = vec!["BOTH=1".into()];
    }
    config
}

fn boot(kind: StorageKind) -> Tenant {
    Tenant::boot_with("storage", |config| *config = settings(kind))
}

#[track_caller]
fn successor(of: &Tenant, name: &str, kind: StorageKind) -> Tenant {
    successor_with(of, name, settings(kind))
}

#[track_caller]
fn successor_with(of: &Tenant, name: &str, settings: Config) -> Tenant {
    let booted = of.boot_successor(&guest(name), settings, &mut Quiet);
    booted
        .unwrap_or_else(|error| panic!("{name}: {error}"))
        .into()
}

#[track_caller]
fn ask(tenant: &Tenant, url: &str) -> String {
    let reply = tenant.get(url);
    reply.text().trim_end_matches('\n').to_owned()
}

#[test]
fn what_is_stored_goes_over() {
    kvm_or_skip!();
    for kind in [StorageKind::Machine, StorageKind::Fork] {
        let one = boot(kind);
        ask(&one, "/call/add?b=41");
        let counter = ask(&one, "/call/add").split_once(' ').unwrap().1.to_owned();
        let two = successor(&one, "storage-two", kind);
        let taken = two.take_over(&one, &mut Quiet).unwrap();
        taken.complete();
        assert_eq!(
            ask(&two, "/call/get").split_once(' ').unwrap().1,
            format!("{counter} 0 0 storage>two")
        );
        assert_eq!(two.restored_state(), Some(counter.len() as u64 + 8));
        // Who still has the one before asks the new one.
        assert_eq!(ask(&one, "/call/get"), ask(&two, "/call/get"));
        // From there it begins again, should it fail.
        ask(&two, "/call/add?b=100");
        assert_eq!(ask(&two, "/call/crash"), "-1 ");
        assert!(ask(&two, "/call/get").ends_with(&format!("{counter} 0 0 storage>two")));
        let three = successor(&two, "storage-three", kind);
        three.take_over(&two, &mut Quiet).unwrap().complete();
        drop((one, two));
        assert!(ask(&three, "/call/get").ends_with(&format!("{counter} 0 0 storage>two>three")));
    }
}

#[test]
fn an_update_that_goes_no_further_changes_nothing() {
    kvm_or_skip!();
    let one = boot(StorageKind::Machine);
    ask(&one, "/call/begin-ticks");
    let two = successor(&one, "storage-two", StorageKind::Machine);
    let taken = two.take_over(&one, &mut Quiet).unwrap();
    let paused = one.stats().storage.unwrap().tasks;
    // Meanwhile requests wait.
    let request = Request {
        url: b"/call/add",
        ..Default::default()
    };
    let deadline = Instant::now() + scaled(Duration::from_millis(50));
    let late = one.try_send(&request, deadline, &mut Quiet);
    assert!(matches!(late, Err(Failure::Replaced)), "{late:?}");
    assert_eq!(one.stats().storage.unwrap().tasks, paused);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| ask(&one, "/call/add"));
        eventually("it waits", || one.config().queue.waiting() == 1);
        drop(taken);
        assert_eq!(waiting.join().unwrap(), "1 2");
    });
    eventually("its tasks go on", || {
        one.stats().storage.unwrap().tasks > paused
    });
    assert_eq!(one.config().queue.waiting(), 0);
}

#[test]
fn a_state_that_cannot_go_over_is_an_error() {
    kvm_or_skip!();
    for (old, new, part) in [
        (
            "state-give-crashes",
            "state-two",
            "on_live_update of the storage before: the storage failed: invalid",
        ),
        (
            "state-give-wild",
            "state-two",
            "on_live_update of the storage before",
        ),
        (
            "state-one",
            "state-take-refuses",
            "on_live_restore of the storage: the storage failed: on_live_restore returned without",
        ),
        (
            "state-one",
            "state-take-crashes",
            "on_live_restore of the storage: the storage failed: invalid",
        ),
    ] {
        let settings = settings(StorageKind::Machine);
        let one = Tenant::boot_with(old, |config| *config = settings.clone());
        // Its own state is not what this is about.
        let two: Tenant = Tenant::boot_with(new, |config| *config = settings);
        let error = two.take_over(&one, &mut Quiet).map(drop).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, BootError::State(_)) && text.contains(part),
            "{old} {new}: {text}"
        );
        assert_eq!(ask(&one, "/"), old.trim_start_matches("state-"));
    }
}

/// Requests all the while, through whichever program: what they were told is what is stored.
#[test]
fn updates_under_load_lose_no_call() {
    kvm_or_skip!();
    let first = boot(StorageKind::Machine);
    let current = parking_lot::Mutex::new((*first).clone());
    let (stop, counted) = (AtomicBool::new(false), AtomicU64::new(1));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let program = Tenant::from(current.lock().clone());
                    assert!(ask(&program, "/call/add").parse::<u64>().is_err());
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for name in [
            "storage-two",
            "storage-three",
            "storage-two",
            "storage-three",
        ] {
            let before = Tenant::from(current.lock().clone());
            let next = successor(&before, name, StorageKind::Machine);
            // Which counts once in its main().
            let taken = next.take_over(&before, &mut Quiet).unwrap();
            *current.lock() = (*next).clone();
            taken.complete();
            let so_far = counted.load(Ordering::Relaxed);
            eventually("they go on", || {
                counted.load(Ordering::Relaxed) > so_far + 20
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    let last = Tenant::from(current.lock().clone());
    let text = ask(&last, "/call/add?b=0");
    assert_eq!(
        text.split_once(' ').unwrap().1,
        counted.load(Ordering::Relaxed).to_string()
    );
}

/// What takes longer than it is waited for goes on with the storage before, which is said.
#[test]
fn a_long_request_holds_up_nobody_for_long() {
    kvm_or_skip!();
    let mut config = settings(StorageKind::Machine);
    config.limits.max_wait = scaled(Duration::from_millis(50));
    let one = Tenant::boot_with("storage", |settings| *settings = config.clone());
    let two = successor(&one, "storage-two", StorageKind::Machine);
    std::thread::scope(|scope| {
        let long = scope.spawn(|| one.timeout("/spin", scaled(Duration::from_millis(1500))));
        eventually("it runs", || one.stats().requests == 1);
        let mut recorder = Recorder::default();
        two.take_over(&one, &mut recorder).unwrap().complete();
        assert!(!long.is_finished());
        let said = recorder.text(Stream::Log);
        assert!(
            said.starts_with("1 requests have taken longer than max_wait"),
            "{said}"
        );
        assert_eq!(ask(&one, "/call/add?b=0"), ask(&two, "/call/add?b=0"));
        long.join().unwrap();
    });
}

/// Has a program's successor take over while a request is under way, which ends by `finish`. What it stores until then goes over.
fn take_over_beside(one: &Tenant, finish: impl FnOnce()) {
    let two = successor_with(one, "storage-two", one.config().clone());
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| two.take_over(one, &mut Quiet).unwrap().complete());
        let request = Request {
            url: b"/call/get",
            ..Default::default()
        };
        eventually("the way in is closed", || {
            let deadline = Instant::now() + scaled(Duration::from_millis(50));
            let asked = one.try_send(&request, deadline, &mut Quiet);
            taking.is_finished() || matches!(asked, Err(Failure::Replaced))
        });
        finish();
        taking.join().unwrap();
    });
    let history = ask(&two, "/call/get");
    assert!(history.ends_with("storage>two"), "{history}");
    assert_eq!(ask(one, "/call/get"), history);
}

#[track_caller]
fn counter(tenant: &Tenant) -> String {
    ask(tenant, "/call/add?b=0")
        .split_once(' ')
        .unwrap()
        .1
        .to_owned()
}

#[test]
fn a_streamed_answer_is_waited_for() {
    kvm_or_skip!();
    let one = boot(StorageKind::Machine);
    let request = Request {
        url: b"/streamed",
        ..Default::default()
    };
    let deadline = Instant::now() + ENOUGH;
    let mut answer = one.answer(&request, deadline, &mut Quiet).unwrap();
    let mut streaming = answer.take_streaming().unwrap();
    let mut piece = [0; 10];
    assert_eq!(streaming.read(&mut piece, &mut Quiet).unwrap(), 1);
    take_over_beside(&one, || {
        while streaming.read(&mut piece, &mut Quiet).unwrap() > 0 {}
        drop(streaming);
    });
    assert_eq!(counter(&one), "4");
}

#[test]
fn a_body_by_segments_is_waited_for() {
    kvm_or_skip!();
    let mut config = settings(StorageKind::Machine);
    config.environment = vec!["SEGMENTS=1".into()];
    let one = Tenant::boot_with("storage", |settings| *settings = config.clone());
    let request = Request {
        method: "POST",
        url: b"/",
        ..Default::default()
    };
    let deadline = Instant::now() + ENOUGH;
    let mut exchange = one
        .exchange(&request, Upload::Chunked, deadline, &mut Quiet)
        .unwrap();
    assert!(exchange.feed(b"one", deadline, &mut Quiet).unwrap());
    let mut answer = None;
    take_over_beside(&one, || {
        assert!(exchange.feed(b"two", deadline, &mut Quiet).unwrap());
        // Its body is there, and the program does not run for it any more.
        answer = Some(exchange.answer(deadline, None, &mut Quiet).unwrap());
    });
    drop(answer);
    assert_eq!(counter(&one), "4");
    // Who comes to the one before is answered by the next.
    let exchange = one.exchange(&request, Upload::Chunked, deadline, &mut Quiet);
    let mut answer = exchange
        .unwrap()
        .answer(deadline, None, &mut Quiet)
        .unwrap();
    let mut body = [0; 10];
    assert_eq!(answer.read_body(&mut body), 2);
    assert_eq!(&body[..2], b"5\n");
}

/// The program before goes on with all that it has.
#[test]
fn a_state_that_is_too_long_is_refused() {
    kvm_or_skip!();
    let mut long = settings(StorageKind::Machine);
    long.environment = vec!["LONG_STATE=1".into()];
    let one = Tenant::boot_with("storage", |settings| *settings = long.clone());
    ask(&one, "/call/add?b=41");
    let mut small = settings(StorageKind::Machine);
    small.limits.max_memory = 16 << 20;
    let two = successor_with(&one, "storage-two", small);
    let error = two.take_over(&one, &mut Quiet).map(drop).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, BootError::State(_))
            && text.contains("hands over 20971520 bytes, more than max_memory"),
        "{text}"
    );
    assert_eq!(ask(&one, "/call/add"), "2 43");
    assert_eq!(one.stats().storage.unwrap().restarts, 0);
}

#[test]
fn a_debugged_request_is_waited_for() {
    kvm_or_skip!();
    let mut config = settings(StorageKind::Machine);
    config.debugging.allowed = true;
    config.debugging.timeout = scaled(Duration::from_millis(500));
    let one = Tenant::boot_with("storage", |settings| *settings = config.clone());
    let two = successor_with(&one, "storage-two", config);
    std::thread::scope(|scope| {
        // Nobody comes to debug it.
        let debugged = scope.spawn(|| {
            let request = Request {
                url: b"/call/add",
                ..Default::default()
            };
            let deadline = Instant::now() + ENOUGH;
            one.debug(&request, deadline, &mut Quiet).map(drop)
        });
        eventually("it waits for gdb", || one.stats().requests == 1);
        two.take_over(&one, &mut Quiet).unwrap().complete();
        assert_eq!(one.stats().failures, 1);
        debugged.join().unwrap().unwrap_err();
        // The next one is debugged there.
        assert_eq!(two.stats().requests, 0);
        let request = Request::default();
        let deadline = Instant::now() + ENOUGH;
        one.debug(&request, deadline, &mut Quiet).unwrap_err();
        assert_eq!(two.stats().failures, 1);
    });
}
