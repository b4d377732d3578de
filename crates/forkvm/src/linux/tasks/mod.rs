//! What concerns a thread of the program: signals, futexes, sleeping.

pub mod signals;
pub mod threads;
