//! What an archive may be unpacked to, and why it is not.

use std::io;

/// What an archive may be unpacked to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most bytes in its files. Setting `max_folder_size`.
    pub bytes: u64,
    /// Most files, folders and links. Setting `max_folder_files`.
    pub files: u32,
}

/// Why an archive is not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum NotUnpacked {
    /// It is damaged.
    #[error("the archive is damaged: {0}")]
    Damaged(String),
    /// Something in it may not be.
    #[error("the archive has {name:?}, which {problem}")]
    Refused {
        /// The name in the archive.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It is too large.
    #[error("the archive unpacks to more than {0}")]
    TooLarge(String),
    /// Nothing is in it.
    #[error("the archive is empty")]
    Empty,
    /// The host can't take it.
    #[error("{name:?} can't be unpacked: {error}")]
    Host {
        /// The name in the archive.
        name: String,
        /// Why: a full disk, no descriptors.
        error: io::Error,
    },
    /// Whoever wanted it has it stop.
    #[error("unpacking was stopped")]
    Stopped,
}

impl NotUnpacked {
    pub fn refused(name: &[u8], problem: impl Into<String>) -> Self {
        Self::Refused {
            name: shown(name),
            problem: problem.into(),
        }
    }
}

/// A name for a message.
pub fn shown(name: &[u8]) -> String {
    const MOST: usize = 200;
    String::from_utf8_lossy(&name[..name.len().min(MOST)]).into_owned()
}
