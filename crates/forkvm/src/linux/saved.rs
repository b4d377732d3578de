//! The personality's state on its way into a snapshot and back. What is the host's is not in there: open files are opened again,
//! and what the program may do is for those to say who load it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::files::fds::Files;
use crate::linux::files::host_files::HostFile;
use crate::linux::files::noted::Noted;
use crate::linux::files::overlay::content::Snapshot;
use crate::linux::files::reopen::NotThere;
use crate::linux::kept::Kept;
use crate::linux::memory::space::Break;
use crate::linux::process::Process;
use crate::linux::state::Linux;
use crate::linux::tasks::signals::Signals;
use crate::linux::tasks::task::Tasks;
use crate::linux::tasks::timers::Timers;
use crate::linux::time::Clocks;
use crate::linux::told::Told;
use crate::memory::space::vmas::PageSource;
use crate::saved;

/// Why a program's state can't be written.
#[derive(Debug, thiserror::Error)]
pub enum NotSaved {
    /// An open file can't be looked at.
    #[error("an open file can't be looked at: {0}")]
    File(Errno),
    /// A file is mapped that is none of the host's and none of the program's.
    #[error("a mapping of an unknown kind")]
    Mapping,
    /// A bug.
    #[error("its state: {0}")]
    State(#[from] postcard::Error),
}

/// Why a program's state is none.
#[derive(Debug, thiserror::Error)]
pub enum NotRestored {
    /// It is not what such a state looks like.
    #[error("the state of the program is not one: {0}")]
    State(#[from] postcard::Error),
    /// Something in it can't be.
    #[error("the state of the program is not one: {0}")]
    Unsound(&'static str),
    /// An open file is not there any more.
    #[error(transparent)]
    File(#[from] NotThere),
}

/// The state.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedLinux {
    /// Those that are open.
    files: Vec<Noted>,
    /// Those that were; `None` if not all are known.
    read: Option<Vec<Noted>>,
    /// What the address space maps, [`Source`]s.
    sources: Vec<u8>,
    /// [`Parts`].
    parts: Vec<u8>,
}

/// What of it is the same for who writes and who reads it.
#[derive(Serialize, Deserialize)]
struct Parts<F, S, P, W, C, T, B, K> {
    files: F,
    signals: S,
    process: P,
    told: W,
    clocks: C,
    timers: T,
    program_break: B,
    tasks: K,
    /// The program's CLOCK_MONOTONIC at the freeze.
    monotonic: Duration,
}

type Owned = Parts<Files, Signals, Process, Told, Clocks, Timers, Break, Tasks>;

/// A file that is mapped.
#[derive(Serialize, Deserialize)]
enum Source {
    Host(#[serde(with = "saved::listed")] Arc<HostFile>),
    Overlay(Arc<Snapshot>),
}

impl Source {
    fn of(mapped: &Arc<dyn PageSource>) -> Option<Self> {
        let any: saved::Shared = mapped.clone();
        let any = match any.downcast() {
            Ok(file) => return Some(Self::Host(file)),
            Err(any) => any,
        };
        any.downcast().ok().map(Self::Overlay)
    }

    fn into_mapped(self) -> Arc<dyn PageSource> {
        match self {
            Self::Host(file) => file,
            Self::Overlay(snapshot) => snapshot,
        }
    }
}

/// What a state has of the host's.
pub struct Restored {
    /// The files that its address space maps.
    pub mapped: Vec<Arc<dyn PageSource>>,
    /// Files that the program had read and that have changed since; `None` if not all are known.
    pub changed: Option<Vec<PathBuf>>,
}

impl Linux {
    /// From now on it is noted which files of the host the program opens, or not any more.
    pub fn note_files(&self, goes_on: bool) {
        self.shared.host_files.note(goes_on);
    }

    /// The state of a machine that was frozen then, whose address space maps these files.
    pub fn save(
        &self,
        frozen: Instant,
        mapped: &[Arc<dyn PageSource>],
    ) -> Result<SavedLinux, NotSaved> {
        let sources: Option<Vec<Source>> = mapped.iter().map(Source::of).collect();
        let sources = sources.ok_or(NotSaved::Mapping)?;
        let parts = Parts {
            files: &*self.files,
            signals: &*self.signals,
            process: &*self.process,
            told: &*self.told,
            clocks: &*self.clocks,
            timers: &*self.timers,
            program_break: &*self.program_break,
            tasks: &*self.tasks,
            monotonic: self.clocks.monotonic().saturating_sub(frozen.elapsed()),
        };
        let write = || -> postcard::Result<_> {
            Ok((postcard::to_stdvec(&sources)?, postcard::to_stdvec(&parts)?))
        };
        let (written, files) = saved::within(frozen, Vec::new(), write);
        let (sources, parts) = written?;
        let of = |file: &HostFile| Noted::of(file, file.seen(), file.changes());
        let noted = |file: &saved::Shared| match (**file).downcast_ref() {
            Some(file) => of(file).map_err(NotSaved::File),
            None => Err(NotSaved::Mapping),
        };
        Ok(SavedLinux {
            files: files.iter().map(noted).collect::<Result<_, _>>()?,
            read: self.shared.host_files.noted(),
            sources,
            parts,
        })
    }

    /// Takes such a state over, of a machine that counts as frozen at this moment. This one is new, and says what the program may do.
    pub fn restore(
        &mut self,
        state: &SavedLinux,
        frozen: Instant,
    ) -> Result<Restored, NotRestored> {
        let (mut files, mut renamed) = (Vec::new(), BTreeMap::new());
        for noted in &state.files {
            let file = noted.open(&self.shared)?;
            renamed.insert(noted.identity, file.identity());
            files.push(file as saved::Shared);
        }
        let read = || -> postcard::Result<(Vec<Source>, Owned)> {
            Ok((
                postcard::from_bytes(&state.sources)?,
                postcard::from_bytes(&state.parts)?,
            ))
        };
        let (read, _) = saved::within(frozen, files, read);
        let (sources, parts) = read?;
        if !parts.tasks.is_sound() {
            return Err(NotRestored::Unsound("its tasks"));
        }
        let snapshots = sources.iter().filter_map(|source| match source {
            Source::Overlay(snapshot) => Some(snapshot),
            Source::Host(_) => None,
        });
        let mut snapshots = snapshots.map(|snapshot| snapshot.is_sound());
        if !parts.files.is_sound() || !snapshots.all(|sound| sound) {
            return Err(NotRestored::Unsound("its files"));
        }
        let mut clocks = parts.clocks;
        // From the moment on that counts as the freeze.
        clocks.set_monotonic(parts.monotonic.saturating_add(frozen.elapsed()));
        let new = std::mem::replace(&mut *self.files, parts.files);
        self.files.be_allowed_as(new);
        self.files.rename(&renamed);
        self.signals = Kept::new(parts.signals);
        self.process = Kept::new(parts.process);
        self.told = Kept::new(parts.told);
        self.clocks = Kept::new(clocks);
        self.timers = Kept::new(parts.timers);
        self.program_break = Kept::new(parts.program_break);
        self.tasks = Kept::new(parts.tasks);
        let shared = &self.shared;
        shared.host_files.set_noted(state.read.as_deref());
        let changed = |files: &Vec<Noted>| {
            let changed = files.iter().filter_map(|file| file.changed(shared));
            changed.collect()
        };
        Ok(Restored {
            mapped: sources.into_iter().map(Source::into_mapped).collect(),
            changed: state.read.as_ref().map(changed),
        })
    }
}
