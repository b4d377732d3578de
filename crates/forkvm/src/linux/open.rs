//! openat(2), and where calls with path names begin.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::abi::{Guest, PAGE, Value, flags, int};
use super::fds::{
    Device, Files, Kind, O_ACCMODE, O_CLOEXEC, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_PATH,
    O_TRUNC, OpenFile,
};
use super::heap::{Heap, Window};
use super::memory::MapSource;
use super::paths::{Absolute, Report, Roots, Target};
use super::{Protection, Setup};

/// Most lines of `/proc/self/maps`.
const MAX_MAPS: usize = 1000;

/// What never changes while a program and its forks live.
#[derive(Debug)]
pub struct Shared {
    /// What the engine said at the start.
    pub setup: Setup,
    /// What may be read.
    pub roots: Roots,
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

impl Shared {
    /// What a call's path names.
    pub fn find(&self, files: &Files, lookup: &Lookup) -> Result<(Absolute, Target<'_>), Errno> {
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
        let absolute = Absolute::new(&base, &lookup.path);
        let target = self.roots.find(&absolute).ok_or(Errno::NOENT)?;
        Ok((absolute, target))
    }
}

/// Tells the host, once, of a kernel that can't look up paths safely.
pub fn explain(errno: Errno, files: &mut Files, guest: &mut Guest<'_>) -> Errno {
    if errno != Errno::NOSYS {
        return errno;
    }
    if !files.explained {
        files.explained = true;
        guest.note("allowed_paths need openat2(2), which this host does not offer (Linux 5.6, and a container's seccomp filter that lets it pass)");
    }
    Errno::ACCESS
}

/// open(2), openat(2), creat(2): read-only, from what is allowed, and a few devices and reports.
pub fn openat(
    shared: &Shared,
    files: &mut Files,
    heap: &Heap,
    guest: &mut Guest<'_>,
    args: [u64; 4],
) -> Value {
    let [dirfd, path, how, _mode] = args;
    let how = flags(how);
    let path = guest.read_path(path)?;
    let writes = how & O_ACCMODE != 0 || how & O_TRUNC != 0;
    let creates = how & O_CREAT != 0;

    let lookup = Lookup {
        dirfd,
        path,
        empty_is_here: false,
    };
    let (absolute, target) = match shared.find(files, &lookup) {
        // Nothing can be made there.
        Err(Errno::NOENT) if creates && !lookup.path.is_empty() => return Err(Errno::ACCESS),
        found => found?,
    };
    let kind = match target {
        _ if how & O_PATH == 0
            && creates
            && how & O_EXCL != 0
            && !matches!(target, Target::Host(_)) =>
        {
            return Err(Errno::EXIST);
        }
        Target::Device(device) => Kind::Device(device),
        Target::Report(_) if writes => return Err(Errno::ACCESS),
        Target::Report(report) => Kind::Text(text_of(report, shared, heap)),
        // The program's own file is not its to read, and need not be where its name says.
        Target::Executable => {
            return Err(if how & O_NOFOLLOW != 0 {
                Errno::LOOP
            } else {
                Errno::ACCESS
            });
        }
        Target::Passage if writes || creates => return Err(Errno::ISDIR),
        Target::Passage => Kind::Folder(None, absolute.text().into()),
        Target::Host(place) => {
            let follow = how & O_NOFOLLOW == 0 || absolute.folder;
            let opened = if how & O_PATH != 0 {
                place.handle(follow).and_then(|file| {
                    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
                    Ok((Arc::new(file), kind))
                })
            } else {
                place.open(follow)
            };
            let (file, found) = match opened {
                Err(Errno::NOENT) if creates => return Err(Errno::ROFS),
                opened => opened.map_err(|errno| explain(errno, files, guest))?,
            };
            if how & O_PATH == 0 {
                if creates && how & O_EXCL != 0 {
                    return Err(Errno::EXIST);
                }
                if writes {
                    return Err(if found == FileType::Directory {
                        Errno::ISDIR
                    } else {
                        Errno::ROFS
                    });
                }
            }
            match found {
                FileType::Directory => Kind::Folder(Some(file), absolute.text().into()),
                FileType::RegularFile => Kind::File(file),
                _ => Kind::Handle(file),
            }
        }
    };
    if (absolute.folder || how & O_DIRECTORY != 0) && !matches!(kind, Kind::Folder(..)) {
        return Err(Errno::NOTDIR);
    }
    let number = files.add(OpenFile::new(kind, how), how & O_CLOEXEC != 0)?;
    i64::try_from(number).map_err(|_| Errno::MFILE)
}

/// What `mmap` of a descriptor maps: nothing if it is `/dev/zero`, else a regular file.
pub fn map_source(
    files: &Files,
    fd: u64,
    offset: u64,
) -> Result<Option<(Arc<OwnedFd>, u64)>, Errno> {
    if !offset.is_multiple_of(PAGE) {
        return Err(Errno::INVAL);
    }
    let file = files.get(fd)?;
    match &file.kind {
        _ if !file.readable() => Err(Errno::ACCESS),
        Kind::Device(Device::Zero) => Ok(None),
        Kind::File(file) => Ok(Some((Arc::clone(file), offset))),
        _ => Err(Errno::NODEV),
    }
}

/// The form that `mmap` takes it in.
pub fn as_source(found: &Option<(Arc<OwnedFd>, u64)>) -> Option<MapSource<'_>> {
    found.as_ref().map(|(file, offset)| MapSource {
        file,
        offset: *offset,
    })
}

