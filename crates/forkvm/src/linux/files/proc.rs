//! Texts of /proc, by numbers: proc_pid_status(5), proc_pid_stat(5) and their like.

use std::ops::Range;
use std::time::Duration;

use crate::linux::files::fds::MAX_DESCRIPTORS;
use crate::linux::files::known::Report;
use crate::linux::tasks::ids::{Ids, Set};

/// `/proc/cpuinfo`: one CPU. What it can do is for `cpuid` to say.
pub const CPU_INFO: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 0\n\
    model name\t: virtual CPU\nstepping\t: 0\ncpu MHz\t\t: 2000.000\nphysical id\t: 0\nsiblings\t: 1\n\
    core id\t\t: 0\ncpu cores\t: 1\nfpu\t\t: yes\n\n";

/// Where a file system is mounted, and which.
const MOUNTS: [(&str, &str); 6] = [
    ("/", "tmpfs"),
    ("/proc", "proc"),
    ("/sys", "sysfs"),
    ("/dev", "tmpfs"),
    ("/dev/shm", "tmpfs"),
    ("/tmp", "tmpfs"),
];

/// What the texts are made from.
#[derive(Debug)]
pub struct Numbers {
    /// The process's name.
    pub name: String,
    /// Its id, and its parent's.
    pub pid: i32,
    /// See [`Numbers::pid`].
    pub parent: i32,
    /// Its user and groups.
    pub ids: Ids,
    /// Its umask.
    pub umask: u32,
    /// Its threads.
    pub threads: usize,
    /// KiB that it has mapped.
    pub mapped: u64,
    /// KiB that it uses.
    pub resident: u64,
    /// Time since its start.
    pub running: Duration,
    /// Its stack.
    pub stack: Range<u64>,
    /// A random number.
    pub number: u128,
}

/// What a report says.
pub fn text(report: Report, of: &Numbers) -> String {
    match report {
        Report::Status => status(of),
        Report::Stat => stat(of),
        Report::StatM => {
            let (size, resident) = (of.mapped / 4, of.resident / 4);
            format!("{size} {resident} 0 0 0 {resident} 0\n")
        }
        Report::Name => format!("{}\n", of.name),
        Report::Limits => limits(of),
        Report::Mounts => lines(|(at, kind)| format!("{kind} {at} {kind} rw,relatime 0 0\n")),
        Report::MountInfo => {
            let mut number = 20;
            lines(|(at, kind)| {
                number += 1;
                let parent = if at == "/" { 1 } else { 21 };
                format!("{number} {parent} 0:{number} / {at} rw,relatime - {kind} {kind} rw\n")
            })
        }
        Report::Cpu => {
            let ticks = ticks(of.running);
            format!(
                "cpu  {ticks} 0 0 0 0 0 0 0 0 0\ncpu0 {ticks} 0 0 0 0 0 0 0 0 0\nintr 0\nctxt 0\nbtime 0\n\
                 processes 1\nprocs_running 1\nprocs_blocked 0\n"
            )
        }
        Report::Uptime => {
            let seconds = of.running.as_secs_f64();
            format!("{seconds:.2} 0.00\n")
        }
        Report::Uuid => {
            // Version 4, variant 1 (RFC 9562).
            let bits = of.number & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
            let hex = format!("{bits:032x}");
            let part = |range: Range<usize>| hex.get(range).unwrap_or_default();
            format!(
                "{}-{}-{}-{}-{}\n",
                part(0..8),
                part(8..12),
                part(12..16),
                part(16..20),
                part(20..32)
            )
        }
        // The others need more than numbers.
        _ => String::new(),
    }
}

fn lines(line: impl FnMut((&str, &str)) -> String) -> String {
    MOUNTS.into_iter().map(line).collect()
}

/// `USER_HZ` is 100.
fn ticks(time: Duration) -> u128 {
    time.as_millis() / 10
}

