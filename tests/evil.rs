//! Every call of the interface with every kind of bad pointer and bad length that there is, through a real varnishd: each has the
//! status that it is to have, one line in the log that says what was wrong, and nothing that the next request could notice.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use common::client::{Body, Client, Response};
use common::upstream::Upstream;
use common::varnishd::Varnishd;
use common::{Folder, eventually};

const EPERM: i64 = -1;
const E2BIG: i64 = -7;
const EBADF: i64 = -9;
const EFAULT: i64 = -14;
const EINVAL: i64 = -22;
const ENOSYS: i64 = -38;
const EMSGSIZE: i64 = -90;
/// What calls of storage give that were not made.
const FAILED: i64 = -1;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    /// It gives this number, and its request goes on.
    Gives(i64),
    /// It answers the request, well.
    Answers,
    /// Its request fails.
    Fails,
}
use Outcome::{Answers, Fails, Gives};

/// What becomes of a call whose argument is changed so, and what the log says.
fn expected(call: &str, argument: &str, kind: &str, worth: &str) -> (Outcome, &'static str) {
    // What is longer than it may be at all is not looked at.
    let too_long = worth == "length" && kind != "one-more";
    match (call, argument) {
        ("log", _) => (Gives(EFAULT), "log() failed: bad guest address"),
        ("get_meminfo", _) => (Gives(EFAULT), "get_meminfo() failed: bad guest address"),
        ("http_append" | "http_set", _) => (Fails, "it set an invalid header: "),
        ("http_find", _) => (Gives(EFAULT), "http_find() failed: "),
        ("http_method", _) => (Gives(EFAULT), "http_method() failed: bad guest address"),
        ("regex_compile", _) if too_long => (Gives(E2BIG), "regex_compile() failed: "),
        ("regex_compile", _) => (Gives(EFAULT), "regex_compile() failed: bad guest address"),
        ("regex_match", _) if too_long => (Gives(E2BIG), "regex_match() failed: "),
        ("regex_match", _) => (Gives(EFAULT), "regex_match() failed: bad guest address"),
        ("backend_response", "type") => (Fails, "its response is invalid: "),
        ("backend_response", "content") => (Fails, "its response is invalid: content of "),
        ("backend_response", "extra") => {
            (Fails, "its response is invalid: extra at bad guest address")
        }
        ("backend_response", "headers") => (Fails, "its response is invalid: header "),
        ("backend_response", "field") => (Fails, "its response is invalid: header 1: "),
        ("begin_streaming_response", "type") => (Fails, "its response is invalid: "),
        ("begin_streaming_response", "part") => {
            (Fails, "its response is invalid: its callback gave ")
        }
        ("begin_streaming_response", _) => (Fails, "request failed: "),
        ("storage_callv", _) => (Gives(FAILED), "storage_callv() failed: "),
        ("storage_task", _) => (Gives(FAILED), "storage_task() failed: "),
        ("storage_return" | "storage_noreturn", _) => {
            (Gives(FAILED), "storage_callv() failed: its result of ")
        }
        ("fetch", "url" | "field") if too_long => (Gives(EINVAL), " failed: a "),
        ("fetch", "post") if too_long => (Gives(EMSGSIZE), " failed: a body of more than "),
        ("fetch", "url") => (Gives(EFAULT), "fetch() failed: a bad pointer or length: "),
        ("fetch", _) => (Gives(EFAULT), "fetch of http://127.0.0.1:"),
        ("self_request", _) if too_long => (Gives(EINVAL), "self_request() failed: a URL of "),
        ("self_request", _) => (
            Gives(EFAULT),
            "self_request() failed: a bad pointer or length: ",
        ),
        ("fetch_begin", "body") if too_long => {
            (Gives(EMSGSIZE), "fetch_begin() failed: a body of ")
        }
        // The first entry is there, and none.
        ("fetch_begin", "headers") if kind.starts_with("past") => {
            (Gives(EINVAL), "fetch_begin() failed: a header")
        }
        ("fetch_begin", _) if too_long => (Gives(EINVAL), "fetch_begin() failed: a "),
        ("fetch_begin", _) => (
            Gives(EFAULT),
            "fetch_begin() failed: a bad pointer or length: ",
        ),
        ("fetch_head", _) => (
            Gives(EFAULT),
            "fetch_head() failed: a bad pointer or length: ",
        ),
        ("fetch_read", _) => (
            Gives(EFAULT),
            "fetch_read() failed: a bad pointer or length: ",
        ),
        _ => panic!("{call} {argument} {kind}: what is to come of it?"),
    }
}

