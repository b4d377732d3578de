//! Memory that all machines of a program share: no reset touches it, all of them see it at once, and whatever one of them does to
//! it while another one is answered, the host looks at it once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use common::{Tenant, few, kvm_or_skip};
use forkvm::{
    BootError, Config, Failure, FetchError, FetchHead, FetchRequest, Fetcher, Fetching, Header,
    Host, Quiet, Request, StorageKind, Stream,
};

fn boot_with(change: impl FnOnce(&mut Config)) -> Tenant {
    Tenant::boot_with("shared", |config| {
        config.shared_memory = 2 << 20;
        config.limits.max_memory = 64 << 20;
        config.limits.max_storage_time = common::ENOUGH;
        change(config);
    })
}

#[track_caller]
fn ask(tenant: &Tenant, url: &str) -> String {
    tenant.get(url).text().trim_end_matches('\n').to_owned()
}

#[test]
fn it_outlives_resets_and_nothing_else_does() {
    kvm_or_skip!();
    let tenant = boot_with(|config| config.concurrency = 2);
    assert_eq!(ask(&tenant, "/area"), "1 2097152");
    // What main() has written is there.
    assert_eq!(ask(&tenant, "/get"), "100 0 mains 1");
    for nth in 1..=3 {
        assert_eq!(ask(&tenant, "/add"), format!("{} 1", 100 + nth));
    }
    // So is what a request has that failed.
    tenant.failure("/crash");
    assert_eq!(ask(&tenant, "/get"), "104 0 mains 1");
    // Private memory is as it was, to the last byte.
    tenant.assert_pristine();
}

#[test]
fn none_is_there_unless_it_is_set() {
    kvm_or_skip!();
    let tenant = boot_with(|config| config.shared_memory = 0);
    assert_eq!(ask(&tenant, "/area"), "0 0");
    assert_eq!(ask(&tenant, "/add"), "none");
    tenant.assert_pristine();
}

#[test]
fn its_size_is_whole_pages_up_to_a_limit() {
    kvm_or_skip!();
    let tenant = boot_with(|config| config.shared_memory = (2 << 20) + 1);
    assert_eq!(ask(&tenant, "/area"), "1 2101248");
    let refused = |shared: u64, memory: u64| {
        let refused = Tenant::try_boot("shared", |config| {
            config.shared_memory = shared;
            config.limits.max_memory = memory;
        });
        match refused {
            Err(BootError::Setting(what)) => what,
            other => panic!("{:?}", other.map(|tenant| tenant.stats())),
        }
    };
    let what = refused((1 << 30) + 1, 64 << 20);
    assert!(
        what.starts_with("shared_memory (1073741825 bytes)"),
        "{what}"
    );
    assert!(refused(u64::MAX, 64 << 20).starts_with("shared_memory"));
    // Its tables are the program's own memory.
    let what = refused(1 << 30, 2 << 20);
    assert!(
        what.starts_with("max_memory (2097152 bytes) is too small"),
        "{what}"
    );
    // All that may be.
    let tenant = boot_with(|config| config.shared_memory = 1 << 30);
    assert_eq!(ask(&tenant, "/area"), "1 1073741824");
    assert_eq!(ask(&tenant, "/add"), "101 1");
}

#[test]
fn forks_count_exactly() {
    kvm_or_skip!();
    const FORKS: usize = 4;
    let each = few(200);
    let tenant = boot_with(|config| config.concurrency = FORKS);
    tenant.fill(FORKS, Instant::now() + common::ENOUGH);
    thread::scope(|scope| {
        for _ in 0..FORKS {
            scope.spawn(|| {
                for _ in 0..each {
                    ask(&tenant, "/add");
                }
            });
        }
    });
    let expected = 100 + FORKS * each;
    assert_eq!(ask(&tenant, "/get"), format!("{expected} 0 mains 1"));
    tenant.assert_pristine();
}

