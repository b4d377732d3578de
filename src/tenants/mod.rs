//! Tenants: their settings in VCL or JSON, their first boot, their stored programs, shared by all VCLs.

pub mod archive;
pub mod aside;
pub mod boot;
pub mod document;
pub mod entries;
pub mod fetches;
#[cfg(test)]
mod fuzz;
pub mod keys;
pub mod kinds;
pub mod later;
pub mod meaning;
pub mod name;
pub mod places;
pub mod queue;
pub mod refresh;
pub mod registry;
pub mod remote;
pub mod report;
pub mod retry;
pub mod room;
pub mod serving;
pub mod settings;
pub mod signature;
pub mod snapshots;
pub mod source;
pub mod storage;
pub mod store;
pub mod table;
pub mod tenant;
pub mod version;
pub mod waits;
pub mod words;
pub mod writers;
pub mod writing;
