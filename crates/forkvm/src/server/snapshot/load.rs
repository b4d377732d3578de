//! A file becomes a server, as if that had just been frozen.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::coming::{Coming, Places, Source};
use super::error::SnapshotError;
use super::format::{self, BUILD, CHUNK, Head};
use super::host::HostKind;
use super::state::State;
use crate::arch::layout::{PAGE, SpaceLayout};
use crate::arch::monitor;
use crate::arch::paging::TablePages;
use crate::arch::regs::user_sregs;
use crate::exec::{self, Sandbox};
use crate::image::exec::Command;
use crate::linux::Linux;
use crate::machine::Machine;
use crate::machine::probe::{self, KvmHost};
use crate::master::freeze;
use crate::memory::guest::GuestMemory;
use crate::memory::mapping::Mapping;
use crate::memory::space::arrival::Arrival;
use crate::memory::unused;
use crate::server::limits::ServerLimits;
use crate::server::master::{Frozen, Server};

/// A snapshot that was opened and, but for its memory, found to be whole and of this engine and host.
#[derive(Debug)]
pub struct Snapshot {
    start: Instant,
    kvm: &'static KvmHost,
    file: File,
    head: Head,
    state: State,
}

impl Snapshot {
    /// Opens one, which has to be root's or of who runs this, and nobody else's to change.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let start = Instant::now();
        let kvm = probe::host()?;
        let (mut file, len) = open_trusted(path)?;
        let head = format::read_head(&mut file, len)?;
        if head.build != BUILD {
            return Err(SnapshotError::OtherBuild);
        }
        let here = HostKind::of(kvm);
        if let Some((name, then, now)) = head.host.differs(&here) {
            let name = name.to_owned();
            return Err(SnapshotError::OtherProcessor { name, then, now });
        }
        if head.host.entry != here.entry {
            let (then, now) = (head.host.entry, here.entry);
            return Err(SnapshotError::OtherEntry { then, now });
        }
        let state = format::read_state(&mut file, &head)?;
        Ok(Self {
            start,
            kvm,
            file,
            head,
            state,
        })
    }

    /// What was said of it when it was written ([`Server::save`]).
    pub fn label(&self) -> &str {
        &self.state.label
    }

    /// What was run.
    pub fn command(&self) -> &Command {
        &self.state.terms.command
    }

    /// Makes a server of it, whose memory comes while it serves ([`Server::wait_until_whole`]). What it may read and change has to be
    /// what it was; what it may reach, and its limits, are for this process to say.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn load(
        self,
        sandbox: &Sandbox,
        limits: ServerLimits,
    ) -> Result<Arc<Server>, SnapshotError> {
        if let Some(what) = self.state.terms.differs(sandbox) {
            return Err(SnapshotError::OtherSettings(what));
        }
        let too_small = || SnapshotError::Unsound("it has too little memory".into());
        let layout = SpaceLayout::plan(self.state.terms.max_memory).ok_or_else(too_small)?;
        let unsound = |error: &dyn std::fmt::Display| SnapshotError::Unsound(error.to_string());
        let Begun {
            memfd,
            mapping,
            coming,
            first,
            used,
        } = Begun::new(self.file, self.head, &self.state, &layout)?;
        let frozen = Instant::now();
        let sandbox = Sandbox {
            current_working_directory: self.state.terms.directory.clone(),
            ..sandbox.clone()
        };
        let mut linux = Linux::new(exec::setup(&sandbox));
        if let Some((path, error)) = linux.unusable_paths().next() {
            let what = format!("{}: {error}", path.display());
            return Err(SnapshotError::Setting(what));
        }
        let restored = linux.restore(&self.state.linux, frozen)?;
        let listens = |listener: &crate::linux::Listener| listener.id == self.state.listener;
        if !linux.listeners().iter().any(listens) {
            return Err(SnapshotError::Unsound("it listens nowhere".into()));
        }
        monitor::install_with_dispatcher(&mapping, self.kvm.entry, sandbox.dispatcher, &layout)
            .map_err(SnapshotError::host)?;
        let mut tables = TablePages::new(layout.tables.clone());
        for range in monitor::ranges_with_tables(&layout) {
            tables.map(&mapping, &range).map_err(SnapshotError::host)?;
        }
        let later = |frame| coming.arrival().chunk_of(frame) >= Some(first);
        let space = self
            .state
            .space
            .build(layout.clone(), tables, &mapping, &restored.mapped, later)
            .map_err(|error| unsound(&error))?;
        // The registers that are the engine's are those of this host.
        let memory = GuestMemory::booting(mapping).with_space(space);
        let mut machine =
            Machine::new(self.kvm, memory, linux, None, false).map_err(SnapshotError::host)?;
        let template = machine.vcpu().sregs().map_err(SnapshotError::host)?;
        let events = machine.no_events().map_err(SnapshotError::host)?;
        let (mut space, linux) = machine
            .into_state()
            .ok_or_else(|| SnapshotError::Host("no address space".into()))?;
        let arrival = Arc::clone(coming.arrival());
        arrival.settle();
        let came = arrival.wait_for_first(first);
        came.or_else(|_| arrival.wait_until_whole().map_err(SnapshotError::Late))?;
        space.await_frames(arrival);
        let len = layout.frames.end;
        let unused = unused::between(used.into_iter(), layout.frames);
        let memory = Mapping::frozen(&memfd, len, &unused).map_err(SnapshotError::host)?;
        Ok(Server::of(
            self.kvm,
            Frozen {
                file: memfd,
                memory,
                unused,
                space,
                linux,
                events,
                frozen,
                listener: self.state.listener,
                dispatches: sandbox.dispatcher,
                sregs: user_sregs(&template, self.kvm.choice, 0, 0),
                stack: self.state.stack,
                terms: self.state.terms,
                changed_files: restored.changed,
                coming: Some(coming),
            },
            limits,
            self.start,
        ))
    }
}

