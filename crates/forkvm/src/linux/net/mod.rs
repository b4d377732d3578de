//! Sockets.

pub mod sockets;