/// Numbers that are none, or odd.
fn of_values() -> Vec<(String, Outcome, &'static str)> {
    const NEGATIVE: &str = "ffffffffffffffff";
    const HUGE: &str = "8000000000000000";
    let mut all = Vec::new();
    let mut add = |what: &str, values: &[&str], outcome: Outcome, line: &'static str| {
        for value in values {
            all.push((format!("/run/{what}/={value}"), outcome, line));
        }
    };
    let strange = ["2", "3", "6", HUGE, NEGATIVE];
    add("http_append/where", &strange, Fails, "no such message");
    add("http_set/where", &strange, Fails, "no such message");
    add("http_find/where", &strange, Gives(0), "");
    let none = ["0", "41", HUGE, NEGATIVE];
    add(
        "regex_free/number",
        &none,
        Gives(EINVAL),
        "regex_free() failed: there is no expression ",
    );
    add(
        "regex_match/number",
        &none,
        Gives(EINVAL),
        "regex_match() failed: there is no expression ",
    );
    for time in ["ttl", "grace", "keep"] {
        let what = format!("set_cacheable/{time}");
        add(
            &what,
            &["0", "7fffffffffffffff", HUGE, NEGATIVE],
            Gives(0),
            "",
        );
    }
    // 0, 99, 199, 600, the largest, the smallest, -1; 65736 is 200 in 16 bits.
    for call in ["backend_response", "begin_streaming_response"] {
        let what = format!("{call}/status");
        let bad = ["0", "63", "c7", "258", "7fff", "8000", NEGATIVE];
        add(&what, &bad, Fails, "is not between 200 and 599");
        add(&what, &["100c8"], Answers, "");
    }
    add(
        "backend_response/count",
        &["41", "ffff"],
        Fails,
        " headers, more than 64",
    );
    let no_numbers = ["7fc00000", "ffc00000", "7f800000", "ff800000"];
    add(
        "backend_response/ttl",
        &no_numbers,
        Fails,
        "a cache time that is no number",
    );
    add(
        "backend_response/ttl",
        &["7f7fffff", "bf800000", "00000001"],
        Answers,
        "",
    );
    // Its callback gives 5 bytes.
    add(
        "begin_streaming_response/length",
        &["6", "10000"],
        Fails,
        "ended it after 5 bytes",
    );
    add(
        "begin_streaming_response/length",
        &["4"],
        Fails,
        "gave 5 bytes, and was asked for 4",
    );
    add(
        "begin_streaming_response/length",
        &[HUGE, NEGATIVE],
        Fails,
        "(max_response_size)",
    );
    add("begin_streaming_response/length", &["5"], Answers, "");
    add(
        "storage_callv/n",
        &["41", HUGE, NEGATIVE],
        Gives(FAILED),
        " buffers, more than 64",
    );
    for time in ["start", "period"] {
        let what = format!("storage_task/{time}");
        add(
            &what,
            &[HUGE, NEGATIVE],
            Gives(FAILED),
            "storage_task() failed: ",
        );
    }
    add(
        "storage_task_stop/number",
        &["0", "101", HUGE, NEGATIVE],
        Gives(FAILED),
        "",
    );
    add(
        "fetch_begin/count",
        &["41", "ffff"],
        Gives(EINVAL),
        " headers, more than 64",
    );
    for call in ["head", "read", "close"] {
        let what = format!("fetch_{call}/number");
        add(
            &what,
            &["0", "9", HUGE, NEGATIVE],
            Gives(EBADF),
            "there is no fetch of that number",
        );
    }
    add(
        "register_func/slot",
        &["0", "1", "8", HUGE, NEGATIVE],
        Gives(EPERM),
        "register_func() failed: only main()",
    );
    add(
        "storage_allow/function",
        &["0", HUGE],
        Gives(EPERM),
        "storage_allow() failed: only main()",
    );
    add(
        "make_ephemeral/on",
        &["0", "100"],
        Gives(EPERM),
        "make_ephemeral() failed: only main()",
    );
    let mut add = |what: &str, outcome: Outcome, line: &'static str| {
        all.push((what.to_owned(), outcome, line));
    };
    add(
        "/run/nothing",
        Gives(ENOSYS),
        "hypercall 0x10fff failed: there is no such call",
    );
    add(
        "/run/storage_return",
        Gives(ENOSYS),
        "hypercall 0x10011 failed: there is no such call",
    );
    add(
        "/run/storage_noreturn",
        Fails,
        "it called storage_noreturn() outside",
    );
    add(
        "/run/wait_for_requests",
        Fails,
        "it called wait_for_requests() again",
    );
    add(
        "/run/wait_for_requests_paused",
        Fails,
        "it called wait_for_requests_paused() again",
    );
    for (what, gives) in [
        ("find", 9),
        ("result-buffer", 9),
        ("result-array", 9),
        ("buffer-array", 9),
        ("content-op", 0),
        ("content-headers", 0),
        ("content-url", 0),
        ("head-headers", 0),
    ] {
        add(&format!("/overlap/{what}"), Gives(gives), "");
    }
    add(
        "/overlap/extra",
        Fails,
        "its response is invalid: header 0: ",
    );
    all
}

