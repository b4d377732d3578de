//! System calls that are answered in the guest: they come out as they do by an exit, whatever the order, and a program that writes
//! over the dispatcher's pages, or jumps into it, gains nothing. DISPATCHER_SECONDS: for how long random calls are made.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/lists.rs"]
mod lists;
#[path = "common/server.rs"]
mod server;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{emulated, kvm_or_skip};
use forkvm::{Awaited, Cause, Closed, Connection, Host, Server, ServerFork, ServerLimits, Stream};
use proptest::prelude::*;
use server::{Client, ask, boot_as, limits};

/// Kinds of operations that tests/guests/linux/dispatched.c knows.
const KINDS: u8 = 25;

/// What its calls are given.
#[derive(Debug, Clone, Copy)]
struct Op {
    what: u8,
    bytes: [u8; 7],
}

fn op() -> impl Strategy<Value = Op> {
    // The connection's own most often.
    let what = prop_oneof![3 => 0..12u8, 1 => 0..KINDS];
    (what, any::<[u8; 7]>()).prop_map(|(what, bytes)| Op { what, bytes })
}

fn request(ops: &[Op], more: usize) -> Client {
    let count = u16::try_from(ops.len()).unwrap().to_le_bytes();
    let ops = ops
        .iter()
        .flat_map(|op| [&[op.what][..], &op.bytes].concat());
    let more = (0..more).map(|at| (at % 251) as u8);
    Client::new(count.into_iter().chain(ops).chain(more).collect::<Vec<_>>())
}

/// What a program prints.
#[derive(Default)]
struct Prints(Vec<u8>);