/// A machine's memory, which begins to come.
struct Begun {
    memfd: Arc<File>,
    /// For who makes the machine.
    mapping: Mapping,
    coming: Coming,
    /// How many chunks requests touch.
    first: usize,
    /// The guest-physical addresses of all that comes, in order.
    used: Vec<Range<u64>>,
}

impl Begun {
    fn new(
        file: File,
        head: Head,
        state: &State,
        layout: &SpaceLayout,
    ) -> Result<Self, SnapshotError> {
        let checked = state.space.check(layout);
        checked.map_err(|error| SnapshotError::Unsound(error.to_string()))?;
        let places = Places::of(state, head.memory_len)?;
        let touched = state.touched.checked_mul(PAGE);
        let touched = touched.filter(|&len| len <= head.memory_len);
        let touched = touched.ok_or_else(|| SnapshotError::Unsound("what is touched".into()))?;
        let ranges = places.parts().iter();
        let mut used: Vec<_> = ranges
            .map(|part| part.frame..part.frame + part.len)
            .collect();
        used.sort_unstable_by_key(|range| range.start);
        let len = layout.frames.end;
        let memfd = freeze::memfd("forkvm-snapshot", len).map_err(SnapshotError::host)?;
        // Nobody maps it for writing after these two.
        let map = || Mapping::shared(&memfd, len).map_err(SnapshotError::host);
        let (mapping, theirs) = (map()?, map()?);
        freeze::seal_for_others(&memfd).map_err(SnapshotError::host)?;
        let arrival = Arrival::new(places.parts().to_vec(), head.memory_len, CHUNK as u64);
        let coming = Coming::start(Source {
            at: head.memory_at(),
            file,
            len: head.memory_len,
            hashes: head.chunks,
            places,
            memfd: Arc::clone(&memfd),
            memory: theirs,
            monitor: layout.monitor(),
            arrival: Arc::new(arrival),
        })?;
        Ok(Self {
            memfd,
            mapping,
            coming,
            first: format::chunks(touched) as usize,
            used,
        })
    }
}

/// Opens a file that nobody but root and the user who runs this could have made. Gives how long it is.
fn open_trusted(path: &Path) -> Result<(File, u64), SnapshotError> {
    let not_opened = |error| SnapshotError::NotOpened(path.into(), error);
    // A pipe is not waited for.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(not_opened)?;
    let found = file.metadata().map_err(not_opened)?;
    if !found.is_file() {
        return Err(SnapshotError::NoFile);
    }
    let us = rustix::process::geteuid().as_raw();
    if found.uid() != us && found.uid() != 0 {
        return Err(SnapshotError::NotOwned(found.uid()));
    }
    if found.mode() & 0o022 != 0 {
        return Err(SnapshotError::Writable(found.mode() & 0o7777));
    }
    Ok((file, found.len()))
}
