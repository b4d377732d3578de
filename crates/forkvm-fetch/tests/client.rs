//! What a client fetches, and what it does not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::upstream::{Upstream, pattern};
use common::{client, fetch, get, header, post, request, scaled, settings};
use forkvm::{FetchError, FetchRequest, FetchTarget, Fetcher, Fetching};
use forkvm_fetch::{Client, Own, Settings, Stats};

/// A client that may reach an upstream.
fn of(upstream: &Upstream) -> Client {
    client(settings(&[&upstream.rule()]))
}

fn soon() -> Instant {
    Instant::now() + scaled(Duration::from_millis(300))
}

#[test]
fn what_was_asked_for_comes() {
    let upstream = Upstream::new();
    let client = of(&upstream);
    let echo = fetch(
        &client,
        FetchRequest {
            headers: vec![header("X-A", "b"), header("Accept", "text/x")],
            ..request(&upstream.url("/echo?a=b#c"))
        },
    )
    .unwrap();
    assert_eq!(
        (echo.head.status, echo.header("content-type")),
        (200, Some("text/echo"))
    );
    assert_eq!(echo.head.length, Some(echo.body.len() as u64));
    let mut lines: Vec<_> = echo.text().lines().collect();
    lines.sort_unstable();
    let host = format!("host: {}", upstream.address);
    let agent = concat!("user-agent: vmod-kvm/", env!("CARGO_PKG_VERSION"));
    let mut expected = [
        "GET /echo?a=b HTTP/1.1",
        "x-a: b",
        "accept: text/x",
        &host,
        agent,
        "",
    ];
    expected.sort_unstable();
    assert_eq!(lines, expected);
    let twice = echo
        .head
        .headers
        .iter()
        .filter(|header| header.name == "x-twice");
    assert_eq!(twice.count(), 2);

    let echo = fetch(&client, post(&upstream.url("/echo"), b"12345")).unwrap();
    assert!(
        echo.text().starts_with("POST /echo HTTP/1.1\r\n"),
        "{}",
        echo.text()
    );
    assert!(
        echo.text().contains("content-length: 5\r\n") && echo.text().ends_with("\r\n\r\n12345")
    );
    assert_eq!(
        get(&client, &upstream.url("/status/404"))
            .unwrap()
            .head
            .status,
        404
    );
    assert_eq!(get(&client, &upstream.url("/twice")).unwrap().text(), "ok");
    assert_eq!(
        client.stats(),
        Stats {
            fetches: 4,
            failures: 0
        }
    );
}

#[test]
fn bodies_come_whole_whatever_their_length_is_told_by() {
    let upstream = Upstream::new();
    let client = of(&upstream);
    for len in [0, 1, 10_000, 3 << 20] {
        for how in ["body", "chunked", "until-close"] {
            let fetched = get(&client, &upstream.url(&format!("/{how}/{len}"))).unwrap();
            assert!(
                fetched.body == pattern(len),
                "{how} {len}: {}",
                fetched.body.len()
            );
            let known = (how == "body").then_some(len as u64);
            assert_eq!(fetched.head.length, known, "{how} {len}");
        }
    }
}

#[test]
fn bodies_have_a_limit() {
    let upstream = Upstream::new();
    let client = client(Settings {
        max_size: 1000,
        ..settings(&[&upstream.rule()])
    });
    let too_long = Err(FetchError::TooLong(1000));
    for path in [
        "/body/1001",
        "/chunked/1001",
        "/until-close/1001",
        "/endless",
    ] {
        assert_eq!(get(&client, &upstream.url(path)), too_long, "{path}");
    }
    assert_eq!(
        fetch(&client, post(&upstream.url("/echo"), &[b'x'; 1001])),
        too_long
    );
    for path in ["/body/1000", "/chunked/1000"] {
        assert_eq!(get(&client, &upstream.url(path)).unwrap().body.len(), 1000);
    }
    assert_eq!(client.stats().failures, 5);
    drop(client);
    upstream.wait_for_open(..=0);
}

