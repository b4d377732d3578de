//! What `handshake.rs` is made of: the standard library here, loom in the test that runs it in every order.

pub use std::hint::spin_loop;
pub use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