#[test]
fn storage_has_the_same() {
    kvm_or_skip!();
    for (kind, mains) in [(StorageKind::Machine, 2), (StorageKind::Fork, 1)] {
        let tenant = boot_with(|config| config.storage = kind);
        let start = 100 * mains;
        assert_eq!(ask(&tenant, "/get"), format!("{start} 0 mains {mains}"));
        assert_eq!(ask(&tenant, "/call/add"), format!("8 {}", start + 1));
        assert_eq!(ask(&tenant, "/add"), format!("{} 1", start + 2));
        // A storage that begins again finds what is there.
        assert_eq!(ask(&tenant, "/call/crash"), "-1");
        assert_eq!(ask(&tenant, "/call/add"), format!("8 {}", start + 3));
        assert_eq!(tenant.stats().storage.unwrap().restarts, 1);
        // As buffers and for results it is memory like any other.
        assert_eq!(ask(&tenant, "/callv"), "8");
        tenant.assert_pristine();
    }
}

#[test]
fn a_successor_begins_with_its_own() {
    kvm_or_skip!();
    let tenant = boot_with(|_| {});
    assert_eq!(ask(&tenant, "/add"), "101 1");
    let config = tenant.config().clone();
    let next = tenant.boot_successor(&common::guest("shared"), config, &mut Quiet);
    let next = Tenant::from(next.unwrap());
    assert_eq!(ask(&next, "/add"), "101 1");
    assert_eq!(ask(&tenant, "/add"), "102 1");
    assert_eq!(ask(&next, "/get"), "101 0 mains 1");
}

#[test]
fn it_is_for_data_alone_and_stays_where_it_is() {
    kvm_or_skip!();
    let tenant = boot_with(|_| {});
    // ENOMEM in main(); afterwards what it allows already is granted.
    assert_eq!(ask(&tenant, "/protect"), "-1 -1 0 -1 1");
    assert_eq!(ask(&tenant, "/map"), "1 1 -1 1");
    assert_eq!(ask(&tenant, "/read"), "10 10 zero");
    assert_eq!(ask(&tenant, "/path"), "1");
    for (url, expected) in [
        ("/execute", "execut"),
        ("/end", "writing 0x7e8000200000 (not mapped)"),
        ("/past-end", "content of 101 bytes"),
    ] {
        let failure = tenant.failure(url).to_string();
        assert!(failure.contains(expected), "{url}: {failure}");
    }
    tenant.assert_pristine();
}

#[test]
fn bodies_of_it_are_copied_when_they_are_answered() {
    kvm_or_skip!();
    let tenant = boot_with(|config| config.concurrency = 2);
    let expected: Vec<u8> = (0..1 << 20).map(|n| b'a' + (n % 26) as u8).collect();
    let request = Request {
        url: b"/body",
        ..Default::default()
    };
    let deadline = Instant::now() + common::ENOUGH;
    let mut answer = tenant.answer(&request, deadline, &mut Quiet).unwrap();
    // Its fork is not idle, another one writes to what the body was.
    assert_eq!(ask(&tenant, "/read"), "10 10 zero");
    assert_eq!(answer.body_len(), 1 << 20);
    let (mut start, mut body) = ([0; 3], vec![0; 1 << 20]);
    assert_eq!(answer.body_start(&mut start), 3);
    assert_eq!(&start, b"abc");
    assert_eq!(answer.read_body(&mut body), 1 << 20);
    assert!(body == expected);
    assert_eq!(answer.read_body(&mut start), 0);
    let stats = tenant.stats();
    assert_eq!((stats.forks, stats.idle), (2, 1));
    drop(answer);
    assert_eq!(tenant.stats().idle, 2);
    let now = tenant.get("/body");
    assert_eq!(now.body[..12], *b"\0\0\0\0\0\0\0\0\0\0kl");
    assert_eq!(tenant.get("/stream").body, now.body[..300_000]);
    tenant.assert_pristine();
}

/// Has fetched whatever is asked for, if it is something that can be.
struct Fetches(Arc<AtomicU64>);

impl Host for Fetches {
    fn output(&mut self, _: Stream, _: &[u8]) {}

    fn fetcher(&self) -> Option<Arc<dyn Fetcher>> {
        Some(Arc::new(Canned(self.0.clone())))
    }
}

struct Canned(Arc<AtomicU64>);

impl Fetcher for Canned {
    fn max_size(&self) -> u64 {
        1 << 20
    }

