//! Which files there are for a program: path names to things.
//!
//! A path is made absolute and normalised, then matched name by name with the allowed roots. The rest of it is
//! resolved by the kernel beneath the root's own descriptor (openat2(2) with `RESOLVE_BENEATH`), so that no
//! symbolic link and no race leads out of it; a link from one root to another is followed by hand. Everything else does
//! not exist.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

pub use crate::linux::files::absolute::Absolute;
use crate::linux::files::fds::Device;
use crate::linux::files::known::{self, Known, Report};
use crate::linux::files::root::{Opened, Root};
use crate::linux::setup::AllowedPath;

/// How often a resolution is tried again that raced with a change of the folder, which openat2(2) reports as EAGAIN.
const ATTEMPTS: usize = 8;
/// Most symbolic links in a path (path_resolution(7)).
pub const MOST_LINKS: usize = 40;

/// What a path names.
#[derive(Debug)]
pub enum Target<'a> {
    /// A device.
    Device(Device),
    /// A file made when it is opened.
    Report(Report),
    /// `/proc/self/exe`, a link to the executable.
    Executable,
    /// A folder on the way to something that exists. It can be entered, but shows nothing.
    Passage,
    /// Something of the overlay, by its number.
    Node(u64),
    /// The folder of the open descriptors.
    Descriptors,
    /// A link to what is open under this number.
    Descriptor(u64),
    /// Something that may exist in the host.
    Host(Place<'a>),
}

/// Where in the host something is, if it is there: a path beneath an open folder.
#[derive(Debug)]
pub struct Place<'a> {
    folder: &'a OwnedFd,
    path: Vec<u8>,
    /// For links that lead elsewhere: what else is allowed, and the place's own path as the program sees it.
    roots: &'a Roots,
    absolute: Absolute,
    /// It is what the program was given, not something in it.
    is_root: bool,
    /// What is done there is done to the host's files.
    pub writes: bool,
    /// Where a symbolic link leads that the program sees here, though it is none in the host.
    pub link: Option<&'a [u8]>,
}

/// What a program may read, opened once.
#[derive(Debug)]
pub struct Roots {
    roots: Vec<Root>,
    /// There is what unmodified programs look for.
    whole_system: bool,
    /// A folder that is there, and those around it, whatever is allowed: where the program starts.
    start: Option<Absolute>,
    unusable: Vec<(PathBuf, Errno)>,
}

impl Roots {
    /// Opens the allowed paths. The owner of the tenant chose them, so symbolic links in them are followed, once. What is
    /// made up of /dev, /proc and /sys is little, or all that unmodified programs look for.
    pub fn open(allowed: &[AllowedPath], whole_system: bool) -> Self {
        let mut roots = Self {
            roots: Vec::new(),
            whole_system,
            start: None,
            unusable: Vec::new(),
        };
        for path in allowed {
            match Root::open(path) {
                Ok(root) => roots.roots.push(root),
                Err(errno) => roots.unusable.push((path.real.clone(), errno)),
            }
        }
        // The longest match counts, as the most specific; of two, the one that says more.
        let order = |root: &Root| std::cmp::Reverse((root.seen.len(), root.writes));
        roots.roots.sort_by_key(order);
        roots
    }

    /// Has this folder be there, though there may be nothing to see in it.
    pub fn start_in(&mut self, folder: Absolute) {
        self.start = Some(folder);
    }

    /// Allowed paths that could not be opened, and why.
    pub fn unusable(&self) -> &[(PathBuf, Errno)] {
        &self.unusable
    }

