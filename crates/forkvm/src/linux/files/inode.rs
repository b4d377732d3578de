//! What stat(2) and statx(2) tell of a file, whatever it is, and how that is laid out.

use std::os::fd::AsFd;

use rustix::fs::Stat;
use rustix::io::Errno;

use crate::linux::abi::{Layout, length};
use crate::linux::files::fds::Files;
use crate::linux::files::open_file::{Device, Kind};
use crate::linux::files::overlay::tree::{Nature, Node};

const STATX_BASIC_STATS: u32 = 0x7ff;

/// What `stat` tells, before it is laid out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inode {
    device: u64,
    inode: u64,
    links: u64,
    /// `st_mode`.
    pub mode: u32,
    uid: u32,
    gid: u32,
    special: (u32, u32),
    size: u64,
    block_size: u64,
    blocks: u64,
    // Last access, modification, change: seconds and nanoseconds.
    times: [(i64, u32); 3],
}

impl Inode {
    /// Something of this type and with these permissions, and nothing else to tell.
    pub fn made_up(mode: u32) -> Self {
        // 0 is no valid inode to some programs; the mode tells things apart well enough.
        Self {
            inode: u64::from(mode),
            links: 1,
            mode,
            block_size: 4096,
            ..Self::default()
        }
    }

    /// A device.
    pub fn device(device: Device) -> Self {
        if device == Device::Tty {
            return Self {
                special: (5, 0),
                ..Self::made_up(libc::S_IFCHR | 0o666)
            };
        }
        // linux/Documentation/admin-guide/devices.txt: character devices of major number 1.
        let minor = match device {
            Device::Null => 3,
            Device::Zero => 5,
            Device::Full => 7,
            Device::Random => 8,
            Device::Urandom | Device::Tty => 9,
        };
        Self {
            special: (1, minor),
            inode: u64::from(minor),
            ..Self::made_up(libc::S_IFCHR | 0o666)
        }
    }

    /// A folder that leads to others.
    pub fn passage() -> Self {
        Self::made_up(libc::S_IFDIR | 0o555)
    }

    /// A file that is made up.
    pub fn report() -> Self {
        Self::made_up(libc::S_IFREG | 0o444)
    }

    /// A file of the host.
    pub fn host(file: impl AsFd) -> Result<Self, Errno> {
        Ok(Self::from(&rustix::fs::fstat(file)?))
    }

    /// A file of the overlay.
    pub fn node(node: &Node) -> Self {
        let (size, allocated) = match &node.nature {
            Nature::File(content) => (content.size(), content.allocated()),
            Nature::Folder { .. } => (4096, 0),
            Nature::Link(to) => (length(to.len()), 0),
            Nature::Fifo | Nature::Socket => (0, 0),
        };
        Self {
            device: node.identity.0,
            inode: node.identity.1,
            // Of a folder 1 says that they are not counted (find(1), fts(3)).
            links: if node.is_folder() { 1 } else { node.links() },
            mode: node.full_mode(),
            uid: node.uid,
            gid: node.gid,
            special: (0, 0),
            size,
            block_size: 4096,
            blocks: allocated.div_ceil(512),
            times: node.times,
        }
    }

    /// Something that is open.
    pub fn of(files: &Files, kind: &Kind) -> Result<Self, Errno> {
        Ok(match kind {
            Kind::Node(id, _) => Self::node(files.overlay.tree().node(*id)?),
            Kind::Folder(_, path) if let Some(id) = files.overlay.known(path) => {
                Self::node(files.overlay.tree().node(id)?)
            }
            Kind::Stdin => Self::device(Device::Null),
            Kind::Device(device) => Self::device(*device),
            Kind::Socket(id) => Self {
                inode: id.saturating_add(1 << 16),
                ..Self::made_up(libc::S_IFSOCK | 0o777)
            },
            // Of no type, as Linux has it.
            Kind::Epoll(_)
            | Kind::EventFd(_)
            | Kind::TimerFd(_)
            | Kind::SignalFd(_)
            | Kind::Pidfd(_)
            | Kind::Inotify => Self::made_up(0o600),
            Kind::PipeReader(pipe) | Kind::PipeWriter(pipe) | Kind::PipeBoth(pipe)
                if let Some(name) = files.pipes.name(*pipe) =>
            {
                Self::node(files.overlay.tree().node(name.node)?)
            }
            Kind::Output(_) | Kind::PipeReader(_) | Kind::PipeWriter(_) | Kind::PipeBoth(_) => {
                Self::made_up(libc::S_IFIFO | 0o600)
            }
            Kind::Folder(None, _) => Self::passage(),
            Kind::Text(_) => Self::report(),
            Kind::File(file) | Kind::Handle(file) | Kind::Folder(Some(file), _) => {
                return Self::host(&**file);
            }
        })
    }

    /// `struct stat` of asm/stat.h for x86-64.
    pub fn stat(&self) -> Layout<144> {
        let (major, minor) = self.special;
        let layout = Layout::new()
            .u64(0, self.device)
            .u64(8, self.inode)
            .u64(16, self.links)
            .u32(24, self.mode)
            .u32(28, self.uid)
            .u32(32, self.gid)
            .u64(40, libc::makedev(major, minor))
            .u64(48, self.size)
            .u64(56, self.block_size)
            .u64(64, self.blocks);
        let times = [72, 88, 104].into_iter().zip(self.times);
        times.fold(layout, |layout, (at, (seconds, nanos))| {
            layout.i64(at, seconds).u64(at + 8, nanos.into())
        })
    }

    /// `struct statx` of linux/stat.h, without the time of birth.
    pub fn statx(&self) -> Layout<256> {
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let low = self.mode.to_le_bytes();
        let layout = Layout::new()
            .u32(0, STATX_BASIC_STATS)
            .u32(4, narrow(self.block_size))
            .u32(16, narrow(self.links))
            .u32(20, self.uid)
            .u32(24, self.gid)
            .u16(28, u16::from_le_bytes([low[0], low[1]]))
            .u64(32, self.inode)
            .u64(40, self.size)
            .u64(48, self.blocks)
            .u32(128, self.special.0)
            .u32(132, self.special.1)
            .u32(136, libc::major(self.device))
            .u32(140, libc::minor(self.device));
        // Access at 64, change at 96, modification at 112; `times` has them in the order of `stat`.
        let times = [64, 112, 96].into_iter().zip(self.times);
        times.fold(layout, |layout, (at, (seconds, nanos))| {
            layout.i64(at, seconds).u32(at + 8, nanos)
        })
    }
}

impl From<&Stat> for Inode {
    fn from(stat: &Stat) -> Self {
        let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
        let nanos = |value: u64| u32::try_from(value).unwrap_or(0);
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            links: stat.st_nlink,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            special: (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)),
            size: unsigned(stat.st_size),
            block_size: unsigned(stat.st_blksize),
            blocks: unsigned(stat.st_blocks),
            times: [
                (stat.st_atime, nanos(stat.st_atime_nsec)),
                (stat.st_mtime, nanos(stat.st_mtime_nsec)),
                (stat.st_ctime, nanos(stat.st_ctime_nsec)),
            ],
        }
    }
}
