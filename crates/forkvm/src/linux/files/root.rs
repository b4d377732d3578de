//! A file or folder of the host that was allowed, opened once.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, stat};
use rustix::io::Errno;

use crate::linux::files::absolute::Absolute;
use crate::linux::setup::AllowedPath;

/// An allowed path, opened.
#[derive(Debug)]
pub struct Root {
    /// Where the program finds it.
    pub seen: Absolute,
    /// Only itself, nothing beneath it.
    pub alone: bool,
    /// Where a symbolic link there leads, if the program is to see one.
    pub link: Option<Vec<u8>>,
    /// What is done there is done to the host's files.
    pub writes: bool,
    /// What it is.
    pub opened: Opened,
}

/// What is behind it in the host.
#[derive(Debug)]
pub enum Opened {
    /// This folder.
    Folder(OwnedFd),
    /// The file of this name in this folder.
    File(OwnedFd, Vec<u8>),
}

impl Root {
    /// Opens it. What is to be changed has to be a file system's own.
    pub fn open(allowed: &AllowedPath) -> Result<Self, Errno> {
        let absolute = |path| std::path::absolute(path).map_err(|_| Errno::INVAL);
        let real = absolute(&allowed.real)?;
        let seen = absolute(&allowed.seen)?;
        let opened = open(&real)?;
        if allowed.writes {
            check_writable(&opened)?;
        }
        Ok(Self {
            seen: Absolute::new(b"/", seen.as_os_str().as_bytes()),
            alone: !allowed.beneath,
            opened,
            link: allowed.link.then(|| real.into_os_string().into_vec()),
            writes: allowed.writes,
        })
    }
}

fn open(path: &Path) -> Result<Opened, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = stat(path)?;
    if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
        return Ok(Opened::Folder(rustix::fs::open(
            path,
            flags | OFlags::DIRECTORY,
            Mode::empty(),
        )?));
    }
    let real = std::fs::canonicalize(path)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let (Some(folder), Some(name)) = (real.parent(), real.file_name()) else {
        return Err(Errno::INVAL);
    };
    let folder = rustix::fs::open(folder, flags | OFlags::DIRECTORY, Mode::empty())?;
    Ok(Opened::File(folder, name.as_bytes().to_vec()))
}

/// File systems that are interfaces of the kernel: what is written there is done to the host itself.
fn check_writable(opened: &Opened) -> Result<(), Errno> {
    /// `SYSFS_MAGIC`, `CGROUP_SUPER_MAGIC`, `CGROUP2_SUPER_MAGIC`, `DEBUGFS_MAGIC`, `TRACEFS_MAGIC`, `SECURITYFS_MAGIC`,
    /// `BPF_FS_MAGIC`, `EFIVARFS_MAGIC` of linux/magic.h.
    const OTHERS: [i64; 8] = [
        0x6265_6572,
        0x0027_e0eb,
        0x6367_7270,
        0x6462_6720,
        0x7472_6163,
        0x7363_6673,
        0xcafe_4a11,
        0xde5e_81e4,
    ];
    let (Opened::Folder(folder) | Opened::File(folder, _)) = opened;
    let kind = rustix::fs::fstatfs(folder)?.f_type;
    if kind == rustix::fs::PROC_SUPER_MAGIC || OTHERS.contains(&kind) {
        return Err(Errno::ROFS);
    }
    Ok(())
}
