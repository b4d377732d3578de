//! An open file: what it is, where it stands, how it was opened.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::linux::files::host_files::HostFile;
use crate::linux::net::counters::{EventFd, TimerFd};
use crate::linux::net::socket::Id;
use crate::request::Stream;
use crate::saved::{listed, listed_option};

/// `O_*` of asm-generic/fcntl.h, as far as they are looked at.
pub const O_ACCMODE: u32 = 3;
pub const O_CREAT: u32 = 0o100;
pub const O_EXCL: u32 = 0o200;
pub const O_TRUNC: u32 = 0o1000;
pub const O_APPEND: u32 = 0o2000;
pub const O_NONBLOCK: u32 = 0o4000;
pub const O_DIRECTORY: u32 = 0o20_0000;
pub const O_NOFOLLOW: u32 = 0o40_0000;
pub const O_CLOEXEC: u32 = 0o200_0000;
/// `__O_TMPFILE`, which comes with `O_DIRECTORY`.
pub const O_TMPFILE: u32 = 0o2000_0000;
pub const O_PATH: u32 = 0o1000_0000;
/// `O_APPEND`, `O_NONBLOCK`, `O_ASYNC`, `O_DIRECT`, `O_NOATIME`: what `F_SETFL` may change.
pub const SETTABLE: u32 = O_APPEND | O_NONBLOCK | 0o2_0000 | 0o4_0000 | 0o100_0000;
/// `O_LARGEFILE`, which the kernel adds for 64-bit programs.
pub const O_LARGEFILE: u32 = 0o10_0000;

/// How a file is to be opened: `O_*`.
#[derive(Debug, Clone, Copy)]
pub struct How(pub u32);

impl How {
    /// Whether one of these flags is set.
    pub fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }

    /// Whether it may change what is there.
    pub fn writes(self) -> bool {
        self.has(O_ACCMODE | O_TRUNC)
    }

    /// Whether it may make what is not there.
    pub fn creates(self) -> bool {
        self.has(O_CREAT)
    }

    /// Whether a file without a name is made.
    pub fn makes_nameless(self) -> bool {
        self.has(O_TMPFILE) && !self.has(O_PATH)
    }

    /// Whether a link at the path's end is followed.
    pub fn follows(self) -> bool {
        !(self.has(O_NOFOLLOW) || self.creates() && self.has(O_EXCL))
    }
}

/// What an open file is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Kind {
    /// Standard input, which is at its end.
    Stdin,
    /// Standard output or error.
    Output(Stream),
    /// A regular file of the host.
    File(#[serde(with = "listed")] Arc<HostFile>),
    /// A regular file of the overlay, by its number, and its path when it was opened.
    Node(u64, Arc<[u8]>),
    /// A folder, with the host's if it is one that the program may list, and its path as the program sees it.
    Folder(
        #[serde(with = "listed_option")] Option<Arc<HostFile>>,
        Arc<[u8]>,
    ),
    /// Something opened with `O_PATH` that is neither.
    Handle(#[serde(with = "listed")] Arc<HostFile>),
    /// A device.
    Device(Device),
    /// A file whose text was made when it was opened.
    Text(Arc<[u8]>),
    /// One of inotify(7), which never has anything to tell.
    Inotify,
    /// The end of a pipe to read from.
    PipeReader(usize),
    /// The end of a pipe to write to.
    PipeWriter(usize),
    /// Both ends of a named pipe.
    PipeBoth(usize),
    /// A socket.
    Socket(Id),
    /// Open files that are watched (epoll(7)).
    Epoll(usize),
    /// A counter (eventfd(2)).
    EventFd(EventFd),
    /// A timer (timerfd_create(2)).
    TimerFd(TimerFd),
    /// These signals (signalfd(2)).
    SignalFd(u64),
    /// The process, or a thread of it (pidfd_open(2)).
    Pidfd(Pidfd),
}

/// Whose a descriptor of a process is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Pidfd {
    /// The process's id, or the thread's.
    pub id: i32,
    /// It is of a thread.
    pub thread: bool,
    /// Which has ended.
    pub over: bool,
}

/// The devices there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Device {
    /// `/dev/null`
    Null,
    /// `/dev/zero`
    Zero,
    /// `/dev/full`
    Full,
    /// `/dev/random`
    Random,
    /// `/dev/urandom`
    Urandom,
    /// `/dev/tty`: there is no terminal.
    Tty,
}

/// An open file description.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OpenFile {
    /// What it is.
    pub kind: Kind,
    /// Where the next `read` starts. For a folder the position its file system knows.
    pub offset: u64,
    /// `O_*` without those that only matter at `open`.
    pub flags: u32,
    /// How many descriptors there are of it.
    pub(super) references: usize,
}

impl OpenFile {
    /// A file at its start.
    pub fn new(kind: Kind, flags: u32) -> Self {
        Self {
            kind,
            offset: 0,
            flags: flags & (O_ACCMODE | SETTABLE | O_PATH | O_DIRECTORY | O_NOFOLLOW),
            references: 0,
        }
    }

    /// Bytes of its text, if it has one.
    pub(super) fn text_len(&self) -> usize {
        match &self.kind {
            Kind::Text(text) => text.len(),
            _ => 0,
        }
    }

    /// True if the program may read from it.
    pub fn readable(&self) -> bool {
        self.flags & O_PATH == 0 && matches!(self.flags & O_ACCMODE, 0 | 2)
    }

    /// True if the program may write to it.
    pub fn writable(&self) -> bool {
        self.flags & O_PATH == 0 && matches!(self.flags & O_ACCMODE, 1 | 2)
    }
}
