//! What concerns a thread of the program: signals, futexes, sleeping.

pub mod futex;
pub mod signals;
pub mod task;
pub mod threads;
