//! Requests under a debugger: what gdb can do, and what a debugger can't do to anybody else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use common::gdb::{
    Client, Notes, assert_in_order, boot, debugged, gdb, gdb_command, gdb_or_skip, request, text,
};
use common::{ENOUGH, Tenant, guest_path, kvm_or_skip, scaled};
use forkvm::{DebugAddress, Failure, Quiet};

#[test]
fn breakpoints_variables_steps_and_backtraces_by_symbol() {
    gdb_or_skip!();
    for guest in ["debuggee", "debuggee-static-pie"] {
        let tenant = boot(guest, |_| {});
        let program = guest_path(guest);
        let before = tenant.get("/number/7").text().to_owned();
        let answer = debugged(&tenant, "/number/7", true, |addresses| {
            let said = gdb(
                &program,
                &addresses.next(),
                &[
                    "bt",
                    "break triple",
                    "continue",
                    "bt",
                    "print number",
                    "next",
                    "print result",
                    "print requests",
                    "stepi",
                    "finish",
                    "delete",
                    "continue",
                ],
            );
            assert_in_order(
                &said,
                &[
                    "#0  my_backend (url=",
                    "Breakpoint 1, triple (number=7)",
                    "#0  triple (number=7)",
                    "in my_handler (url=",
                    "in my_backend (url=",
                    "\"/number/7\"",
                    "$1 = 7",
                    "$2 = 21",
                    "$3 = 0",
                    "in my_handler (",
                    "Value returned is $4 = 21",
                    "exited normally",
                ],
            );
        });
        assert_eq!(answer.unwrap(), before.replace("debug 0", "debug 1"));
        tenant.assert_pristine();
        assert_eq!(tenant.get("/number/7").text(), before);
    }
}

#[test]
fn variables_and_registers_are_set() {
    gdb_or_skip!();
    let tenant = boot("debuggee", |_| {});
    let program = guest_path("debuggee");
    let answer = debugged(&tenant, "/half", true, |addresses| {
        let said = gdb(
            &program,
            &addresses.next(),
            &[
                "break half",
                "continue",
                "print $xmm0.v2_double[0]",
                "print number = 9",
                "finish",
                "print $xmm0.v2_double[0] = 3.25",
                "print $ymm0.v4_double[0]",
                "print $fs_base != 0",
                "continue",
            ],
        );
        assert_in_order(
            &said,
            &[
                "= 14",
                "= 9",
                "= 4.5",
                "= 3.25",
                "= 3.25",
                "= 1",
                "exited normally",
            ],
        );
    });
    assert_eq!(answer.unwrap(), "half 3.25\n");
    // Code is written over, too: in the fork alone.
    let answer = debugged(&tenant, "/number/7", true, |addresses| {
        let said = gdb(
            &program,
            &addresses.next(),
            &["set var {unsigned int}triple = 0xc33f048d", "continue"],
        );
        assert_in_order(&said, &["exited normally"]);
    });
    // lea eax, [rdi + rdi]; ret
    assert_in_order(&answer.unwrap(), &["triple 14 "]);
    tenant.assert_pristine();
    assert_in_order(tenant.get("/number/7").text(), &["triple 21 "]);
}

#[test]
fn single_steps_go_over_calls_of_all_kinds() {
    gdb_or_skip!();
    let tenant = boot("debuggee", |_| {});
    let program = guest_path("debuggee");
    // A system call, hypercalls, and `pushf`, which must not see that it is stepped.
    for (function, url, answer) in [
        ("asks", "/asks", "asks 15\n"),
        ("trap_flag", "/flags", "trap flag 0\n"),
        ("pauses", "/breakpoint", "seen 2 debug 1\n"),
    ] {
        let got = debugged(&tenant, url, true, |addresses| {
            let stop = format!("break {function}");
            let commands = [&stop, "continue", "stepi 40", "continue", "continue"];
            let said = gdb(&program, &addresses.next(), &commands);
            assert_in_order(&said, &["Breakpoint 1, "]);
        });
        assert_eq!(got.unwrap(), answer, "{url}");
        tenant.assert_pristine();
    }
}

