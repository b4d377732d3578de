//! What a tenant may set: the program's surroundings and its limits.

use std::path::PathBuf;
use std::time::Duration;

use crate::account::Account;
use crate::debug::Debugging;
use crate::image::loader::MOST_MEMORY;
use crate::linux::AllowedPath;
use crate::pool::limits::PoolLimits;
use crate::pool::queue::Queue;
use crate::request::{Header, Request};
use crate::storage::owner::{Owner, StorageKind};

/// Longest time of any setting, so that a deadline can always be told.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Most memory that a program's machines share, in bytes. Each of them has tables for it, and so has KVM.
const MOST_SHARED: u64 = 1 << 30;

/// Limits of one program. Times are wall-clock time, sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest time `main()` may take until the program waits for requests. Setting `max_boot_time`.
    pub max_boot_time: Duration,
    /// Longest time a request may take end to end: wait for a fork, guest time, host calls. `max_request_time`.
    pub max_request_time: Duration,
    /// Longest wait for a free fork, never more than what is left of the request's time. `max_wait`.
    pub max_wait: Duration,
    /// Guest memory in all: the program, its stack and heap. Setting `max_memory`.
    pub max_memory: u64,
    /// Memory that one request may newly dirty. Setting `max_request_memory`.
    pub max_request_memory: u64,
    /// Memory that a fork may keep after a reset, so that its next request need not fault it in again. A fork that has
    /// dirtied more gives all of it back. Setting `req_mem_limit_after_reset`.
    pub req_mem_limit_after_reset: u64,
    /// Longest response body. A longer one is a failure. Setting `max_response_size`.
    pub max_response_size: u64,
    /// Longest content of the storage's state file; 0: there is none. Setting `max_state_size`.
    pub max_state_size: u64,
    /// Longest time of a call of storage, never more than what is left of the request's, and of a task's run. `max_storage_time`.
    pub max_storage_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_boot_time: Duration::from_secs(16),
            max_request_time: Duration::from_secs(8),
            max_wait: Duration::from_secs(1),
            max_memory: 256 << 20,
            max_request_memory: 64 << 20,
            req_mem_limit_after_reset: 8 << 20,
            max_response_size: 64 << 20,
            max_state_size: 16 << 20,
            max_storage_time: Duration::from_secs(10),
        }
    }
}

/// Warm-up requests: they take a program's first-time costs (lazy tables, caches, a JIT) before the freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmUp {
    /// How many requests. Key `num_requests`.
    pub num_requests: u32,
    /// Their URL. Key `url`.
    pub url: String,
    /// Their method. Key `method`.
    pub method: String,
    /// Their headers. Key `headers`.
    pub headers: Vec<Header<'static>>,
    /// Whether each new fork runs one, too, before it gets a request. Key `forks`.
    pub forks: bool,
}

impl Default for WarmUp {
    fn default() -> Self {
        Self {
            num_requests: 20,
            url: "/".into(),
            method: "GET".into(),
            headers: Vec::new(),
            forks: true,
        }
    }
}

impl WarmUp {
    /// The request.
    pub(crate) fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            url: self.url.as_bytes(),
            headers: &self.headers,
            ..Default::default()
        }
    }
}

