//! Descriptors and what is behind them: files, folders, pipes, devices.

pub mod control;
pub mod fds;
pub mod folders;
pub mod host_files;
pub mod io;
pub mod open;
pub mod paths;
pub mod pipes;
pub mod poll;
pub mod reports;
pub mod stat;
