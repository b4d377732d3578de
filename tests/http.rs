//! The VMOD in a real varnishd, where it takes more of a client than varnishtest's: many connections, and every way there is
//! to break a program.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::eventually;
use common::varnishd::Varnishd;

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
