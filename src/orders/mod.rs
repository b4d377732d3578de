//! Fetches that are orders instead of requests, and need a key: updates, rollbacks, debugging.

pub mod debug;
pub mod outcome;
pub mod refusal;
pub mod update;
pub mod upload;
pub mod versions;
pub mod watch;