    fn begin(&self, request: FetchRequest) -> Result<Box<dyn Fetching>, FetchError> {
        for header in &request.headers {
            assert!(
                forkvm::parse_header(&header_line(header)).is_ok(),
                "{header:?}"
            );
        }
        assert!(request.body.is_none_or(|body| body.len() <= 1 << 20));
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Body(b"fetched")))
    }
}

struct Body(&'static [u8]);

impl Fetching for Body {
    fn head(&mut self, _: Instant) -> Result<Option<FetchHead>, FetchError> {
        Ok(Some(FetchHead {
            status: 200,
            headers: vec![Header::new("Content-Type", b"text/plain")],
            length: Some(self.0.len() as u64),
        }))
    }

    fn read(&mut self, buf: &mut [u8], _: Instant) -> Result<Option<usize>, FetchError> {
        let len = buf.len().min(self.0.len());
        buf[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        Ok(Some(len))
    }
}

/// One fork changes structures, lengths, pointers and texts all the time while others have the host read them.
#[test]
fn what_changes_meanwhile_is_good_or_refused() {
    kvm_or_skip!();
    let tenant = boot_with(|config| {
        config.concurrency = 3;
        config.storage = StorageKind::Machine;
    });
    let (mut answered, mut refused) = (0, 0);
    let fetched = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        let scribbler = scope.spawn(|| ask(&tenant, "/scribble"));
        for nth in 0.. {
            let all = answered > 0 && refused > 0 && fetched.load(Ordering::Relaxed) > 0;
            if all && nth >= few(3000) {
                break;
            }
            assert!(nth < 100_000, "{answered} {refused} {fetched:?}");
            let urls = [
                "/header",
                "/header",
                "/header",
                "/append",
                "/iov",
                "/callv",
                "/fetch",
                "/fetch-parts",
                "/body",
                "/stream",
            ];
            let request = Request {
                url: urls[nth % urls.len()].as_bytes(),
                ..Default::default()
            };
            let deadline = Instant::now() + common::ENOUGH;
            match tenant.try_send(&request, deadline, &mut Fetches(fetched.clone())) {
                Ok(reply) => {
                    answered += 1;
                    for header in &reply.headers {
                        assert!(
                            forkvm::parse_header(&header_line(header)).is_ok(),
                            "{header:?}"
                        );
                    }
                    if let Some(cache) = reply.cache {
                        assert!(cache.ttl.is_finite());
                    }
                }
                Err(Failure::Guest { .. }) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        ask(&tenant, "/stop");
        scribbler.join().unwrap();
    });
    // Nothing of that stays but in the memory itself.
    ask(&tenant, "/setup");
    let reply = tenant.get("/header");
    assert_eq!(reply.headers.len(), 4, "{reply:?}");
    assert_eq!(reply.header("x-fine"), Some("yes"));
    assert_eq!(ask(&tenant, "/callv"), "8");
    tenant.assert_pristine();
}

fn header_line(header: &forkvm::Header<'_>) -> Vec<u8> {
    [header.name.as_bytes(), b": ", &header.value].concat()
}

#[test]
fn rust_programs_have_atomics_there() {
    kvm_or_skip!();
    for (len, expected) in [(0, "none of 0"), (4096, "4096")] {
        let tenant = Tenant::boot_with("rust", |config| config.shared_memory = len);
        for nth in 1..=3 {
            let expected = match len {
                0 => expected.to_owned(),
                _ => format!("{nth} of {expected}"),
            };
            assert_eq!(ask(&tenant, "/shared"), expected);
        }
        tenant.assert_pristine();
    }
}

/// Whatever else of it may be.
#[test]
fn it_is_not_executable_where_the_heap_is() {
    kvm_or_skip!();
    let tenant = boot_with(|config| config.executable_heap = true);
    let failure = tenant.failure("/execute").to_string();
    assert!(failure.contains("execut"), "{failure}");
    tenant.assert_pristine();
}

/// Two programs have nothing in common.
#[test]
fn programs_share_with_nobody_else() {
    kvm_or_skip!();
    let (one, two) = (boot_with(|_| {}), boot_with(|_| {}));
    for _ in 0..3 {
        ask(&one, "/add");
    }
    assert_eq!(ask(&two, "/get"), "100 0 mains 1");
}
