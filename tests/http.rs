//! The VMOD in a real varnishd, where it takes more of a client than varnishtest's: many connections, long bodies,
//! reloads under load, and every program there is to break it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::client::{Body, Client};
use common::varnishd::Varnishd;
use common::{eventually, guests};

/// The byte at place `i` of what test/echo answers at /size/N.
fn pattern(i: usize) -> u8 {
    (i.wrapping_mul(31) + (i >> 8)) as u8
}

/// CRC-32 as in zip and PNG.
fn crc32<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u32 {
    !bytes.into_iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    })
}

#[test]
fn no_request_sees_another_ones_memory() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start(
        r#"kvm.tenant("counter", "GUESTS/counter", concurrency = 8, max_wait = ENOUGH);"#,
    );
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = varnish.client();
                for _ in 0..125 {
                    let response = client.get("counter", "/");
                    assert_eq!((response.status, response.text()), (200, "1\n"));
                }
            });
        }
    });
    assert_eq!(varnish.counter("requests"), 1000);
    assert_eq!(varnish.counter("failures"), 0);
    assert_eq!(varnish.counter("busy"), 0);
}

#[test]
fn mandelbrot_is_a_png() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start(r#"kvm.tenant("mandelbrot", "GUESTS/mandelbrot");"#);
    let response = varnish.client().get("mandelbrot", "/?size=256");
    assert_eq!(
        (response.status, response.header("content-type")),
        (200, Some("image/png"))
    );
    let mut png = response.body.as_slice();
    assert_eq!(png.split_off(..8), Some(&b"\x89PNG\r\n\x1a\n"[..]));
    let mut chunks = Vec::new();
    while !png.is_empty() {
        let len = u32::from_be_bytes(png[..4].try_into().unwrap()) as usize;
        let (kind, data) = (png[4..8].to_vec(), &png[8..8 + len]);
        let crc = u32::from_be_bytes(png[8 + len..12 + len].try_into().unwrap());
        assert_eq!(crc, crc32(kind.iter().chain(data)));
        if kind == b"IHDR" {
            assert_eq!(&data[..8], [0, 0, 1, 0, 0, 0, 1, 0], "256 x 256");
        }
        chunks.push(kind);
        png = &png[12 + len..];
    }
    assert_eq!(
        (&chunks[0][..], &chunks[chunks.len() - 1][..]),
        (&b"IHDR"[..], &b"IEND"[..])
    );
    assert!(chunks.iter().any(|kind| kind == b"IDAT"));
}

#[test]
fn responses_of_every_length_arrive_byte_for_byte() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start(r#"kvm.tenant("echo", "GUESTS/test/echo");"#);
    let mut client = varnish.client();
    for len in [
        0,
        1,
        4095,
        4096,
        4097,
        16384,
        65537,
        1 << 20,
        20_000_000,
        20 << 20,
    ] {
        let response = client.get("echo", &format!("/size/{len}"));
        assert_eq!((response.status, response.body.len()), (200, len));
        assert!(
            response
                .body
                .iter()
                .enumerate()
                .all(|(i, &byte)| byte == pattern(i)),
            "{len}"
        );
    }
    // From the frozen memory, not written in the fork.
    let response = client.get("echo", "/frozen/1000000");
    assert!(
        response.body.len() == 1_000_000
            && response
                .body
                .iter()
                .enumerate()
                .all(|(i, &byte)| byte == pattern(i))
    );
}

#[test]
fn request_bodies_of_every_length_arrive_byte_for_byte() {
    if !common::have_kvm() {
        return;
    }
    let varnish =
        Varnishd::start(r#"kvm.tenant("echo", "GUESTS/test/echo", max_request_time = ENOUGH);"#);
    let mut client = varnish.client();
    let whole: Vec<u8> = (0..20 << 20)
        .map(|i: usize| (i.wrapping_mul(7) ^ (i >> 10)) as u8)
        .collect();
    for len in [0, 1, 4095, 4096, 65536, 65537, 1 << 20, 20 << 20] {
        let body = &whole[..len];
        for (how, sent) in [
            ("length", Body::Length(body)),
            ("chunked", Body::Chunked(body, 100_000)),
        ] {
            let response = client.send("POST", "echo", "/echo", &[], sent);
            assert_eq!(response.status, 200, "{len} {how}");
            assert!(response.body == body, "{len} {how}");
        }
    }
    // One byte at a time.
    let response = client.send(
        "POST",
        "echo",
        "/echo",
        &[],
        Body::Chunked(&whole[..1000], 1),
    );
    assert!(response.body == whole[..1000]);
    assert_eq!(varnish.counter("requests"), 17);
}

#[test]
fn a_body_that_is_too_large_is_refused_and_the_next_one_is_not() {
    if !common::have_kvm() {
        return;
    }
    let varnish =
        Varnishd::start(r#"kvm.tenant("echo", "GUESTS/test/echo", max_request_memory = 1MB);"#);
    let large = vec![b'x'; 20 << 20];
    for body in [Body::Length(&large), Body::Chunked(&large, 65536)] {
        // The connection may be closed before the client has sent all of it, so each has its own.
        let mut client = varnish.client();
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            client.send("POST", "echo", "/sum", &[], body).status
        }));
        // A reset connection can swallow the response; what counts is that nothing was called.
        assert!(refused.map_or(true, |status| status == 413));
    }
    assert_eq!(varnish.counter("requests"), 0);
    let response = varnish
        .client()
        .send("POST", "echo", "/sum", &[], Body::Length(b"abc"));
    assert_eq!(response.status, 200);
    assert!(
        response.text().starts_with("len 3 crc32 352441c2"),
        "{}",
        response.text()
    );
}

