//! `forkvm serve`: what one connection does is not felt by the others.
#![allow(clippy::unwrap_used)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
mod serving;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::kvm_or_skip;
use serving::Serving;

/// Requests of a measurement.
const COUNT: usize = 200;
/// The goal is 2, for the 99th percentile too, which is shown. Tests that run beside this one take processors away, and two of the
/// requests are soon held up by that for 100 ms: what is asserted is the median.
const MOST: f64 = 20.0;

/// Between one attack and the next. Without it this would be a matter of who sends more.
const PAUSE: Duration = Duration::from_millis(20);

/// What somebody does meanwhile, again and again until it is over.
type Attack = fn(&Serving) -> Vec<TcpStream>;

fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n").into_bytes()
}

/// The median of what requests take, and the 99th percentile.
fn times(serving: &Serving) -> [Duration; 2] {
    let mut times: Vec<Duration> = (0..COUNT)
        .map(|_| {
            let start = Instant::now();
            assert_eq!(serving.get("/"), "count 1\n");
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    [times[COUNT / 2], times[COUNT * 99 / 100]]
}

/// Sends this, and stays.
fn stays(serving: &Serving, path: &str) -> Vec<TcpStream> {
    let stream = serving.ask(&request(path));
    std::thread::sleep(Duration::from_millis(20));
    vec![stream]
}

const ATTACKS: [(&str, Attack); 8] = [
    ("a spinning request", |serving| stays(serving, "/spin")),
    ("a memory hog", |serving| {
        serving.get("/fill");
        Vec::new()
    }),
    ("a descriptor hog", |serving| stays(serving, "/files")),
    ("a thread bomb", |serving| stays(serving, "/threads")),
    ("closed clients", |serving| {
        drop(serving.ask(b"GET / HT"));
        drop(serving.ask(&request("/big")));
        Vec::new()
    }),
    ("a slow client", |serving| {
        let mut stream = serving.connect();
        for byte in b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 50\r\n\r\nxxxxxxxx" {
            stream.write_all(&[*byte]).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        vec![stream]
    }),
    ("a slow reader", |serving| {
        let mut stream = serving.ask(&request("/big"));
        for _ in 0..50 {
            let _ = stream.read(&mut [0; 16]);
            std::thread::sleep(Duration::from_millis(5));
        }
        vec![stream]
    }),
    ("idle connections", |serving| {
        (0..1000).map(|_| serving.connect()).collect()
    }),
];

/// What a program loads into DS, ES and GS is in no memory that a reset puts back.
#[test]
fn selectors_are_a_connections_own() {
    kvm_or_skip!();
    for options in [&["-t1"][..], &["-t2"], &["-t1", "--per-request"]] {
        let serving = Serving::simple(options);
        for _ in 0..10 {
            assert_eq!(serving.get("/selectors"), "0 0 0\n", "{options:?}");
        }
    }
}

#[test]
fn others_are_served_as_before() {
    kvm_or_skip!();
    for way in [&[][..], &["--per-request"]] {
        for (what, attack) in ATTACKS {
            let options = [
                "-t4",
                "--max-request-time=600",
                "--max-request-memory=12",
                // A request that spins is not waited for.
                "--max-stop-time=1",
            ];
            let serving = Serving::simple(&[&options, way].concat());
            assert_eq!(serving.get("/"), "count 1\n");
            let before = times(&serving);
            let (begun, over) = (AtomicBool::new(false), AtomicBool::new(false));
            let meanwhile = std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut held = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        // What stays holds one fork, not all.
                        if held.is_empty() {
                            held = attack(&serving);
                        }
                        begun.store(true, Ordering::Relaxed);
                        std::thread::sleep(PAUSE);
                    }
                });
                serving.wait("the attack", || begun.load(Ordering::Relaxed));
                let meanwhile = times(&serving);
                over.store(true, Ordering::Relaxed);
                meanwhile
            });
            let ratio = |nth: usize| meanwhile[nth].as_secs_f64() / before[nth].as_secs_f64();
            let said = format!(
                "{what} {way:?}: median and p99 {before:?}, meanwhile {meanwhile:?}, {:.2} and {:.2} times",
                ratio(0),
                ratio(1)
            );
            println!("{said}");
            // What is below a millisecond is the scheduler's.
            let floor = before[0].max(Duration::from_millis(1));
            assert!(
                meanwhile[0].as_secs_f64() < MOST * floor.as_secs_f64(),
                "{said}"
            );
        }
    }
}

/// The nice values of the command's threads.
fn nice_values(serving: &Serving) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", serving.id())).unwrap();
    let stat =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    // The 19th field; the second one is a name in brackets (proc_pid_stat(5)).
    stat.filter_map(|stat| stat.rsplit(')').next()?.split(' ').nth(17)?.parse().ok())
        .collect()
}

#[test]
fn who_computes_for_long_has_less_of_the_processors() {
    kvm_or_skip!();
    let serving = Serving::simple(&["-t2", "--max-time=4"]);
    let usual = nice_values(&serving).into_iter().min().unwrap();
    let lowered = || {
        let values = nice_values(&serving);
        values.iter().filter(|&&value| value > usual).count()
    };
    let stay = serving.ask(&request("/stay"));
    let mut spins = serving.ask(&request("/spin"));
    serving.wait("one lowered thread", || lowered() == 1);
    drop(stay);
    assert_eq!(serving.get("/"), "count 1\n");
    // Its place is taken by one that is as before.
    assert_eq!(serving::rest(&mut spins), "");
    serving.wait("no lowered thread", || lowered() == 0);
    for _ in 0..50 {
        assert_eq!(serving.get("/"), "count 1\n");
    }
    let both = [
        serving.ask(&request("/drip")),
        serving.ask(&request("/drip")),
    ];
    for mut stream in both {
        stream.read_exact(&mut [0; 20]).unwrap();
    }
}
