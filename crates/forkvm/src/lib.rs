//! The engine: loads a static Linux program into a KVM guest, runs its `main()`, freezes the machine,
//! and answers every request in a copy-on-write fork of that frozen state.
//!
//! ```
//! use std::time::{Duration, Instant};
//!
//! use forkvm::{Config, Program, Quiet, Request};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # if let Err(error) = forkvm::probe() {
//! #     assert!(std::env::var_os("CI").is_none(), "{error}");
//! #     eprintln!("SKIPPED: {error}");
//! #     return Ok(());
//! # }
//! # let dir = std::env::var_os("GUESTS_DIR").map_or_else(
//! #     || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests"),
//! #     Into::into,
//! # );
//! # let path = dir.join("hello");
//! // Runs main() up to where the program waits for requests, and freezes it. Once.
//! let program = Program::boot(&std::fs::read(path)?, Config::new("hello"), &mut Quiet)?;
//!
//! // Every request gets a fork of its own, that no other request has left anything in.
//! let request = Request {
//!     url: b"/",
//!     ..Default::default()
//! };
//! let deadline = Instant::now() + Duration::from_secs(8);
//! let mut answer = program.answer(&request, deadline, &mut Quiet)?;
//! let mut body = vec![0; usize::try_from(answer.body_len())?];
//! answer.read_body(&mut body);
//! assert_eq!((answer.status(), &body[..]), (200, &b"Hello, World!\n"[..]));
//! # Ok(())
//! # }
//! ```
//!
//! # The life of a program
//!
//! ```text
//! ELF file, Config
//!     | Program::boot             BootError: no KVM, no program for us, main() failed
//!     v
//! Program ---- a frozen master: its memory sealed, its registers constants
//!     | Program::answer           Failure: all forks busy, the guest failed (Cause), no fork to be had
//!     v
//! Answer ----- holds a fork, whose memory has the body
//!     | drop
//!     v
//! the fork is reset and waits for its next request
//!     |
//!     | Program::boot_successor   the next version, with this one's state; this one goes on until it is dropped
//!     | drop(Program)             its forks and its memory are freed on a thread of the engine
//! ```
//!
//! # What a guest's memory looks like
//!
//! ```text
//! virtual                                                      guest-physical (one piece, a memfd)
//!                                                              0x0000_1000  GDT, TSS, IDT      not dirty-logged:
//! 0x7ffd_0000_0000  end of the stack                           0x0000_4000  ring-0 stubs       every exception
//! 0x7f00_0000_0000  mmap window  ---+                          0x0000_6000  ring-0 stack       writes the stack
//! 0x7e00_0000_0000  the monitor's   | one run of               0x0000_8000  ring-3 stubs
//!                   pages           | physical pages,          0x0000_9000  frozen vector state, FS and GS base
//! after the ELF     brk window   ---+ seen twice               0x0000_e000  request area, 64 KiB
//! 0x5555_0000_0000  the ELF, if static-PIE                     0x0001_e000  page tables, never written again
//! as linked         the ELF otherwise (from 0x1_0000)          then         the ELF, the stack, the heap
//! ```
//!
//! The engine knows nothing of Varnish. Its two users are the VMOD and the command `forkvm`.

#![deny(unsafe_code)]

// What unit tests and those in tests/ share names the engine as its users do.
#[cfg(test)]
extern crate self as forkvm;

mod account;
mod arch;
mod call;
mod config;
mod debug;
mod exec;
mod failure;
mod fetch;
mod fork;
#[cfg(test)]
#[path = "../fuzz/strangers.rs"]
mod fuzz;
mod header;
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
mod regexes;
mod request;
mod saved;
mod server;
mod slots;
mod storage;
mod substitution;
mod surroundings;

pub use account::{Account, Totals};
pub use call::http::{HeaderError, parse_header};
pub use config::{Config, Limits, WarmUp};
pub use debug::{BadDebugAddress, DebugAddress, Debugging};
pub use exec::{Ended, NotRun, Sandbox, exec};
pub use failure::{BootError, Cause, Exception, Failure};
pub use fetch::{
    FetchError, FetchHead, FetchRequest, FetchTarget, Fetcher, Fetching, LOOP_HEADER, LOOP_NAME,
};
pub use image::elf::{ElfError, check as check_elf};
pub use image::exec::{Command, ExecError};
pub use linux::{
    AllowedPath, BadListenRule, BadRule, BadVolume, ListenRule, NetPlace, NetRule, Reach, Volume,
    addresses, host_name,
};
pub use machine::probe::{KvmReport, KvmUnavailable, probe};
pub use machine::spent::Spent;
pub use pool::queue::{Place, Queue};
pub use program::take_over::TakeOver;
pub use program::{Answer, Coming, Exchange, Later, Piece, Program, Stats, Streaming, Usage};
pub use request::{CachePolicy, Header, Host, Quiet, Request, Stream};
pub use server::http_client::{BadRequest, Upload, piped_head};
pub use server::{
    Awaited, Closed, Connection, NotServing, NotWarm, Server, ServerFork, ServerLimits, Snapshot,
    SnapshotError,
};
pub use storage::StorageStats;
pub use storage::ending::save_all as save_storages;
pub use storage::owner::{Owner, StorageEvent, StorageKind, StorageOwner};
pub use surroundings::{SEARCH_PATH, program_paths, system_paths};
