//! Unmodified servers with many clients at once, and with long bodies, before and after a crash of varnishd's child.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::thread;

use common::Numbers;
use common::client::Body;
use common::varnishd::Varnishd;

const CLIENTS: usize = 64;
const REQUESTS: usize = 10;

/// Every request of every client finds the server as it was frozen.
fn crowd(varnish: &Varnishd, host: &str, url: &str, expected: &str) {
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = varnish.client();
                    for _ in 0..REQUESTS {
                        let answer = client.get(host, url);
                        assert_eq!((answer.status, answer.text()), (200, expected));
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
    });
}

/// A body comes back as it went, by each way to say how long it is.
fn there_and_back(varnish: &Varnishd, len: usize) {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let body: Vec<u8> = (0..len).map(|_| numbers.next() as u8).collect();
    let bodies = [Body::Length(&body), Body::Chunked(&body, 30_000)];
    let urls = [
        "/chunked/echo/end".to_owned(),
        format!("/length-{len}/echo"),
    ];
    for (sent, url) in bodies.into_iter().zip(urls) {
        let answer = varnish.client().send("POST", "c", &url, &[], sent);
        assert_eq!((answer.status, answer.body.len()), (200, len), "{url}");
        assert!(answer.body == body, "{url}: it is another one");
    }
    let answer = varnish
        .client()
        .send("POST", "python", "/", &[], Body::Length(&body));
    assert_eq!(answer.text(), format!("count 2 bytes {len}\n"));
}

fn all(varnish: &Varnishd) {
    crowd(
        varnish,
        "c",
        "/chunked/count/end",
        "count 1 bytes 0 sum 0\n",
    );
    crowd(varnish, "python", "/", "count 2 bytes 0\n");
    there_and_back(varnish, 1_000_000);
    there_and_back(varnish, 20_000_000);
    assert_eq!(
        (varnish.counter("failures"), varnish.counter("busy")),
        (0, 0)
    );
}

#[test]
fn each_of_many_requests_has_a_server_of_its_own() {
    if !common::have_kvm() {
        return;
    }
    let servers = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers");
    let mut varnish = Varnishd::start(&format!(
        r#"kvm.server("c", "GUESTS/test/linux/script", concurrency = 4, max_queue = 1000, max_wait = ENOUGH,
            max_request_time = ENOUGH, max_body_time = ENOUGH);
        kvm.server("python", "/usr/bin/python3", "handler.py", max_queue = 1000, max_wait = ENOUGH, max_request_time = ENOUGH,
            max_body_time = ENOUGH, warmup = 1, allowed_paths = "{servers}", current_working_directory = "{servers}");"#
    ));
    all(&varnish);
    varnish.kill_child();
    varnish.start_child();
    all(&varnish);
}
