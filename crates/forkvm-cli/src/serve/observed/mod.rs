//! What an operator sees of what is served: the access log, metrics, the status line.

mod access_log;
mod latencies;
pub mod metrics;
pub mod observer;
pub mod record;
pub mod scrape;
pub mod status;
