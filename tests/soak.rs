//! The soak: clients hide secrets wherever a program can, and look for each other's, through a real varnishd whose
//! tenants' forks they share. `make soak` sends 1,000,000 requests, the test a few thousand.
//!
//! SOAK_REQUESTS: how many. SOAK_SECONDS: no longer than this.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "../crates/forkvm/tests/common/ops.rs"]
mod ops;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::client::{Body, Client};
use common::holdings::{Holdings, Trend};
use common::varnishd::Varnishd;
use common::{Numbers, variable};
use ops::{ENDINGS, Ending, Finale, Op};

const CLIENTS: usize = 12;
/// Tenants with the program that hides and looks. `short` has a short time limit, for those that loop.
const HIDING: [&str; 3] = ["one", "two", "short"];
const TENANTS: &str = r#"
    kvm.tenant("one", "GUESTS/test/leak", concurrency = 4, max_wait = ENOUGH, max_request_time = ENOUGH,
        max_memory = 32MB, req_mem_limit_after_reset = 2MB);
    kvm.tenant("two", "GUESTS/test/leak", concurrency = 3, max_wait = ENOUGH, max_request_time = ENOUGH,
        max_memory = 32MB, req_mem_limit_after_reset = 2MB);
    kvm.tenant("short", "GUESTS/test/leak", concurrency = 3, max_wait = ENOUGH, max_request_time = 10s,
        max_memory = 32MB, req_mem_limit_after_reset = 2MB);
    kvm.tenant("ops", "GUESTS/test/ops", concurrency = 3, max_wait = ENOUGH, max_request_time = ENOUGH,
        max_memory = 32MB, max_request_memory = 5MB, req_mem_limit_after_reset = 2MB);
    kvm.tenant("counter", "GUESTS/counter", concurrency = 2, max_wait = ENOUGH, max_request_time = ENOUGH,
        max_memory = 32MB);
    kvm.tenant("dirty", "GUESTS/test/dirty", concurrency = 2, max_wait = ENOUGH, max_request_time = ENOUGH,
        max_memory = 128MB, req_mem_limit_after_reset = 2MB);
    kvm.tenant("crash", "GUESTS/crash", concurrency = 2, max_wait = ENOUGH, max_request_time = ENOUGH,
        max_memory = 32MB, req_mem_limit_after_reset = 2MB);
"#;
const NOTHING_FOUND: &str = "registers no vectors no mxcsr 1f80 control 37f direction no stack no below no heap no \
                             bss no brk no mmap no request no\n";

/// What all clients share.
struct Soak<'a> {
    varnish: &'a Varnishd,
    /// Requests still to be sent.
    left: AtomicU64,
    end: Instant,
    /// The last secrets hidden, with their tenants' places in [`HIDING`].
    secrets: Mutex<Vec<String>>,
    /// Only one of them loops at a time: the others want the processor too.
    looping: AtomicBool,
    /// What /regs and /probe answered first, by tenant.
    first: BTreeMap<&'static str, String>,
    /// Ways to crash with what has to come of them.
    ways: Vec<(String, String)>,
    counts: Counts,
    /// What was wrong.
    wrong: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    planted: AtomicU64,
    searched: AtomicU64,
    compared: AtomicU64,
    random: AtomicU64,
    crashed: AtomicU64,
    kicked: AtomicU64,
    others: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One client and its connection.
struct Visitor<'a> {
    soak: &'a Soak<'a>,
    client: Client,
    numbers: Numbers,
    name: usize,
    hidden: u64,
}