fn status(of: &Numbers) -> String {
    let Numbers {
        name,
        umask,
        threads,
        mapped,
        resident,
        pid,
        parent,
        ..
    } = of;
    let none = "0000000000000000";
    let all = |set: Set| {
        let Set {
            real,
            effective,
            saved,
            files,
        } = set;
        format!("{real}\t{effective}\t{saved}\t{files}")
    };
    let (user, group) = (all(of.ids.user), all(of.ids.group));
    let groups: Vec<String> = of.ids.groups.iter().map(u32::to_string).collect();
    let groups = groups.join(" ");
    format!(
        "Name:\t{name}\nUmask:\t{umask:04o}\nState:\tR (running)\nTgid:\t{pid}\nNgid:\t0\nPid:\t{pid}\nPPid:\t{parent}\nTracerPid:\t0\n\
         Uid:\t{user}\nGid:\t{group}\nFDSize:\t{MAX_DESCRIPTORS}\nGroups:\t{groups} \nVmPeak:\t{mapped:8} kB\n\
         VmSize:\t{mapped:8} kB\nVmLck:\t       0 kB\nVmPin:\t       0 kB\nVmHWM:\t{resident:8} kB\nVmRSS:\t{resident:8} kB\n\
         RssAnon:\t{resident:8} kB\nRssFile:\t       0 kB\nRssShmem:\t       0 kB\nVmSwap:\t       0 kB\n\
         Threads:\t{threads}\nSigQ:\t0/1024\nSigPnd:\t{none}\nShdPnd:\t{none}\nSigBlk:\t{none}\nSigIgn:\t{none}\n\
         SigCgt:\t{none}\nCapInh:\t{none}\nCapPrm:\t{none}\nCapEff:\t{none}\nCapBnd:\t{none}\nCapAmb:\t{none}\n\
         NoNewPrivs:\t0\nSeccomp:\t0\nSeccomp_filters:\t0\nCpus_allowed:\t1\nCpus_allowed_list:\t0\n\
         Mems_allowed:\t1\nMems_allowed_list:\t0\nvoluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n"
    )
}

/// 52 fields.
fn stat(of: &Numbers) -> String {
    let (ticks, pages) = (ticks(of.running), of.resident / 4);
    let Numbers { pid, parent, .. } = of;
    let (name, threads, bytes) = (&of.name, of.threads, of.mapped.saturating_mul(1024));
    format!(
        "{pid} ({name}) R {parent} 1 1 0 -1 4194304 0 0 0 0 {ticks} 0 0 0 20 0 {threads} 0 0 {bytes} {pages} 18446744073709551615 \
         0 0 {} 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n",
        of.stack.end
    )
}

/// proc_pid_limits(5)
fn limits(of: &Numbers) -> String {
    let mut text = format!(
        "{:<25} {:<20} {:<20} {:<10}\n",
        "Limit", "Soft Limit", "Hard Limit", "Units"
    );
    let stack = of.stack.end.saturating_sub(of.stack.start).to_string();
    let files = MAX_DESCRIPTORS.to_string();
    let unlimited = "unlimited";
    for (name, limit, units) in [
        ("Max cpu time", unlimited, "seconds"),
        ("Max file size", unlimited, "bytes"),
        ("Max data size", unlimited, "bytes"),
        ("Max stack size", &stack[..], "bytes"),
        ("Max core file size", "0", "bytes"),
        ("Max resident set", unlimited, "bytes"),
        ("Max processes", "1", "processes"),
        ("Max open files", &files[..], "files"),
        ("Max locked memory", unlimited, "bytes"),
        ("Max address space", unlimited, "bytes"),
        ("Max file locks", unlimited, "locks"),
        ("Max pending signals", unlimited, "signals"),
        ("Max msgqueue size", unlimited, "bytes"),
        ("Max nice priority", unlimited, ""),
        ("Max realtime priority", unlimited, ""),
        ("Max realtime timeout", unlimited, "us"),
    ] {
        text += &format!("{name:<25} {limit:<20} {limit:<20} {units:<10}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_the_form_that_programs_read() {
        let of = Numbers {
            name: "a name".into(),
            pid: 7,
            parent: 0,
            ids: Ids::default(),
            umask: 0o22,
            threads: 3,
            mapped: 4000,
            resident: 400,
            running: Duration::from_millis(1234),
            stack: 0x1000..0x9000,
            number: u128::MAX,
        };
        let stat = text(Report::Stat, &of);
        let (_, fields) = stat.trim().split_once(") ").unwrap();
        // proc_pid_stat(5) counts from 1, and two fields are before these.
        let field = |number: usize| fields.split(' ').nth(number - 3).unwrap();
        assert_eq!(fields.split(' ').count(), 50);
        assert_eq!((field(14), field(20), field(23)), ("123", "3", "4096000"));
        assert_eq!((field(24), field(28)), ("100", "36864"));
        assert_eq!(
            text(Report::Uuid, &of),
            "ffffffff-ffff-4fff-bfff-ffffffffffff\n"
        );
        assert!(text(Report::Status, &of).contains("\nThreads:\t3\n"));
        assert!(
            text(Report::MountInfo, &of)
                .starts_with("21 1 0:21 / / rw,relatime - tmpfs tmpfs rw\n")
        );
    }
}
