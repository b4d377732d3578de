//! A file becomes a server, as if that had just been frozen.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::error::SnapshotError;
use super::format::{self, BUILD, CHUNK, Head, hash};
use super::host::HostKind;
use super::state::{Frames, State};
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
use crate::memory::unused;
use crate::server::limits::ServerLimits;
use crate::server::master::{Frozen, Server};

/// How long the kernel may keep the memory from being sealed.
const SEALING: Duration = Duration::from_secs(60);

/// Most threads that read one.
const MOST_THREADS: usize = 8;

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

    /// Makes a server of it. What it may read and change has to be what it was; what it may reach, and its limits, are for this
    /// process to say.
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
        self.state
            .space
            .check(&layout)
            .map_err(|error| unsound(&error))?;
        let len = layout.frames.end;
        let memfd = freeze::memfd("forkvm-snapshot", len).map_err(SnapshotError::host)?;
        self.read_memory(&memfd)?;
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
        let mapping = Mapping::shared(&memfd, len).map_err(SnapshotError::host)?;
        monitor::install_with_dispatcher(&mapping, self.kvm.entry, sandbox.dispatcher, &layout)
            .map_err(SnapshotError::host)?;
        let mut tables = TablePages::new(layout.tables.clone());
        for range in monitor::ranges_with_tables(&layout) {
            tables.map(&mapping, &range).map_err(SnapshotError::host)?;
        }
        let space = self
            .state
            .space
            .build(layout.clone(), tables, &mapping, &restored.mapped)
            .map_err(|error| unsound(&error))?;
        // The registers that are the engine's are those of this host.
        let memory = GuestMemory::booting(mapping).with_space(space);
        let mut machine =
            Machine::new(self.kvm, memory, linux, None, false).map_err(SnapshotError::host)?;
        let template = machine.vcpu().sregs().map_err(SnapshotError::host)?;
        let events = machine.no_events().map_err(SnapshotError::host)?;
        let (space, linux) = machine
            .into_state()
            .ok_or_else(|| SnapshotError::Host("no address space".into()))?;
        let bytes = |run: &Frames| run.first * PAGE..(run.first + run.count) * PAGE;
        let unused = unused::between(self.state.frames.iter().map(bytes), layout.frames);
        let memory = freeze::seal_all(&memfd, &unused, frozen + SEALING);
        Ok(Server::of(
            self.kvm,
            Frozen {
                file: memfd,
                memory: memory.map_err(SnapshotError::host)?,
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
            },
            limits,
            self.start,
        ))
    }

    /// Reads the memory, chunk by chunk, each of which is found to be whole before any of it is used. Several threads do.
    fn read_memory(&self, memfd: &File) -> Result<(), SnapshotError> {
        let places = Places::of(&self.state, self.head.memory_len)?;
        let at = self.head.memory_at();
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            let mut bytes = vec![0; CHUNK];
            while failed.lock().is_none()
                && let number = next.fetch_add(1, Ordering::Relaxed)
                && let Some(expected) = self.head.chunks.get(number)
            {
                let start = (number * CHUNK) as u64;
                let len = (self.head.memory_len - start).min(CHUNK as u64);
                let chunk = &mut bytes[..len as usize];
                let read = read_exact_at(&self.file, chunk, at + start).and_then(|()| {
                    match hash(chunk) == *expected {
                        true => places.fill(memfd, chunk, start),
                        false => Err(SnapshotError::Damaged("its memory")),
                    }
                });
                if let Err(error) = read {
                    *failed.lock() = Some(error);
                }
            }
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 1..processors.min(MOST_THREADS).min(self.head.chunks.len()) {
                // Where there is no thread to be had, this one does more.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        failed.into_inner().map_or(Ok(()), Err)
    }
}

/// Frames of a file, in order, all of them ones that pages have: where the first of each run lies in the file's memory, and in the
/// machine's.
struct Places(Vec<(u64, u64)>);

impl Places {
    fn of(state: &State, memory_len: u64) -> Result<Self, SnapshotError> {
        let used = state.space.frames();
        let (mut places, mut last, mut sum) = (Vec::new(), 0, 0u64);
        for run in &state.frames {
            let end = run.first.checked_add(run.count);
            // What is not used is not looked at, however many are said to be.
            let known = |end: u64| {
                let found = used.range(run.first..end).count();
                u64::try_from(found) == Ok(run.count)
            };
            match end {
                Some(end) if run.count > 0 && last <= run.first && known(end) => last = end,
                _ => {
                    return Err(SnapshotError::Unsound(
                        "a page of memory that is nobody's".into(),
                    ));
                }
            }
            places.push((sum * PAGE, run.first * PAGE));
            sum += run.count;
        }
        match sum.checked_mul(PAGE) == Some(memory_len) {
            true => Ok(Self(places)),
            false => Err(SnapshotError::Unsound("how much memory it has".into())),
        }
    }

    /// Puts bytes where they belong that lie there in the file's memory. Written by a call, they cost no page faults.
    fn fill(&self, memfd: &File, mut bytes: &[u8], mut at: u64) -> Result<(), SnapshotError> {
        let mut run = self.0.partition_point(|(start, _)| *start <= at);
        while !bytes.is_empty() {
            let known = run.checked_sub(1).and_then(|run| self.0.get(run));
            let &(start, place) =
                known.ok_or_else(|| SnapshotError::Unsound("more memory than there is".into()))?;
            let left = self.0.get(run).map_or(u64::MAX, |(next, _)| next - at);
            let len = left.min(bytes.len() as u64);
            let (piece, rest) = bytes.split_at(len as usize);
            memfd
                .write_all_at(piece, place + (at - start))
                .map_err(SnapshotError::host)?;
            (bytes, at, run) = (rest, at + len, run + 1);
        }
        Ok(())
    }
}

/// Reads so many bytes that are to be there.
fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> Result<(), SnapshotError> {
    file.read_exact_at(bytes, at)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => SnapshotError::Truncated,
            _ => SnapshotError::NotRead(error),
        })
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
