//! fcntl(2) and ioctl(2): what programs ask of a descriptor besides its bytes.

use rustix::io::Errno;

use crate::linux::abi::{Guest, Layout, Reply, Value, count, flags, int, length};
use crate::linux::call::Outcome;
use crate::linux::files::fds::{
    Files, Kind, O_LARGEFILE, O_NONBLOCK, O_PATH, SETTABLE, set_close_on_exec,
};
use crate::linux::files::{locks, transfer};
use crate::linux::net::interfaces;

/// fcntl(2) of the process with this id.
pub fn fcntl(
    files: &mut Files,
    guest: &mut Guest<'_>,
    pid: i32,
    [fd, command, argument]: [u64; 3],
) -> Reply {
    // What may only be said of a descriptor that is open for more than its path.
    let file = files.get(fd)?;
    let of_path = file.flags & O_PATH != 0;
    if of_path
        && !matches!(
            int(command),
            libc::F_DUPFD | libc::F_DUPFD_CLOEXEC | libc::F_GETFD | libc::F_SETFD | libc::F_GETFL
        )
    {
        return Err(Errno::BADF);
    }
    match int(command) {
        libc::F_SETLK => locks::set(files, guest, fd, argument, (false, false)),
        libc::F_SETLKW => locks::set(files, guest, fd, argument, (false, true)),
        libc::F_OFD_SETLK => locks::set(files, guest, fd, argument, (true, false)),
        libc::F_OFD_SETLKW => locks::set(files, guest, fd, argument, (true, true)),
        libc::F_GETLK => locks::get(files, guest, fd, argument, (false, pid)).map(Outcome::Return),
        libc::F_OFD_GETLK => {
            locks::get(files, guest, fd, argument, (true, pid)).map(Outcome::Return)
        }
        _ => plain(files, fd, command, argument).map(Outcome::Return),
    }
}

/// The commands that never wait and are of no lock.
fn plain(files: &mut Files, fd: u64, command: u64, argument: u64) -> Value {
    let descriptor = files.descriptor(fd)?;
    match int(command) {
        libc::F_DUPFD => files.duplicate(fd, argument, false),
        libc::F_DUPFD_CLOEXEC => files.duplicate(fd, argument, true),
        libc::F_GETFD => Ok(i64::from(descriptor.close_on_exec)),
        libc::F_SETFD => set_close_on_exec(files, fd, argument & 1 != 0),
        libc::F_GETFL => {
            let file = files.get(fd)?;
            let path = file.flags & O_PATH != 0;
            let large = match path || was_made(&file.kind) {
                true => 0,
                false => O_LARGEFILE,
            };
            Ok(i64::from(file.flags | large))
        }
        libc::F_SETFL => {
            let file = files.get_mut(fd)?;
            file.flags = file.flags & !SETTABLE | flags(argument) & SETTABLE;
            Ok(0)
        }
        // Whom a signal of readiness goes to: there is none.
        libc::F_SETOWN | libc::F_GETOWN => Ok(0),
        libc::F_ADD_SEALS => transfer::add_seals(files, fd, flags(argument)),
        libc::F_GET_SEALS => transfer::seals(files, fd),
        libc::F_GETPIPE_SZ | libc::F_SETPIPE_SZ => {
            let pipe = match files.get(fd)?.kind {
                Kind::PipeReader(pipe) | Kind::PipeWriter(pipe) | Kind::PipeBoth(pipe) => pipe,
                _ => return Err(Errno::BADF),
            };
            if int(command) == libc::F_GETPIPE_SZ {
                return Ok(count(files.pipes.capacity(pipe)));
            }
            let wanted = usize::try_from(flags(argument)).map_err(|_| Errno::INVAL)?;
            files.pipes.set_capacity(pipe, wanted).map(count)
        }
        // What is to be told of a folder's changes: nobody else makes any.
        libc::F_NOTIFY => match files.get(fd)?.kind {
            Kind::Folder(..) => Ok(0),
            _ => Err(Errno::NOTDIR),
        },
        _ => Err(Errno::INVAL),
    }
}

/// Whether something came about by another call than open(2), which is what marks files as large.
fn was_made(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::PipeReader(_)
            | Kind::PipeWriter(_)
            | Kind::Socket(_)
            | Kind::Epoll(_)
            | Kind::EventFd(_)
            | Kind::TimerFd(_)
            | Kind::SignalFd(_)
            | Kind::Pidfd(_)
            | Kind::Inotify
    )
}

