//! Programs that have something fetched, in forks, from upstreams on loopback.
// How long things may take is in both parts of what tests share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::duplicate_mod)]

#[path = "../../forkvm/tests/common/mod.rs"]
mod common;
#[path = "common/mod.rs"]
mod fetching;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Recorder, Tenant, config, guest, kvm_or_skip, scaled};
use fetching::settings;
use fetching::upstream::{Upstream, pattern};
use forkvm::{Config, Failure, Fetcher, Header, Host, Program, Request, Stream};
use forkvm_fetch::{Client, Own, Settings};

/// A host that fetches, and keeps what is logged.
struct Fetches {
    client: Arc<Client>,
    seen: Recorder,
}

impl Host for Fetches {
    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        self.seen.output(stream, bytes);
    }

    fn fetcher(&self) -> Option<Arc<dyn Fetcher>> {
        Some(self.client.clone())
    }
}

/// A program, and who fetches for it.
struct Booted {
    tenant: Tenant,
    client: Arc<Client>,
}

/// What a request came to, and what was logged.
type Answered = (Result<String, Failure>, String);

impl Booted {
    fn boot(settings: Settings) -> Self {
        Self::boot_with(settings, |_| {})
    }

    fn boot_with(settings: Settings, change: impl FnOnce(&mut Config)) -> Self {
        Self::boot_guest("fetcher", settings, change)
    }

    fn boot_guest(name: &str, settings: Settings, change: impl FnOnce(&mut Config)) -> Self {
        let client = Arc::new(fetching::client(settings));
        let mut config = config(name);
        change(&mut config);
        let mut host = Fetches {
            client: client.clone(),
            seen: Recorder::default(),
        };
        let program = Program::boot(&guest(name), config, &mut host);
        Self {
            tenant: program.unwrap_or_else(|error| panic!("{error}")).into(),
            client,
        }
    }

    fn ask(&self, request: &Request<'_>, time: Duration) -> Answered {
        let mut host = Fetches {
            client: self.client.clone(),
            seen: Recorder::default(),
        };
        let reply = self
            .tenant
            .try_send(request, Instant::now() + time, &mut host);
        let text = reply.map(|reply| reply.text().to_owned());
        (text, host.seen.text(Stream::Log))
    }

    fn get(&self, url: &str) -> String {
        self.logged(url).0
    }

    fn logged(&self, url: &str) -> (String, String) {
        let request = Request {
            url: url.as_bytes(),
            ..Default::default()
        };
        let (text, log) = self.ask(&request, common::ENOUGH);
        let text = text.unwrap_or_else(|failure| panic!("{url}: {failure}, {log}"));
        // Whatever the request did, the next one finds nothing of it.
        self.tenant.assert_pristine();
        (text, log)
    }
}

