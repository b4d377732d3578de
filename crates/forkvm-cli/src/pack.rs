//! A folder as one file: a tar in gzip. The same files, of the same times, give the same bytes, so that a folder that runs already
//! is known by its SHA-256.

use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

/// What archives begin with: gzip (RFC 1952), zip (APPNOTE); and what a tar has at 257 (POSIX).
const STARTS: [&[u8]; 3] = [b"\x1f\x8b", b"PK\x03\x04", b"PK\x05\x06"];
const TAR_MAGIC: &[u8] = b"ustar";
const TAR_MAGIC_AT: usize = 257;

/// Whether a file looks like an archive of a folder. What is in it is for the node to see.
pub fn is_archive(file: &[u8]) -> bool {
    let program = file.starts_with(b"\x7fELF") || file.starts_with(b"#!");
    let tar = file
        .get(TAR_MAGIC_AT..)
        .is_some_and(|rest| rest.starts_with(TAR_MAGIC));
    !program && (tar || STARTS.iter().any(|start| file.starts_with(start)))
}

/// Largest archive that is made here, in memory: nodes take 50 MB unless told otherwise (max_update_size).
const MOST: usize = MOST_MIB << 20;
const MOST_MIB: usize = 1024;

/// An archive that does not grow for ever.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MOST {
            return Err(io::Error::other(format!(
                "the archive would have more than {MOST_MIB} MiB; leave out what the server does not need, or pack it yourself"
            )));
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Packs what is in a folder. Links stay links.
pub fn pack(folder: &Path) -> io::Result<Vec<u8>> {
    if folder.canonicalize()?.parent().is_none() {
        return Err(io::Error::other(
            "that is the whole file system, not an application's folder",
        ));
    }
    let mut tar = Builder::new(GzEncoder::new(Bounded(Vec::new()), Compression::default()));
    // One folder after the other, those in each other by names.
    let mut folders = vec![PathBuf::new()];
    while let Some(within) = folders.pop() {
        let entries = fs::read_dir(folder.join(&within))?;
        let mut names = entries
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            let path = within.join(name);
            if add(&mut tar, folder, &path).map_err(|error| told(&folder.join(&path), &error))? {
                folders.push(path);
            }
        }
    }
    Ok(tar.into_inner()?.finish()?.0)
}

/// Adds one entry. Says whether it is a folder.
fn add(tar: &mut Builder<impl Write>, folder: &Path, path: &Path) -> io::Result<bool> {
    let real = folder.join(path);
    let found = fs::symlink_metadata(&real)?;
    let kind = found.file_type();
    if kind.is_symlink() {
        let mut header = header(&found, EntryType::Symlink, 0);
        tar.append_link(&mut header, path, fs::read_link(&real)?)?;
    } else if kind.is_dir() {
        let mut header = header(&found, EntryType::Directory, 0);
        tar.append_data(&mut header, path, io::empty())?;
    } else if kind.is_file() {
        // Whole before its length is said: it may be written to.
        let content = fs::read(&real)?;
        let mut header = header(&found, EntryType::Regular, content.len() as u64);
        header.set_mtime(u64::try_from(found.mtime()).unwrap_or(0));
        tar.append_data(&mut header, path, &*content)?;
    } else {
        return Err(io::Error::other("neither a file, a folder nor a link"));
    }
    Ok(kind.is_dir())
}

/// What counts of a file: not whose it is, nor on which machine.
fn header(found: &Metadata, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(found.permissions().mode() & 0o777);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn told(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
