//! tar (POSIX.1-2001 "pax", GNU), with long names and links as both have them.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use tar::{Archive, Entry, EntryType};

use crate::tenants::archive::entry::{self, Kind};
use crate::tenants::archive::limits::NotUnpacked;
use crate::tenants::archive::unpack::Unpacker;

/// Most bytes of what is said of a file before it: its header, and where its name or other properties are long.
const MOST_SAID: u64 = 256 << 10;
/// What a file's length is rounded up to.
const BLOCK: u64 = 512;
/// What properties of sparse files begin with, whose type is that of others (tar(5)).
const SPARSE: &[u8] = b"GNU.sparse.";
/// Bits of a mode with which a file may be run.
const RUN: u32 = 0o111;

/// A reader that gives as many bytes as it is allowed, so that nobody who reads a header takes a whole unpacked archive for one.
struct Metered<R> {
    of: R,
    allowed: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let allowed = self.allowed.get();
        if allowed == 0 && !buf.is_empty() {
            return Err(io::Error::other(format!(
                "more than {MOST_SAID} bytes before a file"
            )));
        }
        let most = buf
            .len()
            .min(usize::try_from(allowed).unwrap_or(usize::MAX));
        let len = self.of.read(&mut buf[..most])?;
        self.allowed.set(allowed - len as u64);
        Ok(len)
    }
}

/// Unpacks it.
pub fn unpack(tar: impl Read, unpacker: &mut Unpacker<'_>) -> Result<(), NotUnpacked> {
    let damaged = |error: io::Error| NotUnpacked::Damaged(error.to_string());
    let allowed = Rc::new(Cell::new(MOST_SAID));
    let mut archive = Archive::new(Metered {
        of: tar,
        allowed: allowed.clone(),
    });
    let mut entries = archive.entries().map_err(damaged)?;
    loop {
        allowed.set(MOST_SAID);
        let Some(entry) = entries.next() else {
            return Ok(());
        };
        let mut entry = entry.map_err(damaged)?;
        let size = entry.size();
        if size > unpacker.bytes_left() {
            return Err(unpacker.too_many_bytes());
        }
        allowed.set(size.saturating_add(BLOCK));
        unpacker.count()?;
        let name = entry.path_bytes().into_owned();
        if is_sparse(&mut entry).map_err(damaged)? {
            return Err(NotUnpacked::refused(
                &name,
                "is a sparse file: pack it without --sparse",
            ));
        }
        let to = entry.link_name_bytes().map(|name| name.into_owned());
        let header = entry.header();
        let kind = match header.entry_type() {
            // Of the archive as a whole, such as git's comment.
            EntryType::XGlobalHeader => continue,
            EntryType::Directory => Kind::Folder,
            // An old tar has folders so.
            EntryType::Regular if name.ends_with(b"/") => Kind::Folder,
            EntryType::Regular | EntryType::Continuous => Kind::File {
                executable: header.mode().map_err(damaged)? & RUN != 0,
                modified: entry::time(header.mtime().map_err(damaged)?),
            },
            EntryType::Symlink => Kind::Link(to.as_deref().unwrap_or_default()),
            EntryType::Link => Kind::SameAs(to.as_deref().unwrap_or_default()),
            other => {
                let what = match other {
                    EntryType::Char | EntryType::Block => "is a device",
                    EntryType::Fifo => "is a FIFO",
                    _ => "is neither a file, a folder nor a link",
                };
                return Err(NotUnpacked::refused(&name, what));
            }
        };
        unpacker.put(&name, kind, &mut entry)?;
    }
}

/// Whether a file is not what is in the archive, but that and holes between.
fn is_sparse(entry: &mut Entry<'_, impl Read>) -> io::Result<bool> {
    if entry.header().entry_type() == EntryType::GNUSparse {
        return Ok(true);
    }
    let Some(properties) = entry.pax_extensions()? else {
        return Ok(false);
    };
    let mut keys = properties.flatten().map(|property| property.key_bytes());
    Ok(keys.any(|key| key.starts_with(SPARSE)))
}
