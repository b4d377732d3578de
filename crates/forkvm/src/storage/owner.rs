//! Storage as the engine's user has it: of which kind it is, and what it needs beside the requests that call it.

use std::any::Any;
use std::sync::Arc;
use std::{fmt, io};

use crate::linux::StateStore;
use crate::request::{Host, Quiet};

/// Whether a program has storage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StorageKind {
    /// None.
    #[default]
    None,
    /// A second machine of the program, booted for that.
    Machine,
    /// A fork of the frozen program that is never reset.
    Fork,
}

/// Something that happens in a program's storage outside of requests, or that the user may want to count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageEvent {
    /// Its program is in service: what it saves counts, and what those before save does not any more.
    InService,
    /// It has failed, and is started again from its last hand-over, else from its frozen state: why it failed.
    Failed(String),
    /// It could not be started again: why. The next call tries once more.
    Down(String),
    /// What has to outlive it was not saved at its end: why.
    NotSaved(String),
    /// A task has run.
    TaskRan,
    /// A task has failed, and is taken off the list: why.
    TaskFailed(String),
}

/// Who has a program with storage.
pub trait StorageOwner: Send + Sync {
    /// Where the output goes of what runs outside of requests.
    fn host(&self) -> Box<dyn Host> {
        Box::new(Quiet)
    }

    /// Waits for a task's turn, if tasks take turns with something else. It is dropped when the task is done or has had a slice of
    /// time, whichever comes first: what runs on has the storage, and so must wait for nobody.
    fn turn(&self) -> Box<dyn Any> {
        Box::new(())
    }

    /// What the state file holds, if it is there: so many bytes at most.
    ///
    /// # Errors
    /// It can't be read, is longer, or there can be none. The program gets the error's number.
    fn load_state(&self, most: u64) -> io::Result<Option<Vec<u8>>> {
        let _ = most;
        Ok(None)
    }

    /// Makes this what the state file holds: all of it, or what was there before.
    ///
    /// # Errors
    /// It can't be written.
    fn save_state(&self, content: &[u8]) -> io::Result<()> {
        let _ = content;
        Err(rustix::io::Errno::ROFS.into())
    }

    /// Told of what happens. It has to be quick.
    fn event(&self, event: &StorageEvent) {
        let _ = event;
    }
}

/// One that wants to know nothing.
struct Nobody;

impl StorageOwner for Nobody {}

/// A storage's owner, in a configuration.
#[derive(Clone)]
pub struct Owner(Arc<dyn StorageOwner>);

impl Owner {
    /// This one.
    pub fn new(owner: impl StorageOwner + 'static) -> Self {
        Self(Arc::new(owner))
    }

    /// The owner.
    pub(crate) fn get(&self) -> &dyn StorageOwner {
        &*self.0
    }
}

impl StateStore for Owner {
    fn load(&self, most: u64) -> io::Result<Option<Vec<u8>>> {
        self.0.load_state(most)
    }

    fn save(&self, content: &[u8]) -> io::Result<()> {
        self.0.save_state(content)
    }
}

impl Default for Owner {
    fn default() -> Self {
        Self::new(Nobody)
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner")
    }
}

/// Who is told is no setting.
impl PartialEq for Owner {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Owner {}
