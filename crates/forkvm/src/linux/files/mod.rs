//! Descriptors and what is behind them: files, folders, pipes, devices.

pub mod absolute;
pub mod attributes;
pub mod change;
#[cfg(test)]
mod change_tests;
pub mod control;
pub mod copies;
pub mod fds;
#[cfg(test)]
mod fds_tests;
pub mod file_system;
pub mod folders;
pub mod held_locks;
pub mod hints;
pub mod host_files;
pub mod inode;
pub mod io;
pub mod known;
pub mod locks;
pub mod mirrors;
pub mod noted;
pub mod open;
pub mod open_file;
#[cfg(test)]
mod open_tests;
pub mod overlay;
pub mod paths;
pub mod pieces;
pub mod pipe_calls;
pub mod pipes;
pub mod poll;
mod proc;
pub mod ready;
pub mod reopen;
pub mod reports;
pub mod resolve;
mod root;
pub mod shared_maps;
pub mod splice;
pub mod stat;
pub mod state_file;
pub mod transfer;
pub mod volumes;
pub mod written;
