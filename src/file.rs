//! Regular files: opened without waiting, read up to a limit, and told apart.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// What tells whether a file is still the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Identity {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// Reads a regular file of at most so many bytes.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let (file, _) = open(path)?;
    read_all(file, most).map_err(|error| error.to_string())
}

/// Reads all of a file. One that is longer is `FileTooLarge`.
pub fn read_all(file: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("is larger than {most} bytes"),
        )),
        false => Ok(bytes),
    }
}

/// Opens a regular file, and says which one it is.
pub fn open(path: &Path) -> Result<(File, Identity), String> {
    let file = OpenOptions::new()
        .read(true)
        // Opening a FIFO must not block VCL load.
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("not a regular file".into());
    }
    let identity = Identity {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    };
    Ok((file, identity))
}
