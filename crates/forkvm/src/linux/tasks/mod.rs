//! What concerns a thread of the program: the tasks themselves, signals, futexes, users.

pub mod delivery;
pub mod frame;
pub mod futex;
pub mod ids;
pub mod pending;
pub mod pidfd;
pub mod scheduling;
pub mod signals;
pub mod table;
pub mod task;
pub mod task_signals;
pub mod threads;
pub mod timers;
