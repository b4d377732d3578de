//! System calls a request, counted from outside the process by strace: a run with requests less one without.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::rows::{answer, boot_file, say};
use crate::settings::Options;

const REQUESTS: usize = 2000;
/// Requests of both runs that are not counted: the first ones make page faults and lists grow.
const WARM_UP: usize = 100;

/// Calls by name.
type Calls = BTreeMap<String, i64>;

#[derive(Debug, Serialize, Deserialize)]
pub struct Syscalls {
    pub requests: usize,
    /// Calls of the thread that the requests run on, each.
    pub per_request: f64,
    /// With those of the engine's other threads, which go by the clock: a tracer makes requests slow, and so this large.
    pub per_request_all_threads: f64,
    /// What the run with requests made more than the one without.
    pub own_thread: Calls,
    pub other_threads: Calls,
}

/// `None` without strace.
pub fn run(options: &Options) -> Result<Option<Syscalls>> {
    if Command::new("strace").arg("-V").output().is_err() {
        say("  left out: strace is not installed");
        return Ok(None);
    }
    let program = options.guest("hello");
    let without = count(&program, 0, &options.out)?;
    let with = count(&program, REQUESTS, &options.out)?;
    let own_thread = difference(&with.0, &without.0);
    let other_threads = difference(&with.1, &without.1);
    let own: i64 = own_thread.values().sum();
    let others: i64 = other_threads.values().sum();
    Ok(Some(Syscalls {
        requests: REQUESTS,
        per_request: own as f64 / REQUESTS as f64,
        per_request_all_threads: (own + others) as f64 / REQUESTS as f64,
        own_thread,
        other_threads,
    }))
}

fn difference(with: &Calls, without: &Calls) -> Calls {
    let of = |calls: &Calls, name: &str| calls.get(name).copied().unwrap_or(0);
    let names = with.keys().chain(without.keys());
    names
        .map(|name| (name.clone(), of(with, name) - of(without, name)))
        .filter(|&(_, more)| more != 0)
        .collect()
}

/// The calls of a process that answers `requests` requests: of its first thread, and of the others.
fn count(program: &Path, requests: usize, out: &Path) -> Result<(Calls, Calls)> {
    let trace = out.join("strace.txt");
    let status = Command::new("strace")
        .args(["-f", "-qq", "-e", "signal=none", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe()?)
        .arg("requests")
        .arg(program)
        .arg(requests.to_string())
        .status()
        .context("strace")?;
    ensure!(status.success(), "the process under strace: {status}");
    let text = std::fs::read_to_string(&trace).with_context(|| trace.display().to_string())?;
    let _ = std::fs::remove_file(&trace);
    Ok(parse(&text))
}

/// Lines of "TID call(…"; a call that others interrupt comes as two, of which the second begins with "<...".
fn parse(trace: &str) -> (Calls, Calls) {
    let (mut own, mut others) = (Calls::new(), Calls::new());
    let mut first = None;
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let Some((name, _)) = rest.trim_start().split_once('(') else {
            continue;
        };
        if name.is_empty() || !name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_') {
            continue;
        }
        let first = *first.get_or_insert(thread);
        let calls = if thread == first {
            &mut own
        } else {
            &mut others
        };
        *calls.entry(name.to_owned()).or_default() += 1;
    }
    (own, others)
}

/// What the traced process does.
pub fn requests(program: &Path, count: usize) -> Result<()> {
    let program = boot_file(program, |_| {})?;
    for _ in 0..WARM_UP + count {
        drop(answer(&program, b"/")?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_once_and_by_thread() {
        let trace = "7  execve(\"/x\", [\"x\"], 0x7ffd /* 9 vars */) = 0\n\
                     7  ioctl(5, KVM_RUN <unfinished ...>\n\
                     12 clock_nanosleep(CLOCK_MONOTONIC, 0, {tv_sec=0}, NULL <unfinished ...>\n\
                     7  <... ioctl resumed>, 0) = 0\n\
                     7  ioctl(5, KVM_RUN, 0) = 0\n\
                     7  +++ exited with 0 +++\n";
        let (own, others) = parse(trace);
        assert_eq!((own["execve"], own["ioctl"], own.len()), (1, 2, 2));
        assert_eq!((others["clock_nanosleep"], others.len()), (1, 1));
    }
}