#[test]
fn upstreams_that_break_off_or_speak_no_http_are_told_apart_from_good_ones() {
    let upstream = Upstream::new();
    let client = of(&upstream);
    for path in [
        "/bad-chunk",
        "/cut/10",
        "/closes",
        "/junk",
        "/long-head",
        "/many-headers",
    ] {
        match get(&client, &upstream.url(path)) {
            Err(FetchError::Protocol(_) | FetchError::Unreachable(_)) => {}
            other => panic!("{path}: {other:?}"),
        }
    }
    assert_eq!(
        client.stats(),
        Stats {
            fetches: 6,
            failures: 6
        }
    );
    // Nobody is there.
    let gone = Upstream::new();
    let url = gone.url("/echo");
    let client = of(&gone);
    drop(gone);
    // Its thread is about to leave the port.
    let end = Instant::now() + common::ENOUGH;
    loop {
        match get(&client, &url) {
            Err(FetchError::Unreachable(what)) if what.contains("refused") => break,
            other => assert!(Instant::now() < end, "{other:?}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nothing_takes_longer_than_it_may() {
    let upstream = Upstream::new();
    let named = client(Settings {
        max_size: u64::MAX,
        ..settings(&[&upstream.rule(), "*.hangs"])
    });
    let name = format!("http://name.hangs:{}/echo", upstream.address.port());
    for url in [
        upstream.url("/hangs"),
        upstream.url("/hangs-after/10"),
        upstream.url("/endless"),
        name,
    ] {
        let late = FetchRequest {
            deadline: soon(),
            ..request(&url)
        };
        assert_eq!(fetch(&named, late), Err(FetchError::Timeout), "{url}");
    }
    // By the tenant's own limit.
    let short = client(Settings {
        max_time: scaled(Duration::from_millis(200)),
        ..settings(&[&upstream.rule()])
    });
    assert_eq!(
        get(&short, &upstream.url("/hangs")),
        Err(FetchError::Timeout)
    );
    drop((named, short));
    upstream.wait_for_open(..=0);
}

/// Names that hang hold their tenant's threads only.
#[test]
fn slow_names_of_one_do_not_hold_up_anothers() {
    let upstream = Upstream::new();
    let slow = client(settings(&["*.hangs"]));
    let late: Vec<_> = (0..20)
        .map(|i| {
            let late = FetchRequest {
                deadline: soon(),
                ..request(&format!("http://{i}.hangs/"))
            };
            slow.begin(late).unwrap()
        })
        .collect();
    let port = upstream.address.port();
    let named = client(settings(&["a.local", &upstream.rule()]));
    let fetched = get(&named, &format!("http://a.local:{port}/body/3")).unwrap();
    assert_eq!(fetched.body.len(), 3);
    for mut one in late {
        assert_eq!(
            one.head(Instant::now() + common::ENOUGH),
            Err(FetchError::Timeout)
        );
    }
}

#[test]
fn nothing_is_reached_that_is_not_named() {
    let upstream = Upstream::new();
    let port = upstream.address.port();
    let denied = |rules: &[&str], url: &str| {
        let client = client(settings(rules));
        match get(&client, url) {
            Err(FetchError::NotAllowed(what)) => what,
            other => panic!("{rules:?} {url}: {other:?}"),
        }
    };
    let other_port = format!("127.0.0.1:{}", port ^ 1);
    for rules in [
        &[][..],
        &["*"],
        &["a.example"],
        &["10.0.0.0/8"],
        &["127.0.0.2"],
        &[&other_port],
    ] {
        for host in ["127.0.0.1", "[::ffff:127.0.0.1]", "[::1]"] {
            denied(rules, &format!("http://{host}:{port}/echo"));
        }
    }
    for url in [
        "http://169.254.169.254/latest/meta-data/",
        "http://0.0.0.0/",
        "http://[::]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[::10.0.0.1]/",
        "http://[64:ff9b::10.0.0.1]/",
        "http://[2002:0a00:0001::]/",
        "http://[fe80::1]/",
        "http://[fd00::1]/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://100.64.0.1/",
    ] {
        denied(&["*"], url);
    }
    // A name that is named stands for what is public only, whatever its name server says.
    let what = denied(&["*.local"], &format!("http://a.local:{port}/echo"));
    assert!(what.contains("a.local has the address 127.0.0.1"), "{what}");
    denied(&["*"], &format!("http://a.local:{port}/echo"));
    // One that is not is not looked up.
    denied(&["127.0.0.1"], &format!("http://a.local:{port}/echo"));
    denied(&["*.local"], "http://local/");
    assert_eq!(upstream.connections(), 0);

    let by_range = ["127.0.0.0/8", &format!("127.0.0.1/32:{port}")];
    for rule in by_range {
        get(&client(settings(&[rule])), &upstream.url("/body/1")).unwrap();
    }
    let named = client(settings(&["localhost"]));
    get(&named, &format!("http://localhost:{port}/body/1")).unwrap();
}

/// Of several addresses those are tried that may be.
#[test]
fn all_of_a_names_addresses_are_looked_at() {
    let upstream = Upstream::new();
    let port = upstream.address.port();
    let near = client(settings(&["*.both", "127.0.0.1"]));
    let fetched = get(&near, &format!("http://a.both:{port}/echo")).unwrap();
    let host = format!("host: a.both:{port}\r\n");
    assert!(fetched.text().contains(&host), "{}", fetched.text());
    // The one that may be is not there: the other one is not tried.
    let far = client(settings(&["*.both", "[2001:db8::1]"]));
    let late = FetchRequest {
        deadline: soon(),
        ..request(&format!("http://a.both:{port}/echo"))
    };
    fetch(&far, late).unwrap_err();
    assert_eq!(upstream.connections(), 1);
    let none = client(settings(&["*.nowhere"]));
    let no_address = FetchError::NoAddress("a.nowhere".into());
    assert_eq!(get(&none, "http://a.nowhere/"), Err(no_address));
}

fn follow(url: &str) -> FetchRequest {
    FetchRequest {
        follow: true,
        ..request(url)
    }
}

#[test]
fn redirects_are_followed_if_that_is_wanted() {
    let upstream = Upstream::new();
    let client = of(&upstream);
    let url = upstream.url("/to/302?/body/5");
    let fetched = get(&client, &url).unwrap();
    assert_eq!(
        (fetched.head.status, fetched.header("location")),
        (302, Some("/body/5"))
    );
    assert_eq!(fetch(&client, follow(&url)).unwrap().body.len(), 5);
    // All over one connection.
    assert_eq!(upstream.connections(), 1);
    let hanging = upstream.url("/hanging-redirect?/body/6");
    assert_eq!(fetch(&client, follow(&hanging)).unwrap().body.len(), 6);
    let endless = fetch(&client, follow(&upstream.url("/loop")));
    assert_eq!(endless, Err(FetchError::Loop("too many redirects")));
    // What becomes of a POST.
    for (status, expected) in [
        (301, "GET"),
        (302, "GET"),
        (303, "GET"),
        (307, "POST"),
        (308, "POST"),
    ] {
        let posted = FetchRequest {
            headers: vec![header("Content-Type", "text/a")],
            follow: true,
            ..post(&upstream.url(&format!("/to/{status}?/echo")), b"body")
        };
        let echo = fetch(&client, posted).unwrap();
        let keeps = expected == "POST";
        assert!(
            echo.text().starts_with(expected),
            "{status}: {}",
            echo.text()
        );
        assert_eq!(
            echo.text().contains("content-type: text/a"),
            keeps,
            "{status}"
        );
        assert_eq!(echo.text().ends_with("\r\n\r\nbody"), keeps, "{status}");
    }
}

#[test]
fn redirects_lead_to_nothing_that_is_not_named() {
    let (upstream, secret) = (Upstream::new(), Upstream::new());
    let named = client(settings(&[&upstream.rule(), "*.local"]));
    let by_name = format!("http://a.local:{}/echo", secret.address.port());
    for to in [
        secret.url("/echo"),
        by_name,
        "http://169.254.169.254/".into(),
    ] {
        let result = fetch(&named, follow(&upstream.url(&format!("/to/302?{to}"))));
        assert!(
            matches!(result, Err(FetchError::NotAllowed(_))),
            "{to}: {result:?}"
        );
    }
    for to in [
        "file:///etc/passwd",
        "http://user@127.0.0.1/",
        "http://127.0.0.1:0/",
    ] {
        let result = fetch(&named, follow(&upstream.url(&format!("/to/302?{to}"))));
        assert!(
            matches!(result, Err(FetchError::Bad(_))),
            "{to}: {result:?}"
        );
    }
    assert_eq!(secret.connections(), 0);
    // Where it may lead to, what was meant for the first is not told.
    let both = client(settings(&[&upstream.rule(), &secret.rule()]));
    let told = |to: &str| {
        let request = FetchRequest {
            headers: vec![
                header("Authorization", "Basic x"),
                header("Cookie", "a=b"),
                header("X-A", "b"),
            ],
            ..follow(&upstream.url(&format!("/to/307?{to}")))
        };
        let text = fetch(&both, request).unwrap().text().to_owned();
        ["authorization", "cookie", "x-a"].map(|name| text.contains(name))
    };
    assert_eq!(told(&secret.url("/echo")), [false, false, true]);
    assert_eq!(told("/echo"), [true, true, true]);
}

#[test]
fn connections_are_used_again_but_for_no_other_tenant() {
    let upstream = Upstream::new();
    let (one, other) = (of(&upstream), of(&upstream));
    for _ in 0..50 {
        get(&one, &upstream.url("/body/10")).unwrap();
        fetch(&one, post(&upstream.url("/chunked/10"), b"x")).unwrap();
    }
    assert_eq!(upstream.connections(), 1);
    get(&other, &upstream.url("/body/10")).unwrap();
    assert_eq!(upstream.connections(), 2);
    // One that the upstream has ended while it was idle is no failure.
    for _ in 0..20 {
        assert_eq!(get(&one, &upstream.url("/leaves")).unwrap().text(), "ok");
    }
    // Neither is one whose end comes just then, for what may be sent twice.
    let before = upstream.connections();
    get(&one, &upstream.url("/body/1")).unwrap();
    let closes = get(&one, &upstream.url("/closes"));
    assert!(matches!(closes, Err(FetchError::Protocol(_))), "{closes:?}");
    assert_eq!(upstream.connections(), before + 2);
    drop((one, other));
    upstream.wait_for_open(..=0);
}

#[test]
fn so_many_at_once_and_no_more() {
    let upstream = Upstream::new();
    let client = client(Settings {
        max_fetches: 2,
        ..settings(&[&upstream.rule()])
    });
    let two = [(); 2].map(|()| client.begin(request(&upstream.url("/hangs"))).unwrap());
    upstream.wait_for_open(2..=2);
    assert_eq!(
        get(&client, &upstream.url("/body/1")),
        Err(FetchError::TooMany(2))
    );
    drop(two);
    upstream.wait_for_open(..=0);
    // A place is free as soon as a fetch is over.
    for _ in 0..100 {
        let _one = client.begin(request(&upstream.url("/hangs"))).unwrap();
        get(&client, &upstream.url("/body/1")).unwrap();
    }
}

#[test]
fn one_that_nobody_reads_holds_little_and_ends_when_it_is_dropped() {
    let upstream = Upstream::new();
    let client = client(Settings {
        max_size: u64::MAX,
        ..settings(&[&upstream.rule()])
    });
    let mut begun = client.begin(request(&upstream.url("/endless"))).unwrap();
    let end = Instant::now() + common::ENOUGH;
    begun.head(end).unwrap().unwrap();
    // Nothing but what is asked for comes.
    let mut piece = [0; 10];
    for i in 0..1000 {
        let mut have = 0;
        while have < piece.len() {
            have += begun.read(&mut piece[have..], end).unwrap().unwrap();
        }
        assert_eq!(piece[..], pattern(10_000)[i * 10..][..10]);
    }
    drop(begun);
    upstream.wait_for_open(..=0);
}

/// Threads of varnishd have 80 KiB unless told otherwise, some of it in use.
#[test]
fn whoever_waits_needs_little_stack() {
    let upstream = Upstream::new();
    let client = Arc::new(of(&upstream));
    let url = upstream.url("/chunked/100000");
    let small = thread::Builder::new().stack_size(48 << 10);
    let waits = small.spawn(move || get(&*client, &url).map(|fetched| fetched.body.len()));
    assert_eq!(waits.unwrap().join().unwrap(), Ok(100_000));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let upstream = Upstream::new();
    let client = of(&upstream);
    let url = upstream.url("/echo");
    for method in ["", "GET /", "GE\r\nT", "CONNECT", "TRACE"] {
        let result = fetch(
            &client,
            FetchRequest {
                method: method.into(),
                ..request(&url)
            },
        );
        assert!(
            matches!(result, Err(FetchError::Bad(_))),
            "{method:?}: {result:?}"
        );
    }
    for (name, value) in [("a b", "c"), ("a", "b\r\nc: d"), ("a", "b\0")] {
        let result = fetch(
            &client,
            FetchRequest {
                headers: vec![header(name, value)],
                ..request(&url)
            },
        );
        assert!(
            matches!(result, Err(FetchError::Bad(_))),
            "{name:?}: {result:?}"
        );
    }
    assert_eq!(upstream.connections(), 0);
}

fn own(path: &str, depth: usize) -> FetchRequest {
    FetchRequest {
        target: FetchTarget::Own {
            path: path.into(),
            depth,
        },
        ..request("")
    }
}

#[test]
fn one_tenants_requests_to_the_own_varnish_keep_nobody_elses_out() {
    let upstream = Upstream::new();
    let settings = settings(&[]);
    settings
        .own
        .set(Own::new(None, &upstream.url(""), 2).unwrap());
    let (one, other) = (client(settings.clone()), client(settings));
    let hangs = || one.begin(own("/hangs", 0)).unwrap();
    let mut held = vec![hangs(), hangs()];
    assert_eq!(
        fetch(&one, own("/body/1", 0)),
        Err(FetchError::TooManyOwn(2))
    );
    assert_eq!(fetch(&other, own("/body/1", 0)).unwrap().body, pattern(1));
    // A place is free as soon as its fetch is dropped.
    for _ in 0..100 {
        held.pop();
        held.push(hangs());
    }
    // So it is when it has come or has failed, though nobody reads it.
    let late = FetchRequest {
        deadline: Instant::now(),
        ..own("/hangs", 0)
    };
    let mut unread = Vec::new();
    for request in [own("/body/1", 0), own("/closes", 0), late] {
        held.pop();
        unread.push(one.begin(request).unwrap());
        held.push(own_when_free(&one));
    }
}

/// Begins one as soon as there is a place for it.
fn own_when_free(client: &Client) -> Box<dyn Fetching> {
    let end = Instant::now() + common::ENOUGH;
    loop {
        match client.begin(own("/hangs", 0)) {
            Err(FetchError::TooManyOwn(_)) => assert!(Instant::now() < end, "no place is free"),
            begun => return begun.unwrap(),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_own_varnish_is_asked_as_its_operator_says() {
    let upstream = Upstream::new();
    let settings = settings(&[]);
    let slot = settings.own.clone();
    let client = client(settings);
    assert_eq!(fetch(&client, own("/echo", 0)), Err(FetchError::NoOwn));
    slot.set(Own::new(None, &upstream.url(""), 2).unwrap());
    let echo = fetch(&client, own("/echo?a", 1)).unwrap();
    assert!(
        echo.text().starts_with("GET /echo?a HTTP/1.1\r\n"),
        "{}",
        echo.text()
    );
    assert!(
        echo.text().contains("cdn-loop: vmod-kvm, vmod-kvm\r\n"),
        "{}",
        echo.text()
    );
    for path in [
        "",
        "echo",
        "@127.0.0.1/",
        ":80/",
        "http://127.0.0.1/",
        "/\r\nX: y",
    ] {
        let result = fetch(&client, own(path, 0));
        assert!(
            matches!(result, Err(FetchError::Bad(_))),
            "{path:?}: {result:?}"
        );
    }
    // Not in circles, not too many, and nowhere else.
    assert!(matches!(
        fetch(&client, own("/echo", 4)),
        Err(FetchError::Loop(_))
    ));
    let other = Upstream::new();
    let away = FetchRequest {
        follow: true,
        ..own(&format!("/to/302?{}", other.url("/echo")), 0)
    };
    let away = fetch(&client, away);
    assert!(matches!(away, Err(FetchError::NotAllowed(_))), "{away:?}");
    let purge = FetchRequest {
        method: "PURGE".into(),
        ..own("/echo", 0)
    };
    assert!(matches!(fetch(&client, purge), Err(FetchError::Bad(_))));

    let socket = std::env::temp_dir().join(format!("forkvm-fetch-{}", std::process::id()));
    let seen = Upstream::unix(&socket);
    slot.set(Own::new(Some(socket.clone()), "http://own.example/p/", 2).unwrap());
    let result = fetch(&client, own("/body/3", 0));
    std::fs::remove_file(&socket).unwrap();
    // Its paths are beneath the prefix, of which the upstream knows nothing.
    assert!(result.is_err(), "{result:?}");
    assert_eq!(seen.requests.load(std::sync::atomic::Ordering::SeqCst), 1);
    for prefix in ["", "a", "ftp://a", "http://a/?b", "http://u@a/"] {
        assert!(Own::new(None, prefix, 1).is_err(), "{prefix}");
    }
    assert!(Own::new(Some(socket), "https://a/", 1).is_err());
}
