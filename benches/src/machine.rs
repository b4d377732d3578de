//! What the figures were measured on.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// The machine, the date and the source.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_mib: u64,
    pub kernel: String,
    /// The kernel module behind /dev/kvm, as far as it can be seen.
    pub kvm: String,
    /// Where a guest's `syscall` arrives, by probe.
    pub syscall_enters: String,
    /// Whether this machine is a virtual one itself.
    pub virtual_machine: bool,
    pub varnish: String,
    pub date: String,
    pub commit: String,
}

impl Machine {
    /// This machine, now.
    pub fn describe() -> Result<Self> {
        let report = forkvm::probe().context("KVM")?;
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
        let cpu = |field: &str| {
            let line = cpuinfo.lines().find(|line| {
                line.split(':')
                    .next()
                    .is_some_and(|name| name.trim() == field)
            });
            line.and_then(|line| line.split_once(':'))
                .map_or_else(String::new, |(_, value)| value.trim().to_owned())
        };
        Ok(Self {
            cpu: cpu("model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: crate::rows::memory::meminfo()?
                .get("MemTotal")
                .copied()
                .unwrap_or(0)
                / 1024,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            kvm: kvm_module(),
            syscall_enters: if report.syscall_enters_ring0 {
                "ring 0"
            } else {
                "ring 3"
            }
            .to_owned(),
            virtual_machine: cpu("flags").split(' ').any(|flag| flag == "hypervisor"),
            varnish: first_line(Command::new("varnishd").arg("-V")),
            date: first_line(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])),
            commit: commit(),
        })
    }
}

/// A module's folder is there also when it is built into the kernel.
fn kvm_module() -> String {
    let known = ["kvm_intel", "kvm_amd", "kvm_pvm"];
    known
        .into_iter()
        .find(|name| std::path::Path::new("/sys/module").join(name).exists())
        .unwrap_or("unknown")
        .to_owned()
}

fn commit() -> String {
    let commit = first_line(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]));
    let changed =
        first_line(Command::new("git").args(["status", "--porcelain", "--untracked-files=no"]));
    if commit.is_empty() {
        "unknown".to_owned()
    } else if changed.is_empty() {
        commit
    } else {
        format!("{commit} with changes")
    }
}

/// The first line a program writes, to stdout or else to stderr. Empty if it can't be run or fails.
fn first_line(command: &mut Command) -> String {
    let Some(output) = command
        .output()
        .ok()
        .filter(|output| output.status.success())
    else {
        return String::new();
    };
    let text = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    String::from_utf8_lossy(&text)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}