/// What came of a request.
fn outcome(url: &str, response: &Response) -> Outcome {
    match (response.status, response.text()) {
        (200, "fine\n" | "") => Answers,
        (200, text) => match text.trim_end().parse() {
            // Each task has a number of its own.
            Ok(1..) if url.contains("storage_task/") => Gives(1),
            Ok(number) => Gives(number),
            Err(_) => panic!("{url}: {text}"),
        },
        (500 | 503, _) => Fails,
        _ => panic!("{url}: {response:?}"),
    }
}

fn get(client: &mut Client, url: &str) -> Response {
    let headers = [("X-Evil", "1"), ("X-Whole", "1")];
    client.send("GET", "evil", url, &headers, Body::None)
}

/// What the log says of each request of the tenants, by their URLs.
fn said(varnish: &Varnishd) -> BTreeMap<String, Vec<String>> {
    let (mut urls, mut lines) = (BTreeMap::new(), BTreeMap::<String, Vec<String>>::new());
    for record in varnish.log("") {
        let mut words = record.split_whitespace();
        let (Some(number), Some(tag)) = (words.next(), words.next()) else {
            continue;
        };
        let number = number.to_owned();
        if tag == "BereqURL" {
            let url = words.next_back().unwrap_or_default().to_owned();
            lines.entry(url.clone()).or_default();
            urls.insert(number, url);
        } else if let (Some((_, text)), Some(url)) =
            (record.split_once("kvm: tenant evil"), urls.get(&number))
        {
            lines.entry(url.clone()).or_default().push(text.to_owned());
        }
    }
    lines
}