fn text_of(report: Report, shared: &Shared, heap: &Heap) -> Arc<[u8]> {
    let kib = |pages: u64| pages.saturating_mul(PAGE) / 1024;
    let text = match report {
        Report::Cpus => "0\n".to_owned(),
        Report::CpuInfo => {
            "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu cores\t: 1\nsiblings\t: 1\n\n"
                .to_owned()
        }
        Report::MemInfo => {
            let (total, free) = (kib(heap.pages()), kib(heap.free_pages()));
            format!(
                "MemTotal: {total:>15} kB\nMemFree: {free:>16} kB\nMemAvailable: {free:>11} kB\n"
            )
        }
        Report::Maps => maps(shared, heap),
    };
    text.into_bytes().into()
}

/// `/proc/self/maps` (proc_pid_maps(5)) as far as it is known here: the heap, the mappings and the stack, which
/// glibc's pthread_getattr_np(3) looks for. The program's own segments are missing.
fn maps(shared: &Shared, heap: &Heap) -> String {
    let line = |addresses: std::ops::Range<u64>, protection: Protection, name: &str| {
        let letter = |on: bool, letter: char| if on { letter } else { '-' };
        let Protection {
            read,
            write,
            execute,
        } = protection;
        let (r, w, x) = (letter(read, 'r'), letter(write, 'w'), letter(execute, 'x'));
        let text = format!(
            "{:08x}-{:08x} {r}{w}{x}p 00000000 00:00 0",
            addresses.start, addresses.end
        );
        // The kernel aligns names at column 73.
        if name.is_empty() {
            format!("{text} \n")
        } else {
            format!("{text:<73}{name}\n")
        }
    };
    let read_write = Protection {
        read: true,
        write: true,
        execute: false,
    };
    let mut lines = Vec::new();
    if heap.brk_pages() > 0 {
        let brk = heap.address(Window::Brk, 0)..heap.address(Window::Brk, heap.brk_pages());
        lines.push((brk.start, line(brk, read_write, "[heap]")));
    }
    for (pages, mapping) in heap.mappings().iter().take(MAX_MAPS) {
        let addresses =
            heap.address(Window::Mmap, pages.start)..heap.address(Window::Mmap, pages.end);
        lines.push((addresses.start, line(addresses, mapping.protection, "")));
    }
    let stack = shared.setup.stack.clone();
    lines.push((stack.start, line(stack, read_write, "[stack]")));
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}