    /// What a path names; `None` if nothing.
    pub fn find(&self, path: &Absolute) -> Option<Target<'_>> {
        // Ours come first: even where all of /proc is allowed, the host's own is not shown.
        let text = path.text();
        match known::find(&text, self.whole_system) {
            Some(Known::Device(device)) => return Some(Target::Device(device)),
            Some(Known::Report(report)) => return Some(Target::Report(report)),
            Some(Known::Executable) => return Some(Target::Executable),
            Some(Known::Descriptors) => return Some(Target::Descriptors),
            Some(Known::Descriptor(number)) => return Some(Target::Descriptor(number)),
            Some(Known::Nothing) => return None,
            None => {}
        }
        let place = self
            .roots
            .iter()
            .find(|root| path.starts_with(&root.seen))
            .and_then(|root| self.place(root, path));
        if let Some(place) = place {
            return Some(Target::Host(place));
        }
        self.leads_on(path).then_some(Target::Passage)
    }

    /// Why a path that [`Roots::find`] finds nothing for names nothing: there is no folder on its way, or no such name in it.
    pub fn missing(&self, path: &Absolute) -> Errno {
        let is_file = |prefix: Absolute| {
            let allowed =
                |root: &Root| root.seen == prefix && matches!(root.opened, Opened::File(..));
            let known = known::find(&prefix.text(), self.whole_system);
            matches!(known, Some(Known::Device(_) | Known::Report(_)))
                || self.roots.iter().any(allowed)
        };
        let mut around = (1..path.len()).map(|len| path.prefix(len));
        if around.any(is_file) {
            Errno::NOTDIR
        } else {
            Errno::NOENT
        }
    }

    /// Whether the program may change any of the host's files.
    pub fn has_volumes(&self) -> bool {
        self.roots.iter().any(|root| root.writes)
    }

    /// sync(2): what was written to the host's files is on the disk then. What fails is not told.
    pub fn sync_volumes(&self) {
        for root in self.roots.iter().filter(|root| root.writes) {
            let (Opened::Folder(folder) | Opened::File(folder, _)) = &root.opened;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            if let Ok(folder) = rustix::fs::openat(folder, c".", flags, Mode::empty()) {
                let _ = rustix::fs::syncfs(folder);
            }
        }
    }

    /// Which root a path is in, and how many names that one has, if what is done there is done to the host's files.
    pub fn volume(&self, path: &Absolute) -> Option<(usize, usize)> {
        let mut all = self.roots.iter().enumerate();
        let (number, root) = all.find(|(_, root)| path.starts_with(&root.seen))?;
        root.writes.then_some((number, root.seen.len()))
    }

    /// True for allowed paths and the folders that lead to them, or to what is made up.
    pub fn leads_on(&self, path: &Absolute) -> bool {
        let allowed = self.roots.iter().map(|root| &root.seen);
        allowed
            .chain(&self.start)
            .any(|folder| folder.starts_with(path))
            || self.is_passage(path)
    }

    /// True for folders that lead to what is made up.
    pub fn is_passage(&self, path: &Absolute) -> bool {
        if !self.whole_system {
            let passages = ["/dev", "/proc/self", "/sys/devices/system/cpu", "/tmp"];
            return passages
                .into_iter()
                .any(|passage| Absolute::new(b"/", passage.as_bytes()).starts_with(path));
        }
        let start = path.text();
        let leads = |name: &[u8]| match name.strip_prefix(&start[..]) {
            Some(rest) => start == b"/" || rest.starts_with(b"/"),
            None => false,
        };
        self.known().any(|name| leads(name.as_bytes()))
            || known::FOLDERS
                .iter()
                .any(|name| leads(name) || *name == start)
    }

    fn known(&self) -> impl Iterator<Item = &'static str> {
        let more = known::OF_SYSTEM.iter().filter(|_| self.whole_system);
        known::COMMON.iter().chain(more).map(|(name, _)| *name)
    }

    /// Names in a folder that leads to allowed paths, or to what is made up.
    pub fn names_in(&self, path: &Absolute) -> BTreeSet<Vec<u8>> {
        let known = self
            .known()
            .map(|name| Absolute::new(b"/", name.as_bytes()));
        let next = |of: &Absolute| {
            let next = of.names().get(path.len())?;
            of.starts_with(path).then(|| next.clone())
        };
        let roots = self.roots.iter().filter_map(|root| next(&root.seen));
        let start = self.start.iter().filter_map(next);
        let known = known.filter_map(|of| next(&of));
        roots.chain(start).chain(known).collect()
    }

    /// What is at a path beneath one of the roots.
    fn place<'a>(&'a self, root: &'a Root, absolute: &Absolute) -> Option<Place<'a>> {
        let rest = absolute.names().get(root.seen.len()..)?;
        let (folder, path) = match &root.opened {
            Opened::Folder(folder) if rest.is_empty() => (folder, b".".to_vec()),
            Opened::Folder(folder) if !root.alone => (folder, rest.join(&b'/')),
            Opened::File(folder, name) if rest.is_empty() => (folder, name.clone()),
            Opened::Folder(_) | Opened::File(..) => return None,
        };
        Some(Place {
            folder,
            path,
            link: root.link.as_deref().filter(|_| rest.is_empty()),
            roots: self,
            absolute: absolute.clone(),
            is_root: rest.is_empty(),
            writes: root.writes,
        })
    }

    /// The path without symbolic links that what is there has. A link to what is not allowed is none.
    pub fn real_path(&self, path: &Absolute) -> Absolute {
        self.through_links(path.clone(), true)
            .unwrap_or_else(|_| path.clone())
    }

    /// Opens what a path names in whose way there are links from one allowed root to another: what they lead to has to be
    /// allowed as well. `flags` are openat2(2)'s.
    fn open_through_links(&self, path: Absolute, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = self.through_links(path, !flags.contains(OFlags::NOFOLLOW))?;
        match self.find(&path) {
            Some(Target::Host(place)) => place.try_open(flags, ResolveFlags::NO_SYMLINKS),
            _ => Err(Errno::ACCESS),
        }
    }

    /// Follows the links in a path, name by name; one at its end if `last`.
    fn through_links(&self, mut path: Absolute, last: bool) -> Result<Absolute, Errno> {
        let (mut links, mut checked) = (0, 0);
        while checked < path.len() {
            let end = checked + 1;
            if end == path.len() && !last {
                break;
            }
            checked = end;
            let place = match self.find(&path.prefix(end)) {
                Some(Target::Host(place)) => place,
                Some(Target::Passage) => continue,
                _ => return Err(Errno::ACCESS),
            };
            let Some(to) = place.leads_to()? else {
                continue;
            };
            links += 1;
            if links > MOST_LINKS {
                return Err(Errno::LOOP);
            }
            path = path.through_link(end, &to);
            checked = 0;
        }
        Ok(path)
    }
}