#[test]
fn no_bad_argument_harms_anybody() {
    if !common::have_kvm() {
        return;
    }
    let upstream = Upstream::new();
    let folder = Folder::new("evil");
    let socket = folder.path().join("self.sock");
    let varnish = Varnishd::start_with(
        &format!(
            r#"kvm.init_self_requests("{}", "http://synth");
            kvm.tenant("evil", "GUESTS/test/evil", main_arguments = "{}", allow_net = "{}", storage = true, concurrency = 2,
                max_memory = 64MB, max_wait = ENOUGH, max_request_time = ENOUGH, max_storage_time = ENOUGH);"#,
            socket.display(),
            upstream.url("/body/8"),
            upstream.rule(),
        ),
        &["-a", &format!("self={}", socket.display())],
    );
    let mut client = varnish.client();
    let list = get(&mut client, "/list").text().to_owned();
    let child = varnish.child().pid();
    // What each call does with good arguments.
    let mut plain = BTreeMap::new();
    let way_of = |call: &str| match call {
        "storage_return" | "storage_noreturn" => "/storage/",
        _ => "/run/",
    };
    for line in list.lines() {
        let call = line.split(' ').next().unwrap();
        let url = format!("{}{call}", way_of(call));
        plain
            .entry(call)
            .or_insert_with(|| outcome(&url, &get(&mut client, &url)));
    }
    assert_eq!(plain.len(), 19, "{plain:?}");
    for (call, outcome) in &plain {
        let is_good = !matches!(outcome, Fails | Gives(i64::MIN..0));
        assert!(is_good, "{call}: {outcome:?}");
    }
    let mut asked = Vec::new();
    for line in list.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let [call, argument, kind, worth] = words[..] else {
            panic!("{line}");
        };
        let is_good = matches!(worth, "good" | "limit")
            // As many lines as there are fit, whatever room there is said to be.
            || (call, argument, kind) == ("fetch_head", "headers", "one-more");
        let (outcome, says) = match (is_good, call) {
            (true, "log") => (plain[call], "X-Evil: 1"),
            (true, _) => (plain[call], ""),
            (false, _) => expected(call, argument, kind, worth),
        };
        let url = format!("{}{call}/{argument}/{kind}", way_of(call));
        asked.push((url, outcome, says));
    }
    assert!(asked.len() > 900, "{}", asked.len());
    asked.extend(of_values());

    let mut wrong = String::new();
    let descriptors = varnish.child().kvm_descriptors();
    for (url, expected, _) in &asked {
        let came = outcome(url, &get(&mut client, url));
        if came != *expected {
            writeln!(wrong, "{url}: {came:?}, not {expected:?}").unwrap();
        }
        let next = get(&mut client, "/fine");
        assert_eq!((next.status, next.text()), (200, "fine 1\n"), "after {url}");
    }
    let said = said(&varnish);
    for (url, _, says) in &asked {
        let lines = &said[url];
        let is_right = match says.is_empty() {
            true => lines.is_empty(),
            false => lines.len() == 1 && lines[0].contains(says),
        };
        if !is_right {
            writeln!(wrong, "{url}: said {lines:?}, not {says:?}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "of {}:\n{wrong}", asked.len());
    assert!(said["/fine"].is_empty(), "{:?}", said["/fine"]);

    // Nothing is left of all that.
    assert_eq!(varnish.child().pid(), child, "another child");
    eventually("all forks are idle", || {
        let list = varnish.admin(&["backend.list", "-p"]);
        list.contains("forks=2 idle=2") || list.contains("forks=1 idle=1")
    });
    eventually("no machine is left behind", || {
        varnish.child().kvm_descriptors() <= descriptors.max(16)
    });
    upstream.wait_for_open(..=8);
    let failed = asked.iter().filter(|(_, outcome, _)| *outcome == Fails);
    assert_eq!(varnish.counter("failures"), failed.count() as u64);
    assert_eq!(varnish.counter("storage_restarts"), 0);
    assert_eq!(varnish.counter("timeouts"), 0);
}

/// Where a program is to be entered may be nowhere, and where it wants its request as well.
#[test]
fn no_bad_way_in_harms_anybody() {
    if !common::have_kvm() {
        return;
    }
    const PLACES: [&str; 12] = [
        "0",
        "8",
        "123456789000",
        "800000000000",
        "7fffffffffffffff",
        "8000000000000000",
        "ffff800000000000",
        "ffffffffffffffff",
        "7e0000001000",
        "7e0000004000",
        "7e0000006ff8",
        "7e000001e000",
    ];
    let mut vcl = String::from(r#"kvm.tenant("fine", "GUESTS/hello", max_request_time = ENOUGH);"#);
    let mut tenants = Vec::new();
    for way in ["handler", "paused"] {
        for place in PLACES {
            let name = format!("evil-{way}-{place}");
            writeln!(
                vcl,
                r#"kvm.tenant("{name}", "GUESTS/test/evil", main_arguments = "--{way}={place}", concurrency = 1,
                    max_memory = 16MB, max_wait = ENOUGH, max_request_time = ENOUGH);"#
            )
            .unwrap();
            tenants.push((name, way));
        }
    }
    let varnish = Varnishd::start(&vcl);
    let child = varnish.child().pid();
    let mut client = varnish.client();
    let mut wrong = String::new();
    for (name, way) in &tenants {
        // A handler at 0 is none.
        let says = match *way {
            "handler" => ": request failed: ",
            _ => {
                ": request failed: its response is invalid: the structure of wait_for_requests_paused: bad guest address"
            }
        };
        for _ in 0..2 {
            let status = client.get(name, "/").status;
            if status != 500 {
                writeln!(wrong, "{name}: {status}").unwrap();
            }
        }
        let mut lines = varnish.log(&format!("kvm: tenant {name}: "));
        lines.retain(|line| !line.contains(": ready after "));
        if lines.len() != 2 || !lines.iter().all(|line| line.contains(says)) {
            writeln!(wrong, "{name}: {lines:#?}").unwrap();
        }
        let next = client.get("fine", "/");
        assert_eq!(
            (next.status, next.text()),
            (200, "Hello, World!\n"),
            "{name}"
        );
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(varnish.child().pid(), child, "another child");
    assert_eq!(varnish.counter("failures"), 2 * tenants.len() as u64);
}