/// ioctl(2). Nothing is a terminal.
pub fn ioctl(
    files: &mut Files,
    guest: &mut Guest<'_>,
    fd: u64,
    command: u64,
    argument: u64,
) -> Value {
    const FIONREAD: u32 = 0x541b;
    const FIONBIO: u32 = 0x5421;
    const FIOASYNC: u32 = 0x5452;
    const FIONCLEX: u32 = 0x5450;
    const FIOCLEX: u32 = 0x5451;
    files.descriptor(fd)?;
    match flags(command) {
        FIONCLEX => set_close_on_exec(files, fd, false),
        FIOCLEX => set_close_on_exec(files, fd, true),
        // No signal tells of readiness: whoever asks for one looks by itself, too.
        FIOASYNC => Ok(0),
        FIONBIO => {
            let on = guest.read_u32(argument)? != 0;
            let file = files.get_mut(fd)?;
            file.flags = if on {
                file.flags | O_NONBLOCK
            } else {
                file.flags & !O_NONBLOCK
            };
            Ok(0)
        }
        FIONREAD => {
            let file = files.get(fd)?;
            let left = match &file.kind {
                Kind::PipeReader(pipe) | Kind::PipeBoth(pipe) => length(files.pipes.len(*pipe)),
                Kind::Socket(id) => length(files.sockets.readable(*id)?),
                Kind::File(_) | Kind::Text(_) | Kind::Node(..) => {
                    crate::linux::files::io::size(files, &file.kind)?.saturating_sub(file.offset)
                }
                _ => return Err(Errno::NOTTY),
            };
            let left = u32::try_from(left).unwrap_or(i32::MAX.cast_unsigned());
            guest.write(argument, Layout::<4>::new().u32(0, left).done())?;
            Ok(0)
        }
        command if matches!(files.get(fd)?.kind, Kind::Socket(_)) => {
            let outside = files.sockets.outgoing.is_allowed();
            interfaces::ioctl(guest, outside, command, argument)
        }
        _ => Err(Errno::NOTTY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{Machine, SCRATCH};
    use syscalls::Sysno;

    #[test]
    fn duplicates_share_flags() {
        let mut machine = Machine::new(Vec::new());
        assert_eq!(machine.call(Sysno::dup, &[1]), 3);
        let (get, set) = (libc::F_GETFL as u64, libc::F_SETFL as u64);
        assert_eq!(
            machine.call(Sysno::fcntl, &[3, set, u64::from(O_NONBLOCK)]),
            0
        );
        assert_eq!(
            machine.call(Sysno::fcntl, &[1, get]),
            i64::from(O_NONBLOCK | O_LARGEFILE | 1)
        );
        assert_eq!(
            machine.call(Sysno::fcntl, &[2, get]),
            i64::from(O_LARGEFILE | 1)
        );
        let off = machine.put(0, &[0; 4]);
        assert_eq!(machine.call(Sysno::ioctl, &[1, 0x5421, off]), 0);
        assert_eq!(
            machine.call(Sysno::fcntl, &[3, get]),
            i64::from(O_LARGEFILE | 1)
        );
        assert_eq!(machine.call(Sysno::ioctl, &[1, 0x5401, SCRATCH]), -25);
    }

    /// Differences of kinds of owners are in tests/guests/linux/locks.c.
    #[test]
    fn locks_are_granted_as_long_as_there_is_room() {
        let mut machine = Machine::new(vec!["/dev".into()]);
        let path = machine.put_str(1, "/dev/zero");
        let fd = machine.call(Sysno::open, &[path, 2]) as u64;
        let set = libc::F_SETLK as u64;
        let range = |machine: &mut Machine, start: u64| {
            let lock = Layout::<32>::new().u16(0, 1).u64(8, start).u64(16, 1);
            machine.put(0, lock.done())
        };
        for i in 0..1024 {
            let lock = range(&mut machine, i * 2);
            assert_eq!(machine.call(Sysno::fcntl, &[fd, set, lock]), 0);
        }
        let lock = range(&mut machine, 5000);
        assert_eq!(machine.call(Sysno::fcntl, &[fd, set, lock]), -37);
        assert_eq!(machine.call(Sysno::fcntl, &[fd, set, 0]), -14);
        assert_eq!(machine.call(Sysno::fcntl, &[fd, 9999]), -22);
        assert_eq!(machine.call(Sysno::close, &[fd]), 0);
        let fd = machine.call(Sysno::open, &[path, 2]) as u64;
        let lock = range(&mut machine, 5000);
        assert_eq!(machine.call(Sysno::fcntl, &[fd, set, lock]), 0);
    }
}
