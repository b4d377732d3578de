//! Requests: methods, headers, texts and bodies arrive, and the handler that is meant is called. Responses: responses.rs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Instant;

use common::sums::pattern;
use common::{ENOUGH, Recorder, Tenant, emulated, few, headers, kvm_or_skip};
use forkvm::{Quiet, Request, Stream};

fn line<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_else(|| panic!("no {name} in {text}"));
    line.strip_prefix(": ").unwrap()
}

#[test]
fn all_of_the_request_arrives() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    let headers = headers(&[
        ("Host", "example.com"),
        ("Content-Type", "text/x-test; a=b"),
        ("X-Empty", ""),
        ("x-twice", "1"),
        ("X-Twice", "2"),
        ("X-High", "caf\u{e9}"),
    ]);
    let request = Request {
        method: "PUT",
        url: b"/a/b?c=d&e=%20#f",
        arg: b"the argument",
        headers: &headers,
        body: b"12345",
    };
    let reply = tenant.send(&request);
    let text = reply.text();
    assert_eq!(
        (reply.status, reply.content_type.as_str()),
        (200, "text/plain")
    );
    assert_eq!(line(text, "method"), "PUT");
    assert_eq!(line(text, "url"), "/a/b?c=d&e=%20#f");
    assert_eq!(line(text, "arg"), "the argument");
    assert_eq!(line(text, "content-type"), "text/x-test; a=b");
    assert_eq!(line(text, "content-length"), "5");
    assert_eq!(line(text, "terminated"), "yes yes yes yes");
    assert_eq!(line(text, "warm-up"), "0");
    assert_eq!(line(text, "headers"), "6");
    let fields: Vec<_> = text.lines().skip(8).collect();
    let expected = [
        "Host: example.com",
        "Content-Type: text/x-test; a=b",
        "X-Empty: ",
        "x-twice: 1",
        "X-Twice: 2",
        "X-High: caf\u{e9}",
    ];
    assert_eq!(fields, expected);
}

#[test]
fn the_least_of_a_request() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    let text = tenant.send(&Request::default()).text().to_owned();
    assert_eq!(line(&text, "method"), "GET");
    assert_eq!(
        (
            line(&text, "url"),
            line(&text, "arg"),
            line(&text, "content-length")
        ),
        ("", "", "0")
    );
    assert_eq!(line(&text, "terminated"), "yes yes yes yes");
    assert_eq!(line(&text, "headers"), "0");
}

#[test]
fn methods() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    for method in [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "X",
    ] {
        let reply = tenant.send(&Request {
            method,
            url: b"/method",
            ..Default::default()
        });
        assert_eq!(reply.text(), format!("{} {method}\n", method.len()));
    }
    // With NULL only its length; not cut.
    for (room, len) in [(0, 3), (2, 0), (3, 3), (4, 3)] {
        let reply = tenant.get(&format!("/method-into/{room}"));
        assert_eq!(reply.text(), format!("{len}\n"), "{room}");
    }
}

#[test]
fn which_handler_takes_which_method() {
    kvm_or_skip!();
    let headers = headers(&[("content-type", "text/a")]);
    let request = |method, body| Request {
        method,
        url: b"/u",
        arg: b"A",
        headers: &headers,
        body,
    };
    let tenant = Tenant::boot("get_post");
    for method in ["GET", "HEAD", "DELETE", "POST", "PUT", "PATCH"] {
        assert_eq!(
            tenant.send(&request(method, b"")).text(),
            "get /u arg A\n",
            "{method}"
        );
        assert_eq!(
            tenant.send(&request(method, b"a")).text(),
            "post /u arg A type text/a len 1 crc32 e8b7be43\n",
            "{method}"
        );
    }
    // Without a handler for GET.
    let tenant = Tenant::boot_with("get_post", |config| {
        config.main_arguments = vec!["--post-only".into()];
    });
    let expected = "post /u arg A type text/a len 0 crc32 00000000\n";
    assert_eq!(tenant.send(&request("POST", b"")).text(), expected);
    let reply = tenant.get("/u");
    assert_eq!(reply.status, 503);
    let failure = reply.failure.unwrap().to_string();
    assert!(failure.contains("a handler for POST only"), "{failure}");
}

