//! Snapshots: a frozen server in a file, from which another process serves without a boot.

pub mod coming;
#[cfg(test)]
mod early_tests;
pub mod error;
mod format;
mod host;
#[cfg(test)]
mod hostile_tests;
mod load;
mod save;
mod state;
pub mod terms;
mod touched;
mod written;

pub use self::error::SnapshotError;
pub use self::load::Snapshot;