impl Visitor<'_> {
    fn run(&mut self) {
        let more = |left: u64| left.checked_sub(1);
        while self
            .soak
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok()
            && Instant::now() < self.soak.end
        {
            self.visit();
            count(&self.soak.counts.requests);
        }
    }

    fn visit(&mut self) {
        match self.numbers.below(1000) {
            0..380 => self.hide(),
            380..760 => self.search(),
            760..800 => self.compare(),
            800..900 => self.random_list(),
            900..940 => self.crash(),
            940..980 => self.expect("counter", "/", &[200], "1\n", &self.soak.counts.others),
            980..995 => self.dirty(60),
            _ => self.dirty(1200),
        }
    }

    /// Sends a request; its status has to be one of these, and its body this unless empty.
    fn expect(&mut self, host: &str, url: &str, status: &[u16], body: &str, counter: &AtomicU64) {
        count(counter);
        let planted = [
            ("X-Note", "PLANTED"),
            ("Cookie", "PLANTED=PLANTED; PLANTED"),
        ];
        // The same number of headers whatever is asked: the addresses of the request's texts depend on it.
        let clean = [
            ("X-Note", "-------"),
            ("Cookie", "-------=-------; -------"),
        ];
        let hides = url.starts_with("/plant");
        let headers = if hides { &planted } else { &clean };
        let response = self.client.send("GET", host, url, headers, Body::None);
        let text = String::from_utf8_lossy(&response.body);
        if !status.contains(&response.status) || !(body.is_empty() || text == body) {
            let log = self.log(response.header("x-varnish"));
            self.wrong(format!("{host}{url}: {} {text}{log}", response.status));
        }
    }

    /// What the log says about a request: its fetch has the next number.
    fn log(&self, request: Option<&str>) -> String {
        let number = request.and_then(|numbers| numbers.split(' ').next()?.parse().ok());
        let fetch = (number.unwrap_or(0) + 1u64).to_string();
        let lines = self.soak.varnish.log("kvm: ");
        lines
            .iter()
            .filter(|line| line.split_whitespace().next() == Some(&fetch))
            .fold(String::new(), |all, line| all + line + "\n")
    }

    fn wrong(&self, what: String) {
        let mut wrong = self.soak.wrong.lock().unwrap();
        if wrong.len() < 20 {
            eprintln!("WRONG {what}");
        }
        wrong.push(what);
    }

    fn hide(&mut self) {
        self.hidden += 1;
        let secret = format!("{:02}-{:x}", self.name, self.hidden);
        let host = HIDING[self.numbers.below(HIDING.len())];
        let soak = self.soak;
        match self.numbers.below(1000) {
            0..100 => {
                let url = format!("/plant-crash/{secret}");
                self.expect(host, &url, &[500], "", &soak.counts.crashed);
            }
            100 if !soak.looping.swap(true, Ordering::Relaxed) => {
                let url = format!("/plant-loop/{secret}");
                self.expect("short", &url, &[500], "", &soak.counts.kicked);
                soak.looping.store(false, Ordering::Relaxed);
            }
            _ => {
                let url = format!("/plant/{secret}");
                self.expect(host, &url, &[200], "planted\n", &soak.counts.planted);
            }
        }
        let mut secrets = soak.secrets.lock().unwrap();
        if secrets.len() < 64 {
            secrets.push(secret);
        } else {
            let at = self.numbers.below(64);
            secrets[at] = secret;
        }
    }

    fn search(&mut self) {
        let secret = {
            let secrets = self.soak.secrets.lock().unwrap();
            secrets
                .get(self.numbers.below(secrets.len().max(1)))
                .cloned()
        };
        let host = HIDING[self.numbers.below(HIDING.len())];
        let url = format!("/find/{}", secret.as_deref().unwrap_or("nothing"));
        self.expect(
            host,
            &url,
            &[200],
            NOTHING_FOUND,
            &self.soak.counts.searched,
        );
    }

    /// All registers, and for `ops` all that the host keeps, as at first.
    fn compare(&mut self) {
        let soak = self.soak;
        let (host, first) = soak
            .first
            .iter()
            .nth(self.numbers.below(soak.first.len()))
            .unwrap();
        self.expect(host, show(host), &[200], first, &soak.counts.compared);
    }

    /// A random list for `ops`, which ends in any way but a loop.
    fn random_list(&mut self) {
        let numbers = &mut self.numbers;
        let word = |numbers: &mut Numbers| match numbers.below(3) {
            0 => numbers.next(),
            1 => numbers.next() & 0xfff,
            _ => 0x7f00_0000_0000 + (numbers.next() & 0x1f_ffff),
        };
        let ending = ENDINGS[numbers.below(ENDINGS.len())];
        let finale = Finale {
            general: [(); 16].map(|()| word(numbers)),
            flags: numbers.next() & 0x24_4cd5 | 2,
            fs_base: word(numbers),
            gs_base: word(numbers),
            address: word(numbers),
            selectors: [0x2b; 4],
            pkru: numbers.next() as u32,
            port: numbers.below(10) as u16,
            ending: if ending == Ending::Loop {
                Ending::Respond
            } else {
                ending
            },
            set: numbers.below(8) as u8,
        };
        let list: Vec<Op> = (0..numbers.below(12))
            .map(|_| Op {
                // Any system call might be one that sleeps: 6 is left out.
                what: [0, 1, 2, 3, 4, 5, 7][numbers.below(7)],
                a: numbers.next() as u8,
                b: numbers.next() as u16,
                c: numbers.next() as u32,
                d: word(numbers),
            })
            .collect();
        let body = ops::body(&finale, &list);
        count(&self.soak.counts.random);
        let response = self
            .client
            .send("POST", "ops", "/", &[], Body::Length(&body));
        if !matches!(response.status, 200 | 500) {
            let log = self.log(response.header("x-varnish"));
            self.wrong(format!(
                "ops {finale:?} {list:?}: {}\n{log}",
                response.status
            ));
        }
    }

    fn crash(&mut self) {
        let soak = self.soak;
        let (way, outcome) = &soak.ways[self.numbers.below(soak.ways.len())];
        let status: &[u16] = match outcome.as_str() {
            "fails" => &[500],
            "answers" => &[200],
            _ => &[200, 500],
        };
        let url = format!("/{way}");
        self.expect("crash", &url, status, "", &soak.counts.crashed);
    }

    fn dirty(&mut self, most: usize) {
        let n = self.numbers.below(most);
        let (url, body) = (format!("/{n}"), format!("wrote {n} found 0\n"));
        self.expect("dirty", &url, &[200], &body, &self.soak.counts.others);
    }
}

