//! Live programs in a real varnishd, and a real gdb.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use common::batch_gdb::{assert_in_order, have_gdb};
use common::client::{Body, Client};
use common::gdb::{address, gdb};
use common::varnishd::Varnishd;
use common::{Folder, eventually, guests};

const KEY: &str = "a key";

fn can_run() -> bool {
    common::have_kvm() && have_gdb()
}

/// A varnishd with a tenant "t" that may be debugged.
fn start(guest: &str, settings: &str) -> Varnishd {
    // Less than the 80k that varnishd's threads have, so that these need not come close to the end of their stack.
    let stack = ["-p", "thread_pool_stack=64k"];
    Varnishd::start_with(&tenant(guest, settings), &stack)
}

fn tenant(guest: &str, settings: &str) -> String {
    format!(
        r#"kvm.tenant("t", "GUESTS/test/{guest}", update_key = "{KEY}", allow_debug = true, {settings});"#
    )
}

fn guest(name: &str) -> PathBuf {
    guests().join("test").join(name)
}

/// A shell command for gdb that says it is there, and waits to be let go, for a minute at most.
fn pause(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "shell touch {folder}/stopped; for i in $(seq 1200); do [ -e {folder}/go ] && break; sleep .05; done"
    )
}

#[test]
fn a_live_program_is_debugged_while_it_answers_others() {
    if !can_run() {
        return;
    }
    // One fork in the pool: a request that is stopped must not have it.
    let settings = "concurrency = 1, debug_timeout = 90s";
    let varnish = start("debuggee", settings);
    let mut others = varnish.client();
    let before = others.get("t", "/number/7");
    assert_eq!(before.status, 200);

    let mut client = varnish.client();
    let key = [("X-DebugKey", KEY)];
    client
        .begin("GET", "t", "/number/7", &key, Body::None)
        .unwrap();
    let address = address(&varnish, 0);
    let pause = pause(varnish.dir());
    let said = thread::scope(|scope| {
        let gdb = scope.spawn(|| {
            let commands = [
                "break my_backend",
                "continue",
                "print url",
                "break triple",
                "continue",
                "backtrace",
                "print number",
                &pause,
                "finish",
                // The program looks at its own code, and would see them.
                "delete",
                "continue",
            ];
            gdb(&guest("debuggee"), &address, &commands)
        });
        eventually("gdb is at its breakpoint", || {
            varnish.dir().join("stopped").exists()
        });
        for _ in 0..50 {
            assert_eq!(others.get("t", "/number/7").body, before.body);
        }
        // One at a time; nor does a breakpoint() stop meanwhile.
        let refused = others.send("GET", "t", "/number/7", &key, Body::None);
        assert_eq!(refused.status, 503);
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert_in_order(refused.text(), &["one at a time"]);
        assert_eq!(others.get("t", "/breakpoint").text(), "seen 2 debug 0\n");
        // The VCL that the request has can be given up.
        varnish.reload(&tenant("debuggee", settings));
        varnish.admin(&["vcl.discard", "boot"]);
        assert_eq!(varnish.client().get("t", "/number/7").body, before.body);
        fs::write(varnish.dir().join("go"), "").unwrap();
        gdb.join().unwrap()
    });
    assert_in_order(
        &said,
        &[
            "Breakpoint 1, my_backend (url=",
            "\"/number/7\"",
            "Breakpoint 2, triple (number=7)",
            "#0  triple (number=7)",
            "in my_handler (url=",
            "in my_backend (url=",
            "= 7",
            "= 21",
            "exited normally",
        ],
    );
    let answer = client.response("GET").unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.header("x-program-version").is_some());
    let expected = before.text().replace("debug 0", "debug 1");
    assert_eq!(answer.text(), expected);
    drop((client, others));
    eventually("the VCL is gone", || {
        !varnish.admin(&["vcl.list"]).contains("boot")
    });
    assert_eq!(varnish.client().get("t", "/number/7").body, before.body);
}

