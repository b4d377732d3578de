//! Runs an unmodified program in a machine of its own, from its start to its exit.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_sregs};

use crate::arch::layout::SpaceLayout;
use crate::arch::monitor;
use crate::arch::paging::TablePages;
use crate::arch::regs::{RFLAGS, user_sregs};
use crate::failure::{Cause, Exception, signal_name};
use crate::image::exec::{Command, ExecError};
use crate::image::symbols::Symbols;
use crate::linux::{AllowedPath, HeapLayout, Linux, ListenRule, NetRule, Setup};
use crate::machine::probe::{self, KvmHost, KvmUnavailable};
use crate::machine::{Event, Machine};
use crate::master::freeze;
use crate::memory::guest::GuestMemory;
use crate::memory::mapping::Mapping;
use crate::memory::space::Space;
use crate::random::Random;
use crate::request::{Host, Stream};

/// What a program run by [`exec`] may have.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Files and folders it may read, those of its libraries among them, and where it sees them.
    pub allowed_paths: Vec<AllowedPath>,
    /// Folders where it may change files, beside /tmp and /dev/shm: in memory, over what is there. Nothing reaches the host.
    pub writable_paths: Vec<PathBuf>,
    /// Most bytes of what it changes.
    pub overlay_bytes: u64,
    /// Most bytes that it writes to the host's files ([`AllowedPath::writes`]): of a server, each connection. A new name
    /// counts for 4096.
    pub volume_bytes: u64,
    /// Its working directory.
    pub current_working_directory: String,
    /// Guest memory in bytes. What is only reserved costs nothing.
    pub max_memory: u64,
    /// How long it may run.
    pub max_time: Duration,
    /// Addresses are chosen at random, as Linux does.
    pub random_addresses: bool,
    /// What of its system calls needs no host is answered within its machine, without an exit.
    pub dispatcher: bool,
    /// What of the network outside it may reach.
    pub allowed_net: Vec<NetRule>,
    /// Where it may take connections and datagrams, within the machine; `None`: everywhere.
    pub allowed_listen: Option<Vec<ListenRule>>,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self {
            allowed_paths: Vec::new(),
            writable_paths: Vec::new(),
            overlay_bytes: 64 << 20,
            volume_bytes: 1 << 30,
            current_working_directory: "/".into(),
            max_memory: 1 << 30,
            max_time: Duration::from_secs(3600),
            random_addresses: true,
            dispatcher: true,
            allowed_net: Vec::new(),
            allowed_listen: None,
        }
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It called exit(2) with this status.
    Exited(i32),
    /// A signal ended it, as `abort` or a fault do.
    Signalled(i32),
}

