//! Unmodified servers and their clients, without sockets.
// Each user takes a part of it.
#![allow(dead_code)]

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forkvm::{
    Awaited, Cause, Closed, Command, Connection, Quiet, Sandbox, Server, ServerFork, ServerLimits,
};

use crate::common::{guest_path, scaled};

/// A client that sends something, and takes all that comes back.
pub struct Client {
    pub request: Vec<u8>,
    pub answer: Vec<u8>,
    /// Sends no more after its request, and says so.
    pub ends: bool,
    /// Bytes that it takes before it leaves.
    pub takes: usize,
}

impl Client {
    pub fn new(request: impl AsRef<[u8]>) -> Self {
        Self {
            request: request.as_ref().to_vec(),
            answer: Vec::new(),
            ends: false,
            takes: usize::MAX,
        }
    }

    pub fn get(path: &str) -> Self {
        Self::new(format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n"))
    }
}

impl Connection for Client {
    fn receive(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let n = buf.len().min(self.request.len());
        buf[..n].copy_from_slice(&self.request[..n]);
        self.request.drain(..n);
        Ok(match n {
            0 if self.ends => Some(0),
            0 => None,
            n => Some(n),
        })
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        if self.answer.len() >= self.takes {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.answer.extend_from_slice(bytes);
        Ok(Some(bytes.len()))
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn wait(&mut self, _: Awaited<'_>, until: Instant) -> io::Result<()> {
        // Nothing else will come.
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        Ok(())
    }

    fn peer(&self) -> Option<SocketAddr> {
        Some(([192, 0, 2, 1], 1234).into())
    }
}

pub fn limits() -> ServerLimits {
    ServerLimits {
        max_request_time: scaled(Duration::from_secs(3)),
        ..Default::default()
    }
}

pub fn boot(program: &str, limits: ServerLimits) -> Arc<Server> {
    boot_in(256 << 20, program, limits)
}

/// The same in so much memory.
pub fn boot_in(max_memory: u64, program: &str, limits: ServerLimits) -> Arc<Server> {
    boot_as(program, &[], limits, |sandbox| {
        sandbox.max_memory = max_memory;
    })
}

/// The same with these arguments, in a sandbox that may be another one.
pub fn boot_as(
    program: &str,
    arguments: &[&str],
    limits: ServerLimits,
    change: impl FnOnce(&mut Sandbox),
) -> Arc<Server> {
    let command = Command {
        path: guest_path(program).to_str().unwrap().into(),
        arguments: [program]
            .iter()
            .chain(arguments)
            .map(|&argument| argument.into())
            .collect(),
        environment: Vec::new(),
    };
    let mut sandbox = sandbox(256 << 20, program);
    change(&mut sandbox);
    Server::boot(command, &sandbox, limits, &mut Quiet).unwrap()
}

/// What such a program may have.
pub fn sandbox(max_memory: u64, program: &str) -> Sandbox {
    let folder = guest_path(program).parent().unwrap().to_owned();
    Sandbox {
        allowed_paths: ["/lib", "/lib64", "/usr/lib", "/etc/ld.so.cache"]
            .into_iter()
            .map(PathBuf::from)
            .filter(|path| path.exists())
            .chain([folder])
            .map(Into::into)
            .collect(),
        max_memory,
        ..Default::default()
    }
}

pub fn ask(fork: &mut ServerFork, mut client: Client) -> (Result<Closed, Cause>, String) {
    let result = fork.serve(&mut client, &mut Quiet);
    (result, String::from_utf8_lossy(&client.answer).into_owned())
}