fn quote(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

fn whole(url: &str, more: &str) -> String {
    format!("/whole?url={}{more}", quote(url))
}

fn crc32(bytes: &[u8]) -> String {
    format!("crc32 {:08x}", common::sums::crc32(bytes))
}

#[test]
fn a_program_gets_what_it_asks_for() {
    kvm_or_skip!();
    let upstream = Upstream::new();
    let program = Booted::boot(settings(&[&upstream.rule()]));
    let text = program.get(&whole(
        &upstream.url("/echo?a"),
        "&header=X-A:%20b&header=X-C:%20d&show=1",
    ));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[..3],
        ["OK", "status 200", "type 9 text/echo"],
        "{text}"
    );
    assert!(text.contains("\nterminated yes\n"), "{text}");
    assert!(
        text.contains("content-type: text/echo\r\nx-twice: 1\r\nx-twice: 2\r\n"),
        "{text}"
    );
    assert!(text.contains("GET /echo?a HTTP/1.1\r\n"), "{text}");
    assert!(
        text.contains("\r\nx-a: b\r\n") && text.contains("\r\nx-c: d\r\n"),
        "{text}"
    );

    let text = program.get(&whole(&upstream.url("/echo"), "&post=a%3Db&show=1"));
    assert!(
        text.contains("POST /echo HTTP/1.1\r\n") && text.ends_with("\r\n\r\na=b"),
        "{text}"
    );
    assert!(
        text.contains("content-type: application/x-www-form-urlencoded\r\n"),
        "{text}"
    );
    let text = program.get(&whole(
        &upstream.url("/echo"),
        "&post=&show=1&header=content-type:a/b",
    ));
    assert!(
        text.contains("content-length: 0\r\n") && text.contains("content-type: a/b\r\n"),
        "{text}"
    );
    // Or where the response's type will be; so much of it as is said, if that is said.
    for (more, posted) in [
        ("&type=image/png", "image/png"),
        ("&type=image/png%20", "image/png"),
        ("&type=image/pngx&ctlen=9", "image/png"),
        ("&type=image/png&ctlen=99", "image/png"),
        ("&type=image/png&ctlen=4294967295", "image/png"),
        ("&type=&ctlen=9", "application/x-www-form-urlencoded"),
        ("&type=image/png&header=content-type:a/b", "a/b"),
    ] {
        let text = program.get(&whole(
            &upstream.url("/echo"),
            &format!("&post=a&show=1{more}"),
        ));
        let line = format!("\r\ncontent-type: {posted}\r\n");
        assert_eq!(text.matches("\r\ncontent-type: ").count(), 1, "{text}");
        assert!(text.contains(&line), "{more}: {text}");
    }
    let text = program.get(&whole(&upstream.url("/echo"), "&type=image/png&show=1"));
    assert!(!text.contains("\r\ncontent-type: "), "{text}");
    let text = program.get(&whole(&upstream.url("/echo"), "&post=a&type=a%0d%0aX:%20y"));
    assert_eq!(text, "EINVAL\n");
    let text = program.get(&whole(&upstream.url("/status/503"), ""));
    assert!(
        text.starts_with("OK\nstatus 503\ntype 0 \nlength 0 "),
        "{text}"
    );
}

#[test]
fn bodies_of_any_length_come_whole() {
    kvm_or_skip!();
    let upstream = Upstream::new();
    let program = Booted::boot(settings(&[&upstream.rule()]));
    for len in [0, 1, 4095, 4096, 65_536, 65_537, 3_000_000] {
        for how in ["body", "chunked", "until-close"] {
            let text = program.get(&whole(&upstream.url(&format!("/{how}/{len}")), ""));
            let expected = format!("length {len} {}\nterminated yes\n", crc32(&pattern(len)));
            assert!(text.contains(&expected), "{how} {len}: {text}");
        }
    }
    // In a buffer of its own; it fits or fails.
    for (room, fits) in [(1000, true), (1001, true), (999, false), (0, false)] {
        for how in ["body", "chunked"] {
            let url = whole(
                &upstream.url(&format!("/{how}/1000")),
                &format!("&room={room}"),
            );
            let (text, log) = program.logged(&url);
            match fits {
                true => assert!(
                    text.contains(&crc32(&pattern(1000))),
                    "{how} {room}: {text}"
                ),
                false => {
                    assert_eq!(text, "EMSGSIZE\n", "{how} {room}");
                    assert!(
                        log.contains(&format!("the {room} bytes of its buffer")),
                        "{log}"
                    );
                }
            }
        }
    }
    let text = program.get(&whole(&upstream.url("/body/1000"), "&dummy=1"));
    assert!(
        text.starts_with("OK\nstatus 200\ntype 0 \nlength 0 "),
        "{text}"
    );
    // Header lines are whole or left out.
    let text = program.get(&whole(&upstream.url("/echo"), "&headers=40"));
    assert!(
        text.contains("headers 37\ncontent-type: text/echo\r\nx-twice: 1\r\n"),
        "{text}"
    );
}

