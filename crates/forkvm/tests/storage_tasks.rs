//! Tasks of storage: they run once or again and again, in turn with calls, and end with their program.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{ENOUGH, Tenant, eventually, kvm_or_skip, scaled};
use forkvm::{Config, Owner, StorageEvent, StorageKind, StorageOwner, StorageStats};
use parking_lot::Mutex;

fn boot(change: impl FnOnce(&mut Config)) -> Tenant {
    Tenant::boot_with("storage", |config| {
        config.storage = StorageKind::Machine;
        config.limits.max_memory = 64 << 20;
        config.limits.max_storage_time = ENOUGH;
        change(config);
    })
}

#[track_caller]
fn ask(tenant: &Tenant, url: &str) -> String {
    let reply = tenant.get(url);
    reply.text().trim_end_matches('\n').to_owned()
}

fn stats(tenant: &Tenant) -> StorageStats {
    tenant.stats().storage.unwrap()
}

/// How often they have ticked.
fn ticks(tenant: &Tenant) -> u64 {
    let text = ask(tenant, "/call/get");
    text.split(' ').nth(3).unwrap().parse().unwrap()
}

#[test]
fn tasks_run_once_or_again_and_again() {
    kvm_or_skip!();
    let tenant = boot(|_| {});
    assert_eq!(ask(&tenant, "/task/tick?data=5"), "1");
    eventually("it has run", || ticks(&tenant) == 5);
    assert_eq!(ask(&tenant, "/task/tick?data=10&start=30"), "2");
    assert_eq!(ask(&tenant, "/task/tick?data=1000000&start=3600000"), "3");
    eventually("it has run", || ticks(&tenant) == 15);
    assert_eq!(ask(&tenant, "/task/tick?period=5&data=100"), "4");
    eventually("it has run again", || ticks(&tenant) >= 415);
    assert_eq!(ask(&tenant, "/stop/4"), "0");
    // It may be running just now.
    eventually("it runs no more", || {
        let before = ticks(&tenant);
        std::thread::sleep(Duration::from_millis(50));
        ticks(&tenant) == before
    });
    for (url, result) in [
        ("/stop/4", "-1"),
        ("/stop/0", "-1"),
        ("/stop/-1", "-1"),
        ("/stop/3", "0"),
    ] {
        assert_eq!(ask(&tenant, url), result, "{url}");
    }
    let stats = stats(&tenant);
    assert!(stats.tasks >= 6 && stats.task_failures == 0, "{stats:?}");
    assert!(ticks(&tenant) < 1_000_000);
}

#[test]
fn tasks_come_from_the_storage_too() {
    kvm_or_skip!();
    let tenant = boot(|config| config.main_arguments = vec!["--ticks".into()]);
    // From its main().
    eventually("they run", || ticks(&tenant) >= 3);
    assert_eq!(ask(&tenant, "/stop/1"), "0");
    assert_eq!(ask(&tenant, "/call/begin-ticks"), "1 2");
    let before = ticks(&tenant);
    eventually("they run", || ticks(&tenant) >= before + 3);
    assert_eq!(ask(&tenant, "/stop/2"), "0");
    // A task of a task.
    let before = ticks(&tenant);
    assert_eq!(ask(&tenant, "/task/tick-again?data=1000"), "3");
    eventually("both run", || ticks(&tenant) >= before + 2000);
    // Only the storage itself may run what is not allowed to others.
    assert_eq!(ask(&tenant, "/task/secret-tick?data=1"), "-1");
    let before = ticks(&tenant);
    assert_eq!(ask(&tenant, "/call/begin-secret"), "1 5");
    eventually("it runs", || ticks(&tenant) >= before + 100);
    assert_eq!(stats(&tenant).task_failures, 0);
}

#[test]
fn tasks_are_limited_in_number_and_data() {
    kvm_or_skip!();
    let tenant = boot(|_| {});
    assert_eq!(ask(&tenant, "/task/tick?bytes=65536&start=3600000"), "1");
    for url in [
        "/task/tick?bytes=65537",
        "/task/tick?bytes=9223372036854775808",
        "/task/tick?start=9223372036854775808",
        "/task/tick?period=18446744073709551615",
        "/task/forbidden",
        "/task/1000",
    ] {
        assert_eq!(ask(&tenant, url), "-1", "{url}");
    }
    assert_eq!(ask(&tenant, "/tasks/300"), "255");
    assert_eq!(ask(&tenant, "/tasks/1"), "0");
    assert_eq!(ask(&tenant, "/stop/7"), "0");
    assert_eq!(ask(&tenant, "/tasks/2"), "1");
}