#[test]
fn request_headers_can_be_found() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    let headers = headers(&[("X-Here", "a value"), ("X-Empty", "")]);
    let find = |name: &str| {
        let url = format!("/find/{name}");
        tenant
            .send(&Request {
                url: url.as_bytes(),
                headers: &headers,
                ..Default::default()
            })
            .text()
            .to_owned()
    };
    assert_eq!(find("x-here"), "15 7 a value\n");
    assert_eq!(find("X-HERE"), "15 7 a value\n");
    assert_eq!(find("X-Empty"), "9 0 \n");
    assert_eq!(find("X-Her"), "0 0 \n");
    assert_eq!(find(""), "0 0 \n");
    // "X-Here: a value" is 15 bytes, and not cut.
    for (room, len) in [(0, 0), (1, 0), (14, 0), (15, 15), (16, 15)] {
        let url = format!("/find-into/{room}");
        let reply = tenant.send(&Request {
            url: url.as_bytes(),
            headers: &headers,
            ..Default::default()
        });
        assert_eq!(reply.text(), format!("{len}\n"), "{room}");
    }
}

#[test]
fn many_and_long_headers() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    for (count, len) in [(100, 10), (1, 60_000), (64, 8000), (1000, 100)] {
        let value = "v".repeat(len);
        let fields: Vec<_> = (0..count)
            .map(|i| (format!("X-{i}"), value.as_str()))
            .collect();
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| (name.as_str(), *value))
            .collect();
        let headers = headers(&fields);
        let reply = tenant.send(&Request {
            url: b"/count",
            headers: &headers,
            ..Default::default()
        });
        assert_eq!(line(reply.text(), "headers"), count.to_string());
        // The guest's own buffer for its answer is shorter than some of these.
        if count * len < 200_000 {
            assert_eq!(line(reply.text(), &format!("X-{}", count - 1)), value);
        }
    }
}

/// The lengths of the interface's structure are 16 bits wide.
#[test]
fn texts_that_are_too_long() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    let long = vec![b'x'; 65_535];
    let reply = tenant.send(&Request {
        url: &long,
        ..Default::default()
    });
    assert_eq!(line(reply.text(), "url").len(), 65_535);
    let longer = vec![b'x'; 65_536];
    for request in [
        Request {
            url: &longer,
            ..Default::default()
        },
        Request {
            arg: &longer,
            ..Default::default()
        },
    ] {
        let failure = tenant.try_send(&request, Instant::now() + ENOUGH, &mut Quiet);
        assert!(failure.is_err());
        assert_eq!(tenant.get("/counter").text(), "1\n");
    }
}

/// Behind a call that never returns there is nothing that its program could do next.
#[test]
fn calls_that_never_return_fail_by_their_names() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    for (number, name) in [
        ("10001", "wait_for_requests() again"),
        ("10002", "wait_for_requests_paused() again"),
        ("10012", "status 0 is not between 200 and 599"),
        (
            "10013",
            "storage_noreturn() outside of a storage call and of a live update's handlers",
        ),
        ("ffff", "hypercall 0xFFFF"),
    ] {
        let failure = tenant.failure(&format!("/call/{number}")).to_string();
        assert!(failure.contains(name), "{number}: {failure}");
    }
    // Others return, and say that they are not there.
    for number in ["10011", "10034", "20000", "12345678"] {
        assert_eq!(tenant.get(&format!("/call/{number}")).text(), "-38\n");
    }
}

/// Around the length where a request does not fit in the request area any more and goes to the heap.
#[test]
fn bodies_around_the_request_area() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    let body = pattern(70_000);
    for len in (65_000..65_600).step_by(if emulated() { 97 } else { 1 }) {
        let body = &body[body.len() - len..];
        assert!(tenant.post("/echo", body).body == body, "{len}");
    }
    for len in (65_000usize..65_535).step_by(if emulated() { 97 } else { 1 }) {
        let reply = tenant.send(&Request {
            url: &vec![b'u'; len],
            ..Default::default()
        });
        assert_eq!(line(reply.text(), "url").len(), len);
    }
}

#[test]
fn output_of_a_request_is_handed_on() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    let mut host = Recorder::default();
    let mut send = |url: &str| {
        let request = Request {
            url: url.as_bytes(),
            ..Default::default()
        };
        tenant
            .try_send(&request, Instant::now() + ENOUGH, &mut host)
            .unwrap()
    };
    assert_eq!(send("/stdout").text(), "printed\n");
    assert_eq!(send("/log?text=a+line").text(), "log: 0\n");
    assert_eq!(host.text(Stream::Stdout), "echo: to stdout\n");
    assert_eq!(host.text(Stream::Stderr), "echo: to stderr\n");
    assert_eq!(host.text(Stream::Log), "a line");
}

