//! Long runs of the other ways to a program's answer: streams, storage, fetches, synth and chains, each with clients that hide secrets and
//! look for them, ask for what fails, read slowly, send slowly, and leave. `make soak` gives each some minutes, the tests a few seconds.
//!
//! SOAK_WAY_SECONDS: how long each takes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::client::{Body, Client};
use common::holdings::{Holdings, Trend};
use common::upstream::{Upstream, pattern};
use common::varnishd::Varnishd;
use common::{Numbers, eventually, variable};

/// Clients that want their answers, and those that are slow, and leave.
const VISITORS: u64 = 6;
const SLOW: u64 = 3;
const FORKS: usize = 4;

/// What every tenant here has.
const LIMITS: &str = "concurrency = 4, max_queue = 1000, max_wait = ENOUGH, max_request_time = ENOUGH, max_memory = 32MB";

const SUBS: &str = r#"
    sub vcl_recv {
        if (req.http.X-Synth) {
            return (synth(700));
        }
        return (pass);
    }
    sub vcl_synth {
        if (resp.status == 700) {
            if (kvm.synth(0, req.http.Host, req.url) == 0) {
                set resp.status = 503;
            }
            return (deliver);
        }
    }
    sub vcl_backend_fetch {
        set bereq.backend = kvm.backend();
        if (bereq.http.X-First) {
            kvm.chain(bereq.http.X-Tenant, bereq.http.X-First);
            kvm.chain("echo", "/echo");
            set bereq.backend = kvm.program(bereq.http.Host, bereq.url);
        }
    }
"#;

const NOTHING_FOUND: &str = "registers no vectors no mxcsr 1f80 control 37f direction no stack no below no heap no \
                             bss no brk no mmap no request no\n";

/// A client and its connection.
struct Visitor<'a> {
    varnish: &'a Varnishd,
    client: Client,
    numbers: Numbers,
    secret: String,
    /// The last that others have hidden.
    secrets: &'a Mutex<Vec<String>>,
    wrong: &'a Mutex<Vec<String>>,
}

impl Visitor<'_> {
    /// Asks, and looks at the answer's status and what it says.
    fn expect(
        &mut self,
        (host, url): (&str, &str),
        headers: &[(&str, &str)],
        body: Body<'_>,
        is_right: impl FnOnce(u16, &[u8]) -> bool,
    ) {
        let method = match body {
            Body::None => "GET",
            _ => "POST",
        };
        let response = self.client.try_send(method, host, url, headers, body);
        let what = match response {
            Ok(response) if is_right(response.status, &response.body) => return,
            Ok(response) => format!("{} {:?}", response.status, first(&response.body)),
            Err(error) => format!("{error}"),
        };
        self.wrong(&format!("{host}{url} {headers:?}"), &what);
        self.client = self.varnish.client();
    }

    fn wrong(&self, asked: &str, what: &str) {
        let mut wrong = self.wrong.lock().unwrap();
        if wrong.len() < 20 {
            eprintln!("WRONG {asked}: {what}");
        }
        wrong.push(format!("{asked}: {what}"));
    }

    /// What breaks off: the connection is lost, or the status says so.
    fn breaks_off(&mut self, host: &str, url: &str) {
        let response = self.client.try_send("GET", host, url, &[], Body::None);
        if response.is_ok_and(|response| response.status < 500) {
            self.wrong(&format!("{host}{url}"), "is whole");
        }
        self.client = self.varnish.client();
    }

    /// A secret of one's own, which others will look for.
    fn hidden(&mut self) -> String {
        let secret = format!("{}-{:x}", self.secret, self.numbers.next());
        let mut secrets = self.secrets.lock().unwrap();
        if secrets.len() >= 32 {
            secrets.remove(0);
        }
        secrets.push(secret.clone());
        secret
    }

    fn found(&mut self) -> String {
        let secrets = self.secrets.lock().unwrap();
        let nth = self.numbers.below(secrets.len().max(1));
        secrets.get(nth).cloned().unwrap_or_else(|| "none".into())
    }
}

fn first(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned()
}