#[test]
fn the_breakpoint_hypercall_stops_where_it_is_allowed() {
    gdb_or_skip!();
    let tenant = boot("debuggee", |_| {});
    let program = guest_path("debuggee");
    let answer = debugged(&tenant, "/breakpoint", false, |addresses| {
        // This fork is the pool's: steps, breakpoints and registers have to be gone after its reset.
        let commands = [
            "bt",
            "frame function pauses",
            "print seen = 41",
            "print $xmm7.v2_double[0] = 3.25",
            "stepi 3",
            "break done",
            "continue",
            "continue",
        ];
        let said = gdb(&program, &addresses.next(), &commands);
        assert_in_order(
            &said,
            &[
                "breakpoint ()",
                "in my_handler (",
                "= 41",
                "= 3.25",
                "Breakpoint 1, done (",
                "exited normally",
            ],
        );
        assert!(addresses.are_over());
    });
    assert_eq!(answer.unwrap(), "seen 42 debug 0\n");
    tenant.assert_pristine();
    let tenant = Tenant::boot("debuggee");
    assert_eq!(tenant.get("/breakpoint").text(), "seen 2 debug 0\n");
    let failure = tenant.debug(&request("/"), Instant::now(), &mut Quiet);
    let Err(failure @ Failure::NotDebugged { busy: false, .. }) = failure else {
        panic!("{failure:?}");
    };
    assert_in_order(&failure.to_string(), &["allow_debug"]);
}

#[test]
fn exceptions_stop_before_they_fail() {
    gdb_or_skip!();
    let tenant = boot("debuggee", |config| config.debugging.exceptions = true);
    let program = guest_path("debuggee");
    let failure = debugged(&tenant, "/crash", false, |addresses| {
        let said = gdb(
            &program,
            &addresses.next(),
            &["bt", "print where", "continue", "continue"],
        );
        assert_in_order(
            &said,
            &[
                "#0  ",
                "crash (where=0x0)",
                "in my_backend (",
                "= (int *) 0x0",
                "SIGSEGV",
                "exists",
            ],
        );
    });
    assert_in_order(
        &failure.unwrap_err().to_string(),
        &["page fault writing 0x0", "crash+"],
    );
    // Mended, it goes on.
    let answer = debugged(&tenant, "/crash", false, |addresses| {
        let commands = ["set var where = &requests", "set $rax = where", "signal 0"];
        gdb(&program, &addresses.next(), &commands);
    });
    assert_eq!(answer.unwrap(), "");
    // An int3 of the program's own is not the debugger's.
    let answer = debugged(&tenant, "/trap", false, |addresses| {
        gdb(&program, &addresses.next(), &["continue"]);
    });
    assert_eq!(answer.unwrap(), "trapped\n");
    tenant.assert_pristine();
    let tenant = boot("debuggee", |_| {});
    assert!(tenant.failure("/crash").to_string().contains("page fault"));
}

#[test]
fn a_running_program_is_interrupted() {
    gdb_or_skip!();
    let tenant = boot("debuggee", |_| {});
    for url in ["/loop", "/calls"] {
        let answer = debugged(&tenant, url, true, |addresses| {
            let commands = ["continue", "print stop_looping = 1", "continue"];
            let mut gdb = gdb_command(&guest_path("debuggee"), &addresses.next(), &commands);
            let child = gdb
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            thread::sleep(scaled(Duration::from_secs(2)));
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert_in_order(&said, &["SIGINT", "= 1", "exited normally"]);
        });
        assert_in_order(&answer.unwrap(), &["ed\n"]);
        tenant.assert_pristine();
    }
}

#[test]
fn others_are_answered_meanwhile_and_one_is_debugged() {
    kvm_or_skip!();
    // One fork in the pool: a request that is to be debugged has its own.
    let tenant = boot("debuggee", |config| config.concurrency = 1);
    let answer = debugged(&tenant, "/number/7", true, |addresses| {
        let mut client = Client::connect(&addresses.next());
        assert_in_order(&client.ask(b"?"), &["T05"]);
        assert_in_order(tenant.get("/number/5").text(), &["triple 15 "]);
        let (mut notes, more) = Notes::new();
        let failure = tenant.debug(&request("/"), Instant::now(), &mut notes);
        assert!(matches!(
            failure,
            Err(Failure::NotDebugged { busy: true, .. })
        ));
        assert!(failure.is_err_and(|failure| failure.is_busy()));
        // breakpoint() of another request does not wait either.
        let answer = tenant.answer(&request("/breakpoint"), Instant::now() + ENOUGH, &mut notes);
        assert_eq!(text(answer).unwrap(), "seen 2 debug 0\n");
        assert!(more.are_over());
        assert_eq!(client.ask(b"D"), "OK");
    });
    assert_in_order(&answer.unwrap(), &["triple 21 "]);
    tenant.assert_pristine();
    // The place is free again.
    let answer = debugged(&tenant, "/number/7", true, |addresses| {
        assert_eq!(Client::connect(&addresses.next()).ask(b"D"), "OK");
    });
    assert_in_order(&answer.unwrap(), &["triple 21 "]);
}

