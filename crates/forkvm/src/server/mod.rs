//! Unmodified servers: a program that was run until it waited for a connection and frozen there, and forks of it, each of
//! which serves one connection at a time and is reset afterwards.

mod connection;
mod fork;
pub mod http_client;
mod limits;
mod master;
pub mod response;
mod snapshot;
mod warm_up;

pub use self::connection::{Awaited, Closed, Connection, Dialogue, Times};
pub use self::fork::{NotWarm, ServerFork};
pub use self::limits::ServerLimits;
pub use self::master::{NotServing, Server};
pub use self::snapshot::{Snapshot, SnapshotError};