/// Asks, reads a little, waits, and leaves.
fn be_slow(port: u16, numbers: &mut Numbers, (host, url, upload): (&str, &str, usize)) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let method = if upload > 0 { "POST" } else { "GET" };
    let head = format!(
        "{method} {url} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {upload}\r\nX-Way: slow\r\n"
    );
    let synth = if host == "synth" {
        "X-Synth: 1\r\n"
    } else {
        ""
    };
    // It may be turned away.
    let _ = stream.write_all(format!("{head}{synth}\r\n").as_bytes());
    let _ = stream.write_all(&vec![b'x'; upload / 2]);
    let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
    let _ = stream.read(&mut [0; 100]);
    thread::sleep(Duration::from_millis(numbers.below(200) as u64));
}

/// Runs clients for a while, `visit` what each does at a time, and looks at what varnishd holds.
fn soak(
    name: &str,
    vcl_init: &str,
    slow: &[(&str, &str, usize)],
    visit: impl Fn(&mut Visitor<'_>) + Sync,
) {
    let seconds = variable("SOAK_WAY_SECONDS");
    let vcl = format!("sub vcl_init {{ {vcl_init} }}{SUBS}");
    let varnish = Varnishd::start_subs(
        &vcl,
        &["-p", "thread_pool_min=40", "-p", "thread_pool_max=200"],
    );
    let child = varnish.child().pid();
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(3));
    let (secrets, wrong, visits) = (Mutex::default(), Mutex::default(), AtomicU64::new(0));
    let mut samples = Vec::new();
    thread::scope(|scope| {
        for nth in 0..VISITORS {
            let (secrets, wrong, visits, visit) = (&secrets, &wrong, &visits, &visit);
            let mut visitor = Visitor {
                varnish: &varnish,
                client: varnish.client(),
                numbers: Numbers(0x9e37_79b9_7f4a_7c15 ^ (nth + 1) << 32),
                secret: format!("secret-{nth}"),
                secrets,
                wrong,
            };
            scope.spawn(move || {
                while Instant::now() < end {
                    visit(&mut visitor);
                    visits.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for nth in 0..SLOW {
            let mut numbers = Numbers(0x2545_f491_4f6c_dd1d ^ (nth + 1) << 32);
            let port = varnish.port;
            scope.spawn(move || {
                while Instant::now() < end {
                    let nth = numbers.below(slow.len());
                    be_slow(port, &mut numbers, slow[nth]);
                }
            });
        }
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(50));
            samples.push(Holdings::of(&varnish));
        }
    });
    let trend = Trend::of(&samples);
    let wrong = wrong.into_inner().unwrap();
    eprintln!(
        "{name}: {} visits, {} wrong; varnishd's counters: requests {}, failures {}, timeouts {}, busy {}\n{trend}",
        visits.into_inner(),
        wrong.len(),
        varnish.counter("requests"),
        varnish.counter("failures"),
        varnish.counter("timeouts"),
        varnish.counter("busy"),
    );
    assert!(wrong.is_empty(), "{:#?}", &wrong[..wrong.len().min(20)]);
    assert_eq!(varnish.child().pid(), child, "another child");
    // In a short run forks are still being made, and come to their size, after its first quarter.
    let (forks, growth) = match seconds {
        Some(30..) => (0, 8 << 10),
        _ => (3 * FORKS, 64 << 10),
    };
    let Trend { early, late } = trend;
    assert!(
        late.memory <= early.memory + early.memory / 20 + growth,
        "memory grows"
    );
    assert!(
        // Connections come and go.
        late.descriptors <= early.descriptors + 24 + 3 * forks,
        "descriptors leak"
    );
    assert!(
        late.mappings <= early.mappings + early.mappings / 10 + 32 + 5 * forks,
        "mappings leak"
    );
    assert!(late.threads <= early.threads + 16, "threads leak");
    eventually("all forks are back", || {
        let list = varnish.admin(&["backend.list", "-p"]);
        list.lines()
            .filter_map(|line| line.split_once(" forks="))
            .all(|(_, rest)| {
                let mut words = rest.split([' ', '=']);
                let forks = words.next();
                words.next() == Some("idle") && words.next() == forks
            })
    });
}

#[test]
fn streams() {
    if !common::have_kvm() {
        return;
    }
    let init = format!(
        r#"kvm.tenant("t", "GUESTS/test/stream", {LIMITS}, max_response_size = 4MB);
        kvm.tenant("body", "GUESTS/test/segments", {LIMITS}, max_body_time = ENOUGH);"#
    );
    let slow = [
        ("t", "/endless?part=60000", 0),
        ("t", "/slow?len=100000", 0),
        ("body", "/sum", 300_000),
        ("body", "/sum", 1000),
    ];
    soak("streams", &init, &slow, |visitor| {
        let len = visitor.numbers.below(200_000) + 1;
        match visitor.numbers.below(20) {
            0..8 => {
                let part = visitor.numbers.below(70_000) + 1;
                let url = format!("/parts?len={len}&part={part}&text=1");
                visitor.expect(("t", &url), &[], Body::None, |status, body| {
                    let letter = |at: usize| b'a' + (at % 26) as u8;
                    let mut all = body.iter().enumerate();
                    status == 200 && body.len() == len && all.all(|(at, &byte)| byte == letter(at))
                });
            }
            8..12 => visitor.expect(("t", "/kept"), &[], Body::None, |status, body| {
                status == 200 && body == b"0\n"
            }),
            12..16 => {
                let sent = vec![b'x'; len];
                visitor.expect(
                    ("body", "/sum"),
                    &[],
                    Body::Chunked(&sent, 7777),
                    |status, body| {
                        status == 200 && first(body).contains(&format!(" len {len} fnv1a "))
                    },
                );
            }
            16 => {
                let ways = [
                    "crash", "exit", "wild", "kernel", "wraps", "edge", "huge", "more",
                ];
                let way = ways[visitor.numbers.below(ways.len())];
                visitor.breaks_off("t", &format!("/{way}?good={len}&len=1000000"));
            }
            17 => visitor.breaks_off("t", "/endless?part=60000"),
            _ => {
                let ways = ["refuse", "crash", "crash-late", "returns"];
                let url = format!("/{}", ways[visitor.numbers.below(ways.len())]);
                let sent = vec![b'x'; len + 200_000];
                visitor.expect(("body", &url), &[], Body::Length(&sent), |status, _| {
                    status == 500
                });
            }
        }
    });
}

#[test]
fn storage() {
    if !common::have_kvm() {
        return;
    }
    let init = format!(
        r#"kvm.tenant("t", "GUESTS/test/storage", {LIMITS}, storage = true, max_storage_time = 1s);
        kvm.tenant("fork", "GUESTS/test/storage", {LIMITS}, storage = "fork", max_storage_time = 1s);"#
    );
    let slow = [
        ("t", "/call/nap?b=20", 0),
        ("t", "/streamed", 0),
        ("fork", "/call/busy?b=20", 0),
        ("fork", "/many/50", 1000),
    ];
    soak("storage", &init, &slow, |visitor| {
        let host = ["t", "fork"][visitor.numbers.below(2)];
        match visitor.numbers.below(200) {
            0..120 => {
                let secret = visitor.hidden();
                let url = format!("/call/echo?b={secret}&b=,{secret}");
                let text = format!("{secret},{secret}");
                let expected = format!("{} {text}\n", text.len());
                visitor.expect((host, &url), &[], Body::None, |status, body| {
                    // Another one's crash ends it for all.
                    status == 200 && (body == expected.as_bytes() || body == b"-1 \n")
                });
            }
            120..150 => {
                let calls = visitor.numbers.below(20) + 1;
                let url = format!("/many/{calls}");
                visitor.expect((host, &url), &[], Body::None, |status, _| status == 200);
            }
            150..170 => {
                let url = "/raw/echo?len=8000000000000000";
                visitor.expect((host, url), &[], Body::None, |status, body| {
                    status == 200 && body == b"-1\n"
                });
            }
            170..185 => {
                let url = format!("/task/tick?start={}", visitor.numbers.below(50));
                visitor.expect((host, &url), &[], Body::None, |status, _| status == 200);
            }
            185..190 => {
                let url = "/task/tick-crash";
                visitor.expect((host, url), &[], Body::None, |status, _| status == 200);
            }
            190..199 => {
                let ways = ["crash", "quits", "answers", "crash-late", "too-long"];
                let url = format!("/call/{}", ways[visitor.numbers.below(ways.len())]);
                visitor.expect((host, &url), &[], Body::None, |status, body| {
                    status == 200 && body.starts_with(b"-1 ")
                });
            }
            _ => visitor.expect((host, "/call/endless"), &[], Body::None, |status, body| {
                status == 200 && body == b"-1 \n"
            }),
        }
    });
}

#[test]
fn fetches() {
    if !common::have_kvm() {
        return;
    }
    let upstream = Upstream::new();
    let init = format!(
        r#"kvm.tenant("t", "GUESTS/test/fetcher", {LIMITS}, allow_net = "{}", max_fetch_time = 1s, max_fetch_size = 1MB);"#,
        upstream.rule()
    );
    let hangs = format!("/whole?url={}", upstream.url("/hangs"));
    let endless = format!("/stream?url={}", upstream.url("/body/900000"));
    let long = format!("/parts?url={}", upstream.url("/chunked/300000"));
    // One that hangs has its fork for a second, whoever waits for it.
    let mut slow = [("t", &*endless, 0), ("t", &long, 2000)].repeat(6);
    slow.push(("t", &hangs, 0));
    soak("fetches", &init, &slow, |visitor| {
        let len = visitor.numbers.below(100_000);
        match visitor.numbers.below(100) {
            0..50 => {
                let secret = visitor.hidden();
                let at = upstream.url(&format!("/echo?{secret}"));
                let url = format!("/whole?url={at}&header=X-Hidden:+{secret}&show=1");
                visitor.expect(("t", &url), &[], Body::None, |status, body| {
                    let text = String::from_utf8_lossy(body);
                    let (all, own) = (
                        text.matches("secret-").count(),
                        text.matches(&secret).count(),
                    );
                    status == 200 && text.starts_with("OK\n") && own == 2 && all == own
                });
            }
            50..80 => {
                let (one, other) = (
                    upstream.url(&format!("/body/{len}")),
                    upstream.url("/chunked/9999"),
                );
                let url = format!("/parts?url={one}&second={other}");
                let read = format!("read OK {len} ");
                visitor.expect(("t", &url), &[], Body::None, |status, body| {
                    let text = String::from_utf8_lossy(body);
                    status == 200 && text.contains(&read) && text.contains("read OK 9999 ")
                });
            }
            80..85 => {
                let url = format!("/stream?url={}", upstream.url(&format!("/body/{len}")));
                visitor.expect(("t", &url), &[], Body::None, |status, body| {
                    status == 200 && body == pattern(len)
                });
            }
            85..90 => {
                let at = upstream.url("/chunked/500000");
                let url = format!("/parts?url={at}&second={at}&leave=1");
                visitor.expect(("t", &url), &[], Body::None, |status, _| status == 200);
            }
            90..99 => {
                let (at, error) = [
                    ("/endless", "EMSGSIZE\n"),
                    ("/junk", "EPROTO\n"),
                    ("/closes", "EPROTO\n"),
                    ("/cut/10", "EPROTO\n"),
                    ("/bad-chunk", "EPROTO\n"),
                    ("/many-headers", "EPROTO\n"),
                    ("/to/302?http://169.254.169.254/", "EACCES\n"),
                    ("/loop", "ELOOP\n"),
                ][visitor.numbers.below(8)];
                let url = format!("/whole?url={}&follow=1", upstream.url(at));
                visitor.expect(("t", &url), &[], Body::None, |status, body| {
                    // Any of them may be late on a busy machine.
                    status == 200 && (body == error.as_bytes() || body == b"ETIMEDOUT\n")
                });
            }
            _ => {
                let url = format!("/whole?url={}", upstream.url("/hangs"));
                visitor.expect(("t", &url), &[], Body::None, |status, body| {
                    status == 200 && body == b"ETIMEDOUT\n"
                });
            }
        }
    });
    // What is kept for later requests is all that is left.
    upstream.wait_for_open(..=0);
}

/// What a program that hides secrets is asked by one way as by the other.
fn leaks(visitor: &mut Visitor<'_>, headers: &dyn Fn(&str) -> Vec<(&'static str, String)>) {
    let asked = |visitor: &mut Visitor<'_>, url: &str, status: u16, body: &str| {
        let headers = headers(url);
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        // By a chain the program is the first, and what it says comes through the others.
        let is_chain = headers.iter().any(|(name, _)| *name == "X-First");
        let (host, url) = if is_chain {
            ("echo", "/echo")
        } else {
            ("leak", url)
        };
        visitor.expect((host, url), &headers, Body::None, |came, text| {
            came == status && (body.is_empty() || text == body.as_bytes())
        });
    };
    match visitor.numbers.below(20) {
        0..9 => {
            let url = format!("/plant/{}", visitor.hidden());
            asked(visitor, &url, 200, "planted\n");
        }
        9 => {
            let url = format!("/plant-crash/{}", visitor.hidden());
            let status = if headers("").iter().any(|(name, _)| *name == "X-First") {
                500
            } else {
                503
            };
            asked(visitor, &url, status, "");
        }
        _ => {
            let url = format!("/find/{}", visitor.found());
            asked(visitor, &url, 200, NOTHING_FOUND);
        }
    }
}

