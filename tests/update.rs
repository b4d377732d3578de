//! Live updates in a real varnishd: under load, with broken programs, and when the child is killed meanwhile.
//!
//! With SOAK set in the environment, as many as an issue asks for: 5,000 updates under load, 200 kills.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::client::{Body, Client, Response};
use common::guests;
use common::varnishd::Varnishd;

const KEY: (&str, &str) = ("X-LiveUpdate", "a key");

/// How long the load lasts at most: on a busy machine a few updates have to do.
const LOAD_TIME: Duration = Duration::from_secs(20);

fn soak() -> bool {
    std::env::var_os("SOAK").is_some()
}

/// How often something is done: rarely, or often in a soak.
fn times(few: u32, soak: u32) -> u32 {
    if self::soak() { soak } else { few }
}

/// A folder that is gone after the test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kvm-update.{}.{test}", process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A varnishd with a tenant "t" that can be updated, and begins with test/version-a.
fn start(state: &Path, settings: &str) -> Varnishd {
    Varnishd::start(&format!(
        r#"kvm.tenant("t", "GUESTS/test/version-a", update_key = "{}", state_dir = "{}", {settings});"#,
        KEY.1,
        state.display()
    ))
}

fn guest(name: &str) -> Vec<u8> {
    fs::read(guests().join("test").join(name)).unwrap()
}

fn upload(client: &mut Client, elf: &[u8]) -> Response {
    client.send("POST", "t", "/", &[KEY], Body::Length(elf))
}

/// Which program a response is from: all of it must be.
fn answer(response: &Response) -> u8 {
    assert_eq!(
        response.status,
        200,
        "{}",
        String::from_utf8_lossy(&response.body)
    );
    let letter = response.header("x-answer").unwrap().as_bytes()[0];
    assert!(!response.body.is_empty());
    assert!(
        response.body.iter().all(|&byte| byte == letter),
        "an answer of two programs"
    );
    letter
}