#[test]
fn what_fails_is_a_number_for_the_program_and_a_line_in_the_log() {
    kvm_or_skip!();
    let upstream = Upstream::new();
    let program = Booted::boot(Settings {
        max_size: 1000,
        ..settings(&[&upstream.rule(), "*.local", "*.nowhere"])
    });
    let port = upstream.address.port();
    for (url, error, line) in [
        (
            "http://169.254.169.254/secret?key".into(),
            "EACCES",
            "169.254.169.254:80 may not be reached",
        ),
        (
            "http://a.local:81/".into(),
            "EACCES",
            "a.local has the address 127.0.0.1",
        ),
        (
            "http://a.nowhere/".into(),
            "EHOSTUNREACH",
            "no address of a.nowhere",
        ),
        ("ftp://a/".into(), "EINVAL", "neither http nor https"),
        (
            format!("http://user:secret@127.0.0.1:{port}/"),
            "EINVAL",
            "the name of a user",
        ),
        (
            upstream.url("/body/1001"),
            "EMSGSIZE",
            "1000 bytes (max_fetch_size)",
        ),
        (
            upstream.url("/endless"),
            "EMSGSIZE",
            "1000 bytes (max_fetch_size)",
        ),
        (upstream.url("/junk"), "EPROTO", "HTTP: "),
        (upstream.url("/bad-chunk"), "EPROTO", "HTTP: "),
        (upstream.url("/cut/10"), "EPROTO", "HTTP: "),
    ] {
        let (text, log) = program.logged(&whole(&url, ""));
        assert_eq!(text, format!("{error}\n"), "{url}: {log}");
        assert!(
            log.starts_with("fetch of ") && log.contains(line),
            "{url}: {log}"
        );
        assert!(!log.contains("secret"), "{log}");
    }
    for (more, error) in [
        ("&header=no%20colon", "EINVAL"),
        ("&header=Host:%20other", "EINVAL"),
        ("&header=X:%20a%0d%0aY:%20b", "EINVAL"),
        ("&header=X%20Y:%20a", "EINVAL"),
        ("&unverified=1", "EACCES"),
        ("&own=1", "ENOSYS"),
    ] {
        let text = program.get(&whole(&upstream.url("/echo"), more));
        assert_eq!(text, format!("{error}\n"), "{more}");
    }
    let long = "x".repeat(1001);
    let text = program.get(&whole(&upstream.url("/echo"), &format!("&post={long}")));
    assert_eq!(text, "EMSGSIZE\n");
    // What is about the connection is not the program's to say.
    let lines = "&header=Connection:%20x-a&header=Content-Length:%205&header=Transfer-Encoding:%20chunked\
                 &header=Expect:%20100-continue&header=X-A:%20b&show=1";
    let text = program.get(&whole(&upstream.url("/echo"), lines));
    assert!(text.contains("\r\nx-a: b\r\n"), "{text}");
    for name in [
        "connection:",
        "content-length: 5",
        "transfer-encoding:",
        "expect:",
    ] {
        assert!(!text.contains(name), "{name}: {text}");
    }
}

#[test]
fn bad_pointers_are_refused_and_nothing_is_fetched() {
    kvm_or_skip!();
    let upstream = Upstream::new();
    let program = Booted::boot(settings(&[&upstream.rule()]));
    for (which, error) in [
        ("url", "EFAULT"),
        ("url-len", "EINVAL"),
        ("url-wraps", "EFAULT"),
        ("op", "EFAULT"),
        ("op-read-only", "EFAULT"),
        ("op-end", "EFAULT"),
        ("fields", "EFAULT"),
        ("options", "EFAULT"),
        ("interface", "EINVAL"),
        ("field", "EINVAL"),
        ("content", "EFAULT"),
        ("content-len", "EFAULT"),
        ("headers", "EFAULT"),
        ("post", "EMSGSIZE"),
        ("post-null-page", "EFAULT"),
        ("begin", "EFAULT"),
        ("begin-method", "EINVAL"),
        ("begin-headers", "EFAULT"),
        ("begin-many-headers", "EINVAL"),
        ("begin-body", "EMSGSIZE"),
        ("head", "EBADF"),
        ("head-out", "EFAULT"),
        ("read", "EBADF"),
        ("read-out", "EFAULT"),
        ("close", "EBADF"),
        ("last", "ENOSYS"),
    ] {
        let url = format!("/bad/{which}?url={}", quote(&upstream.url("/echo")));
        assert_eq!(program.get(&url), format!("{error}\n"), "{which}");
    }
    assert_eq!(upstream.connections(), 0);
    // What overlaps is the program's own affair: it is read before anything is written.
    let url = format!("/bad/overlapping?url={}", quote(&upstream.url("/body/100")));
    let text = program.get(&url);
    assert!(["OK\n", "EFAULT\n", "EINVAL\n"].contains(&&*text), "{text}");
}