#[test]
fn nobody_waits_for_all_of_a_body_that_is_refused() {
    if !common::have_kvm() {
        return;
    }
    let varnish =
        Varnishd::start(r#"kvm.tenant("echo", "GUESTS/test/echo", update_key = "right");"#);
    let length = ("Content-Length", "20000000000");
    // As much as is read of it, and a byte.
    let piece = vec![b'x'; (64 << 20) + 1];
    for (headers, status) in [
        (&[length][..], 413),
        (&[length, ("X-LiveUpdate", "wrong")], 403),
    ] {
        let mut client = varnish.client();
        client
            .begin("POST", "echo", "/sum", headers, Body::None)
            .unwrap();
        client.send_piece(&piece);
        let response = client.response("POST").unwrap();
        assert_eq!(response.status, status);
        assert_eq!(response.header("connection"), Some("close"));
    }
    assert_eq!(varnish.counter("requests"), 0);
}

#[test]
fn more_requests_than_forks() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start(
        r#"kvm.tenant("few", "GUESTS/test/echo", concurrency = 2, max_wait = 0.1s, max_request_time = ENOUGH);
        kvm.tenant("patient", "GUESTS/test/echo", concurrency = 2, max_wait = ENOUGH);
        kvm.tenant("other", "GUESTS/hello");"#,
    );
    // Two that hold the forks, for longer if the six others took longer.
    let mut hold = 1;
    let mut busy = 0;
    loop {
        let url = format!("/sleep-loop/{}", hold * 1000);
        let (over, all_busy) = (AtomicBool::new(false), AtomicBool::new(true));
        thread::scope(|scope| {
            let holders = [(); 2].map(|()| {
                scope.spawn(|| {
                    let status = varnish.client().get("few", &url).status;
                    over.store(true, Ordering::SeqCst);
                    status
                })
            });
            eventually("both forks are in use", || {
                let list = varnish.admin(&["backend.list", "-p"]);
                over.load(Ordering::SeqCst)
                    || list.contains("few: ready") && list.contains("forks=2 idle=0")
            });
            let others = [(); 6].map(|()| {
                scope.spawn(|| {
                    let response = varnish.client().get("few", &url);
                    if response.status == 503 {
                        assert_eq!(response.header("retry-after"), Some("1"));
                    } else {
                        assert_eq!(response.status, 200);
                        all_busy.store(false, Ordering::SeqCst);
                    }
                    u64::from(response.status == 503)
                })
            });
            // Nobody else has to wait for them.
            assert_eq!(varnish.client().get("other", "/").status, 200);
            busy += others
                .map(|other| other.join().unwrap())
                .iter()
                .sum::<u64>();
            if over.load(Ordering::SeqCst) {
                all_busy.store(false, Ordering::SeqCst);
            }
            assert_eq!(holders.map(|holder| holder.join().unwrap()), [200; 2]);
        });
        if all_busy.into_inner() {
            break;
        }
        hold *= 4;
        assert!(hold < 500, "requests get forks that are in use");
    }
    assert!(busy >= 6);
    assert_eq!(varnish.counter("busy"), busy);
    assert_eq!(varnish.client().get("few", "/counter").text(), "1\n");

    // Those that can wait are all served.
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                assert_eq!(
                    varnish.client().get("patient", "/sleep-loop/100").status,
                    200
                )
            });
        }
    });
    assert_eq!(varnish.counter("busy"), busy);
}

