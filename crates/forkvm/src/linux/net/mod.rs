//! The network, as far as it is within a program: sockets, and what waits for descriptors.

pub mod address;
pub mod ancillary;
pub mod calls;
pub mod counters;
pub mod epoll;
pub mod events;
pub mod messages;
pub mod options;
pub mod outside;
pub mod readiness;
pub mod serving;
pub mod socket;
pub mod sockets;
pub mod table;
pub mod traffic;
pub mod waiting;
