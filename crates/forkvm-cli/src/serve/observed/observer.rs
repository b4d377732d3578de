//! Whoever is told of what happens, and passes it on.

use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;

use super::access_log::AccessLog;
use super::latencies::Latencies;
use super::metrics::{Metrics, Now};
use super::record::Record;

/// Whoever is told of what happens.
#[derive(Debug)]
pub struct Observer {
    pub(super) metrics: Metrics,
    log: Option<AccessLog>,
    /// Those since the last status line, where there is one.
    pub(super) latencies: Option<Mutex<Latencies>>,
}

impl Observer {
    /// Nothing has happened yet.
    pub fn new(access_log: Option<&Path>, has_status: bool) -> Result<Self, String> {
        Ok(Self {
            metrics: Metrics::new().map_err(|error| error.to_string())?,
            log: access_log.map(AccessLog::open).transpose()?,
            latencies: has_status.then(Mutex::default),
        })
    }

    /// A connection or request is over.
    pub fn record(&self, record: Record) {
        self.metrics.count(&record);
        if let Some(latencies) = &self.latencies {
            latencies.lock().add(record.duration);
        }
        if let Some(log) = &self.log
            && !log.write(record)
        {
            self.metrics.log_lines_dropped.inc();
        }
    }

    /// There is one fork more.
    pub fn fork_made(&self) {
        self.metrics.forks_made.inc();
        self.metrics.forks_live.inc();
    }

    /// There is one less. `failed`: since it can't be reset.
    pub fn fork_gone(&self, failed: bool) {
        self.metrics.forks_live.dec();
        if failed {
            self.metrics.forks_dropped.inc();
        }
    }

    /// A fork was reset, which put back so many pages.
    pub fn fork_reset(&self, pages: u64) {
        self.metrics.resets.inc();
        self.metrics.pages_reset.inc_by(pages);
    }

    /// A program was booted, for the first time or for SIGHUP.
    pub fn booted(&self, took: Duration, again: bool) {
        self.metrics.boot_seconds.set(took.as_secs_f64());
        if again {
            self.metrics.reloads.with_label_values(&["ready"]).inc();
        }
    }

    /// A boot for SIGHUP has failed.
    pub fn not_booted(&self) {
        self.metrics.reloads.with_label_values(&["failed"]).inc();
    }

    /// The access log's file may have been moved away.
    pub fn reopen_log(&self) {
        if let Some(log) = &self.log {
            log.reopen();
        }
    }

    /// What Prometheus is told.
    pub fn metrics_text(&self, now: Now) -> Vec<u8> {
        self.metrics.text(now)
    }

    /// Waits, within bounds, until all is written.
    pub fn flush(&self) {
        if let Some(log) = &self.log {
            log.flush();
        }
    }
}