/// Waits for something that takes a moment.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{what}: not after 20 s"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// Sets a flag when dropped, also by a panic.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn nobody_notices_updates_under_load() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("load");
    let varnish = start(
        &state.0,
        "concurrency = 8, max_wait = 20s, max_request_time = 30s, max_memory = 32MB",
    );
    let programs = [guest("version-a"), guest("version-b")];
    let letter = |n: u64| if n.is_multiple_of(2) { b'A' } else { b'B' };
    let most = u64::from(times(200, 5000));

    // Updates that have begun, and those whose 201 is there. The program of update n is the one that n % 2 says.
    let (begun, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let served = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let mut held = Vec::new();
    let start_of_load = Instant::now();
    thread::scope(|scope| {
        for _ in 0..8 {
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
        for n in 1..=most {
            begun.store(n, Ordering::SeqCst);
            let response = upload(&mut client, &programs[n as usize % 2]);
            assert_eq!(response.status, 201, "update {n}: {}", response.text());
            done.store(n, Ordering::SeqCst);
            assert_eq!(answer(&client.get("t", "/")), letter(n), "after update {n}");
            let child = varnish.child();
            held.push((child.descriptors(), child.memory()));
            let enough = !soak() && n >= 20 && start_of_load.elapsed() > LOAD_TIME;
            if stop.load(Ordering::Relaxed) || enough {
                break;
            }
        }
    });
    let (updates, served) = (done.into_inner(), served.into_inner());
    // The first ones grow what is kept for good: threads, and memory that the allocator does not give back.
    let part = held.len() / 4;
    let most_of = |part: &[(usize, u64)]| {
        let descriptors = part.iter().map(|held| held.0).max().unwrap();
        (
            descriptors,
            part.iter().map(|held| held.1).max().unwrap() >> 20,
        )
    };
    let (first, last) = (most_of(&held[part..2 * part]), most_of(&held[3 * part..]));
    println!(
        "{updates} updates, {served} requests; descriptors and MiB: {first:?}, in the end {last:?}"
    );
    assert!(updates >= 20 && served > updates, "{served}");
    assert_eq!(varnish.counter("updates"), updates);
    assert_eq!(varnish.counter("failures"), 0);
    assert_eq!(varnish.counter("busy"), 0);
    assert_eq!(varnish.counter("refused"), 0);

    assert!(last.0 <= first.0 + 40, "descriptors: {held:?}");
    assert!(last.1 <= first.1 + 64, "memory: {held:?}");
    // Of each fork: the machine, its processor and what that maps. Of the program: its memory.
    eventually("the old programs are freed", || {
        varnish.child().kvm_descriptors() <= 3 * 9
    });
}

#[test]
fn no_broken_program_takes_the_place_of_a_good_one() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("broken");
    let varnish = start(&state.0, "max_boot_time = 1s, max_memory = 64MB");
    let mut broken: Vec<(String, Vec<u8>)> = fs::read_dir(guests().join("test"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("bad-") && !name.ends_with(".tmp"))
        .map(|name| (name.clone(), guest(&name)))
        .collect();
    assert!(broken.len() > 40);
    broken.sort();
    let good = guest("version-b");
    for len in [
        1,
        63,
        64,
        1000,
        good.len() / 4,
        good.len() / 2,
        good.len() * 3 / 4,
    ] {
        broken.push((format!("{len} bytes of a program"), good[..len].to_vec()));
    }
    let files_before = fs::read_dir(state.0.join("t.versions")).map_or(0, Iterator::count);
    for (name, elf) in &broken {
        let mut client = varnish.client();
        let response = upload(&mut client, elf);
        assert_eq!(response.status, 422, "{name}: {}", response.text());
        assert!(
            response.text().contains("\"error\": \""),
            "{name}: {}",
            response.text()
        );
        assert_eq!(answer(&client.get("t", "/")), b'A', "after {name}");
    }
    assert_eq!(varnish.counter("update_failures"), broken.len() as u64);

    // Too large: the connection may be closed before the client has sent all of it.
    let large = vec![0; 51 << 20];
    for body in [Body::Length(&large), Body::Chunked(&large, 1 << 20)] {
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            varnish.client().send("POST", "t", "/", &[KEY], body).status
        }));
        assert!(refused.map_or(true, |status| status == 413));
    }
    // A client that goes away in the middle does not keep the tenant's turn.
    let length = good.len().to_string();
    varnish.client().begin(
        "POST",
        "t",
        "/",
        &[KEY, ("Content-Length", &length)],
        Body::None,
    );
    eventually("the turn is free again", || {
        upload(&mut varnish.client(), b"").status == 422
    });
    assert_eq!(answer(&varnish.client().get("t", "/")), b'A');
    // No descriptors for another machine.
    let mut client = varnish.client();
    assert_eq!(answer(&client.get("t", "/")), b'A');
    let restore = varnish.child().leave_descriptors(3);
    let response = upload(&mut client, &good);
    varnish.child().limit_descriptors(restore);
    assert_eq!(response.status, 503, "{}", response.text());
    assert_eq!(answer(&varnish.client().get("t", "/")), b'A');
    let files = fs::read_dir(state.0.join("t.versions")).unwrap().count();
    assert!(files <= files_before.max(1), "something broken was stored");
    assert_eq!(varnish.counter("updates"), 0);
    assert_eq!(upload(&mut varnish.client(), &good).status, 201);
    assert_eq!(answer(&varnish.client().get("t", "/")), b'B');
}

#[test]
fn a_killed_child_comes_back_with_a_whole_program() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("killed");
    let mut varnish = start(&state.0, "max_memory = 32MB, max_request_time = 30s");
    let programs = [guest("version-a"), guest("version-b")];
    // Reproducible, and a new moment each time.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut uploaded, mut interrupted) = (0u64, 0);
    for kill in 0..times(10, 200) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let moment = Duration::from_micros(random % 300_000);
        // What is being uploaded, and what a 201 came for.
        let (begun, done) = (AtomicU64::new(uploaded), AtomicU64::new(uploaded));
        thread::scope(|scope| {
            scope.spawn(|| {
                // Ends when the connection does: the client panics.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let mut client = varnish.client();
                    loop {
                        let n = begun.load(Ordering::SeqCst) + 1;
                        begun.store(n, Ordering::SeqCst);
                        let response = upload(&mut client, &programs[n as usize % 2]);
                        assert!(matches!(response.status, 200 | 201), "{}", response.text());
                        done.store(n, Ordering::SeqCst);
                    }
                }));
            });
            thread::sleep(moment);
            varnish.kill_child();
        });
        varnish.start_child();
        let (begun, done) = (begun.into_inner(), done.into_inner());
        interrupted += u32::from(begun > done);
        let got = answer(&varnish.client().get("t", "/"));
        let after = (done..=begun).find(|&n| got == b"AB"[n as usize % 2]);
        uploaded = after.unwrap_or_else(|| {
            panic!(
                "kill {kill} after {moment:?}: {} is neither of updates {done} and {begun}",
                got as char
            )
        });
    }
    println!("{uploaded} updates, {interrupted} of them interrupted");
    assert!(interrupted > 0 && uploaded > u64::from(interrupted));
    assert!(
        varnish
            .log("kvm: tenant t: a stored update is not used")
            .is_empty()
    );
}
