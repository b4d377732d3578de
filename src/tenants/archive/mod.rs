//! Archives of folders, as updates bring them: a tar, by itself or in gzip, or a zip. What is in one is a stranger's choice.
//! So nothing gets out of the folder it is unpacked into, by a path or by a link, and there is a limit for all of it.
#![forbid(unsafe_code)]

mod entry;
mod in_tar;
mod in_zip;
mod limits;
mod unpack;

use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

use flate2::read::MultiGzDecoder;

pub use limits::{Limits, NotUnpacked};
use unpack::Unpacker;

/// How many bytes of a file's start say what it is.
pub const HEAD: usize = 512;
/// Where a tar says that it is one (POSIX.1-1988 and GNU), and how.
const TAR_MAGIC: (usize, &[u8]) = (257, b"ustar");
/// What gzip begins with (RFC 1952, 2.3.1).
const GZIP_MAGIC: &[u8] = b"\x1f\x8b";
/// What a zip begins with: an entry, or, of an empty one, its end (APPNOTE 4.3.7, 4.3.16).
const ZIP_MAGICS: [&[u8]; 2] = [b"PK\x03\x04", b"PK\x05\x06"];
/// What programs begin with. A tar begins with a name, which may be any.
const PROGRAM_MAGICS: [&[u8]; 2] = [b"\x7fELF", b"#!"];

/// How an archive is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Tar,
    TarInGzip,
    Zip,
}

/// Told by its first bytes, as many as [`HEAD`] if there are so many.
fn format(head: &[u8]) -> Option<Format> {
    let begins = |magic: &&[u8]| head.starts_with(magic);
    let (at, magic) = TAR_MAGIC;
    if PROGRAM_MAGICS.iter().any(begins) {
        None
    } else if begins(&GZIP_MAGIC) {
        Some(Format::TarInGzip)
    } else if ZIP_MAGICS.iter().any(begins) {
        Some(Format::Zip)
    } else if head.get(at..).is_some_and(|rest| rest.starts_with(magic)) {
        Some(Format::Tar)
    } else {
        None
    }
}

/// Whether it is an archive, by its first [`HEAD`] bytes or more.
pub fn is_archive(head: &[u8]) -> bool {
    format(head).is_some()
}

/// Unpacks an archive into an empty folder that nobody else writes to. `pause` is called every now and then, and may end it.
///
/// Nothing is synchronised: the folder is good as long as this process runs, and no longer.
pub fn unpack(
    archive: &[u8],
    folder: OwnedFd,
    limits: Limits,
    pause: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<(), NotUnpacked> {
    let mut unpacker = Unpacker::new(folder, limits, pause);
    match format(archive) {
        Some(Format::Tar) => in_tar::unpack(archive, &mut unpacker),
        Some(Format::TarInGzip) => in_tar::unpack(MultiGzDecoder::new(archive), &mut unpacker),
        Some(Format::Zip) => in_zip::unpack(archive, &mut unpacker),
        None => Err(NotUnpacked::Damaged("neither tar nor zip".into())),
    }?;
    unpacker.finish()
}

#[cfg(test)]
#[path = "../archive_tests.rs"]
mod tests;