#[test]
fn several_are_fetched_at_once_and_read_as_they_come() {
    kvm_or_skip!();
    let upstream = Upstream::new();
    let program = Booted::boot(settings(&[&upstream.rule()]));
    let parts = |url: &str, more: &str| program.get(&format!("/parts?url={}{more}", quote(url)));
    let second = format!("&second={}", quote(&upstream.url("/chunked/200000")));
    let expected = format!(
        "begin OK\nbegin OK\nstatus 200 headers 23 length 70000\nread OK 70000 {}\n\
         status 200 headers 28 length -1\nread OK 200000 {}\nclose OK, again EBADF\n",
        crc32(&pattern(70_000)),
        crc32(&pattern(200_000))
    );
    assert_eq!(parts(&upstream.url("/body/70000"), &second), expected);
    let text = parts(&upstream.url("/echo"), "&method=PATCH&post=x");
    assert!(text.starts_with("begin OK\nstatus 200 "), "{text}");
    // One breaks off, the other goes on.
    let text = parts(&upstream.url("/cut/10"), &second);
    assert!(text.contains("read EPROTO 10 "), "{text}");
    assert!(text.contains(&crc32(&pattern(200_000))), "{text}");
    let text = parts("http://10.0.0.1/", "");
    assert_eq!(text, "begin EACCES\nclose EBADF, again EBADF\n");
}

#[test]
fn what_a_request_leaves_open_ends_with_it() {
    kvm_or_skip!();
    let upstream = Upstream::new();
    let program = Booted::boot(Settings {
        max_fetches: 10,
        ..settings(&[&upstream.rule()])
    });
    let url = quote(&upstream.url("/hangs"));
    for _ in 0..5 {
        let text = program.get(&format!("/many?url={url}"));
        assert_eq!(text, "8, then EMFILE\nclose OK\nbegin 3\n");
        upstream.wait_for_open(..=0);
    }
    let second = quote(&upstream.url("/hangs-after/5"));
    program.get(&format!("/parts?url={url}&second={second}&leave=1"));
    upstream.wait_for_open(..=0);
    // The next request has none of their numbers.
    assert_eq!(program.get("/bad/head?url=x"), "EBADF\n");
    // Less than a request may, the tenant may.
    let few = Booted::boot(Settings {
        max_fetches: 2,
        ..settings(&[&upstream.rule()])
    });
    let text = few.get(&format!("/many?url={url}"));
    assert_eq!(text, "2, then EAGAIN\nclose EBADF\nbegin -11\n");
}

#[test]
fn a_fetch_ends_with_its_requests_time() {
    kvm_or_skip!();
    let upstream = Upstream::new();
    let program = Booted::boot(settings(&[&upstream.rule(), "*.hangs"]));
    let name = format!("http://a.hangs:{}/", upstream.address.port());
    let (hangs, after) = (upstream.url("/hangs"), upstream.url("/hangs-after/5"));
    for url in [
        whole(&hangs, ""),
        whole(&after, ""),
        whole(&name, ""),
        format!("/parts?url={}", quote(&hangs)),
        format!("/parts?url={}", quote(&after)),
    ] {
        let request = Request {
            url: url.as_bytes(),
            ..Default::default()
        };
        let failure = program
            .ask(&request, scaled(Duration::from_millis(300)))
            .0
            .expect_err(&url);
        assert!(failure.is_timeout(), "{url}: {failure}");
        // One may wait for another request.
        upstream.wait_for_open(..=1);
        // The fork is as good as new.
        let text = program.get(&whole(&upstream.url("/body/3"), ""));
        assert!(text.starts_with("OK\n"), "{text}");
    }
    // With a shorter limit of its own a program can say so.
    let short = Booted::boot(Settings {
        max_time: scaled(Duration::from_millis(200)),
        ..settings(&[&upstream.rule()])
    });
    assert_eq!(short.get(&whole(&hangs, "")), "ETIMEDOUT\n");
}

#[test]
fn isolated_requests_share_connections_and_their_memory_is_limited() {
    kvm_or_skip!();
    let upstream = Upstream::new();
    let program = Booted::boot_with(settings(&[&upstream.rule()]), |config| {
        config.concurrency = 1;
        config.limits.max_request_memory = 4 << 20;
    });
    for _ in 0..20 {
        let text = program.get(&whole(&upstream.url("/body/1000"), ""));
        assert!(text.starts_with("OK\n"), "{text}");
    }
    assert_eq!(upstream.connections(), 1);
    for path in ["/body/8000000", "/chunked/8000000"] {
        let url = whole(&upstream.url(path), "");
        let request = Request {
            url: url.as_bytes(),
            ..Default::default()
        };
        let failure = program.ask(&request, common::ENOUGH).0.expect_err(path);
        assert!(
            failure.to_string().contains("max_request_memory"),
            "{path}: {failure}"
        );
        let text = program.get(&whole(&upstream.url("/body/1000"), ""));
        assert!(text.starts_with("OK\n"), "{text}");
    }
    // What its heap has no room for is an error that it can see.
    let small = Booted::boot_with(settings(&[&upstream.rule()]), |config| {
        config.limits.max_memory = 16 << 20;
    });
    assert_eq!(
        small.get(&whole(&upstream.url("/body/16000000"), "")),
        "ENOMEM\n"
    );
    // Another tenant's has connections of its own.
    assert_eq!(small.client.stats().fetches, 1);
}

