//! Files that are made up, the same for every program: devices, /proc (proc(5)), /sys.

use crate::linux::files::fds::Device;

/// Files with contents made up on the spot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// `/proc/self/maps`
    Maps,
    /// `/proc/cpuinfo`
    CpuInfo,
    /// `/proc/meminfo`
    MemInfo,
    /// `/proc/self/status`
    Status,
    /// `/proc/self/stat`
    Stat,
    /// `/proc/self/statm`
    StatM,
    /// `/proc/self/cmdline`
    CommandLine,
    /// `/proc/self/environ`
    Environment,
    /// `/proc/self/comm`
    Name,
    /// `/proc/self/limits`
    Limits,
    /// `/proc/self/mountinfo`
    MountInfo,
    /// `/proc/self/mounts`
    Mounts,
    /// `/proc/stat`
    Cpu,
    /// `/proc/uptime`
    Uptime,
    /// `/proc/sys/kernel/random/uuid`
    Uuid,
    /// What never changes.
    Fixed(&'static str),
}

/// What is made up.
#[derive(Debug, Clone, Copy)]
pub enum Known {
    /// A device.
    Device(Device),
    /// A file made when it is opened.
    Report(Report),
    /// A link to the executable.
    Executable,
    /// The folder of the open descriptors.
    Descriptors,
    /// One of them.
    Descriptor(u64),
    /// Nothing, whatever the host has.
    Nothing,
}

/// What there is for every program.
pub const COMMON: [(&str, Known); 11] = [
    ("/dev/null", Known::Device(Device::Null)),
    ("/dev/zero", Known::Device(Device::Zero)),
    ("/dev/full", Known::Device(Device::Full)),
    ("/dev/random", Known::Device(Device::Random)),
    ("/dev/urandom", Known::Device(Device::Urandom)),
    ("/proc/self/exe", Known::Executable),
    ("/proc/self/maps", Known::Report(Report::Maps)),
    ("/proc/cpuinfo", Known::Report(Report::CpuInfo)),
    ("/proc/meminfo", Known::Report(Report::MemInfo)),
    ("/sys/devices/system/cpu/online", CPUS),
    ("/sys/devices/system/cpu/possible", CPUS),
];

const CPUS: Known = fixed("0\n");

const fn fixed(text: &'static str) -> Known {
    Known::Report(Report::Fixed(text))
}

/// What there is besides for unmodified programs.
pub const OF_SYSTEM: [(&str, Known); 45] = [
    ("/dev/tty", Known::Device(Device::Tty)),
    ("/dev/stdin", Known::Descriptor(0)),
    ("/dev/stdout", Known::Descriptor(1)),
    ("/dev/stderr", Known::Descriptor(2)),
    ("/dev/fd", Known::Descriptors),
    ("/dev/ptmx", Known::Nothing),
    ("/dev/kvm", Known::Nothing),
    ("/proc/self/fd", Known::Descriptors),
    ("/proc/self/status", Known::Report(Report::Status)),
    ("/proc/self/stat", Known::Report(Report::Stat)),
    ("/proc/self/statm", Known::Report(Report::StatM)),
    ("/proc/self/cmdline", Known::Report(Report::CommandLine)),
    ("/proc/self/environ", Known::Report(Report::Environment)),
    ("/proc/self/comm", Known::Report(Report::Name)),
    ("/proc/self/limits", Known::Report(Report::Limits)),
    ("/proc/self/cgroup", fixed("0::/\n")),
    ("/proc/self/oom_score", fixed("0\n")),
    ("/proc/self/oom_score_adj", fixed("0\n")),
    ("/proc/self/loginuid", fixed("4294967295")),
    ("/proc/self/mountinfo", Known::Report(Report::MountInfo)),
    ("/proc/self/mounts", Known::Report(Report::Mounts)),
    ("/proc/mounts", Known::Report(Report::Mounts)),
    ("/proc/stat", Known::Report(Report::Cpu)),
    ("/proc/uptime", Known::Report(Report::Uptime)),
    ("/proc/loadavg", fixed("0.00 0.00 0.00 1/1 1\n")),
    ("/proc/version", fixed("Linux version 6.1.0 #1 SMP\n")),
    ("/proc/filesystems", fixed("nodev\tproc\nnodev\ttmpfs\n")),
    ("/proc/sys/kernel/osrelease", fixed("6.1.0\n")),
    ("/proc/sys/kernel/ostype", fixed("Linux\n")),
    ("/proc/sys/kernel/hostname", fixed("localhost\n")),
    ("/proc/sys/kernel/ngroups_max", fixed("65536\n")),
    ("/proc/sys/kernel/pid_max", fixed("4194304\n")),
    ("/proc/sys/kernel/cap_last_cap", fixed("40\n")),
    ("/proc/sys/kernel/random/uuid", Known::Report(Report::Uuid)),
    (
        "/proc/sys/kernel/random/boot_id",
        fixed("00000000-0000-4000-8000-000000000001\n"),
    ),
    ("/proc/sys/net/core/somaxconn", fixed("4096\n")),
    ("/proc/sys/vm/overcommit_memory", fixed("0\n")),
    ("/proc/sys/vm/max_map_count", fixed("65530\n")),
    ("/proc/sys/fs/pipe-max-size", fixed("65536\n")),
    ("/proc/sys/fs/nr_open", fixed("256\n")),
    ("/sys/devices/system/cpu/present", CPUS),
    ("/sys/devices/system/node/online", CPUS),
    (
        "/sys/kernel/mm/transparent_hugepage/enabled",
        fixed("always madvise [never]\n"),
    ),
    (
        "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size",
        fixed("2097152\n"),
    ),
    (
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        fixed("always within_size advise [never] deny force\n"),
    ),
];

/// Folders beside those on the way to what is made up.
pub const FOLDERS: [&[u8]; 3] = [b"/tmp", b"/dev/shm", b"/proc/self/task/1"];

/// Names of the one process, and of its threads, which are told as the process.
const SELF: [&[u8]; 5] = [
    b"/proc/self/task/1/",
    b"/proc/thread-self/",
    b"/proc/1/task/1/",
    b"/proc/1/",
    b"/proc/self/",
];

/// What is made up at a path; `all` for unmodified programs.
pub fn find(path: &[u8], all: bool) -> Option<Known> {
    let at = |path: &[u8]| {
        let common = COMMON.iter();
        let more = OF_SYSTEM.iter().filter(|_| all);
        common
            .chain(more)
            .find(|(name, _)| name.as_bytes() == path)
            .map(|(_, known)| *known)
    };
    if !all {
        return at(path);
    }
    let rest = SELF.iter().find_map(|start| path.strip_prefix(*start));
    let path = rest.map_or_else(|| path.to_vec(), |rest| [b"/proc/self/", rest].concat());
    let descriptor = [&b"/proc/self/fd/"[..], b"/dev/fd/"]
        .iter()
        .find_map(|start| path.strip_prefix(*start))
        .and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
    match descriptor {
        Some(number) => Some(Known::Descriptor(number)),
        None => at(&path),
    }
}
