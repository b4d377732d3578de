//! What there is to see of a tenant, in numbers: each is declared once, with its line in varnishstat and in Prometheus's text.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use forkvm::{Stats, StorageStats, Totals};
use serde::Serialize;
use varnish::VscMetric;

use crate::tenants::figures::{BUCKETS, Figures, get};
use crate::tenants::tenant::{State, Tenant};

/// Where the numbers are from.
struct Sources<'t> {
    figures: &'t Figures,
    totals: Totals,
    /// Of the present program; all 0 without one.
    program: Stats,
    storage: StorageStats,
    fetches: forkvm_fetch::Stats,
    statuses: [u64; 4],
    latencies: [u64; BUCKETS],
    tenant: &'t Tenant,
    version: u64,
    ready: bool,
}

/// Whether a number may go down again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It does.
    Gauge,
}

macro_rules! kind {
    (counter) => {
        Kind::Counter
    };
    (gauge) => {
        Kind::Gauge
    };
}

macro_rules! measured {
    ($from:ident; $($doc:literal $kind:ident $name:ident = $value:expr;)*) => {
        /// All numbers of a tenant at one time.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
        pub struct Measured {
            $(#[doc = $doc] pub $name: u64,)*
        }

        /// The same in varnishd's shared memory.
        #[derive(VscMetric)]
        #[repr(C)]
        pub struct Shared {
            $(#[doc = $doc] #[$kind] pub $name: AtomicU64,)*
        }

        impl Measured {
            /// What there is to say of each: its name, its kind, and what it is.
            pub const ALL: &'static [(&'static str, Kind, &'static str)] =
                &[$((stringify!($name), kind!($kind), $doc),)*];

            fn of_sources($from: &Sources<'_>) -> Self {
                Self { $($name: $value,)* }
            }

            /// They, in the order of [`Measured::ALL`].
            pub fn values(&self) -> Vec<u64> {
                vec![$(self.$name,)*]
            }

            /// Puts them where varnishstat finds them.
            pub fn share(&self, shared: &Shared) {
                $(shared.$name.store(self.$name, Ordering::Relaxed);)*
            }
        }
    };
}

measured! { from;
    "1 if a program is ready" gauge ready = from.ready.into();
    "The first eight digits of the program's version, as a number" gauge version = from.version;
    "Requests handed to a program" counter requests = get(&from.figures.requests);
    "Answers with a status from 200 to 299" counter status_2xx = from.statuses[0];
    "Answers with a status from 300 to 399" counter status_3xx = from.statuses[1];
    "Answers with a status from 400 to 499" counter status_4xx = from.statuses[2];
    "Answers with a status from 500 to 599, of programs" counter status_5xx = from.statuses[3];
    "Requests that the program failed" counter failures = get(&from.figures.failures);
    "Failures because of max_request_time" counter timeouts = from.totals.timeouts;
    "Failures because of max_request_memory" counter memory_limits = from.totals.memory_limits;
    "Failures by an exception of the processor, such as a bad access to memory" counter faults = from.totals.faults;
    "Failures of programs that ended themselves" counter exited = from.totals.ended;
    "Requests answered 503, since there was no room for them" counter busy = get(&from.figures.busy);
    "Forks there are" gauge forks = from.program.forks;
    "Forks that wait for a request" gauge forks_idle = from.program.idle;
    "Forks made" counter forks_made = from.totals.made;
    "Forks given up: idle for long, dead, or of a program that was replaced" counter forks_given_up = from.totals.given_up;
    "Requests that wait for a fork or a boot" gauge waiting = from.tenant.settings.config.queue.waiting() as u64;
    "Requests that had to wait for a fork" counter waits = from.totals.waits;
    "Microseconds that requests waited for the forks they got" counter wait_us = micros(from.totals.waited);
    "Forks put back after a request" counter resets = from.totals.resets;
    "Pages of memory that requests had written" counter pages = from.totals.spent.pages;
    "Exits of the machines (KVM_RUN)" counter exits = from.totals.spent.exits;
    "Microseconds in KVM_RUN" counter guest_us = micros(from.totals.spent.guest);
    "Microseconds from requests to the heads of their answers" counter latency_us = micros(from.figures.latency());
    "Answers whose head was there within 64 us" counter latency_64us = from.latencies[0];
    "Answers whose head was there within 128 us, and longer than half of it" counter latency_128us = from.latencies[1];
    "Answers whose head was there within 256 us, and longer than half of it" counter latency_256us = from.latencies[2];
    "Answers whose head was there within 512 us, and longer than half of it" counter latency_512us = from.latencies[3];
    "Answers whose head was there within 1024 us, and longer than half of it" counter latency_1024us = from.latencies[4];
    "Answers whose head was there within 2048 us, and longer than half of it" counter latency_2048us = from.latencies[5];
    "Answers whose head was there within 4096 us, and longer than half of it" counter latency_4096us = from.latencies[6];
    "Answers whose head was there within 8192 us, and longer than half of it" counter latency_8192us = from.latencies[7];
    "Answers whose head was there within 16384 us, and longer than half of it" counter latency_16384us = from.latencies[8];
    "Answers whose head was there within 32768 us, and longer than half of it" counter latency_32768us = from.latencies[9];
    "Answers whose head was there within 65536 us, and longer than half of it" counter latency_65536us = from.latencies[10];
    "Answers whose head was there within 131072 us, and longer than half of it" counter latency_131072us = from.latencies[11];
    "Answers whose head was there within 262144 us, and longer than half of it" counter latency_262144us = from.latencies[12];
    "Answers whose head was there within 524288 us, and longer than half of it" counter latency_524288us = from.latencies[13];
    "Answers whose head was there within 1048576 us, and longer than half of it" counter latency_1048576us = from.latencies[14];
    "Answers whose head was there within 2097152 us, and longer than half of it" counter latency_2097152us = from.latencies[15];
    "Answers whose head was there within 4194304 us, and longer than half of it" counter latency_4194304us = from.latencies[16];
    "Answers whose head was there within 8388608 us, and longer than half of it" counter latency_8388608us = from.latencies[17];
    "Answers whose head was there within 16777216 us, and longer than half of it" counter latency_16777216us = from.latencies[18];
    "Answers whose head was there later than that" counter latency_longer = from.latencies[19];
    "Bytes of requests' bodies" counter bytes_in = get(&from.figures.received);
    "Bytes of responses' bodies" counter bytes_out = get(&from.figures.sent);
    "Bytes of responses that are on their way to clients" gauge responses_held = from.tenant.responses.taken();
    "Bytes of requests' bodies that are held" gauge bodies_held = from.tenant.bodies.taken();
    "What the program has had fetched" counter fetches = from.fetches.fetches;
    "Fetches that came to nothing" counter fetch_failures = from.fetches.failures;
    "Calls of storage" counter storage_calls = from.storage.calls;
    "Calls of storage that failed" counter storage_failures = from.storage.failures;
    "Runs of storage's tasks" counter storage_tasks = from.storage.tasks;
    "Live updates and rollbacks" counter updates = get(&from.figures.updates);
    "Live updates and rollbacks that failed, and changed nothing" counter update_failures = get(&from.figures.update_failures);
    "Of the updates, rollbacks" counter rollbacks = get(&from.figures.rollbacks);
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Measured {
    /// A tenant's now.
    pub fn of(tenant: &Tenant) -> Self {
        let (release, ready) = match tenant.state() {
            State::Ready(release) => (Some(release), true),
            _ => (None, false),
        };
        let program = release.as_ref().map(|release| release.program.stats());
        let program = program.unwrap_or_default();
        let fetches = tenant.fetches.as_ref().map(|fetches| fetches.stats());
        Self::of_sources(&Sources {
            figures: &tenant.figures,
            totals: tenant.settings.config.account.totals(),
            storage: program.storage.unwrap_or_default(),
            program,
            fetches: fetches.unwrap_or_default(),
            statuses: tenant.figures.statuses(),
            latencies: tenant.figures.latencies(),
            version: release.map_or(0, |release| release.version.number()),
            ready,
            tenant,
        })
    }
}
