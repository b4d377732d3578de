//! Varnish in safe terms: a fetch, log records, counters, panics kept from C.

pub mod counters;
pub mod fetch;
pub mod logging;
pub mod panics;
pub mod synthetic;