impl Host for Prints {
    fn output(&mut self, _: Stream, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// What there is to see of a connection.
#[derive(Debug, PartialEq)]
struct Seen {
    end: Result<Closed, Cause>,
    answer: Vec<u8>,
    printed: String,
}

fn serve(fork: &mut ServerFork, mut client: Client) -> (Seen, u64) {
    let mut prints = Prints::default();
    let end = fork.serve(&mut client, &mut prints);
    let exits = fork.spent().exits;
    let seen = Seen {
        end,
        answer: client.answer,
        printed: String::from_utf8(prints.0).unwrap(),
    };
    (seen, exits)
}

/// The same server with the dispatcher and without.
struct Both {
    servers: [Arc<Server>; 2],
    forks: RefCell<[ServerFork; 2]>,
    exits: RefCell<[u64; 2]>,
}

impl Both {
    fn new(program: &str, arguments: &[&str], warm_up: &[u8]) -> Self {
        let servers = [true, false].map(|dispatcher| {
            let limits = ServerLimits {
                warm_up: vec![warm_up.to_vec(); 3],
                ..limits()
            };
            boot_as(program, arguments, limits, |sandbox| {
                sandbox.dispatcher = dispatcher;
                sandbox.max_memory = 24 << 20;
            })
        });
        let fork = |server: &Arc<Server>| ServerFork::new(server.clone()).unwrap();
        let forks = servers.each_ref().map(fork);
        Self {
            servers,
            forks: RefCell::new(forks),
            exits: RefCell::default(),
        }
    }

    fn one(&self, client: impl Fn() -> Client) -> Result<(), TestCaseError> {
        let mut forks = self.forks.borrow_mut();
        let [(with, exits), (without, more)] = forks.each_mut().map(|fork| serve(fork, client()));
        for (sum, spent) in self.exits.borrow_mut().iter_mut().zip([exits, more]) {
            *sum += spent;
        }
        for (fork, server) in forks.iter_mut().zip(&self.servers) {
            match fork.reset() {
                Ok(()) => assert_eq!(fork.differing_pages(), 0),
                Err(_) => *fork = ServerFork::new(server.clone()).unwrap(),
            }
        }
        prop_assert_eq!(&with, &without);
        Ok(())
    }
}

fn random_calls(arguments: &[&str]) {
    kvm_or_skip!();
    let both = Both::new("linux/dispatched", arguments, &[0, 0]);
    let short = if emulated() { 20 } else { 5 };
    let time = lists::time_of("DISPATCHER_SECONDS", short);
    // Requests that fit into the dispatcher's pages, and some that don't.
    let more = prop_oneof![4 => 0..2000usize, 1 => 0..40_000usize];
    let values = (prop::collection::vec(op(), 0..40), more, any::<bool>());
    let count = lists::for_a_while(time, 500, &values, |(ops, more, ends)| {
        both.one(|| Client {
            ends,
            ..request(&ops, more)
        })
    });
    let [with, without] = *both.exits.borrow();
    println!("{count} lists of calls: {with} exits, without the dispatcher {without}");
    assert!(with < without);
}

#[test]
fn random_calls_of_one_that_accepts() {
    random_calls(&["accept", "blocks"]);
}

#[test]
fn random_calls_of_one_that_polls() {
    random_calls(&["accept", "never"]);
}

#[test]
fn random_calls_of_one_that_waits_for_levels() {
    random_calls(&["level", "never"]);
}

#[test]
fn random_calls_of_one_that_waits_for_edges() {
    random_calls(&["edge", "never", "twice"]);
}

/// Its accept(2) waits before the connection, its close(2) is what ends it, and what is between the two does not exit.
#[test]
fn reads_and_writes_do_not_exit() {
    kvm_or_skip!();
    let both = Both::new("linux/server", &[], b"GET / HTTP/1.1\r\n\r\n");
    let forks = &mut *both.forks.borrow_mut();
    for round in 0..3 {
        let exits = forks.each_mut().map(|fork| {
            let (seen, exits) = serve(fork, Client::get("/"));
            // Three requests have warmed it up.
            assert!(String::from_utf8_lossy(&seen.answer).ends_with("count 4\n"));
            fork.reset().unwrap();
            exits
        });
        // What else exits are page faults: of the first connection more than of the second.
        if round > 1 {
            let [with, without] = exits;
            assert!(with + 2 <= without, "{with}, {without}");
        }
    }
}

fn liar() -> Arc<Server> {
    boot_as("linux/liar", &[], limits(), |sandbox| {
        sandbox.max_memory = 24 << 20;
    })
}

/// A connection of a fork of its own.
fn alone(server: &Arc<Server>, line: &str) -> (Result<Closed, Cause>, String) {
    let mut fork = ServerFork::new(server.clone()).unwrap();
    let (result, answer) = ask(&mut fork, Client::new(line));
    assert_eq!(
        result.is_err(),
        fork.reset().is_err(),
        "{line:?}: {result:?}"
    );
    if result.is_ok() {
        assert_eq!(fork.differing_pages(), 0, "{line:?}");
        let next = ask(&mut fork, Client::new("nothing\nof its own"));
        assert_eq!(next, (Ok(Closed::ByServer), "0 1 of its own".into()));
    }
    (result, answer)
}

#[test]
fn what_the_queue_says_is_not_believed() {
    kvm_or_skip!();
    let server = liar();
    for way in 0..13 {
        let (result, answer) = alone(&server, &format!("queue {way}\n"));
        assert!(
            matches!(result, Err(Cause::Answered(_))),
            "{way}: {result:?}, {answer:?}"
        );
        // The first has made the call that it says, which it may.
        assert_eq!(answer, if way == 0 { "not of thi" } else { "" }, "{way}");
    }
}

#[test]
fn a_connection_that_is_none_is_not_believed() {
    kvm_or_skip!();
    let server = liar();
    for descriptor in [0, 1, 3, 77, 1 << 20] {
        let line = format!("connection {descriptor}\nmore");
        let (result, _) = alone(&server, &line);
        // Its bytes had been read: there was nothing to answer with.
        assert_eq!(result, Ok(Closed::ByServer), "{descriptor}");
    }
}

#[test]
fn pages_that_were_written_over_end_their_program_at_most() {
    kvm_or_skip!();
    let server = liar();
    for seed in 0..40 {
        let (result, _) = alone(&server, &format!("scribble {seed}\n"));
        let own_fault = matches!(
            result,
            Ok(_)
                | Err(Cause::Answered(_)
                    | Cause::Exception(_)
                    | Cause::Killed(_)
                    | Cause::Exit(_)
                    | Cause::Timeout)
        );
        assert!(own_fault, "{seed}: {result:?}");
    }
    assert!(matches!(
        alone(&server, "code\n").0,
        Err(Cause::Exception(_))
    ));
}

#[test]
fn its_code_is_no_way_out() {
    kvm_or_skip!();
    let server = boot_as(
        "linux/liar",
        &[],
        ServerLimits {
            max_request_time: Duration::from_millis(200),
            ..limits()
        },
        |sandbox| sandbox.max_memory = 24 << 20,
    );
    let every: Range<usize> = 0..0x900;
    for offset in every.step_by(if emulated() { 97 } else { 19 }) {
        let (result, _) = alone(&server, &format!("jump {offset}\n"));
        assert!(
            !matches!(result, Err(Cause::Machine(_) | Cause::MemoryLimit)),
            "{offset}: {result:?}"
        );
    }
}

#[test]
fn nothing_is_left_on_its_pages() {
    kvm_or_skip!();
    let server = liar();
    let mut fork = ServerFork::new(server).unwrap();
    let secret = "a secret of this connection";
    for _ in 0..3 {
        let (kept, _) = ask(&mut fork, Client::new(format!("keep {secret}\n")));
        assert_eq!(kept, Ok(Closed::ByServer));
        fork.reset().unwrap();
        assert_eq!(fork.differing_pages(), 0);
        // Found once: in the request that asks, of which nothing else is there.
        let (_, found) = ask(&mut fork, Client::new(format!("find {secret}\n")));
        assert_eq!(found, "1 1 ");
        fork.reset().unwrap();
    }
}

/// A client that answers what it is sent, so that its second request comes when the first is answered.
struct Talks {
    left: usize,
    to_send: Vec<u8>,
    got: Vec<u8>,
}

impl Connection for Talks {
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let n = buf.len().min(self.to_send.len());
        buf[..n].copy_from_slice(&self.to_send[..n]);
        self.to_send.drain(..n);
        Ok((n > 0).then_some(n))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        self.got.extend_from_slice(bytes);
        if self.left > 0 {
            self.left -= 1;
            self.to_send = bytes.iter().map(|byte| byte.wrapping_add(1)).collect();
        }
        Ok(Some(bytes.len()))
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn wait(&mut self, _: Awaited<'_>, _: Instant) -> io::Result<()> {
        match self.to_send.is_empty() {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }

    fn peer(&self) -> Option<SocketAddr> {
        None
    }
}

/// What goes to and fro on one connection, by reads of what has come since the last exit.
#[test]
fn a_connection_may_go_on_for_long() {
    kvm_or_skip!();
    let server = boot_as("linux/server", &[], limits(), |_| {});
    let mut fork = ServerFork::new(server).unwrap();
    let mut client = Talks {
        left: 50,
        to_send:
            b"GET /upgrade HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
                .to_vec(),
        got: Vec::new(),
    };
    let result = fork.serve(&mut client, &mut Prints::default());
    assert_eq!(result, Ok(Closed::ByClient));
    let (_, echoed) = {
        let at = client
            .got
            .windows(4)
            .position(|of| of == b"\r\n\r\n")
            .unwrap();
        client.got.split_at(at + 4)
    };
    assert!(echoed.len() > 40 * 20, "{}", echoed.len());
    fork.reset().unwrap();
    assert_eq!(fork.differing_pages(), 0);
}
