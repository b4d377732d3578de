//! The Linux personality: the system calls a static program makes at start and in ordinary work.
//!
//! Everything a call may leave behind on the host's side (descriptors and their offsets, the working
//! directory, the heap's break, mappings, signal handlers) lives in one [`Linux`] value. The master's value is
//! taken at the freeze and each fork's is cloned from it again at every reset, so a new field can't be forgotten.
#![forbid(unsafe_code)]

mod abi;
mod call;
mod file_calls;
mod files;
mod kept;
mod memory;
mod memory_calls;
mod net;
mod offer;
mod process;
#[cfg(test)]
mod random_tests;
mod saved;
mod setup;
mod signal_calls;
mod state;
mod table;
mod tasks;
#[cfg(test)]
pub(crate) mod testing;
mod time;
mod told;
mod trace;

pub use self::call::{Call, NewThread, Outcome, Retried};
pub use self::files::state_file::PATH as STATE_PATH;
pub use self::net::address::Address;
pub use self::net::allowed::{BadRule, NetRule, Place as NetPlace, host_name};
pub use self::net::listening::{BadListenRule, ListenRule};
pub use self::net::outside::{ConnectionId, Listener, ListenerId};
pub use self::net::reach::{Reach, addresses};
pub use self::saved::{NotRestored, NotSaved, SavedLinux};
pub use self::setup::{AllowedPath, BadVolume, HeapLayout, Setup, StateFile, StateStore, Volume};
pub use self::state::Linux;
pub use self::tasks::delivery::{Handling, Next as NextSignal};
pub use self::tasks::frame::{self, FaultDetails};
pub use self::tasks::pending::Signal;
pub use self::tasks::task::FIRST_TID;
pub use self::time::Ahead;
