//! Debuggers for tests: Debian's gdb, and a client that speaks the remote protocol as badly as it is told to.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use forkvm::{Answer, Config, Failure, Host, Request, Stream};

use super::batch_gdb::{self, what_it_says};
pub use super::batch_gdb::{assert_in_order, have_gdb};
use super::{ENOUGH, Tenant};

/// Ends the test at once where there is no gdb: a skip, but a failure in CI.
macro_rules! gdb_or_skip {
    () => {
        common::kvm_or_skip!();
        if !common::gdb::have_gdb() {
            return;
        }
    };
}
pub(crate) use gdb_or_skip;

/// gdb with these commands, once it is connected.
pub fn gdb_command(program: &Path, address: &str, commands: &[&str]) -> Command {
    batch_gdb::gdb_command(program, address, ENOUGH, commands)
}

/// What gdb says.
pub fn gdb(program: &Path, address: &str, commands: &[&str]) -> String {
    what_it_says(gdb_command(program, address, commands))
}

/// A host that hands notes on to another thread.
pub struct Notes(Sender<String>);

impl Notes {
    pub fn new() -> (Self, Addresses) {
        let (sender, receiver) = channel();
        (Self(sender), Addresses(receiver))
    }
}

impl Host for Notes {
    fn output(&mut self, _stream: Stream, _bytes: &[u8]) {}

    fn note(&mut self, line: &str) {
        let _ = self.0.send(line.into());
    }
}

/// The addresses that notes name.
pub struct Addresses(Receiver<String>);

impl Addresses {
    /// Waits for the next stop.
    pub fn next(&self) -> String {
        let note = self.0.recv_timeout(ENOUGH);
        address_in(&note.expect("no note of a stop"))
    }

    /// True if there was no stop more.
    pub fn are_over(&self) -> bool {
        self.0.try_recv().is_err()
    }
}

/// The address in a note.
pub fn address_in(note: &str) -> String {
    let (_, after) = note.split_once("target remote ").expect(note);
    after.split('\'').next().unwrap().into()
}

/// A client of the remote protocol.
pub struct Client(pub TcpStream);

impl Client {
    pub fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(ENOUGH)).unwrap();
        Self(stream)
    }

    /// Sends bytes as they are. The other side may be gone.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// Sends a packet with its checksum.
    pub fn packet(&mut self, payload: &[u8]) {
        let sum = payload
            .iter()
            .fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        self.send(&[b"$", payload, format!("#{sum:02x}").as_bytes()].concat());
    }

    /// The next packet from the other side, without its frame; what there is if the connection ends.
    pub fn reply(&mut self) -> String {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while self.0.read(&mut byte).is_ok_and(|n| n == 1) {
            bytes.push(byte[0]);
            if bytes.len() > 2 && bytes[bytes.len() - 3] == b'#' {
                break;
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let packet = text.trim_start_matches('+').trim_start_matches('$');
        packet.split('#').next().unwrap_or_default().into()
    }

    /// Asks and gets an answer.
    pub fn ask(&mut self, payload: &[u8]) -> String {
        self.packet(payload);
        let reply = self.reply();
        self.send(b"+");
        reply
    }
}

/// A tenant whose requests may be debugged, one at a time.
pub fn boot(guest: &str, change: impl FnOnce(&mut Config)) -> Tenant {
    Tenant::boot_with(guest, |config| {
        config.debugging.allowed = true;
        config.debugging.timeout = ENOUGH;
        change(config);
    })
}

pub fn request(url: &str) -> Request<'_> {
    Request {
        method: "GET",
        url: url.as_bytes(),
        ..Default::default()
    }
}

/// The body of what was answered.
pub fn text(answer: Result<Answer, Failure>) -> Result<String, Failure> {
    let mut answer = answer?;
    let mut body = vec![0; answer.body_len() as usize];
    answer.read_body(&mut body);
    Ok(String::from_utf8(body).unwrap())
}

/// Sends a request, and lets `debugger` have a say when it stops. With `entry` it stops at its handler's entry.
pub fn debugged(
    tenant: &Tenant,
    url: &str,
    entry: bool,
    debugger: impl FnOnce(&Addresses),
) -> Result<String, Failure> {
    let (mut notes, addresses) = Notes::new();
    let deadline = Instant::now() + tenant.config().limits.max_request_time;
    thread::scope(|scope| {
        let answer = scope.spawn(move || {
            text(if entry {
                tenant.debug(&request(url), deadline, &mut notes)
            } else {
                tenant.answer(&request(url), deadline, &mut notes)
            })
        });
        debugger(&addresses);
        answer.join().expect("the request's thread panicked")
    })
}
