//! zip, with stored and deflated files, and links as Info-ZIP has them.

use std::io::{self, Cursor, Read};

use zip::read::{ArchiveOffset, Config};
use zip::result::ZipError;
use zip::unstable::read::ZipIterable;
use zip::{ExtraField, ZipReadOptions};

use crate::tenants::archive::entry::{self, Kind, MOST_PATH};
use crate::tenants::archive::limits::NotUnpacked;
use crate::tenants::archive::unpack::Unpacker;

/// The bits of a mode that say what kind of file it is, and those of a regular one (inode(7)).
const KIND: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
/// Bits with which a file may be run.
const RUN: u32 = 0o111;

/// Unpacks it, one file after the other: a table of all, as `ZipArchive` makes one, is some fifteen times as large as what it is made of.
pub fn unpack(zip: &[u8], unpacker: &mut Unpacker<'_>) -> Result<(), NotUnpacked> {
    let damaged = |error: ZipError| NotUnpacked::Damaged(error.to_string());
    let config = Config {
        // Nothing is looked for where it does not say that it is.
        archive_offset: ArchiveOffset::Known(0),
    };
    let mut archive = ZipIterable::try_new(Cursor::new(zip), config).map_err(damaged)?;
    unpacker.check_count(archive.len())?;
    let mut files = archive
        .files_with_cloned_reader(ZipReadOptions::new())
        .map_err(damaged)?;
    while let Some(file) = files.next() {
        let mut file = file.map_err(damaged)?;
        unpacker.count()?;
        let name = file.name().map_err(damaged)?.into_owned().into_bytes();
        let mode = file.unix_mode().unwrap_or_default();
        if file.is_dir() {
            unpacker.put(&name, Kind::Folder, &mut io::empty())?;
            continue;
        }
        if file.is_symlink() {
            let mut to = Vec::new();
            (&mut file)
                .take(MOST_PATH as u64 + 1)
                .read_to_end(&mut to)
                .map_err(|error| NotUnpacked::Damaged(error.to_string()))?;
            unpacker.put(&name, Kind::Link(&to), &mut io::empty())?;
            continue;
        }
        if !matches!(mode & KIND, 0 | REGULAR) {
            let problem = "is neither a file, a folder nor a link";
            return Err(NotUnpacked::refused(&name, problem));
        }
        // That of Info-ZIP; a zip's own time has no time zone.
        let modified = file.extra_data_fields().find_map(|field| match field {
            ExtraField::ExtendedTimestamp(times) => times.mod_time(),
            _ => None,
        });
        let kind = Kind::File {
            executable: mode & RUN != 0,
            modified: modified.and_then(|seconds| entry::time(seconds.into())),
        };
        unpacker.put(&name, kind, &mut file)?;
    }
    Ok(())
}
