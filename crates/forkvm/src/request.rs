//! A request as the engine takes it, and what its user gets back beside the body.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fetch::Fetcher;
pub use crate::header::Header;

/// One request to a program. Everything is copied into guest memory, nothing is kept.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// The method, such as `GET`. Empty counts as `GET`.
    pub method: &'a str,
    /// The URL as the client sent it, without NUL bytes.
    pub url: &'a [u8],
    /// The backend's free argument (`kvm.backend(…, arg)`), empty if there is none.
    pub arg: &'a [u8],
    /// All request headers.
    pub headers: &'a [Header<'a>],
    /// The whole request body.
    pub body: &'a [u8],
}

/// Which way a guest's output came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
    /// The `log` hypercall (0x7F000).
    Log,
}

/// What the engine's user does with a guest's output, and when it lets others have the processor, while a program boots or a
/// request runs.
pub trait Host {
    /// Takes a piece of output. It is not line-buffered and may hold any bytes.
    fn output(&mut self, stream: Stream, bytes: &[u8]);

    /// Takes a line that the engine itself has to say about a request, such as where a debugger can connect. Unless it is
    /// overridden, the line goes where [`Stream::Log`] goes.
    fn note(&mut self, line: &str) {
        self.output(Stream::Log, line.as_bytes());
    }

    /// Standard input: puts bytes into `buf` and gives how many, 0 at its end. It may wait for them. Unless it is overridden
    /// there are none.
    fn input(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let _ = buf;
        Ok(0)
    }

    /// Whether [`Host::trace`] is to be called.
    fn traces(&self) -> bool {
        false
    }

    /// Takes a line about a system call of an unmodified program and its result.
    fn trace(&mut self, line: &str) {
        let _ = line;
    }

    /// Who fetches for the program. Unless it is overridden nobody does.
    fn fetcher(&self) -> Option<Arc<dyn Fetcher>> {
        None
    }

    /// How long a program that boots may have the processor before [`Host::give_way`] is called. `None`, as it is unless
    /// overridden: until it is done.
    fn slice(&self) -> Option<Duration> {
        None
    }

    /// The program has no use for the processor for so long; or if that is zero, it has had its slice while it boots. Returns
    /// when it may go on, not before `time` is over. What that takes beyond `time` does not count for `max_boot_time`.
    ///
    /// `Break` ends it instead: the boot with [`BootError::Stopped`](crate::BootError::Stopped), a request with
    /// [`Cause::Stopped`](crate::Cause::Stopped). That may be said before `time` is over.
    fn give_way(&mut self, time: Duration) -> ControlFlow<()> {
        std::thread::sleep(time);
        ControlFlow::Continue(())
    }
}

/// A [`Host`] that throws all output away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Host for Quiet {
    fn output(&mut self, _stream: Stream, _bytes: &[u8]) {}
}

/// How long an answer may be cached, if the guest said so. Times in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CachePolicy {
    /// Time to live.
    pub ttl: f32,
    /// Time an expired answer may be served while a new one is fetched.
    pub grace: f32,
    /// Time an expired answer may be kept for conditional fetches.
    pub keep: f32,
}
