//! What memory an idle fork costs, all in, beside a bare VM: each in processes of their own, in turns, since what the
//! kernel spends shows only in the whole machine's account.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use forkvm::WarmUp;
use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use crate::measure::{median, us};
use crate::rows::{answer, boot_file};
use crate::settings::{Held, Options};

/// Machines held at once.
const MACHINES: usize = 200;
/// Guest memory.
const GUEST: u64 = 32 << 20;
/// The instruction `hlt`.
const HLT: u8 = 0xf4;
/// Time for the kernel to free what the last process had, and to give back its per-CPU lists.
const SETTLE: Duration = Duration::from_millis(1500);

/// Kinds of memory, in KiB for each machine.
pub type Kinds = BTreeMap<String, f64>;

#[derive(Debug, Serialize, Deserialize)]
pub struct Memory {
    pub machines: usize,
    pub guest_mib: u64,
    pub fork: Kinds,
    /// A bare VM that never ran.
    pub unrun_vm: Kinds,
    /// A bare VM that has run one instruction: the kernel makes some of a VM's parts then, as in a fork that is idle
    /// again. `None` where KVM can't run a CPU as it comes out of reset.
    pub run_vm: Option<Kinds>,
    pub idle_fork_kib: f64,
    pub unrun_vm_kib: f64,
    pub run_vm_kib: Option<f64>,
    /// All forks together.
    pub forks_mib: f64,
    /// Making a fork, and handing it over.
    pub fork_us: f64,
    /// The first request of a fork, which makes its pages.
    pub first_request_us: f64,
    /// Both: from a request that finds no fork to its response.
    pub first_response_us: f64,
    /// Forks that ran a warm-up request before they were handed out.
    pub warm: Warm,
}

/// What warm forks cost, and what they save.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Warm {
    pub fork_kib: f64,
    /// Making one, its warm-up request and its reset included.
    pub fork_us: f64,
    pub first_request_us: f64,
    /// A later request of the same forks, in turns.
    pub later_request_us: f64,
}

/// What a process that held machines reports.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Report {
    kib: Kinds,
    fork_us: f64,
    first_request_us: f64,
    later_request_us: f64,
}

pub fn run(options: &Options) -> Result<Memory> {
    let (mut forks, mut warm) = (Vec::new(), Vec::new());
    let (mut empty, mut run) = (Vec::new(), Vec::new());
    for _ in 0..options.amount(5, 2) {
        forks.push(in_process(options, "forks")?);
        warm.push(in_process(options, "warm")?);
        empty.push(in_process(options, "empty")?);
        run.push(in_process(options, "run")?);
    }
    let of = |reports: &[Report], get: &dyn Fn(&Report) -> f64| {
        median(&reports.iter().map(get).collect::<Vec<_>>())
    };
    let kinds = |reports: &[Report]| -> Kinds {
        let names = reports.iter().flat_map(|report| report.kib.keys().cloned());
        let get = |name: &str| {
            of(reports, &|report| {
                report.kib.get(name).copied().unwrap_or(0.0)
            })
        };
        names.map(|name| (name.clone(), get(&name))).collect()
    };
    let (fork, unrun_vm) = (kinds(&forks), kinds(&empty));
    let run_vm = Some(kinds(&run)).filter(|kinds| !kinds.is_empty());
    let total = |kinds: &Kinds| kinds.values().sum::<f64>();
    let (fork_us, first_request_us) = (
        of(&forks, &|r| r.fork_us),
        of(&forks, &|r| r.first_request_us),
    );
    Ok(Memory {
        machines: MACHINES,
        guest_mib: GUEST >> 20,
        idle_fork_kib: total(&fork),
        unrun_vm_kib: total(&unrun_vm),
        run_vm_kib: run_vm.as_ref().map(total),
        forks_mib: total(&fork) * MACHINES as f64 / 1024.0,
        fork,
        unrun_vm,
        run_vm,
        fork_us,
        first_request_us,
        first_response_us: fork_us + first_request_us,
        warm: Warm {
            fork_kib: total(&kinds(&warm)),
            fork_us: of(&warm, &|r| r.fork_us),
            first_request_us: of(&warm, &|r| r.first_request_us),
            later_request_us: of(&warm, &|r| r.later_request_us),
        },
    })
}