fn show(host: &str) -> &'static str {
    if host == "ops" { "/probe" } else { "/regs" }
}

/// The search is worth something, and these are the answers to compare with.
fn before(varnish: &Varnishd) -> (BTreeMap<&'static str, String>, Vec<(String, String)>) {
    let mut client = varnish.client();
    let clean = [
        ("X-Note", "-------"),
        ("Cookie", "-------=-------; -------"),
    ];
    let mut get = |host: &str, url: &str| {
        let response = client.send("GET", host, url, &clean, Body::None);
        let text = String::from_utf8_lossy(&response.body).into_owned();
        assert_eq!(response.status, 200, "{host}{url}: {text}");
        text
    };
    for host in HIDING {
        let found = get(host, "/self-test/secret");
        for place in [
            "registers yes",
            "vectors yes",
            "stack yes",
            "heap yes",
            "bss yes",
        ] {
            assert!(found.contains(place), "{found}");
        }
    }
    let first = HIDING.into_iter().chain(["ops"]);
    let first = first.map(|host| (host, get(host, show(host)))).collect();
    let ways = get("crash", "/list");
    let ways = ways.lines().filter_map(|line| line.split_once(' '));
    let ways = ways
        .filter(|(_, outcome)| *outcome != "limits")
        .map(|(way, outcome)| (way.to_owned(), outcome.to_owned()))
        .collect();
    (first, ways)
}