#[test]
fn main_can_fetch_but_not_in_parts() {
    kvm_or_skip!();
    let upstream = Upstream::new();
    let in_main = |arguments: &[&str]| {
        let program = Booted::boot_with(settings(&[&upstream.rule()]), |config| {
            config.main_arguments = arguments.iter().map(|&text| text.into()).collect();
        });
        program.get("/main")
    };
    assert_eq!(in_main(&[&upstream.url("/body/100000")]), "OK\n");
    assert_eq!(in_main(&["http://10.0.0.1/"]), "EACCES\n");
    assert_eq!(in_main(&[&upstream.url("/body/1"), "parts"]), "EPERM\n");
}

#[test]
fn without_anybody_who_fetches_there_is_nothing() {
    kvm_or_skip!();
    let tenant = Tenant::boot("fetcher");
    let text = tenant
        .get(&whole("http://127.0.0.1/", ""))
        .text()
        .to_owned();
    assert_eq!(text, "ENOSYS\n");
    let text = tenant.get("/parts?url=http:").text().to_owned();
    assert!(text.starts_with("begin ENOSYS\n"), "{text}");
}

#[test]
fn a_program_that_asks_its_own_varnish_does_not_do_so_for_ever() {
    kvm_or_skip!();
    let upstream = Upstream::new();
    let settings = settings(&[]);
    settings
        .own
        .set(Own::new(None, &upstream.url(""), 4).unwrap());
    let program = Booted::boot(settings);
    let ask = |loops: &[u8]| {
        let url = whole("/echo", "&own=1&show=1");
        let request = Request {
            url: url.as_bytes(),
            headers: &[Header::new("cdn-loop", loops)],
            ..Default::default()
        };
        let (text, log) = program.ask(&request, common::ENOUGH);
        (text.unwrap(), log)
    };
    let (text, _) = ask(b"other");
    assert!(text.contains("\r\ncdn-loop: vmod-kvm\r\n"), "{text}");
    let (text, _) = ask(b"vmod-kvm, other,vmod-kvm");
    assert!(
        text.contains("\r\ncdn-loop: vmod-kvm, vmod-kvm, vmod-kvm\r\n"),
        "{text}"
    );
    let (text, log) = ask(b"vmod-kvm, vmod-kvm, vmod-kvm, vmod-kvm");
    assert_eq!(text, "ELOOP\n");
    assert!(log.contains("too often in a row"), "{log}");
}

#[test]
fn what_comes_can_be_passed_on_as_it_comes() {
    kvm_or_skip!();
    let upstream = Upstream::new();
    let program = Booted::boot(settings(&[&upstream.rule()]));
    let url = format!("/stream?url={}", quote(&upstream.url("/echo?streamed")));
    let text = program.get(&url);
    assert!(
        text.starts_with("GET /echo?streamed HTTP/1.1\r\n"),
        "{text}"
    );
    upstream.wait_for_open(..=1);
}

#[test]
fn a_program_in_rust_fetches() {
    kvm_or_skip!();
    let upstream = Upstream::new();
    let program = Booted::boot_guest("rust", settings(&[&upstream.rule()]), |_| {});
    let text = program.get(&format!("/fetch?{}", upstream.url("/echo")));
    assert!(text.starts_with("200 text/echo Some("), "{text}");
    assert!(text.contains("GET /echo HTTP/1.1\r\nx-a: b\r\n"), "{text}");
    assert!(text.ends_with("\r\n\r\nposted"), "{text}");
    let request = Request {
        url: b"/fetch?http://10.0.0.1/",
        ..Default::default()
    };
    let (text, log) = program.ask(&request, common::ENOUGH);
    assert!(text.unwrap().contains("Permission denied"), "{log}");
}