/// Keeps what it is told, and counts turns.
#[derive(Default)]
struct Told {
    events: Mutex<Vec<StorageEvent>>,
    begun: AtomicU32,
    over: AtomicU32,
}

struct Owned(Arc<Told>);

impl StorageOwner for Owned {
    fn turn(&self) -> Box<dyn Any> {
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        Box::new(Turn(self.0.clone()))
    }

    fn event(&self, event: &StorageEvent) {
        self.0.events.lock().push(event.clone());
    }
}

struct Turn(Arc<Told>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.over.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_task_that_fails_is_told_and_runs_no_more() {
    kvm_or_skip!();
    let told = Arc::new(Told::default());
    let tenant = boot(|config| {
        config.limits.max_storage_time = scaled(Duration::from_millis(300));
        config.storage_owner = Owner::new(Owned(told.clone()));
    });
    assert_eq!(ask(&tenant, "/task/tick-crash?period=1"), "1");
    eventually("it has failed", || stats(&tenant).task_failures == 1);
    assert_eq!(ask(&tenant, "/stop/1"), "-1");
    assert_eq!(ask(&tenant, "/task/tick-endless?period=1"), "2");
    eventually("it has failed", || stats(&tenant).task_failures == 2);
    assert_eq!(ask(&tenant, "/stop/2"), "-1");
    let stats = stats(&tenant);
    assert_eq!((stats.tasks, stats.restarts), (2, 2));
    // Calls go on.
    assert_eq!(ask(&tenant, "/call/add"), "1 1");
    let events = told.events.lock();
    let [
        StorageEvent::InService,
        StorageEvent::Failed(crash),
        StorageEvent::TaskFailed(of_crash),
        StorageEvent::Failed(late),
        StorageEvent::TaskFailed(of_late),
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    assert!(crash.contains("invalid instruction"), "{crash}");
    assert!(
        of_crash.contains("tick_crash") && of_crash.contains(crash),
        "{of_crash}"
    );
    assert!(late.contains("max_storage_time"), "{late}");
    assert!(of_late.contains("tick_endless"), "{of_late}");
    let count = |turns: &AtomicU32| turns.load(Ordering::SeqCst);
    assert_eq!((count(&told.begun), count(&told.over)), (2, 2));
}

/// Also one that runs, and the host's thread for them.
#[test]
fn tasks_end_with_their_program() {
    kvm_or_skip!();
    let told = Arc::new(Told::default());
    let tenant = boot(|config| config.storage_owner = Owner::new(Owned(told.clone())));
    ask(&tenant, "/task/tick?start=3600000");
    assert_eq!(ask(&tenant, "/task/tick-endless"), "2");
    // It has had its turn, and runs on.
    eventually("it runs", || told.over.load(Ordering::SeqCst) == 1);
    drop(tenant);
    // Who is told of nothing any more is dropped.
    let weak = Arc::downgrade(&told);
    drop(told);
    eventually("all of it is over", || weak.strong_count() == 0);
}

/// Neither a boot nor another task.
#[test]
fn a_task_that_waits_for_the_storage_keeps_nobody_from_his_turn() {
    kvm_or_skip!();
    let told = Arc::new(Told::default());
    let tenant = boot(|config| {
        config.concurrency = 2;
        config.storage_owner = Owner::new(Owned(told.clone()));
    });
    let before = stats(&tenant).calls;
    std::thread::scope(|scope| {
        let napping = scope.spawn(|| ask(&tenant, "/call/nap?b=3000"));
        eventually("it naps", || stats(&tenant).calls == before + 1);
        assert_eq!(ask(&tenant, "/task/tick"), "1");
        let count = |turns: &AtomicU32| turns.load(Ordering::SeqCst);
        eventually("the turn is another one's", || {
            (count(&told.begun), count(&told.over)) == (1, 1)
        });
        assert!(!napping.is_finished());
        assert_eq!(napping.join().unwrap(), "1 0");
    });
    eventually("it has run", || ticks(&tenant) == 1);
}