#[test]
fn every_way_to_die_is_followed_by_a_good_request() {
    if !common::have_kvm() {
        return;
    }
    // One fork, so that it is the same one; another tenant for what only a limit of time ends.
    let settings =
        "concurrency = 1, max_wait = ENOUGH, max_memory = 64MB, max_request_memory = 16MB";
    let varnish = Varnishd::start(&format!(
        r#"kvm.tenant("crash", "GUESTS/crash", max_request_time = ENOUGH, {settings});
        kvm.tenant("limits", "GUESTS/crash", max_request_time = 2s, {settings});"#
    ));
    let mut client = varnish.client();
    let list = client.get("crash", "/list");
    assert_eq!(list.status, 200);
    let ways: Vec<(String, String)> = list
        .text()
        .lines()
        .map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            (words.next().unwrap(), words.next().unwrap())
        })
        .collect();
    assert!(ways.len() > 100, "{}", list.text());

    let mut wrong = String::new();
    let mut failed = 0;
    for (way, outcome) in &ways {
        let host = if outcome == "limits" {
            "limits"
        } else {
            "crash"
        };
        let response = client.get(host, &format!("/{way}"));
        failed += u64::from(response.status == 500);
        let right = match outcome.as_str() {
            "fails" | "limits" => {
                response.status == 500 && response.text() == "The service failed.\n"
            }
            "answers" => response.status == 200,
            "either" => matches!(response.status, 200 | 500),
            other => panic!("unknown outcome {other}"),
        };
        if !right {
            let text = String::from_utf8_lossy(&response.body);
            writeln!(
                wrong,
                "{way} ({outcome}): {} {}",
                response.status,
                &text[..text.len().min(200)]
            )
            .unwrap();
        }
        let next = client.get(host, "/ok");
        if next.status != 200 {
            writeln!(wrong, "after {way}: {}", next.status).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(varnish.counter("requests"), 1 + 2 * ways.len() as u64);
    assert_eq!(varnish.counter("failures"), failed);
    // Each failure has its line in the log, with the tenant and the reason, and without control characters.
    let logged = ["crash", "limits"].map(|tenant| varnish.log(&format!("kvm: tenant {tenant}: ")));
    let logged = logged.concat();
    assert!(
        logged.len() as u64 >= failed,
        "{} log lines for {failed} failures",
        logged.len()
    );
}

#[test]
fn no_bad_program_serves_or_harms_others() {
    if !common::have_kvm() {
        return;
    }
    let mut bad: Vec<String> = fs::read_dir(guests().join("test"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("bad-") && !name.ends_with(".tmp"))
        // This one is ready, and each of its requests fails.
        .filter(|name| name != "bad-no-handler-waits")
        .collect();
    bad.sort();
    assert!(bad.len() > 40, "{bad:?}");
    let mut vcl_init = String::from(r#"kvm.tenant("good", "GUESTS/hello");"#);
    for name in &bad {
        write!(
            vcl_init,
            r#"kvm.tenant("{name}", "GUESTS/test/{name}", max_boot_time = 1s, max_memory = 64MB, max_request_time = ENOUGH);"#
        )
        .unwrap();
    }
    vcl_init += r#"kvm.tenant("last", "GUESTS/hello", max_request_time = ENOUGH);"#;
    let varnish = Varnishd::start(&vcl_init);
    let mut client = varnish.client();
    assert_eq!(client.get("good", "/").text(), "Hello, World!\n");
    for name in &bad {
        assert_eq!(client.get(name, "/").status, 503, "{name}");
        assert_eq!(client.get("good", "/").status, 200, "after {name}");
        let reason = varnish.log(&format!("kvm: tenant {name}: program not ready: "));
        assert!(!reason.is_empty(), "{name}: no reason in the log");
    }
    assert_eq!(client.get("last", "/").text(), "Hello, World!\n");
    assert_eq!(varnish.counter("boots"), 2);
    assert_eq!(varnish.counter("boot_failures"), bad.len() as u64);
    assert_eq!(varnish.counter("requests"), 2 + bad.len() as u64);
}

/// Has 4 clients ask all the time while `work` runs. Each answer must be one of `good`.
fn under_load(varnish: &Varnishd, host: &str, good: &[&str], work: impl FnOnce()) -> u64 {
    let stop = AtomicBool::new(false);
    let served = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client: Client = varnish.client();
                while !stop.load(Ordering::Relaxed) {
                    let response = client.get(host, "/");
                    assert_eq!(response.status, 200);
                    assert!(good.contains(&response.text()), "{}", response.text());
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Also if `work` fails: the clients would go on for ever.
        let _stop = Stop(&stop);
        work();
    });
    served.into_inner()
}

/// Sets a flag when dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn vcls_are_reloaded_and_discarded_while_requests_run() {
    if !common::have_kvm() {
        return;
    }
    // Alternating settings, so that every reload boots a program and every discard frees one.
    let vcl_init = |n: u32| {
        format!(
            r#"kvm.tenant("t", "GUESTS/{}", concurrency = 4, max_wait = ENOUGH, environment = "N={n}");"#,
            if n.is_multiple_of(2) {
                "hello"
            } else {
                "counter"
            }
        )
    };
    let varnish = Varnishd::start(&vcl_init(0));
    let mut descriptors = Vec::new();
    let served = under_load(&varnish, "t", &["Hello, World!\n", "1\n"], || {
        let mut before = "boot".to_owned();
        for n in 1..=8 {
            let name = varnish.reload(&vcl_init(n));
            varnish.admin(&["vcl.discard", &before]);
            before = name;
            thread::sleep(Duration::from_millis(300));
            descriptors.push(varnish.child().kvm_descriptors());
        }
    });
    assert!(served > 100, "{served}");
    // The last discarded VCLs' programs are freed as soon as their last request is done.
    eventually("the discarded VCLs are gone", || {
        varnish
            .admin(&["vcl.list"])
            .lines()
            .filter(|l| !l.is_empty())
            .count()
            == 1
    });
    assert_eq!(varnish.counter("boots"), 9);
    let one = descriptors[0].max(20);
    eventually("descriptors are freed", || {
        varnish.child().kvm_descriptors() <= one
    });
    assert_eq!(varnish.counter("failures"), 0);
    assert_eq!(varnish.counter("refused"), 0);
}

#[test]
fn programs_that_never_become_ready_hold_up_no_other() {
    if !common::have_kvm() {
        return;
    }
    let mut vcl_init = String::new();
    for n in 0..8 {
        vcl_init += &format!(
            r#"kvm.tenant("spins{n}", "GUESTS/test/bad-main-never-ends", max_boot_time = 1h);"#
        );
    }
    let good = ["hello", "counter", "page", "sqlite"];
    for name in good {
        vcl_init +=
            &format!(r#"kvm.tenant("{name}", "GUESTS/{name}", max_request_time = ENOUGH);"#);
    }
    let varnish = Varnishd::start(&vcl_init);
    for name in good {
        let response = varnish.client().get(name, "/");
        assert_eq!(response.status, 200, "{name}: {}", response.text());
    }
    // All of them while the eight went on.
    assert_eq!(varnish.counter("boots"), good.len() as u64);
    assert_eq!(varnish.counter("boot_failures"), 0);
}

#[test]
fn a_vcl_is_discarded_while_its_program_boots_and_while_it_answers() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start(
        r#"kvm.tenant("slow", "GUESTS/test/bad-main-sleeps", max_boot_time = 20s);"#,
    );
    // One of a name boots at a time.
    let queued = varnish.reload(r#"kvm.tenant("slow", "GUESTS/hello");"#);
    // They are discarded while one boots and one waits for its turn.
    varnish.reload(r#"kvm.tenant("echo", "GUESTS/test/echo", max_request_time = ENOUGH);"#);
    varnish.admin(&["vcl.discard", "boot"]);
    varnish.admin(&["vcl.discard", &queued]);
    let mut client = varnish.client();
    assert_eq!(client.get("echo", "/counter").text(), "1\n");
    assert_eq!(
        varnish.counter("boots"),
        1,
        "the queued one has nobody left to boot for"
    );

    // A request outlives the use of its VCL.
    client
        .begin("GET", "echo", "/sleep-loop/5000", &[], Body::None)
        .unwrap();
    eventually("it runs", || {
        varnish.admin(&["backend.list", "-p"]).contains("idle=0")
    });
    varnish.reload(r#"kvm.tenant("hello", "GUESTS/hello");"#);
    varnish.admin(&["vcl.discard", "v1"]);
    assert_eq!(varnish.client().get("hello", "/").status, 200);
    let response = client.response("GET").unwrap();
    assert_eq!(
        (response.status, response.text()),
        (200, "looped 5000 ms\n")
    );
    eventually("the VCL is gone", || {
        !varnish.admin(&["vcl.list"]).contains("v1")
    });
}

#[test]
fn clients_that_go_away_leave_no_fork_behind() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start(
        r#"kvm.tenant("echo", "GUESTS/test/echo", concurrency = 2, max_queue = 100, max_wait = ENOUGH,
            max_request_time = ENOUGH);"#,
    );
    for _ in 0..20 {
        varnish
            .client()
            .begin("GET", "echo", "/size/20000000", &[], Body::None)
            .unwrap();
        varnish
            .client()
            .begin(
                "POST",
                "echo",
                "/echo",
                &[("Content-Length", "1000")],
                Body::None,
            )
            .unwrap();
    }
    let response = varnish.client().get("echo", "/counter");
    assert_eq!((response.status, response.text()), (200, "1\n"));
    eventually("both forks are idle", || {
        varnish
            .admin(&["backend.list", "-p"])
            .contains("forks=2 idle=2")
    });
}