#[test]
fn a_program_that_is_sent_is_debugged_beside_the_live_one() {
    if !can_run() {
        return;
    }
    let sockets = Folder::new("debug");
    let folder = sockets.path();
    let settings = format!(
        r#"debug_timeout = 90s, debug_address = "{}""#,
        folder.display()
    );
    let varnish = start("version-a", &settings);
    let is_live = |client: &mut Client| client.get("t", "/").header("x-answer") == Some("A");
    let mut others = varnish.client();
    assert!(is_live(&mut others));
    let machines = varnish.child().kvm_descriptors();

    let program = guest("debuggee");
    let elf = fs::read(&program).unwrap();
    let mut client = varnish.client();
    let key = [("X-LiveDebug", KEY)];
    client
        .begin("POST", "t", "/number/5", &key, Body::Length(&elf))
        .unwrap();
    let address = address(&varnish, 0);
    assert!(Path::new(&address).starts_with(folder), "{address}");
    assert!(is_live(&mut others));
    let refused = others.send("POST", "t", "/", &key, Body::Length(b"x"));
    assert_eq!(refused.status, 503);
    // The environment begins with KVM_NAME, KVM_GROUP, KVM_TYPE, KVM_STATE.
    let environment = "print (*(char ***) &__environ)[4]";
    let commands = [
        "backtrace",
        environment,
        "break triple",
        "continue",
        "continue",
    ];
    let said = gdb(&program, &address, &commands);
    assert_in_order(
        &said,
        &[
            "#0  my_backend (url=",
            "\"KVM_DEBUG=1\"",
            "Breakpoint 1, triple (number=5)",
            "exited normally",
        ],
    );
    let answer = client.response("POST").unwrap();
    assert_in_order(answer.text(), &["triple 15 requests 1 debug 1 "]);
    assert!(is_live(&mut others));
    eventually("the program's machines are freed", || {
        varnish.child().kvm_descriptors() == machines
    });
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "a socket is left");
}

/// It says which headers it sees.
#[test]
fn a_debugged_program_sees_nothing_of_the_order() {
    if !can_run() {
        return;
    }
    let varnish = start("echo", "debug_timeout = 90s");
    let program = guest("echo");
    let elf = fs::read(&program).unwrap();
    let debug = ("X-DebugKey", KEY);
    let orders = [
        ("GET", [debug, ("X-PostKey", "x")], Body::None),
        ("POST", [debug, ("X-LiveDebug", KEY)], Body::Length(&elf)),
    ];
    for (nth, (method, keys, body)) in orders.into_iter().enumerate() {
        let headers = [&keys[..], &[("X-Mine", "seen"), ("X-Kvm-Order", "mine")]].concat();
        let mut client = varnish.client();
        client.begin(method, "t", "/", &headers, body).unwrap();
        gdb(&program, &address(&varnish, nth), &["continue"]);
        let answer = client.response(method).unwrap();
        let seen = answer.text();
        assert!(seen.contains("X-Mine: seen"), "{seen}");
        let names = ["x-kvm", "x-live", "key"];
        let lower = seen.to_ascii_lowercase();
        assert!(!names.iter().any(|name| lower.contains(name)), "{seen}");
    }
}

#[test]
fn requests_stop_at_breakpoints_of_their_own_and_at_exceptions() {
    if !can_run() {
        return;
    }
    let varnish = start("debuggee", "debug_timeout = 90s, debug_exceptions = true");
    let program = guest("debuggee");
    let stopped = |nth, url: &str, commands: &[&str]| {
        let mut client = varnish.client();
        client.begin("GET", "t", url, &[], Body::None).unwrap();
        let said = gdb(&program, &address(&varnish, nth), commands);
        (said, client.response("GET").unwrap())
    };
    let commands = [
        "frame function pauses",
        "print seen = 41",
        "print $xmm0.v2_double[0] = 3.25",
        "continue",
    ];
    let (said, answer) = stopped(0, "/breakpoint", &commands);
    assert_in_order(&said, &["pauses ()", "= 41", "= 3.25", "exited normally"]);
    assert_eq!(answer.text(), "seen 42 debug 0\n");

    let (said, answer) = stopped(1, "/crash", &["backtrace", "continue", "continue"]);
    assert_in_order(&said, &["crash (where=0x0)", "in my_backend (", "SIGSEGV"]);
    assert_eq!(answer.status, 500);
    let (_, answer) = stopped(2, "/breakpoint", &["kill"]);
    assert_eq!(answer.status, 500);

    let answer = varnish.client().get("t", "/number/7");
    assert_in_order(answer.text(), &["triple 21 requests 1 debug 0 "]);
}
