//! The network: sockets, what waits for descriptors, and what goes on with the outside.

pub mod address;
pub mod allowed;
pub mod ancillary;
pub mod calls;
pub mod counters;
mod datagrams;
mod dns;
pub mod epoll;
pub mod events;
pub mod interfaces;
pub mod listening;
pub mod messages;
mod names;
mod netlink;
pub mod options;
pub mod outgoing;
pub mod outside;
pub mod packet;
pub mod readiness;
pub mod serving;
pub mod socket;
pub mod sockets;
mod streams;
pub mod table;
pub mod traffic;
mod unix_names;
pub mod waiting;