fn in_process(options: &Options, of: &str) -> Result<Report> {
    std::thread::sleep(SETTLE);
    let output = Command::new(std::env::current_exe()?)
        .args(["memory", of])
        .arg(options.guest("hello"))
        .arg(MACHINES.to_string())
        .stderr(std::process::Stdio::inherit())
        .output()?;
    ensure!(
        output.status.success(),
        "the process that holds {of}: {}",
        output.status
    );
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("what the process that holds {of} says"))
}

/// What the process does: holds machines and writes a report.
pub fn hold(of: Held, program: &Path, count: usize) -> Result<()> {
    let report = match of {
        Held::Forks => forks(program, count)?,
        Held::Warm => warm_forks(program, count)?,
        Held::Empty => empty_vms(count, false)?,
        Held::Run => empty_vms(count, true)?,
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn forks(program: &Path, count: usize) -> Result<Report> {
    let program = boot_file(program, |config| {
        config.concurrency = count + 1;
        config.limits.max_memory = GUEST;
    })?;
    // The first fork is there from the start, and so is what the process needs once.
    let first = answer(&program, b"/")?;
    let before = Account::take()?;
    let (mut made, mut served) = (Vec::new(), Vec::new());
    let mut answers = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        // Takes a fork, which has to be made, and gives it back.
        program.round_trips(0)?;
        let ready = Instant::now();
        answers.push(answer(&program, b"/")?);
        served.push(us(ready.elapsed()));
        made.push(us(ready - start));
    }
    // Reset, and idle from now on.
    answers.clear();
    let stats = program.stats();
    ensure!(
        stats.idle == count as u64,
        "{} forks are idle, not {count}",
        stats.idle
    );
    let kib = Account::take()?.since(&before, count);
    drop(first);
    Ok(Report {
        kib,
        fork_us: median(&made),
        first_request_us: median(&served),
        later_request_us: 0.0,
    })
}

/// Forks that are made before anybody asks: each runs a warm-up request and is reset.
fn warm_forks(program: &Path, count: usize) -> Result<Report> {
    let program = boot_file(program, |config| {
        config.concurrency = count + 1;
        config.limits.max_memory = GUEST;
        config.warm_up = Some(WarmUp {
            num_requests: 1,
            ..Default::default()
        });
    })?;
    let before = Account::take()?;
    let mut made = Vec::new();
    for forks in 2..=count + 1 {
        let start = Instant::now();
        program.fill(forks, start + Duration::from_secs(60));
        made.push(us(start.elapsed()));
    }
    let kib = Account::take()?.since(&before, count);
    // Each answer keeps its fork, so that the next request gets another one.
    let round = || -> Result<f64> {
        let mut answers = Vec::with_capacity(count);
        let mut served = Vec::with_capacity(count);
        for _ in 0..=count {
            let start = Instant::now();
            answers.push(answer(&program, b"/")?);
            served.push(us(start.elapsed()));
        }
        Ok(median(&served))
    };
    let first_request_us = round()?;
    let created = program.stats().created;
    ensure!(
        created == count as u64 + 1,
        "{created} forks were made, not {count} and one"
    );
    Ok(Report {
        kib,
        fork_us: median(&made),
        first_request_us,
        later_request_us: round()?,
    })
}

/// The least a VM can be: one memory slot over memory that is a private mapping of a file, as a fork's is, one vCPU
/// and its run page, no dirty ring.
struct EmptyVm {
    vcpu: VcpuFd,
    _vm: VmFd,
}

impl EmptyVm {
    fn new(kvm: &Kvm, file: &File) -> Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        // SAFETY: a new mapping wherever there is room. It is never undone.
        let memory = unsafe {
            mmap(
                std::ptr::null_mut(),
                GUEST as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
                file,
                0,
            )
        }
        .context("mapping memory")?;
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: GUEST,
            userspace_addr: memory as u64,
        };
        // SAFETY: the mapping of this very length outlives the VM.
        unsafe { vm.set_user_memory_region(slot) }.context("KVM_SET_USER_MEMORY_REGION")?;
        // It maps the run page too.
        let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        Ok(Self { vcpu, _vm: vm })
    }

    /// Runs one instruction, `hlt`, in the mode a CPU starts in. False if this KVM can't.
    fn run(&mut self) -> Result<bool> {
        let mut sregs = self.vcpu.get_sregs().context("KVM_GET_SREGS")?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        self.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
        let regs = kvm_regs {
            rip: 0,
            rflags: 2,
            ..Default::default()
        };
        self.vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
        Ok(matches!(self.vcpu.run(), Ok(VcpuExit::Hlt)))
    }
}

