//! Where calls with path names begin: what a path names, in the overlay, in the host, or made up.
//!
//! Outside of the places that may be written to, a path is the host's (`paths`). Within them it is followed name by name:
//! what the overlay knows of a name counts, and else what the host has there.

use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::linux::abi::int;
use crate::linux::files::fds::{Files, Kind};
use crate::linux::files::host_files::HostFiles;
use crate::linux::files::overlay::tree::Nature;
use crate::linux::files::paths::{Absolute, MOST_LINKS, Place, Roots, Target};
use crate::linux::setup::StateFile;

/// Longest name in a folder (`NAME_MAX`, linux/limits.h).
const NAME_MAX: usize = 255;

/// What never changes while a program and its forks live.
#[derive(Debug)]
pub struct Shared {
    /// What may be read.
    pub roots: Roots,
    /// Where changes go to the overlay, with everything beneath. Without any, nothing can be changed.
    pub writable: Vec<Absolute>,
    /// Descriptors of the host that are held for open files.
    pub host_files: HostFiles,
    /// Where programs are loaded is chosen at random.
    pub random_addresses: bool,
    /// The file that the program's storage keeps its state in.
    pub state: Option<StateFile>,
}

/// A path as a call gave it.
#[derive(Debug)]
pub struct Lookup {
    /// The descriptor that relative paths start from, or `AT_FDCWD`.
    pub dirfd: u64,
    /// The path.
    pub path: Vec<u8>,
    /// An empty path means the start itself (`AT_EMPTY_PATH`).
    pub empty_is_here: bool,
}

impl Lookup {
    /// A path that may not be empty.
    pub fn new(dirfd: u64, path: Vec<u8>) -> Self {
        Self {
            dirfd,
            path,
            empty_is_here: false,
        }
    }
}