#[test]
fn synth() {
    if !common::have_kvm() {
        return;
    }
    let init = format!(
        r#"kvm.tenant("leak", "GUESTS/test/leak", {LIMITS});
        kvm.tenant("synth", "GUESTS/test/echo", {LIMITS}, max_response_memory = 64MB);"#
    );
    let slow = [
        ("synth", "/size/2000000", 0),
        ("synth", "/echo", 100_000),
        ("synth", "/sleep-loop/5", 0),
    ];
    soak("synth", &init, &slow, |visitor| {
        let synth = [("X-Synth", "1")];
        match visitor.numbers.below(4) {
            0 => {
                let sent = pattern(visitor.numbers.below(100_000));
                visitor.expect(
                    ("synth", "/echo"),
                    &synth,
                    Body::Length(&sent),
                    |status, body| status == 200 && body == sent,
                );
            }
            1 => visitor.expect(("synth", "/counter"), &synth, Body::None, |status, body| {
                status == 200 && body == b"1\n"
            }),
            _ => leaks(visitor, &|_| vec![("X-Synth", "1".into())]),
        }
    });
}

#[test]
fn chains() {
    if !common::have_kvm() {
        return;
    }
    let init = format!(
        r#"kvm.tenant("leak", "GUESTS/test/leak", {LIMITS});
        kvm.tenant("echo", "GUESTS/test/echo", {LIMITS}, max_response_memory = 64MB);"#
    );
    let slow = [("echo", "/size/2000000", 0), ("echo", "/echo", 100_000)];
    soak("chains", &init, &slow, |visitor| {
        match visitor.numbers.below(4) {
            0 => {
                let sent = pattern(visitor.numbers.below(100_000) + 1);
                let headers = [("X-Tenant", "echo"), ("X-First", "/echo")];
                visitor.expect(
                    ("echo", "/echo"),
                    &headers,
                    Body::Length(&sent),
                    |status, body| status == 200 && body == sent,
                );
            }
            1 => {
                // The first link's, the last one's, and one that is nobody.
                let (tenant, first, last, status) = [
                    ("echo", "/complain", "/echo", 500),
                    ("echo", "/size/1000", "/complain", 500),
                    ("nobody", "/", "/echo", 503),
                    ("echo", "/status/404", "/echo", 404),
                ][visitor.numbers.below(4)];
                let headers = [("X-Tenant", tenant), ("X-First", first)];
                visitor.expect(("echo", last), &headers, Body::None, |came, _| {
                    came == status
                });
            }
            _ => leaks(visitor, &|url| {
                vec![("X-Tenant", "leak".into()), ("X-First", url.to_owned())]
            }),
        }
    });
}