#[test]
fn random_numbers_differ_in_each_request_of_each_fork() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("echo", |config| config.concurrency = 3);
    let request = Request {
        method: "GET",
        url: b"/prng",
        ..Default::default()
    };
    let mut seen = std::collections::HashSet::new();
    for _ in 0..few(100) {
        // Held all at once, so that they come from three forks, each of which is reset afterwards.
        let mut answers: Vec<_> = (0..3)
            .map(|_| {
                let deadline = Instant::now() + ENOUGH;
                tenant.answer(&request, deadline, &mut Quiet).unwrap()
            })
            .collect();
        for answer in &mut answers {
            let mut body = [0; 100];
            let n = answer.read_body(&mut body);
            let text = String::from_utf8(body[..n].to_vec()).unwrap();
            let words: Vec<_> = text.split_whitespace().map(String::from).collect();
            assert_eq!(words[1], "16");
            assert!(
                seen.insert(words[0].clone()) && seen.insert(words[2].clone()),
                "again: {words:?}"
            );
        }
    }
    assert_eq!(tenant.stats().created, 3);
}

#[test]
fn what_only_main_may_do() {
    kvm_or_skip!();
    let tenant = Tenant::boot("echo");
    let reply = tenant.get("/late");
    let words: Vec<_> = reply.text().split_whitespace().collect();
    assert!(
        words[1].starts_with('-') && words[3].starts_with('-'),
        "{}",
        reply.text()
    );
    assert_eq!(tenant.get("/flags").text(), "storage 0 debug 0\n");
    let meminfo = tenant.get("/meminfo");
    let words: Vec<_> = meminfo.text().split_whitespace().collect();
    assert_eq!(
        (words[0], words[4]),
        ("0", "67108864"),
        "{}",
        meminfo.text()
    );
}

/// By GS base, which is the program's to set.
#[test]
fn forks_have_numbers() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("echo", |config| config.concurrency = 2);
    for _ in 0..3 {
        assert_eq!(tenant.get("/vcpu").text(), "1 1 in main 0\n");
    }
    let request = Request {
        url: b"/vcpu",
        ..Default::default()
    };
    let deadline = Instant::now() + tenant.config().limits.max_request_time;
    let held = tenant.answer(&request, deadline, &mut Quiet).unwrap();
    assert_eq!(tenant.get("/vcpu").text(), "2 2 in main 0\n");
    drop(held);
    tenant.assert_pristine();
    let tenant = Tenant::boot_with("echo", |config| {
        config.main_arguments = vec!["--own-gs".into()];
    });
    for _ in 0..2 {
        assert_eq!(tenant.get("/vcpu").text(), "4711 4712 in main 0\n");
    }
}

#[test]
fn on_error_answers() {
    kvm_or_skip!();
    let tenant = Tenant::boot("get_post");
    let request = Request {
        url: b"/die",
        arg: b"A",
        ..Default::default()
    };
    let reply = tenant.send(&request);
    assert_eq!(
        (reply.status, reply.text()),
        (503, "error /die arg A: with a text\n")
    );
    assert!(
        reply
            .failure
            .unwrap()
            .to_string()
            .starts_with("request failed: ")
    );
    assert_eq!(tenant.get("/u").failure, None);

    let tenant = Tenant::boot("crash-on_error");
    let reply = tenant.get("/null-write");
    assert_eq!(reply.status, 500);
    assert!(
        reply.text().starts_with("on_error: /null-write: "),
        "{}",
        reply.text()
    );
    assert_eq!(tenant.get("/ok").text(), "ok\n");
}

#[test]
fn on_error_that_fails_itself() {
    kvm_or_skip!();
    for name in ["crash-on_error-crash", "crash-on_error-loop"] {
        let tenant = Tenant::boot(name);
        let failure = tenant.failure("/ud2").to_string();
        assert!(
            failure.contains("(ud2+0x0)") && failure.contains("on_error"),
            "{failure}"
        );
        assert_eq!(tenant.get("/ok").text(), "ok\n");
        assert_eq!(tenant.stats().created, 1);
        tenant.assert_pristine();
    }
}
