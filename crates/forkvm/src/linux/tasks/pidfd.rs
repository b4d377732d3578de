//! Descriptors of the process itself and of its threads: pidfd_open(2), pidfd_send_signal(2); and waiting for children, of which there are none: waitid(2).

use rustix::io::Errno;

use crate::linux::abi::{Guest, Value, flags, int};
use crate::linux::files::fds::{Files, Kind, O_EXCL, O_NONBLOCK, OpenFile};
use crate::linux::files::open_file::Pidfd;
use crate::linux::tasks::pending::INFO_LEN;
use crate::linux::tasks::signals::{self, Signals, Target};
use crate::linux::tasks::task::Tasks;

/// `PIDFD_THREAD`: of a thread, which need not be the first of its process.
const THREAD: u32 = O_EXCL;

/// pidfd_open(2)
pub fn open(files: &mut Files, tasks: &Tasks, pid: u64, how: u64) -> Value {
    let (id, how) = (int(pid), flags(how));
    if how & !(O_NONBLOCK | THREAD) != 0 || id <= 0 {
        return Err(Errno::INVAL);
    }
    let thread = how & THREAD != 0;
    match tasks.pids().contains(&id) {
        true => {}
        false if !tasks.has(id) => return Err(Errno::SRCH),
        // A thread is no process.
        false if !thread => return Err(Errno::NOENT),
        false => {}
    }
    let kind = Kind::Pidfd(Pidfd {
        id,
        thread,
        over: false,
    });
    let number = files.add(OpenFile::new(kind, 2 | how & O_NONBLOCK), true)?;
    i64::try_from(number).map_err(|_| Errno::MFILE)
}

/// Whether a descriptor is of this thread.
pub fn is_known(files: &Files, tid: i32) -> bool {
    files
        .all_open()
        .any(|file| matches!(file.kind, Kind::Pidfd(of) if of.thread && of.id == tid))
}

/// A thread has ended, which its descriptors tell.
pub fn ended(files: &mut Files, tid: i32) {
    for file in files.all_open_mut() {
        if let Kind::Pidfd(of) = &mut file.kind
            && of.thread
            && of.id == tid
        {
            of.over = true;
        }
    }
}

/// pidfd_send_signal(2)
pub fn send_signal(
    files: &Files,
    (signals, tasks): (&mut Signals, &mut Tasks),
    guest: &Guest<'_>,
    [fd, signal, info, how]: [u64; 4],
) -> Value {
    /// `PIDFD_SIGNAL_THREAD`, `PIDFD_SIGNAL_THREAD_GROUP`, `PIDFD_SIGNAL_PROCESS_GROUP`
    const SCOPES: u32 = 7;
    let how = flags(how);
    if how & !SCOPES != 0 || how.count_ones() > 1 {
        return Err(Errno::INVAL);
    }
    let of = match &files.get(fd)?.kind {
        Kind::Pidfd(of) => *of,
        // Its folder in /proc stands for a process as well.
        Kind::Folder(_, path) if **path == *b"/proc/self" => Pidfd {
            id: tasks.pid(),
            thread: false,
            over: false,
        },
        _ => return Err(Errno::BADF),
    };
    let info: Option<[u8; INFO_LEN]> = match info {
        0 => None,
        address => Some(guest.read(address)?),
    };
    if info
        .is_some_and(|info| i32::from_le_bytes([info[0], info[1], info[2], info[3]]) != int(signal))
    {
        return Err(Errno::INVAL);
    }
    if of.over {
        return Err(Errno::SRCH);
    }
    let to_thread = how == 1 || how == 0 && of.thread;
    let target = match to_thread {
        true => Target::Task(of.id),
        false => Target::Process,
    };
    signals::kill(signals, tasks, target, signal, info)
}

/// waitid(2) of a process without children.
pub fn waitid(files: &Files, kind: u64, id: u64, how: u64) -> Value {
    // WNOHANG, WEXITED, WSTOPPED, WCONTINUED, WNOWAIT, __WNOTHREAD, __WALL, __WCLONE; one of the second to fourth has to be.
    let how = flags(how);
    // P_ALL, P_PID, P_PGID, P_PIDFD.
    if how & !0xe100_000f != 0 || how & 0xe == 0 || !(0..=3).contains(&int(kind)) {
        return Err(Errno::INVAL);
    }
    let of_pidfd = int(kind) == 3;
    if of_pidfd
        && !files
            .get(id)
            .is_ok_and(|file| matches!(file.kind, Kind::Pidfd(_)))
    {
        return Err(Errno::BADF);
    }
    Err(Errno::CHILD)
}
