//! One tenant's crowd: its clients wait, and the other tenants' get their answers.
//!
//! CROWD_SECONDS: how long the others ask.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::client::{Body, Client};
use common::varnishd::Varnishd;
use common::{eventually, variable};

/// Clients of the one tenant, more than varnishd has threads.
const CROWD: usize = 150;
const THREADS: [&str; 4] = ["-p", "thread_pool_max=100", "-p", "thread_pool_min=100"];
/// How often another tenant is asked.
const EVERY: Duration = Duration::from_millis(5);
/// The clients it is asked by: one alone would wait for a slow answer, and ask less.
const ASKING: u32 = 8;

/// Neither ends before the test does.
const TENANTS: &str = r#"
    kvm.tenant("boots", "GUESTS/test/bad-main-sleeps", max_boot_time = 1h, max_request_time = 1h);
    kvm.tenant("sleeps", "GUESTS/crash", max_wait = ENOUGH, max_request_time = 1h);
    kvm.tenant("other", "GUESTS/hello", concurrency = 8, max_wait = ENOUGH);
"#;

/// What the crowd was answered.
#[derive(Debug, Default)]
struct Crowd {
    busy: AtomicU64,
    others: AtomicU64,
}

impl Crowd {
    /// One of its clients, who asks again and again.
    fn ask(
        &self,
        mut client: Client,
        host: &str,
        url: &str,
        headers: &[(&str, &str)],
        over: &AtomicBool,
    ) {
        while !over.load(Ordering::Relaxed) {
            // Those that wait get no answer before varnishd ends.
            let Ok(response) = client.try_send("GET", host, url, headers, Body::None) else {
                return;
            };
            let counter = match (response.status, response.header("retry-after")) {
                (503, Some(_)) => &self.busy,
                _ => &self.others,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Asks the other tenant at a steady pace for a while, and returns how long each answer took, the shortest first.
fn ask_other(varnish: &Varnishd) -> Vec<Duration> {
    let time = Duration::from_secs(variable("CROWD_SECONDS").unwrap_or(2));
    let start = Instant::now();
    let ask = |first: u32| {
        let mut client = varnish.client();
        let mut times = Vec::new();
        let mut at = start + EVERY * first;
        while at < start + time {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            let response = client.get("other", "/");
            assert_eq!(response.status, 200, "{response:?}");
            // From when it should have been asked: a queue on this side counts.
            times.push(at.elapsed());
            at += EVERY * ASKING;
        }
        times
    };
    let mut times: Vec<_> = thread::scope(|scope| {
        let asking: Vec<_> = (0..ASKING).map(|n| scope.spawn(move || ask(n))).collect();
        asking
            .into_iter()
            .flat_map(|one| one.join().unwrap())
            .collect()
    });
    times.sort_unstable();
    times
}

/// Has a crowd at `host` while another tenant is asked. Nobody is refused there.
fn with_crowd(host: &'static str, url: &'static str, headers: &'static [(&str, &str)]) -> Crowd {
    let varnish = Varnishd::start_with(TENANTS, &THREADS);
    eventually("both are ready", || {
        let list = varnish.admin(&["backend.list", "-p"]);
        list.contains("other: ready") && list.contains("sleeps: ready")
    });
    let (crowd, over) = (Crowd::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..CROWD {
            let client = varnish.client();
            let (crowd, over) = (&crowd, &over);
            scope.spawn(move || crowd.ask(client, host, url, headers, over));
        }
        let _end = End(&over, &varnish);
        eventually("the crowd is there", || {
            let answers = [&crowd.busy, &crowd.others].map(|count| count.load(Ordering::Relaxed));
            answers.iter().sum::<u64>() >= CROWD as u64
        });
        let times = ask_other(&varnish);
        let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
        eprintln!(
            "{host} {headers:?}: {} answers, p50 {:?}, p99 {:?}, longest {:?}; {crowd:?}",
            times.len(),
            at(50),
            at(99),
            at(100)
        );
    });
    crowd
}

/// Ends the crowd, also those of it who wait.
struct End<'a>(&'a AtomicBool, &'a Varnishd);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.kill_child();
    }
}

/// What the others' times are to be compared with.
#[test]
fn at_varnish_itself() {
    if !common::have_kvm() {
        return;
    }
    let crowd = with_crowd("synth", "/", &[]);
    assert_eq!(crowd.busy.into_inner(), 0);
}

#[test]
fn at_a_program_that_sleeps() {
    if !common::have_kvm() {
        return;
    }
    let crowd = with_crowd("sleeps", "/loop-sleep", &[]);
    assert_eq!(crowd.others.into_inner(), 0);
}

/// The same where VCL asks before the fetch.
#[test]
fn at_a_program_that_sleeps_if_vcl_asks() {
    if !common::have_kvm() {
        return;
    }
    let crowd = with_crowd("sleeps", "/loop-sleep", &[("X-If-Room", "yes")]);
    assert_eq!(crowd.others.into_inner(), 0);
}

#[test]
fn at_a_program_that_never_boots() {
    if !common::have_kvm() {
        return;
    }
    let crowd = with_crowd("boots", "/", &[]);
    assert_eq!(crowd.others.into_inner(), 0);
}