/// Why a program could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum NotRun {
    /// There is no KVM for us.
    #[error(transparent)]
    Kvm(#[from] KvmUnavailable),
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
    /// The program can't be loaded.
    #[error("{0}")]
    Exec(#[from] ExecError),
    /// The host has no memory, descriptors or such for it.
    #[error("the host can't set up the machine: {0}")]
    Host(String),
    /// It was stopped: a limit, or a defect of the machine.
    #[error("the program was stopped: {0}")]
    Stopped(String),
}

impl NotRun {
    pub(crate) fn host(error: impl std::fmt::Display) -> Self {
        Self::Host(error.to_string())
    }
}

/// Runs a program until it ends. `host` gets what it prints, and a note of the fault that ended it.
///
/// # Errors
/// See [`NotRun`].
pub fn exec(command: Command, sandbox: &Sandbox, host: &mut dyn Host) -> Result<Ended, NotRun> {
    let kvm = probe::host()?;
    let Started {
        mut machine, stack, ..
    } = start(kvm, command, sandbox, sandbox.dispatcher)?;
    let deadline = Instant::now() + sandbox.max_time;
    let result = machine.watched(deadline, |machine| machine.run(deadline, host));
    if matches!(result, Err(Cause::Exit(_) | Cause::Killed(_))) {
        machine.flush_outside(deadline);
    }
    let describe = |cause: &Cause| {
        cause.describe(
            &Symbols::default(),
            &stack,
            &format!("{:?} (max_time)", sandbox.max_time),
            &format!("{} bytes (max_memory)", sandbox.max_memory),
        )
    };
    let missing = machine.linux.unsupported();
    if !missing.is_empty() {
        let names = missing.join(", ");
        let line = format!(
            "forkvm: system calls that are not supported (the program got ENOSYS): {names}\n"
        );
        host.output(Stream::Stderr, line.as_bytes());
    }
    let cause = match result {
        Err(Cause::Exit(status)) => return Ok(Ended::Exited(status)),
        Err(Cause::Killed(signal)) => return Ok(Ended::Signalled(signal)),
        Err(
            ref cause @ Cause::Exception(Exception {
                signal: Some(signal),
                ..
            }),
        ) => {
            let signal = signal.into();
            let (name, what) = (signal_name(signal), describe(cause));
            host.note(&format!("ended by signal {signal} ({name}): {what}"));
            return Ok(Ended::Signalled(signal));
        }
        // As for any access to a port, which no program may have.
        Ok(Event::Hypercall(_)) | Err(Cause::BadPort(_)) => {
            return Ok(Ended::Signalled(libc::SIGSEGV));
        }
        Err(cause) => cause,
        Ok(Event::SystemCall | Event::Idle(_) | Event::Sent) => {
            Cause::Machine("it stopped for no reason".into())
        }
    };
    Err(NotRun::Stopped(describe(&cause)))
}

/// A machine that is to run a program from its first instruction.
pub(crate) struct Started {
    pub machine: Machine,
    /// Its memory.
    pub file: Arc<File>,
    /// The addresses of the program's stack.
    pub stack: Range<u64>,
    /// The segment and control registers of its start.
    pub sregs: kvm_sregs,
}

/// What its Linux personality is told.
pub(crate) fn setup(sandbox: &Sandbox) -> Setup {
    Setup {
        heap: HeapLayout {
            brk_window: 0,
            mmap_window: 0,
            len: 0,
            executable: false,
        },
        stack: 0..0,
        executable: String::new(),
        allowed_paths: sandbox.allowed_paths.clone(),
        writable_paths: ["/tmp", "/dev/shm"]
            .iter()
            .map(PathBuf::from)
            .chain(sandbox.writable_paths.iter().cloned())
            .collect(),
        overlay_bytes: sandbox.overlay_bytes,
        whole_system: true,
        volume_bytes: sandbox.volume_bytes,
        random_addresses: sandbox.random_addresses,
        current_working_directory: sandbox.current_working_directory.clone(),
        allowed_net: sandbox.allowed_net.clone(),
        state: None,
        allowed_listen: sandbox.allowed_listen.clone(),
    }
}

/// Makes a machine with the program in it. `dispatches`: its calls arrive at the dispatcher, which is there for forks in any case.
pub(crate) fn start(
    kvm: &'static KvmHost,
    command: Command,
    sandbox: &Sandbox,
    dispatches: bool,
) -> Result<Started, NotRun> {
    let layout = SpaceLayout::plan(sandbox.max_memory).ok_or_else(|| {
        NotRun::Setting(format!(
            "max_memory: {} bytes are too few for any program",
            sandbox.max_memory
        ))
    })?;
    let len = layout.frames.end;
    let memfd = freeze::memfd("forkvm-exec", len).map_err(NotRun::host)?;
    let mapping = Mapping::shared(&memfd, len).map_err(NotRun::host)?;
    monitor::install_with_dispatcher(&mapping, kvm.entry, sandbox.dispatcher, &layout)
        .map_err(NotRun::host)?;
    let mut tables = TablePages::new(layout.tables.clone());
    for range in monitor::ranges_with_tables(&layout) {
        tables.map(&mapping, &range).map_err(NotRun::host)?;
    }
    let mut memory = GuestMemory::booting(mapping).with_space(Space::new(layout, tables));
    let mut linux = Linux::new(setup(sandbox));
    if let Some((path, error)) = linux.unusable_paths().next() {
        return Err(NotRun::Setting(format!("{}: {error}", path.display())));
    }
    let mut machine_random = Random::new().map_err(NotRun::host)?;
    let loaded = linux.exec(&mut memory, command, &mut machine_random, kvm.features())?;
    let mut machine = Machine::new(kvm, memory, linux, None, dispatches).map_err(NotRun::host)?;
    let template = machine.vcpu().sregs().map_err(NotRun::host)?;
    let sregs = user_sregs(&template, kvm.choice, 0, 0);
    machine.vcpu().set_sregs(&sregs).map_err(NotRun::host)?;
    machine.vcpu().set_regs(kvm_regs {
        rip: loaded.entry,
        rsp: loaded.rsp,
        rflags: RFLAGS,
        ..Default::default()
    });
    Ok(Started {
        machine,
        file: memfd,
        stack: loaded.stack,
        sregs,
    })
}
