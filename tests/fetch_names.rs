//! A program's fetches by names whose server is hostile: whatever it says, nothing near is reached that the tenant has not named by its
//! address. It is a real name server, which the host's own resolver asks, in a network and with a resolv.conf of the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::env;
use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::Folder;
use common::upstream::Upstream;
use common::varnishd::Varnishd;

/// Set where the test runs in namespaces of its own.
const INSIDE: &str = "FORKVM_OWN_NAMES";
const NAMESPACES: [&str; 3] = ["--map-root-user", "--mount", "--net"];
const ENTER: &str = r#"ip link set lo up && mount --bind "$1" /etc/resolv.conf && exec "$2" --exact "$3" --nocapture"#;

/// A, AAAA (RFC 1035, 3.2.2; RFC 3596, 2.1).
const A: u16 = 1;
const AAAA: u16 = 28;

/// The addresses of a name; no answer at all for `hangs`. `turns` is far away when it is first asked for, and near from then on.
fn addresses(name: &str, turned: &AtomicBool, kind: u16) -> Option<Vec<IpAddr>> {
    let of = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let all: Vec<IpAddr> = match name {
        "near" => of(&["127.0.0.1"]),
        "private" => of(&["10.0.0.1"]),
        "metadata" => of(&["169.254.169.254"]),
        "six" => of(&["::1"]),
        "mapped" => of(&["::ffff:127.0.0.1"]),
        "both" => of(&["8.8.8.8", "127.0.0.1"]),
        "turns" if kind == A && !turned.swap(true, Ordering::Relaxed) => of(&["8.8.8.8"]),
        "turns" => of(&["127.0.0.1"]),
        "hangs" => return None,
        _ => Vec::new(),
    };
    let wanted = |ip: &IpAddr| ip.is_ipv4() == (kind == A);
    Some(all.into_iter().filter(wanted).collect())
}

/// Answers questions for names beneath .test (RFC 1035, 4.1).
fn serve_names(socket: &UdpSocket) {
    let turned = AtomicBool::new(false);
    let mut question = [0; 512];
    while let Ok((len, from)) = socket.recv_from(&mut question) {
        let question = &question[..len];
        // One label, and `test`.
        let label = usize::from(question[12]);
        let name = String::from_utf8_lossy(&question[13..13 + label]).into_owned();
        let end = question[12..].iter().position(|&byte| byte == 0).unwrap() + 13;
        let kind = u16::from_be_bytes([question[end], question[end + 1]]);
        if !matches!(kind, A | AAAA) {
            continue;
        }
        let Some(found) = addresses(&name, &turned, kind) else {
            continue;
        };
        let mut answer = question[..2].to_vec();
        // An answer, recursion available; one question, so many answers.
        answer.extend([0x81, 0x80, 0, 1, 0, found.len() as u8, 0, 0, 0, 0]);
        answer.extend(&question[12..end + 4]);
        for address in found {
            answer.extend([0xc0, 12, 0, kind as u8, 0, 1, 0, 0, 0, 0]);
            let bytes = match address {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            answer.extend([0, bytes.len() as u8]);
            answer.extend(bytes);
        }
        let _ = socket.send_to(&answer, from);
    }
}

#[test]
fn a_hostile_name_server_leads_nowhere() {
    if !common::have_kvm() {
        return;
    }
    if env::var_os(INSIDE).is_some() {
        return inside();
    }
    let unshare = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(NAMESPACES).args(arguments);
        command
    };
    let can = unshare(&["true"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !can {
        eprintln!("SKIPPED: no namespaces of one's own (unshare(1))");
        return;
    }
    let folder = Folder::new("names");
    let resolver = folder.path().join("resolv.conf");
    fs::write(&resolver, "nameserver 127.0.0.1\n").unwrap();
    let output = unshare(&["sh", "-c", ENTER, "sh"])
        .arg(&resolver)
        .arg(env::current_exe().unwrap())
        .arg("a_hostile_name_server_leads_nowhere")
        .env(INSIDE, "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn inside() {
    let names = UdpSocket::bind("127.0.0.1:53").unwrap();
    thread::spawn(move || serve_names(&names));
    let (named, secret) = (Upstream::new(), Upstream::new());
    let varnish = Varnishd::start(&format!(
        r#"kvm.tenant("t", "GUESTS/test/fetcher", allow_net = "* {}", concurrency = 1, max_fetch_time = 2s, max_wait = ENOUGH,
            max_request_time = ENOUGH);"#,
        named.rule()
    ));
    // That its program is ready is said whenever it is.
    let said = |varnish: &Varnishd| -> Vec<String> {
        let lines = varnish.log("kvm: tenant t: ").into_iter();
        lines.filter(|line| !line.contains("ready after")).collect()
    };
    let mut client = varnish.client();
    let port = secret.address.port();
    let mut ask = |url: &str, result: &str, says: &str| {
        let before = said(&varnish).len();
        let asked = format!("/whole?url={url}&follow=1");
        let response = client.get("t", &asked);
        assert_eq!(response.status, 200, "{url}");
        assert_eq!(response.text().lines().next(), Some(result), "{url}");
        let lines = said(&varnish);
        let new = &lines[before..];
        match says {
            "" => assert!(new.is_empty(), "{url}: {new:?}"),
            _ => assert!(
                new.len() == 1 && new[0].contains(says),
                "{url}: {new:?}, not {says}"
            ),
        }
    };
    // What is named by its address may be reached by a name.
    let at_named = format!("http://near.test:{}/echo", named.address.port());
    ask(&at_named, "OK", "");
    for (name, address) in [
        ("near", "127.0.0.1"),
        ("private", "10.0.0.1"),
        ("metadata", "169.254.169.254"),
        ("six", "::1"),
        ("mapped", "127.0.0.1"),
    ] {
        let url = format!("http://{name}.test:{port}/secret");
        let says =
            format!("{name}.test has the address {address}, and port {port} of that may not");
        ask(&url, "EACCES", &says);
        // Where a redirect leads to as well.
        let redirected = named.url(&format!("/to/302?{url}"));
        ask(&redirected, "EACCES", &says);
    }
    // Nobody is there in this network; the other address is not tried.
    let url = |name: &str| format!("http://{name}.test:{port}/secret");
    ask(&url("both"), "ECONNREFUSED", "8.8.8.8");
    // It is near now that it is asked for again.
    ask(&url("turns"), "ECONNREFUSED", "8.8.8.8");
    ask(
        &url("turns"),
        "EACCES",
        "turns.test has the address 127.0.0.1",
    );
    ask(&url("hangs"), "ETIMEDOUT", "not done in time");
    ask(
        &url("none"),
        "EHOSTUNREACH",
        "no address of none.test is known",
    );
    ask(&at_named, "OK", "");
    assert_eq!(secret.connections(), 0);
    assert_eq!(varnish.counter("failures"), 0);
    assert!(
        varnish
            .admin(&["backend.list", "-p"])
            .contains("forks=1 idle=1")
    );
}