/// What is at a path.
#[derive(Debug)]
pub enum Resolved<'a> {
    /// Outside of what may be written to, perhaps this.
    Outside(Absolute, Option<Target<'a>>),
    /// Where it may be written to: this is there, under this path.
    There(Absolute, Target<'a>),
    /// Where it may be written to: nothing is there, but the folder around it is.
    Free(Absolute),
    /// Where the host's own files are changed.
    Volume(Spot<'a>),
}

/// A place in a folder of the host whose files the program may change. No link is on the way to it.
#[derive(Debug)]
pub struct Spot<'a> {
    /// The path, as the program sees it.
    pub path: Absolute,
    /// Where it is in the host.
    pub place: Place<'a>,
    /// Which of the program's folders it is in.
    pub volume: usize,
    /// What is there, if something is.
    pub found: Option<FileType>,
}

/// A file system object of the host, as far as resolution has to know.
enum Lower<'a> {
    Missing,
    Folder(Target<'a>),
    Link(Target<'a>, Vec<u8>),
    Other(Target<'a>),
}

impl Shared {
    /// What a call's path names. Links at its end are followed if `follow`.
    pub fn find<'a>(
        &'a self,
        files: &Files,
        lookup: &Lookup,
        follow: bool,
    ) -> Result<(Absolute, Target<'a>), Errno> {
        match self.resolve(files, lookup, follow)? {
            Resolved::There(path, target) | Resolved::Outside(path, Some(target)) => {
                Ok((path, target))
            }
            Resolved::Outside(path, None) => Err(self.roots.missing(&path)),
            Resolved::Volume(Spot {
                path,
                place,
                found: Some(_),
                ..
            }) => Ok((path, Target::Host(place))),
            Resolved::Free(_) | Resolved::Volume(_) => Err(Errno::NOENT),
        }
    }

    /// The same where the host's own files are changed; `None` elsewhere.
    pub fn in_volume<'a>(
        &'a self,
        files: &Files,
        lookup: &Lookup,
        follow: bool,
    ) -> Result<Option<Spot<'a>>, Errno> {
        if !self.roots.has_volumes() {
            return Ok(None);
        }
        Ok(match self.resolve(files, lookup, follow)? {
            Resolved::Volume(spot) => Some(spot),
            _ => None,
        })
    }

    /// The same, with what can be made of it.
    pub fn resolve<'a>(
        &'a self,
        files: &Files,
        lookup: &Lookup,
        follow: bool,
    ) -> Result<Resolved<'a>, Errno> {
        if lookup.path.is_empty() && !lookup.empty_is_here {
            return Err(Errno::NOENT);
        }
        let base = if lookup.path.starts_with(b"/") || int(lookup.dirfd) == libc::AT_FDCWD {
            Arc::clone(&files.directory)
        } else {
            match &files.get(lookup.dirfd)?.kind {
                Kind::Folder(_, path) => Arc::clone(path),
                _ => return Err(Errno::NOTDIR),
            }
        };
        let path = Absolute::new(&base, &lookup.path).with_self(files.pids);
        self.walk(files, path, follow)
    }

    /// True for programs that can change files somewhere. Others are told of nothing that goes with it.
    pub fn has_overlay(&self) -> bool {
        !self.writable.is_empty()
    }

    /// The same for a path that is resolved already but for links in it.
    pub fn walk<'a>(
        &'a self,
        files: &Files,
        mut path: Absolute,
        follow: bool,
    ) -> Result<Resolved<'a>, Errno> {
        for _ in 0..=MOST_LINKS {
            let areas = self.writable.iter().filter(|area| path.starts_with(area));
            let area = areas.map(Absolute::len).max();
            let step = match (self.roots.volume(&path), area) {
                (Some((volume, first)), area) if area.is_none_or(|area| area <= first) => {
                    self.step_in_volume(path, (volume, first), follow)?
                }
                (_, Some(first)) => self.step(files, path, first, follow)?,
                _ => {
                    let target = self.roots.find(&path);
                    return Ok(Resolved::Outside(path, target));
                }
            };
            match step {
                Step::Done(resolved) => return Ok(resolved),
                Step::Link(to) => path = to,
            }
        }
        Err(Errno::LOOP)
    }

    /// Follows a path whose first names are a place that may be written to, up to the first link.
    fn step<'a>(
        &'a self,
        files: &Files,
        path: Absolute,
        first: usize,
        follow: bool,
    ) -> Result<Step<'a>, Errno> {
        let there = |path, target| Ok(Step::Done(Resolved::There(path, target)));
        let tree = files.overlay.tree();
        let follow = follow || path.folder;
        let mut opaque = false;
        for len in first..=path.len() {
            let last = len == path.len();
            if len == first && !last {
                continue;
            }
            let prefix = path.prefix(len);
            if prefix.name().len() > NAME_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            let known = tree.get(&prefix.text());
            let lower = match known.map(|entry| entry.node) {
                Some(Some(id)) => {
                    match &tree.node(id)?.nature {
                        Nature::Link(to) if !last || follow => {
                            return Ok(Step::Link(path.through_link(len, to)));
                        }
                        _ if last => return there(path, Target::Node(id)),
                        Nature::Folder { opaque: hides } => opaque |= hides,
                        _ => return Err(Errno::NOTDIR),
                    }
                    continue;
                }
                Some(None) => Lower::Missing,
                None if opaque => Lower::Missing,
                None => self.lower(&prefix)?,
            };
            match lower {
                Lower::Missing if last => return Ok(Step::Done(Resolved::Free(path))),
                Lower::Missing => return Err(Errno::NOENT),
                Lower::Link(_, to) if !last || follow => {
                    return Ok(Step::Link(path.through_link(len, &to)));
                }
                Lower::Folder(target) | Lower::Link(target, _) | Lower::Other(target) if last => {
                    return there(path, target);
                }
                Lower::Folder(_) => {}
                Lower::Link(..) | Lower::Other(_) => return Err(Errno::NOTDIR),
            }
        }
        Err(Errno::NOENT)
    }

    /// The same where the first names are a folder whose files in the host may be changed.
    fn step_in_volume(
        &self,
        path: Absolute,
        (volume, first): (usize, usize),
        follow: bool,
    ) -> Result<Step<'_>, Errno> {
        let follow = follow || path.folder;
        for len in first..=path.len() {
            let last = len == path.len();
            let prefix = path.prefix(len);
            if prefix.name().len() > NAME_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            let place = match self.roots.find(&prefix) {
                Some(Target::Host(place)) => place,
                _ => break,
            };
            match found(&place)? {
                Some((FileType::Symlink, to)) if !last || follow => {
                    return Ok(Step::Link(path.through_link(len, &to)));
                }
                found if last => {
                    return Ok(Step::Done(Resolved::Volume(Spot {
                        path,
                        place,
                        volume,
                        found: found.map(|(kind, _)| kind),
                    })));
                }
                Some((FileType::Directory, _)) => {}
                Some(_) => return Err(Errno::NOTDIR),
                None => return Err(Errno::NOENT),
            }
        }
        // What is made up, such as /proc.
        let target = self.roots.find(&path);
        Ok(Step::Done(Resolved::Outside(path, target)))
    }

    /// What is at a path without the overlay.
    fn lower(&self, path: &Absolute) -> Result<Lower<'_>, Errno> {
        let Some(target) = self.roots.find(path) else {
            return Ok(Lower::Missing);
        };
        // The host's own /proc is not there to be looked at.
        if self.roots.is_passage(path) {
            return Ok(Lower::Folder(target));
        }
        let Target::Host(place) = &target else {
            return Ok(match target {
                Target::Passage | Target::Descriptors => Lower::Folder(target),
                _ => Lower::Other(target),
            });
        };
        Ok(match found(place)? {
            None => Lower::Missing,
            Some((FileType::Directory, _)) => Lower::Folder(target),
            Some((FileType::Symlink, to)) => Lower::Link(target, to),
            Some(_) => Lower::Other(target),
        })
    }

    /// True if the host has something at a path.
    pub fn is_in_host(&self, path: &Absolute) -> bool {
        !matches!(self.lower(path), Ok(Lower::Missing))
    }
}

/// What is at a place in the host, and where it leads if it is a link.
fn found(place: &Place<'_>) -> Result<Option<(FileType, Vec<u8>)>, Errno> {
    let file = match place.handle(false) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    let to = if kind == FileType::Symlink {
        rustix::fs::readlinkat(&file, c"", Vec::new())?.into_bytes()
    } else {
        Vec::new()
    };
    Ok(Some((kind, to)))
}

/// How far a step came.
enum Step<'a> {
    Done(Resolved<'a>),
    Link(Absolute),
}
