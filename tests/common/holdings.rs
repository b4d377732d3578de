//! What a varnishd holds of its machine, over a long run: it may grow at first, but not on and on.

use std::fmt;
use std::fs;

use super::varnishd::Varnishd;

/// What varnishd and its child hold, and how much memory the whole machine uses.
#[derive(Debug, Clone, Copy, Default)]
pub struct Holdings {
    /// Resident, of both processes, in KiB.
    pub memory: u64,
    /// What is in use and can't be dropped, in KiB: a kernel's leak shows here only.
    pub host: u64,
    pub descriptors: usize,
    pub mappings: usize,
    pub threads: usize,
}

impl Holdings {
    pub fn of(varnish: &Varnishd) -> Self {
        let child = varnish.child();
        let of_host = |name| kib("/proc/meminfo", name);
        Self {
            memory: (child.memory() + varnish.manager().memory()) >> 10,
            host: of_host("MemTotal:") - of_host("MemAvailable:"),
            descriptors: child.descriptors(),
            mappings: child.mappings(),
            threads: child.threads(),
        }
    }

    fn most(samples: &[Self]) -> Self {
        samples.iter().fold(Self::default(), |most, sample| Self {
            memory: most.memory.max(sample.memory),
            host: most.host.max(sample.host),
            descriptors: most.descriptors.max(sample.descriptors),
            mappings: most.mappings.max(sample.mappings),
            threads: most.threads.max(sample.threads),
        })
    }
}

/// A line of these files, in KiB.
pub fn kib(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The most of each in the second quarter of a run, and in the last. The first one has what is kept for good: threads,
/// and memory that the allocator does not give back.
pub struct Trend {
    pub early: Holdings,
    pub late: Holdings,
}

impl Trend {
    pub fn of(samples: &[Holdings]) -> Self {
        let quarter = samples.len() / 4;
        Self {
            early: Holdings::most(&samples[quarter..2 * quarter]),
            late: Holdings::most(&samples[3 * quarter..]),
        }
    }
}

impl fmt::Display for Trend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (when, most) in [
            ("most in the second quarter", &self.early),
            ("most in the last", &self.late),
        ] {
            writeln!(
                f,
                "{when:>27}: varnishd {} KiB, {} descriptors, {} mappings, {} threads; the machine {} KiB",
                most.memory, most.descriptors, most.mappings, most.threads, most.host
            )?;
        }
        Ok(())
    }
}
