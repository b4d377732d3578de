//! Live updates in a real varnishd while 8 connections ask without a pause, and while its child is killed again and
//! again. `make soak` does 5,000 updates and 200 kills, the tests 200 and 10.
//!
//! SOAK_UPDATES, SOAK_KILLS: how many. SOAK_SECONDS: no longer than this.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::client::Body;
use common::holdings::{Holdings, Trend};
use common::updates::{KEY, answer, guest, start, upload};
use common::{Folder, Numbers, eventually, variable};

const CONNECTIONS: usize = 8;

/// Sets a flag when dropped, also by a panic.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// When a soak has to be over.
fn end() -> Instant {
    Instant::now() + Duration::from_secs(variable("SOAK_SECONDS").unwrap_or(4 * 3600))
}

/// Tells how a long run is getting on, once a minute.
struct Progress(Instant, Instant);

impl Progress {
    fn new() -> Self {
        Self(Instant::now(), Instant::now())
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if self.1.elapsed() > Duration::from_secs(60) {
            self.1 = Instant::now();
            eprintln!("{:>5} s {}", self.0.elapsed().as_secs(), what());
        }
    }
}

#[test]
fn nobody_notices_updates_under_load() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("load");
    let varnish = start(
        state.path(),
        "concurrency = 8, max_wait = ENOUGH, max_request_time = ENOUGH, max_memory = 32MB",
    );
    let programs = [guest("version-a"), guest("version-b")];
    let letter = |n: u64| if n.is_multiple_of(2) { b'A' } else { b'B' };
    let soak = variable("SOAK_UPDATES");
    let end = end();

    // Updates that have begun, and those whose 201 is there. The program of update n is the one that n % 2 says.
    let (begun, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let served = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let mut samples = Vec::new();
    let mut progress = Progress::new();
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let _stop = Stop(&stop);
                let mut client = varnish.client();
                while !stop.load(Ordering::Relaxed) {
                    let oldest = done.load(Ordering::SeqCst);
                    let response = client.get("t", "/20000");
                    let newest = begun.load(Ordering::SeqCst);
                    let got = answer(&response);
                    assert!(
                        (oldest..=newest).any(|n| letter(n) == got),
                        "{} is older than update {oldest}",
                        got as char
                    );
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _stop = Stop(&stop);
        let mut client = varnish.client();
        for n in 1..=soak.unwrap_or(200) {
            begun.store(n, Ordering::SeqCst);
            let response = upload(&mut client, &programs[n as usize % 2]);
            assert_eq!(response.status, 201, "update {n}: {}", response.text());
            done.store(n, Ordering::SeqCst);
            assert_eq!(answer(&client.get("t", "/")), letter(n), "after update {n}");
            samples.push(Holdings::of(&varnish));
            progress.tell(|| format!("{n:>6} updates, {:?}", samples.last().unwrap()));
            if stop.load(Ordering::Relaxed) || Instant::now() > end {
                break;
            }
        }
    });
    let (updates, served) = (done.into_inner(), served.into_inner());
    let took = progress.0.elapsed().as_secs_f64();
    let trend = Trend::of(&samples);
    println!(
        "{updates} updates in {took:.0} s, one after the other; {served} requests meanwhile from {CONNECTIONS} \
         connections: none failed, none mixed, none older than the last 201\n{trend}"
    );
    assert!(served > updates, "{served}");
    assert_eq!(varnish.counter("updates"), updates);
    for counter in ["update_failures", "failures", "busy", "refused"] {
        assert_eq!(varnish.counter(counter), 0, "{counter}");
    }

    // Of one program more, which is not freed yet, and of an allocator's and a scheduler's whims.
    let Trend { early, late } = trend;
    assert!(late.descriptors <= early.descriptors + 40, "descriptors");
    assert!(late.mappings <= early.mappings + 150, "mappings");
    assert!(late.threads <= early.threads + 20, "threads");
    assert!(late.memory <= early.memory + (64 << 10), "memory");
    // In a soak nothing else is to run on the machine.
    assert!(
        soak.is_none() || late.host <= early.host + (256 << 10),
        "the machine's memory"
    );
    // Of each fork: the machine, its processor and what that maps. Of the program: its memory.
    eventually("the old programs are freed", || {
        varnish.child().kvm_descriptors() <= 3 * 9
    });
}

#[test]
fn a_killed_child_comes_back_with_a_whole_program() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("killed");
    let mut varnish = start(state.path(), "max_memory = 32MB, max_request_time = ENOUGH");
    let programs = [guest("version-a"), guest("version-b")];
    // What follows the end of a program does not matter to it, but makes each upload another one to be stored.
    let program = |n: u64| [&programs[n as usize % 2][..], &n.to_le_bytes()].concat();
    // Reproducible, and a new moment each time.
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (mut kills, mut current, mut interrupted, mut arrived) = (0, 0u64, 0, 0);
    let end = end();
    let mut progress = Progress::new();
    // A connection that the child has taken: one that waits for it would be the next child's.
    let mut client = varnish.client();
    assert_eq!(answer(&client.get("t", "/")), b'A');
    while kills < variable("SOAK_KILLS").unwrap_or(10) && Instant::now() < end {
        let moment = Duration::from_micros(numbers.next() % 300_000);
        // What is being uploaded, and what a 201 came for.
        let (begun, done) = (AtomicU64::new(current), AtomicU64::new(current));
        thread::scope(|scope| {
            scope.spawn(|| {
                loop {
                    let n = begun.load(Ordering::SeqCst) + 1;
                    begun.store(n, Ordering::SeqCst);
                    let elf = program(n);
                    let Ok(response) =
                        client.try_send("POST", "t", "/", &[KEY], Body::Length(&elf))
                    else {
                        break;
                    };
                    assert_eq!(response.status, 201, "{}", response.text());
                    done.store(n, Ordering::SeqCst);
                }
            });
            thread::sleep(moment);
            varnish.kill_child();
        });
        kills += 1;
        varnish.start_child();
        let (begun, done) = (begun.into_inner(), done.into_inner());
        client = varnish.client();
        let got = answer(&client.get("t", "/"));
        let after = (done..=begun).find(|&n| got == b"AB"[n as usize % 2]);
        current = after.unwrap_or_else(|| {
            panic!(
                "kill {kills} after {moment:?}: {} is neither of updates {done} and {begun}",
                got as char
            )
        });
        interrupted += u64::from(begun > done);
        arrived += u64::from(current > done);
        progress.tell(|| format!("{kills:>6} kills"));
    }
    println!(
        "{kills} kills of varnishd's child in {} s, {interrupted} of them during one of {current} updates; a whole program \
         served after each: the new one after {arrived}, the old one after the others",
        progress.0.elapsed().as_secs()
    );
    assert!(interrupted > 0 && current > 0);
    assert!(
        varnish
            .log("kvm: tenant t: a stored update is not used")
            .is_empty()
    );
    // The next update tidies up: it stays, with the two before.
    let response = upload(&mut client, &program(current + 1));
    assert_eq!(response.status, 201, "{}", response.text());
    let mut names: Vec<String> = fs::read_dir(state.path().join("t.versions"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names.iter().filter(|name| name.ends_with(".elf")).count(),
        3
    );
    assert!(
        names.len() == 5 && names[3..] == ["lock", "manifest.json"],
        "{names:?}"
    );
}
