//! What an archive has one after the other: paths that stay beneath the folder, and what is to be there.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use crate::tenants::archive::limits::NotUnpacked;

/// Longest name of a file in bytes (`NAME_MAX`).
const MOST_NAME: usize = 255;
/// Longest path in bytes: with that of the folder, and as the server sees it, it is less than `PATH_MAX`.
pub const MOST_PATH: usize = 1024;
/// Most folders in each other.
const MOST_DEPTH: usize = 64;

/// A path beneath the folder: names, none of which leads up.
#[derive(Debug, PartialEq, Eq)]
pub struct EntryPath {
    names: Vec<Vec<u8>>,
}

impl EntryPath {
    /// Of this name in an archive.
    pub fn new(name: &[u8]) -> Result<Self, NotUnpacked> {
        let refused = |problem: &str| Err(NotUnpacked::refused(name, problem));
        if name.len() > MOST_PATH {
            return refused(&format!("is longer than {MOST_PATH} bytes"));
        }
        if name.starts_with(b"/") {
            return refused("is an absolute path");
        }
        if name.contains(&0) {
            return refused("has a NUL");
        }
        let names: Vec<&[u8]> = name
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
            .collect();
        if names.contains(&&b".."[..]) {
            return refused("leads up by ..");
        }
        if names.iter().any(|name| name.len() > MOST_NAME) {
            return refused(&format!("has a name of more than {MOST_NAME} bytes"));
        }
        if names.len() > MOST_DEPTH {
            return refused(&format!("is more than {MOST_DEPTH} folders deep"));
        }
        Ok(Self {
            names: names.into_iter().map(Into::into).collect(),
        })
    }

    /// The names of the folders it is in, and its own. `None` for the folder itself.
    pub fn split(&self) -> Option<(impl Iterator<Item = &OsStr>, &OsStr)> {
        let (last, around) = self.names.split_last()?;
        let around = around.iter().map(|name| OsStr::from_bytes(name));
        Some((around, OsStr::from_bytes(last)))
    }

    /// How many folders it is in.
    fn depth(&self) -> usize {
        self.names.len().saturating_sub(1)
    }

    /// Whether a symbolic link here stays beneath the folder, whatever other links there are: it leads up at its start only,
    /// where the folders around it are real ones, and not beyond the top. What follows leads down, or by links of which the
    /// same holds.
    pub fn check_link(&self, to: &[u8]) -> Result<(), String> {
        if to.is_empty() || to.len() > MOST_PATH {
            return Err(format!("is a link of 0 or more than {MOST_PATH} bytes"));
        }
        if to.contains(&0) {
            return Err("is a link with a NUL".into());
        }
        if to.starts_with(b"/") {
            return Err("is a link to an absolute path".into());
        }
        let names = to
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty() && *part != b".");
        let mut up = 0;
        let mut down = false;
        for name in names {
            match (name == b"..", down) {
                (true, true) => return Err("is a link with .. elsewhere than at its start".into()),
                (true, false) => up += 1,
                (false, _) => down = true,
            }
        }
        match up > self.depth() {
            true => Err("is a link that leaves the folder".into()),
            false => Ok(()),
        }
    }
}

/// What is to be at a path.
pub enum Kind<'a> {
    /// A folder.
    Folder,
    /// A file with what follows in the archive.
    File {
        /// Whether it may be run.
        executable: bool,
        /// When it was changed, if that is known.
        modified: Option<SystemTime>,
    },
    /// A symbolic link.
    Link(&'a [u8]),
    /// Another name of a file that was before.
    SameAs(&'a [u8]),
}

/// A time in seconds since 1970. One that no file can have is unknown.
pub fn time(seconds: u64) -> Option<SystemTime> {
    /// The last second of the year 9999.
    const LAST: u64 = 253_402_300_799;
    (seconds <= LAST).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}
