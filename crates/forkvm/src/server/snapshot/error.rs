//! Why a server was not written to a file, or is not read from one.

use std::path::PathBuf;

use crate::linux::{NotRestored, NotSaved};
use crate::machine::probe::KvmUnavailable;

/// The format that is read and written.
pub const VERSION: u32 = 2;

/// Why a server was not written to a file, or is not read from one.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It can't be opened.
    #[error("{0} can't be opened: {1}")]
    NotOpened(PathBuf, std::io::Error),
    /// It can't be written.
    #[error("{0} can't be written: {1}")]
    NotWritten(PathBuf, std::io::Error),
    /// It can't be read on.
    #[error("it can't be read: {0}")]
    NotRead(std::io::Error),
    /// It is a folder, a pipe or such.
    #[error("it is no regular file")]
    NoFile,
    /// Somebody else could have made it, who would choose what the machine does.
    #[error(
        "it belongs to user {0}: a snapshot is trusted, and so is read only if it is root's or of the user who runs this (chown)"
    )]
    NotOwned(u32),
    /// Somebody else can change it.
    #[error(
        "others may write to it (mode {0:o}): a snapshot is trusted, so take that away (chmod go-w) if you know who made it"
    )]
    Writable(u32),
    /// It is something else.
    #[error("it is no snapshot of forkvm's")]
    NoSnapshot,
    /// It was written in another format.
    #[error("it has format {0}, and this engine reads {ours}: take a new one", ours = VERSION)]
    OtherVersion(u64),
    /// Another engine wrote it.
    #[error("another build of forkvm wrote it: take a new one with this one")]
    OtherBuild,
    /// It was taken on another processor.
    #[error(
        "it was taken on another processor ({name} was {then:#x}, here it is {now:#x}), whose features the program has seen: take a new one here"
    )]
    OtherProcessor {
        /// What differs.
        name: String,
        /// What it was.
        then: u64,
        /// What it is here.
        now: u64,
    },
    /// It was taken with another kind of KVM.
    #[error(
        "it was taken with a KVM whose system calls arrive elsewhere ({then}, here: {now}): take a new one here"
    )]
    OtherEntry {
        /// Where they arrived.
        then: String,
        /// Where they do here.
        now: String,
    },
    /// It ends too early.
    #[error(
        "it ends too early, as one that was not copied as a whole: copy it again, or take a new one"
    )]
    Truncated,
    /// Its hashes say that it has changed.
    #[error("it is damaged ({0} is not what its hash says): copy it again, or take a new one")]
    Damaged(&'static str),
    /// The same, or that it can't be read any more, was found when some of it was in use already: what of it.
    #[error("{0}")]
    Late(String),
    /// The program was run with other settings.
    #[error("{0}: give the settings that it was taken with, or take a new one")]
    OtherSettings(String),
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
    /// The state can't be written.
    #[error(transparent)]
    NotSaved(#[from] NotSaved),
    /// The state can't be used.
    #[error(transparent)]
    NotRestored(#[from] NotRestored),
    /// What the state says can't be.
    #[error("what it says of the machine can't be: {0}")]
    Unsound(String),
    /// There is no KVM for us.
    #[error(transparent)]
    Kvm(#[from] KvmUnavailable),
    /// The host has no memory, descriptors or such for it.
    #[error("the host can't set up the machine: {0}")]
    Host(String),
}

impl SnapshotError {
    /// Of what the host has no room for.
    pub fn host(error: impl std::fmt::Display) -> Self {
        Self::Host(error.to_string())
    }
}