fn empty_vms(count: usize, run: bool) -> Result<Report> {
    let kvm = Kvm::new().context("/dev/kvm")?;
    let mut file: File = rustix::fs::memfd_create("empty", rustix::fs::MemfdFlags::CLOEXEC)?.into();
    file.set_len(GUEST)?;
    file.write_all(&[HLT])?;
    let mut first = EmptyVm::new(&kvm, &file)?;
    if run && !first.run()? {
        return Ok(Report::default());
    }
    let before = Account::take()?;
    let mut vms = (0..count)
        .map(|_| EmptyVm::new(&kvm, &file))
        .collect::<Result<Vec<_>>>()?;
    if run {
        for vm in &mut vms {
            ensure!(vm.run()?, "one VM ran, and another did not");
        }
    }
    let kib = Account::take()?.since(&before, count);
    // The process ends now, and frees all.
    drop((vms, first));
    Ok(Report {
        kib,
        ..Default::default()
    })
}

/// /proc/meminfo, in KiB.
pub fn meminfo() -> Result<BTreeMap<String, u64>> {
    fields("/proc/meminfo")
}

/// Lines of "Name:   123 kB".
pub fn fields(path: &str) -> Result<BTreeMap<String, u64>> {
    let mut text = String::new();
    File::open(path)
        .and_then(|mut file| file.read_to_string(&mut text))
        .with_context(|| path.to_owned())?;
    let lines = text.lines().filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        Some((
            name.to_owned(),
            rest.split_whitespace().next()?.parse().ok()?,
        ))
    });
    Ok(lines.collect())
}

/// Pages on the CPUs' own free lists, in KiB: MemFree does not count them, and what the process before had may be there
/// (/proc/zoneinfo, "count" of each pageset; proc_zoneinfo(5)).
fn free_on_lists() -> Result<i64> {
    let text = std::fs::read_to_string("/proc/zoneinfo").context("/proc/zoneinfo")?;
    let pages = text
        .lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("count:")?
                .trim()
                .parse::<i64>()
                .ok()
        })
        .sum::<i64>();
    Ok(pages * (rustix::param::page_size() as i64 / 1024))
}

/// The machine's and the process's memory at one time, in KiB.
struct Account(BTreeMap<String, i64>);

impl Account {
    fn take() -> Result<Self> {
        let machine = meminfo()?;
        let process = fields("/proc/self/status")?;
        let get = |fields: &BTreeMap<String, u64>, name: &str| {
            fields.get(name).copied().unwrap_or(0) as i64
        };
        let of = |name| get(&machine, name);
        // The files' cache and what the kernel can drop again are nobody's cost; shared memory is in the cache.
        let used = of("MemTotal")
            - of("MemFree")
            - of("Buffers")
            - of("Cached")
            - of("SReclaimable")
            - free_on_lists()?;
        let mine = get(&process, "RssAnon");
        // Other processes' memory comes and goes meanwhile.
        let others = of("AnonPages") - mine;
        let kinds = [
            ("slab", of("SUnreclaim")),
            // Kernel stacks are part of it (CONFIG_VMAP_STACK, always on for x86-64), and counted by themselves.
            ("vmalloc", of("VmallocUsed") - of("KernelStack")),
            ("page tables", of("PageTables") + of("SecPageTables")),
            ("anonymous", mine),
            ("kernel stacks", of("KernelStack")),
            ("per CPU", of("Percpu")),
        ];
        let rest = used - others - kinds.iter().map(|(_, kib)| kib).sum::<i64>();
        Ok(Self(
            kinds
                .into_iter()
                .chain([("other", rest)])
                .map(|(name, kib)| (name.to_owned(), kib))
                .collect(),
        ))
    }

    /// What was added, for each of `count`.
    fn since(&self, before: &Self, count: usize) -> Kinds {
        let added = |name: &String| self.0[name] - before.0.get(name).copied().unwrap_or(0);
        self.0
            .keys()
            .map(|name| (name.clone(), added(name) as f64 / count as f64))
            .collect()
    }
}
