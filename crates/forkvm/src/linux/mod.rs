//! The Linux personality: the system calls a static program makes at start and in ordinary work.
//!
//! Everything a call may leave behind on the host's side (descriptors and their offsets, the working
//! directory, the heap's break, mappings, signal handlers) lives in one [`Linux`] value. The master's value is
//! taken at the freeze and each fork's is cloned from it again at every reset, so a new field can't be forgotten.
#![forbid(unsafe_code)]

mod abi;
mod files;
mod kept;
mod memory;
mod net;
mod process;
#[cfg(test)]
mod random_tests;
mod table;
mod tasks;
#[cfg(test)]
mod testing;
mod time;
mod told;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::abi::Guest;
use self::files::fds::Files;
use self::files::host_files::HostFiles;
use self::files::open::Shared;
use self::files::paths::{Absolute, Roots};
use self::kept::Kept;
use self::memory::heap::Heap;
use self::process::Process;
use self::tasks::signals::Signals;
use self::time::Clocks;
use self::told::Told;
use crate::memory::user::{BadAddress, UserMemory};
use crate::request::Host;

#[allow(unused_imports, reason = "for the engine's traces of calls")]
pub use self::table::name;

/// Where the program's memory lies. Addresses and lengths are multiples of the page size.
///
/// Heap and mappings share the same physical pages, seen through two windows of equal length:
/// byte `i` of the brk window and byte `i` of the mmap window are one. `brk` grows from the bottom,
/// `mmap` takes from the top, so either may use all of it; the personality sees that they never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeapLayout {
    /// First address of the brk window (just after the ELF's own segments, or near).
    pub brk_window: u64,
    /// First address of the mmap window.
    pub mmap_window: u64,
    /// Length of both windows in bytes.
    pub len: u64,
}

/// What the personality is told about the program at its start.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The two windows of the heap.
    pub heap: HeapLayout,
    /// Address range of the stack, for `/proc/self/maps` and `getrlimit`.
    pub stack: std::ops::Range<u64>,
    /// The name that `/proc/self/exe` and `AT_EXECFN` give.
    pub executable: String,
    /// Files and folders the program may read.
    pub allowed_paths: Vec<PathBuf>,
    /// The working directory.
    pub current_working_directory: String,
}

/// A system call as it arrived: number and the six argument registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// RAX.
    pub number: u64,
    /// RDI, RSI, RDX, R10, R8, R9.
    pub args: [u64; 6],
}

/// What the engine has to do after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Resume with this in RAX (an errno is negative).
    Return(i64),
    /// Resume with 0 after this much time, or end the request at its deadline, whichever is first.
    Sleep(Duration),
    /// The same with another value in RAX: a wait that ends with an error such as ETIMEDOUT.
    SleepThen(Duration, i64),
    /// Set the FS base (already checked to be a user address), resume with 0.
    SetFsBase(u64),
    /// Set the GS base (already checked to be a user address), resume with 0.
    SetGsBase(u64),
    /// Write the FS base to this address, resume with 0 or EFAULT.
    GetFsBase(u64),
    /// Write the GS base to this address, resume with 0 or EFAULT.
    GetGsBase(u64),
    /// `exit` or `exit_group` with this status.
    Exit(i32),
    /// The program ended itself by this signal (`abort`, `raise`, `kill` of itself).
    Killed(i32),
    /// The call would wait for ever: nobody else is there to end the wait (`futex`, `pause`, `poll` on nothing).
    Deadlock(&'static str),
}

/// The state the personality keeps for one machine.
#[derive(Debug, Clone)]
pub struct Linux {
    shared: Arc<Shared>,
    heap: Kept<Heap>,
    files: Kept<Files>,
    signals: Kept<Signals>,
    process: Kept<Process>,
    told: Kept<Told>,
    clocks: Kept<Clocks>,
}

impl Linux {
    /// The state of a program that has not run yet. Opens the allowed paths; see [`Linux::unusable_paths`].
    pub fn new(setup: Setup) -> Self {
        let directory = Absolute::new(b"/", setup.current_working_directory.as_bytes()).text();
        Self {
            heap: Kept::new(Heap::new(setup.heap)),
            files: Kept::new(Files::new(&directory)),
            signals: Kept::new(Signals::new()),
            process: Kept::new(Process::new(&setup.executable)),
            told: Kept::new(Told::new()),
            clocks: Kept::new(Clocks::new()),
            shared: Arc::new(Shared {
                roots: Roots::open(&setup.allowed_paths),
                host_files: HostFiles::default(),
                setup,
            }),
        }
    }

    /// Allowed paths that could not be opened, and why: they do not exist for the program.
    pub fn unusable_paths(&self) -> impl Iterator<Item = (&std::path::Path, std::io::Error)> {
        self.shared
            .roots
            .unusable()
            .iter()
            .map(|(path, errno)| (path.as_path(), (*errno).into()))
    }

    /// Carries out one system call. Never panics, whatever the arguments, and never waits for anything but the host's file
    /// systems: one that does not answer (NFS without its server) holds the thread, past the request's deadline too.
    /// Its work is bounded by [`abi::MOST_BYTES`] or by one pass over the program's memory.
    pub fn call(
        &mut self,
        call: Call,
        memory: &mut dyn UserMemory,
        host: &mut dyn Host,
    ) -> Outcome {
        table::call(self, &mut Guest { memory, host }, call)
    }

    /// Maps `len` bytes (rounded up to pages) of zeroed read-write memory for the engine's own use in this machine
    /// (a request's body). `None` if the heap is full.
    pub fn map_for_engine(&mut self, len: u64, memory: &mut dyn UserMemory) -> Option<u64> {
        memory::map_for_engine(&mut self.heap, memory, len)
    }

    /// Gets a master ready to be frozen: memory that the program had and freed is cleared now, once, so that no
    /// request has to clear (and dirty) it before using it again. To be called while the memory may still be written.
    pub fn before_freeze(&mut self, memory: &mut dyn UserMemory) -> Result<(), BadAddress> {
        self.heap.clear_free_pages(memory)
    }

    /// Makes this state equal to the master's it was cloned from. Copies only what changed since, into what is
    /// already allocated.
    pub fn restore_from(&mut self, master: &Self) {
        let Self {
            shared,
            heap,
            files,
            signals,
            process,
            told,
            clocks,
        } = self;
        if !Arc::ptr_eq(shared, &master.shared) {
            *shared = Arc::clone(&master.shared);
        }
        heap.restore_from(&master.heap);
        files.restore_from(&master.files);
        signals.restore_from(&master.signals);
        process.restore_from(&master.process);
        told.restore_from(&master.told);
        clocks.restore_from(&master.clocks);
    }
}