#[test]
fn the_time_of_a_session_is_limited() {
    kvm_or_skip!();
    let time = scaled(Duration::from_millis(400));
    let tenant = boot("debuggee", |config| config.debugging.timeout = time);
    // Nobody comes; somebody comes and says nothing; a debugger that does nothing; a program that runs on.
    let talks: [&dyn Fn(&mut Client); 4] = [
        &|_| {},
        &|client| client.send(b"$"),
        &|client| assert_in_order(&client.ask(b"?"), &["T05"]),
        &|client| {
            assert_in_order(&client.ask(b"?"), &["T05"]);
            client.packet(b"vCont;c");
        },
    ];
    for (index, talk) in talks.iter().enumerate() {
        let start = Instant::now();
        let failure = debugged(&tenant, "/loop", true, |addresses| {
            let address = addresses.next();
            if index > 0 {
                let mut client = Client::connect(&address);
                talk(&mut client);
                // It stays until the other side goes.
                while !client.reply().is_empty() {}
            }
        });
        let failure = failure.unwrap_err();
        assert!(failure.is_timeout(), "{index}: {failure}");
        assert_in_order(&failure.to_string(), &["debug_timeout"]);
        assert!(start.elapsed() >= time, "{index}");
        tenant.assert_pristine();
    }
}

#[test]
fn a_debugger_that_goes_lets_the_request_go_on() {
    kvm_or_skip!();
    let tenant = boot("debuggee", |_| {});
    let before = tenant.get("/number/7").text().replace("debug 0", "debug 1");
    let entry = common::gdb::Client::connect;
    // In the middle of a packet, at a stop, with breakpoints set.
    for last in [&b"$m40"[..], b"", b"$Z0,401000,1#78"] {
        let answer = debugged(&tenant, "/number/7", true, |addresses| {
            let mut client = entry(&addresses.next());
            assert_in_order(&client.ask(b"?"), &["T05"]);
            client.send(last);
        });
        assert_eq!(answer.unwrap(), before);
        tenant.assert_pristine();
    }
    // While the program runs, it is not stopped by that.
    let answer = debugged(&tenant, "/breakpoint", true, |addresses| {
        let mut client = entry(&addresses.next());
        assert_in_order(&client.ask(b"?"), &["T05"]);
        client.packet(b"vCont;c");
    });
    assert_eq!(answer.unwrap(), "seen 2 debug 1\n");
    // The debugger may also end it.
    let failure = debugged(&tenant, "/loop", true, |addresses| {
        let mut client = entry(&addresses.next());
        assert_in_order(&client.ask(b"?"), &["T05"]);
        client.packet(b"vCont;c");
        thread::sleep(Duration::from_millis(200));
        client.send(b"\x03");
        assert_in_order(&client.reply(), &["02"]);
        client.packet(b"k");
    });
    assert_in_order(
        &failure.unwrap_err().to_string(),
        &["the debugger ended it"],
    );
    tenant.assert_pristine();
}

#[test]
fn who_is_no_debugger_is_dropped_and_a_debugger_still_gets_in() {
    gdb_or_skip!();
    let tenant = boot("debuggee", |_| {});
    let answer = debugged(&tenant, "/number/7", true, |addresses| {
        let address = addresses.next();
        let silent = Client::connect(&address);
        let long = vec![b'A'; 100_000];
        let endless = [b"$".as_slice(), &long].concat();
        for garbage in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"$?#00",
            b"$#",
            b"-",
            &long,
            &endless,
            b"\xff\x03$\0",
        ] {
            let mut client = Client::connect(&address);
            client.send(garbage);
        }
        let said = gdb(&guest_path("debuggee"), &address, &["bt", "continue"]);
        assert_in_order(&said, &["my_backend", "exited normally"]);
        drop(silent);
    });
    assert_in_order(&answer.unwrap(), &["triple 21 "]);
    tenant.assert_pristine();
}

#[test]
fn a_unix_socket_is_the_owners_alone_and_goes_away() {
    gdb_or_skip!();
    let folder = std::env::temp_dir().join(format!("forkvm-debug-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let tenant = boot("debuggee", |config| {
        config.debugging.address = DebugAddress::Unix(folder.clone());
    });
    let answer = debugged(&tenant, "/number/7", true, |addresses| {
        let address = addresses.next();
        assert!(address.starts_with(folder.to_str().unwrap()), "{address}");
        let mode = std::fs::metadata(&address).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let said = gdb(
            &guest_path("debuggee"),
            &address,
            &["print $pc", "continue"],
        );
        assert_in_order(&said, &["my_backend", "exited normally"]);
    });
    assert_in_order(&answer.unwrap(), &["triple 21 "]);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    std::fs::remove_dir(&folder).unwrap();
    // Where nobody can listen, the request fails and says so.
    let tenant = boot("debuggee", |config| {
        config.debugging.address = DebugAddress::Unix("/nonexistent/gdb".into());
    });
    let failure = debugged(&tenant, "/", true, |_| {}).unwrap_err();
    assert_in_order(
        &failure.to_string(),
        &["nobody can debug it at", "debug_address"],
    );
    assert_eq!(tenant.get("/breakpoint").text(), "seen 2 debug 0\n");
}
