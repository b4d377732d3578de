//! Programs that boot and answer.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{ENOUGH, Recorder, Tenant, config, guest, kvm_or_skip};
use forkvm::{BootError, Cause, Failure, Host, Program, Request, Stream, WarmUp};

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
        let parts = tenant.get("/parts");
        assert_eq!(parts.text().lines().count(), 10_000, "{name}");
        assert!(parts.text().ends_with("\nline 9999\n"), "{name}");
        assert_eq!(parts.header("X-A"), Some("b"), "{name}");
        assert_eq!(parts.cache.unwrap().ttl, 86_400.0, "{name}");
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

/// It says that it is ready; that there is nothing to call is each request's failure.
#[test]
fn waiting_without_a_handler_is_ready() {
    kvm_or_skip!();
    let tenant = Tenant::boot("waits-without-handler");
    let failure = tenant.failure("/").to_string();
    assert!(failure.contains("registered no handler"), "{failure}");
    tenant.assert_pristine();
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

    fn give_way(&mut self, time: Duration) -> ControlFlow<()> {
        if time.is_zero() {
            self.slices += 1;
            if self.slices <= 4 {
                std::thread::sleep(KEPT);
            }
        } else {
            self.sleeps += 1;
        }
        ControlFlow::Continue(())
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

/// A host that nobody needs the program of any more.
#[derive(Default)]
struct Stopping {
    asked: u32,
}

impl Host for Stopping {
    fn output(&mut self, _stream: Stream, _bytes: &[u8]) {}

    fn slice(&self) -> Option<Duration> {
        Some(Duration::from_millis(10))
    }

    fn give_way(&mut self, _: Duration) -> ControlFlow<()> {
        self.asked += 1;
        ControlFlow::Break(())
    }
}

#[test]
fn a_host_ends_a_boot() {
    kvm_or_skip!();
    let warm_up = WarmUp {
        num_requests: 1,
        url: "/sleep-loop/3600000".into(),
        ..Default::default()
    };
    for (name, warm_up) in [
        ("bad-main-never-ends", None),
        ("bad-main-sleeps", None),
        ("echo", Some(warm_up)),
    ] {
        let mut config = config(name);
        config.limits.max_boot_time = ENOUGH;
        config.warm_up = warm_up;
        let mut host = Stopping::default();
        let error = Program::boot(&guest(name), config, &mut host).unwrap_err();
        assert!(matches!(error, BootError::Stopped), "{name}: {error}");
        assert_eq!(host.asked, 1, "{name}");
    }
}

/// Nor is there an answer of on_error's, which would run on.
#[test]
fn a_host_ends_a_request_that_sleeps() {
    kvm_or_skip!();
    for arguments in [&[][..], &["on_error".to_owned()]] {
        let tenant =
            Tenant::boot_with("dirty", |config| config.main_arguments = arguments.to_vec());
        let request = Request {
            url: b"/30/sleep",
            ..Default::default()
        };
        let mut host = Stopping::default();
        let answer = tenant.answer(&request, Instant::now() + ENOUGH, &mut host);
        let failure = answer.map(|answer| answer.status()).unwrap_err();
        let Failure::Guest { cause, .. } = &failure else {
            panic!("{failure}");
        };
        assert_eq!(*cause, Cause::Stopped);
        assert_eq!(host.asked, 1);
        tenant.assert_pristine();
        assert_eq!(tenant.get("/40").text(), "wrote 40 found 0\n");
    }
}