#[test]
fn no_secret_is_found() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start_with(
        TENANTS,
        &["-p", "thread_pool_min=20", "-p", "thread_pool_max=200"],
    );
    let (first, ways) = before(&varnish);
    let requests = variable("SOAK_REQUESTS").unwrap_or(4000);
    let seconds = variable("SOAK_SECONDS").unwrap_or(4 * 3600);
    let start = Instant::now();
    let soak = Soak {
        varnish: &varnish,
        left: AtomicU64::new(requests),
        end: start + Duration::from_secs(seconds),
        secrets: Mutex::default(),
        looping: AtomicBool::new(false),
        first,
        ways,
        counts: Counts::default(),
        wrong: Mutex::default(),
    };
    let soaks = variable("SOAK_REQUESTS").is_some();
    let mut samples = Vec::new();
    let crashed_clients = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|name| {
                let mut visitor = Visitor {
                    soak: &soak,
                    client: varnish.client(),
                    numbers: Numbers(0x9e37_79b9_7f4a_7c15 ^ (name as u64 + 1) << 32),
                    name,
                    hidden: 0,
                };
                scope.spawn(move || visitor.run())
            })
            .collect();
        let mut told = start;
        while !clients.iter().all(thread::ScopedJoinHandle::is_finished) {
            // A short run may be over in two seconds.
            thread::sleep(Duration::from_millis(if soaks { 50 } else { 10 }));
            samples.push(Holdings::of(&varnish));
            if told.elapsed() > Duration::from_secs(60) {
                told = Instant::now();
                let sent = soak.counts.requests.load(Ordering::Relaxed);
                eprintln!(
                    "{:>5} s {sent:>8} requests, {:?}",
                    start.elapsed().as_secs(),
                    samples.last().unwrap()
                );
            }
        }
        clients
            .into_iter()
            .filter_map(|client| client.join().err())
            .count()
    });
    let took = start.elapsed();
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let Counts {
        requests,
        planted,
        searched,
        compared,
        random,
        crashed,
        kicked,
        others,
    } = &soak.counts;
    let wrong = soak.wrong.lock().unwrap();
    let trend = Trend::of(&samples);
    eprintln!(
        "{} requests in {:.0} s, {:.0} a second, {CLIENTS} clients\n\
         secrets planted {}, searched for {}; registers and state compared {}; random lists {}; crashes {}; \
         timeouts {}; others {}\n\
         wrong answers {}, clients that lost their connection {crashed_clients}\n\
         varnishd's counters: requests {}, failures {}, timeouts {}, busy {}\n\
         {trend}",
        get(requests),
        took.as_secs_f64(),
        get(requests) as f64 / took.as_secs_f64(),
        get(planted),
        get(searched),
        get(compared),
        get(random),
        get(crashed),
        get(kicked),
        get(others),
        wrong.len(),
        varnish.counter("requests"),
        varnish.counter("failures"),
        varnish.counter("timeouts"),
        varnish.counter("busy"),
    );
    assert!(wrong.is_empty(), "{:#?}", &wrong[..wrong.len().min(20)]);
    assert_eq!(crashed_clients, 0, "clients lost their connection");
    assert_eq!(varnish.counter("busy"), 0, "requests were turned away");
    // In a short run forks are still being made, and come to their size, after its first quarter: some 19 of them, and
    // of each the machine, its processor and what that maps.
    let (forks, growth) = if soaks { (0, 4 << 10) } else { (19, 16 << 10) };
    assert!(samples.len() >= 40, "{} samples", samples.len());
    let Trend { early, late } = trend;
    assert!(
        late.memory <= early.memory + early.memory / 20 + growth,
        "memory grows"
    );
    assert!(
        late.descriptors <= early.descriptors + 8 + 3 * forks,
        "descriptors leak"
    );
    assert!(
        late.mappings <= early.mappings + early.mappings / 10 + 32 + 5 * forks,
        "mappings leak"
    );
    assert!(late.threads <= early.threads + 8, "threads leak");
}
