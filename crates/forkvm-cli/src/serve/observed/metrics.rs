//! Counters, as Prometheus has them.

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

use super::record::{End, Record};

/// Upper bounds of the histograms' buckets, in seconds.
const SECONDS: [f64; 18] = [
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0, 30.0, 60.0,
];

/// What is not counted but looked at.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub forks_idle: usize,
    pub waiting: usize,
    pub connections: usize,
}

/// What is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Connections or requests, by [`End`].
    pub ended: IntCounterVec,
    pub duration: Histogram,
    pub wait: Histogram,
    pub exits: IntCounter,
    pub bytes: IntCounter,
    pub forks_made: IntCounter,
    pub forks_dropped: IntCounter,
    pub forks_live: IntGauge,
    pub resets: IntCounter,
    pub pages_reset: IntCounter,
    /// Set when they are asked for.
    forks_idle: IntGauge,
    waiting: IntGauge,
    connections: IntGauge,
    pub boot_seconds: prometheus::Gauge,
    pub reloads: IntCounterVec,
    pub log_lines_dropped: IntCounter,
}

impl Metrics {
    /// All zero.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let counters = |name: &str, help: &str, label: &str| -> prometheus::Result<IntCounterVec> {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let histogram = |name: &str, help: &str| -> prometheus::Result<Histogram> {
            let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            let histogram = Histogram::with_opts(options)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        let boot_seconds = prometheus::Gauge::new(
            "forkvm_boot_seconds",
            "How long the program took to its freeze.",
        )?;
        registry.register(Box::new(boot_seconds.clone()))?;
        let metrics = Self {
            ended: counters(
                "forkvm_served_total",
                "Connections, or with --per-request requests, that are over, by how they ended.",
                "end",
            )?,
            duration: histogram(
                "forkvm_duration_seconds",
                "From the first bytes to the end, the wait for a fork included.",
            )?,
            wait: histogram("forkvm_wait_seconds", "Waits for a fork.")?,
            exits: counter("forkvm_exits_total", "Exits of the forks' machines.")?,
            bytes: counter("forkvm_sent_bytes_total", "Bytes sent to clients.")?,
            forks_made: counter("forkvm_forks_made_total", "Forks made.")?,
            forks_dropped: counter(
                "forkvm_forks_dropped_total",
                "Forks thrown away, as after a limit or a fault.",
            )?,
            forks_live: gauge("forkvm_forks", "Forks that are there.")?,
            resets: counter("forkvm_resets_total", "Resets of forks.")?,
            pages_reset: counter(
                "forkvm_pages_reset_total",
                "Pages of memory that resets put back.",
            )?,
            forks_idle: gauge("forkvm_forks_idle", "Forks that serve nobody.")?,
            waiting: gauge(
                "forkvm_waiting",
                "Connections or requests that wait for a fork.",
            )?,
            connections: gauge("forkvm_connections", "Clients' open connections.")?,
            reloads: counters(
                "forkvm_reloads_total",
                "Boots for SIGHUP, by their result.",
                "result",
            )?,
            log_lines_dropped: counter(
                "forkvm_access_log_dropped_total",
                "Lines of the access log that found its queue full.",
            )?,
            boot_seconds,
            registry,
        };
        // Those that are zero are there from the beginning.
        for end in End::ALL {
            metrics.ended.with_label_values(&[end.name()]);
        }
        for result in ["ready", "failed"] {
            metrics.reloads.with_label_values(&[result]);
        }
        Ok(metrics)
    }

    /// Counts what is over.
    pub fn count(&self, record: &Record) {
        self.ended.with_label_values(&[record.end.name()]).inc();
        self.duration.observe(record.duration.as_secs_f64());
        self.wait.observe(record.wait.as_secs_f64());
        self.exits.inc_by(record.exits);
        self.bytes.inc_by(record.bytes);
    }

    /// How many are over.
    pub fn served(&self) -> u64 {
        self.duration.get_sample_count()
    }

    /// Prometheus's text.
    pub fn text(&self, now: Now) -> Vec<u8> {
        let set = |gauge: &IntGauge, value: usize| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.forks_idle, now.forks_idle);
        set(&self.waiting, now.waiting);
        set(&self.connections, now.connections);
        let mut text = Vec::new();
        // Nothing can go wrong where all are registered once, and memory is written to.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        text
    }
}
