//! zip, with stored and deflated files, and links as Info-ZIP has them.

use std::io::{self, Read, Seek};

use zip::result::ZipError;
use zip::{ExtraField, ZipArchive};

use crate::tenants::archive::entry::{self, Kind, MOST_PATH};
use crate::tenants::archive::limits::NotUnpacked;
use crate::tenants::archive::unpack::Unpacker;

/// The bits of a mode that say what kind of file it is, and those of a regular one (inode(7)).
const KIND: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
/// Bits with which a file may be run.
const RUN: u32 = 0o111;

/// Unpacks it.
pub fn unpack(zip: impl Read + Seek, unpacker: &mut Unpacker<'_>) -> Result<(), NotUnpacked> {
    let damaged = |error: ZipError| NotUnpacked::Damaged(error.to_string());
    let mut archive = ZipArchive::new(zip).map_err(damaged)?;
    unpacker.check_count(archive.len())?;
    if archive.has_duplicate_names() {
        return Err(NotUnpacked::Damaged("a name is there twice".into()));
    }
    for number in 0..archive.len() {
        let mut file = archive.by_index(number).map_err(damaged)?;
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