/// A program's name, surroundings and limits. Two equal configurations of one file are the same program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The tenant's name: `argv[0]`, `KVM_NAME`, and the name in every message.
    pub name: String,
    /// The tenant's group, `KVM_GROUP` in the program's environment.
    pub group: String,
    /// `argv[1..]`. Setting `main_arguments`.
    pub main_arguments: Vec<String>,
    /// Additional `KEY=value` entries of the environment. Setting `environment`.
    pub environment: Vec<String>,
    /// Files and folders the program may read; everything else does not exist for it. Setting `allowed_paths`.
    pub allowed_paths: Vec<AllowedPath>,
    /// Folders, as the program sees them, where it may change files: in memory, until the request's end. Setting `writable_paths`.
    pub writable_paths: Vec<PathBuf>,
    /// Most bytes of what it changes there, for each fork. Setting `max_file_memory`.
    pub max_file_memory: u64,
    /// Most bytes that one request may write to the host's files ([`AllowedPath::writes`]). Setting `max_volume_writes`.
    pub max_volume_writes: u64,
    /// The heap may be executed. Setting `executable_heap`.
    pub executable_heap: bool,
    /// The working directory the program sees. Setting `current_working_directory`.
    pub current_working_directory: String,
    /// Most forks of this program at once. Setting `concurrency`.
    pub concurrency: usize,
    /// Who waits for a fork, and how many may. Clones share it. Setting `max_queue`.
    pub queue: Queue,
    /// Where requests and forks are counted. Clones share it.
    pub account: Account,
    /// How long an unused fork is kept. Setting `idle_time`.
    pub idle_time: Duration,
    /// Requests to be run before the freeze. What they leave in memory is part of the frozen state that every request
    /// starts from. Off unless set. Setting `warmup`.
    pub warm_up: Option<WarmUp>,
    /// How long an unmodified server goes on after them, before the freeze. Setting `warmup_time`.
    pub warm_up_time: Duration,
    /// Connections of an unmodified server to the outside that are open at the freeze are reset. Setting `drop_connections`.
    pub drop_connections: bool,
    /// Live debugging. Settings `allow_debug`, `debug_address`, `debug_timeout`, `debug_exceptions`.
    pub debugging: Debugging,
    /// Whether each request finds the frozen program's state. Else a fork goes on with what its last request has left, as long
    /// as none fails. Setting `ephemeral`.
    pub ephemeral: bool,
    /// Whether `main()` may say otherwise. Setting `control_ephemeral`.
    pub control_ephemeral: bool,
    /// Bytes of memory that all its machines share, rounded up to pages; 0 for none. Setting `shared_memory`.
    pub shared_memory: u64,
    /// Whether it has a machine that keeps its state. Setting `storage`.
    pub storage: StorageKind,
    /// Who is told what happens in that.
    pub storage_owner: Owner,
    /// Time, memory and size limits.
    pub limits: Limits,
}

/// A setting that the engine can't keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSetting {
    /// Too much memory.
    #[error(
        "max_memory ({0} bytes) is more than the {MOST_MEMORY} bytes that an address space has room for"
    )]
    Memory(u64),
    /// Too much shared memory.
    #[error("shared_memory ({0} bytes) is more than {MOST_SHARED} bytes")]
    Shared(u64),
    /// No fork.
    #[error("concurrency has to be at least 1")]
    Concurrency,
    /// Time without end.
    #[error("{name} ({time:?}) is longer than the longest time of {LONGEST:?}")]
    Time {
        /// The setting.
        name: &'static str,
        /// Its value.
        time: Duration,
    },
}

impl Config {
    /// Looks whether the engine can keep these settings, whoever they come from.
    pub(crate) fn check(&self) -> Result<(), BadSetting> {
        let limits = &self.limits;
        if limits.max_memory > MOST_MEMORY {
            return Err(BadSetting::Memory(limits.max_memory));
        }
        if self.shared_memory > MOST_SHARED {
            return Err(BadSetting::Shared(self.shared_memory));
        }
        if self.concurrency == 0 {
            return Err(BadSetting::Concurrency);
        }
        let times = [
            ("max_boot_time", limits.max_boot_time),
            ("max_request_time", limits.max_request_time),
            ("max_wait", limits.max_wait),
            ("max_storage_time", limits.max_storage_time),
            ("debug_timeout", self.debugging.timeout),
            ("idle_time", self.idle_time),
        ];
        match times.into_iter().find(|(_, time)| *time > LONGEST) {
            Some((name, time)) => Err(BadSetting::Time { name, time }),
            None => Ok(()),
        }
    }

    /// What of it the pool needs.
    pub(crate) fn pool_limits(&self) -> PoolLimits {
        PoolLimits {
            concurrency: self.concurrency,
            idle_time: self.idle_time,
            queue: self.queue.clone(),
            account: self.account.clone(),
        }
    }

    /// How many requests may wait for one of so many forks unless something else is set: four for each, and at least 16,
    /// so that a browser's connections to a small program, twice over, are all served.
    pub fn default_queue(concurrency: usize) -> usize {
        concurrency.saturating_mul(4).max(16)
    }

    /// The default settings for a program of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            group: "test".into(),
            main_arguments: Vec::new(),
            environment: Vec::new(),
            allowed_paths: Vec::new(),
            writable_paths: Vec::new(),
            max_file_memory: 64 << 20,
            max_volume_writes: 1 << 30,
            executable_heap: false,
            current_working_directory: "/".into(),
            concurrency: 2,
            queue: Queue::new(Self::default_queue(2)),
            account: Account::default(),
            idle_time: Duration::from_secs(60),
            warm_up: None,
            warm_up_time: Duration::ZERO,
            drop_connections: false,
            debugging: Debugging::default(),
            ephemeral: true,
            control_ephemeral: false,
            shared_memory: 0,
            storage: StorageKind::None,
            storage_owner: Owner::default(),
            limits: Limits::default(),
        }
    }
}
