//! fcntl(2) and ioctl(2): what programs ask of a descriptor besides its bytes.

use rustix::io::Errno;

use crate::linux::abi::{Guest, Layout, Value, count, flags, int, length};
use crate::linux::files::fds::{Files, Kind, O_LARGEFILE, O_NONBLOCK, SETTABLE, set_close_on_exec};
use crate::linux::files::transfer;

/// fcntl(2). Locks are granted: nobody else is there to hold one, and forks see only what they may read.
pub fn fcntl(
    files: &mut Files,
    guest: &mut Guest<'_>,
    fd: u64,
    command: u64,
    argument: u64,
) -> Value {
    const F_UNLCK: u16 = 2;
    let descriptor = files.descriptor(fd)?;
    match int(command) {
        libc::F_DUPFD => files.duplicate(fd, argument, false),
        libc::F_DUPFD_CLOEXEC => files.duplicate(fd, argument, true),
        libc::F_GETFD => Ok(i64::from(descriptor.close_on_exec)),
        libc::F_SETFD => set_close_on_exec(files, fd, argument & 1 != 0),
        libc::F_GETFL => {
            let file = files.get(fd)?;
            let large = if was_made(&file.kind) { 0 } else { O_LARGEFILE };
            Ok(i64::from(file.flags | large))
        }
        libc::F_SETFL => {
            let file = files.get_mut(fd)?;
            file.flags = file.flags & !SETTABLE | flags(argument) & SETTABLE;
            Ok(0)
        }
        libc::F_GETLK | libc::F_OFD_GETLK => {
            guest.read::<32>(argument)?;
            guest.write(argument, &F_UNLCK.to_le_bytes())?;
            Ok(0)
        }
        libc::F_SETLK | libc::F_SETLKW | libc::F_OFD_SETLK | libc::F_OFD_SETLKW => {
            guest.read::<32>(argument)?;
            Ok(0)
        }
        // Whom a signal of readiness goes to: there is none.
        libc::F_SETOWN | libc::F_GETOWN => Ok(0),
        libc::F_ADD_SEALS => transfer::add_seals(files, fd, flags(argument)),
        libc::F_GET_SEALS => transfer::seals(files, fd),
        libc::F_GETPIPE_SZ
            if matches!(
                files.get(fd)?.kind,
                Kind::PipeReader(_) | Kind::PipeWriter(_)
            ) =>
        {
            Ok(count(crate::linux::files::pipes::CAPACITY))
        }
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
                Kind::PipeReader(pipe) => length(files.pipes.len(*pipe)),
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

    #[test]
    fn locks_are_granted() {
        let mut machine = Machine::new(Vec::new());
        let lock = machine.put(0, &[1; 32]);
        assert_eq!(
            machine.call(Sysno::fcntl, &[1, libc::F_SETLK as u64, lock]),
            0
        );
        assert_eq!(
            machine.call(Sysno::fcntl, &[1, libc::F_GETLK as u64, lock]),
            0
        );
        assert_eq!(machine.get(lock, 3), [2, 0, 1]);
        assert_eq!(
            machine.call(Sysno::fcntl, &[1, libc::F_SETLK as u64, 0]),
            -14
        );
        assert_eq!(machine.call(Sysno::fcntl, &[1, 9999]), -22);
    }
}
