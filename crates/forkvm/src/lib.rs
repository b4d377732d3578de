//! The engine: loads a static Linux program into a KVM guest, runs its `main()`, freezes the machine,
//! and answers every request in a copy-on-write fork of that frozen state.
//!
//! The way through it: [`Program::boot`] makes a [`Program`] (a frozen master and its pool of forks);
//! [`Program::answer`] runs one request in a fork and hands back an [`Answer`], which holds the fork while
//! its body is being read; dropping the answer resets the fork and gives it back to the pool.
//!
//! The engine knows nothing of Varnish. Its two users are the VMOD and the command `forkvm`.

#![deny(unsafe_code)]

// What unit tests and those in tests/ share names the engine as its users do.
#[cfg(test)]
extern crate self as forkvm;

mod arch;
mod call;
mod config;
mod debug;
mod exec;
mod failure;
mod fork;
mod image;
#[allow(unsafe_code)]
mod kvm;
mod linux;
mod machine;
mod master;
mod memory;
mod pool;
mod program;
mod random;
mod request;

pub use call::http::{HeaderError, parse_header};
pub use config::{Config, Limits, WarmUp};
pub use debug::{BadDebugAddress, DebugAddress, Debugging};
pub use exec::{Ended, NotRun, Sandbox, exec};
pub use failure::{BootError, Exception, Failure};
pub use image::elf::{ElfError, check as check_elf};
pub use image::exec::{Command, ExecError};
pub use linux::AllowedPath;
pub use machine::probe::{KvmReport, KvmUnavailable, probe};
pub use pool::queue::{Place, Queue};
pub use program::{Answer, Program, Stats};
pub use request::{CachePolicy, Header, Host, Quiet, Request, Stream};