/// What openat2(2) has to keep to where something is changed: every link was followed before, in the program's own terms, and
/// what is mounted beneath a folder is not that folder's.
const CHANGES: ResolveFlags = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_XDEV);

/// Why that can't be changed.
fn refused(errno: Errno) -> Errno {
    match errno {
        Errno::XDEV => Errno::ROFS,
        Errno::MFILE => Errno::NFILE,
        errno => errno,
    }
}

/// Opens a path that never leaves a folder.
pub fn open_beneath(
    folder: &OwnedFd,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
    how: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let how = how | ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut result = Err(Errno::AGAIN);
    for _ in 0..ATTEMPTS {
        let path = OsStr::from_bytes(path);
        result = openat2(folder, path, flags | OFlags::CLOEXEC, mode, how);
        if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
            break;
        }
    }
    result
}

impl Place<'_> {
    /// Where it leads, if it is a symbolic link: in the host, or for the program, which may follow it.
    fn leads_to(&self) -> Result<Option<Vec<u8>>, Errno> {
        if let Some(to) = self.link
            && let Some(Target::Host(_)) = self.roots.find(&Absolute::new(b"/", to))
        {
            return Ok(Some(to.to_vec()));
        }
        let found = self.try_open(OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) != FileType::Symlink {
            return Ok(None);
        }
        Ok(Some(
            rustix::fs::readlinkat(&found, c"", Vec::new())?.into_bytes(),
        ))
    }

    /// Opens it without touching it (`O_PATH`), or its symbolic link itself, which is that of the host.
    pub fn handle(&self, follow: bool) -> Result<OwnedFd, Errno> {
        let nofollow = if follow {
            OFlags::empty()
        } else {
            OFlags::NOFOLLOW
        };
        self.resolve(OFlags::PATH | nofollow)
    }

    /// Opens it for reading. Only regular files and folders: opening anything else may have effects or wait.
    pub fn open(&self, follow: bool) -> Result<(OwnedFd, FileType), Errno> {
        if !follow && self.link.is_some() {
            return Err(Errno::LOOP);
        }
        let kind = |file: &OwnedFd| {
            Ok::<_, Errno>(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode))
        };
        match kind(&self.handle(follow)?)? {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::ACCESS),
        }
        let nofollow = if follow {
            OFlags::empty()
        } else {
            OFlags::NOFOLLOW
        };
        let file = self.resolve(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | nofollow)?;
        // It may have been replaced since.
        match kind(&file)? {
            found @ (FileType::RegularFile | FileType::Directory) => Ok((file, found)),
            _ => Err(Errno::ACCESS),
        }
    }

    fn try_open(&self, flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, Errno> {
        open_beneath(self.folder, &self.path, flags, Mode::empty(), how)
    }

    /// Opens what may be changed, or makes a nameless file in it (`O_TMPFILE`).
    pub fn open_to_change(&self, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        open_beneath(self.folder, &self.path, flags, mode, CHANGES).map_err(refused)
    }

    /// The folder around it, where names can be changed, and its name there. The name of what the program was given is not
    /// its to change, as of a mount point.
    pub fn parent(&self) -> Result<(OwnedFd, &OsStr), Errno> {
        if self.is_root {
            return Err(Errno::BUSY);
        }
        let slash = self.path.iter().rposition(|&byte| byte == b'/');
        let (folder, name) = match slash.and_then(|at| self.path.split_at_checked(at)) {
            Some((folder, name)) => (folder, name.get(1..).unwrap_or_default()),
            None => (&b"."[..], &self.path[..]),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let folder = open_beneath(self.folder, folder, flags, Mode::empty(), CHANGES);
        Ok((folder.map_err(refused)?, OsStr::from_bytes(name)))
    }

    fn resolve(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        let result = match self.try_open(flags, ResolveFlags::empty()) {
            // A link that leads out of this root.
            Err(Errno::XDEV) => self.roots.open_through_links(self.absolute.clone(), flags),
            result => result,
        };
        let file = result.map_err(|errno| match errno {
            Errno::XDEV => Errno::ACCESS,
            // The host's own limit is not the program's doing.
            Errno::MFILE => Errno::NFILE,
            errno => errno,
        })?;
        // The host process's own environment, memory and descriptors are in there.
        if rustix::fs::fstatfs(&file)?.f_type == rustix::fs::PROC_SUPER_MAGIC {
            return Err(Errno::ACCESS);
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_allowed_is_there() {
        let roots = Roots::open(&["/usr/share".into(), "/nowhere/at/all".into()], false);
        let find = |path: &str| roots.find(&Absolute::new(b"/", path.as_bytes()));
        assert!(matches!(find("/usr/share/x"), Some(Target::Host(_))));
        assert!(matches!(find("/usr"), Some(Target::Passage)));
        assert!(matches!(find("/"), Some(Target::Passage)));
        assert!(matches!(
            find("/dev/null"),
            Some(Target::Device(Device::Null))
        ));
        assert!(find("/usr/share2").is_none());
        assert!(find("/usr/share/../lib").is_none());
        assert!(find("/etc/passwd").is_none());
        assert!(find("/nowhere/at/all").is_none());
        assert_eq!(roots.unusable().len(), 1);
    }

    #[test]
    fn a_path_can_be_seen_elsewhere() {
        let seen = |seen: &str, beneath, link| AllowedPath {
            seen: seen.into(),
            beneath,
            link,
            ..AllowedPath::from("/usr/share")
        };
        let roots = Roots::open(
            &[
                seen("/data/all", true, false),
                seen("/data/all/alone", false, false),
                seen("/link", true, true),
            ],
            false,
        );
        let find = |path: &str| match roots.find(&Absolute::new(b"/", path.as_bytes())) {
            Some(Target::Host(place)) => Some((
                String::from_utf8(place.path).unwrap(),
                place.link.map(<[u8]>::to_vec),
            )),
            Some(Target::Passage) => Some(("passage".into(), None)),
            _ => None,
        };
        let found = |path: &str| Some((path.to_owned(), None));
        assert_eq!(find("/data/all"), found("."));
        assert_eq!(find("/data/all/a/b"), found("a/b"));
        assert_eq!(find("/data/all/alone"), found("."));
        assert_eq!(find("/data/all/alone/a"), None);
        assert_eq!(
            find("/link"),
            Some((".".into(), Some(b"/usr/share".to_vec())))
        );
        assert_eq!(find("/link/a"), found("a"));
        assert_eq!(find("/data"), found("passage"));
        assert_eq!(find("/usr/share"), None);
    }
}
