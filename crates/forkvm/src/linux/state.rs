//! All state that the personality keeps for one machine.

use std::sync::Arc;

use crate::image::exec::{self, Command, ExecError, Loaded, Placement};
use crate::linux::files::fds::Files;
use crate::linux::files::host_files::HostFiles;
use crate::linux::files::open::{Executables, Shared};
use crate::linux::files::paths::{Absolute, Roots};
use crate::linux::kept::Kept;
use crate::linux::memory::heap::Heap;
use crate::linux::memory::space::Break;
use crate::linux::process::Process;
use crate::linux::setup::Setup;
use crate::linux::tasks::signals::Signals;
use crate::linux::time::Clocks;
use crate::linux::told::Told;
use crate::memory::guest::GuestMemory;
use crate::memory::user::{BadAddress, UserMemory};

/// The state the personality keeps for one machine.
#[derive(Debug, Clone)]
pub struct Linux {
    pub(super) shared: Arc<Shared>,
    pub(super) heap: Kept<Heap>,
    pub(super) files: Kept<Files>,
    pub(super) signals: Kept<Signals>,
    pub(super) process: Kept<Process>,
    pub(super) told: Kept<Told>,
    pub(super) clocks: Kept<Clocks>,
    /// Of a program with an address space.
    pub(super) program_break: Kept<Break>,
}

impl Linux {
    /// The state of a program that has not run yet. Opens the allowed paths; see [`Linux::unusable_paths`].
    pub fn new(setup: Setup) -> Self {
        let directory = Absolute::new(b"/", setup.current_working_directory.as_bytes()).text();
        Self {
            heap: Kept::new(Heap::new(setup.heap)),
            files: Kept::new(Files::new(&directory)),
            signals: Kept::new(Signals::new()),
            process: Kept::new(Process::new(
                setup.executable.as_bytes(),
                setup.stack.clone(),
            )),
            told: Kept::new(Told::new()),
            clocks: Kept::new(Clocks::new()),
            program_break: Kept::new(Break::default()),
            shared: Arc::new(Shared {
                roots: Roots::open(&setup.allowed_paths),
                host_files: HostFiles::default(),
            }),
        }
    }

    /// Loads a program as execve(2) does, into a machine whose address space is empty. What the process keeps, such as its
    /// open files, stays.
    pub fn exec(
        &mut self,
        memory: &mut GuestMemory,
        command: Command,
        placement: &Placement,
    ) -> Result<Loaded, ExecError> {
        let mut files = Executables {
            shared: &self.shared,
            files: &self.files,
        };
        let loaded = exec::load(memory, &mut files, command, placement)?;
        *self.program_break = Break {
            start: loaded.brk,
            now: loaded.brk,
        };
        *self.process = Process::new(&loaded.executable, loaded.stack.clone());
        Ok(loaded)
    }

    /// Allowed paths that could not be opened, and why: they do not exist for the program.
    pub fn unusable_paths(&self) -> impl Iterator<Item = (&std::path::Path, std::io::Error)> {
        self.shared
            .roots
            .unusable()
            .iter()
            .map(|(path, errno)| (path.as_path(), (*errno).into()))
    }

    /// Maps `len` bytes (rounded up to pages) of zeroed read-write memory for the engine's own use in this machine
    /// (a request's body). `None` if the heap is full.
    pub fn map_for_engine(&mut self, len: u64, memory: &mut dyn UserMemory) -> Option<u64> {
        crate::linux::memory::map_for_engine(&mut self.heap, memory, len)
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
            program_break,
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
        program_break.restore_from(&master.program_break);
    }
}
