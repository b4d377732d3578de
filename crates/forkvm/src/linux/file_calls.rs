//! The table's part for calls that change files and folders: which function, and which of its arguments.

use syscalls::Sysno;

use crate::linux::abi::{Guest, HERE, Value, flags};
use crate::linux::files::{attributes, change, stat};
use crate::linux::state::Linux;

/// The calls that change files and folders.
pub fn change(linux: &mut Linux, guest: &mut Guest<'_>, number: Sysno, args: [u64; 6]) -> Value {
    let Linux {
        shared,
        files,
        process,
        tasks,
        ..
    } = linux;
    files.overlay.owner = tasks.ids().owner();
    let [a, b, c, d, e, _] = args;
    let made = |mode: u64| flags(mode) & !process.umask();
    let owner = |uid: u64, gid: u64| attributes::Set::Owner(flags(uid), flags(gid));
    let nofollow = flags(stat::NOFOLLOW);
    match number {
        Sysno::mkdir => change::mkdir(shared, files, guest, (HERE, a), made(b)),
        Sysno::mkdirat => change::mkdir(shared, files, guest, (a, b), made(c)),
        Sysno::mknod => change::mknod(shared, files, guest, (HERE, a), made(b)),
        Sysno::mknodat => change::mknod(shared, files, guest, (a, b), made(c)),
        Sysno::symlink => change::symlink(shared, files, guest, a, (HERE, b)),
        Sysno::symlinkat => change::symlink(shared, files, guest, a, (b, c)),
        Sysno::link => change::link(shared, files, guest, ((HERE, a), (HERE, b)), 0),
        Sysno::linkat => change::link(shared, files, guest, ((a, b), (c, d)), flags(e)),
        Sysno::unlink => change::unlink(shared, files, guest, (HERE, a), 0),
        Sysno::rmdir => change::unlink(shared, files, guest, (HERE, a), change::AT_REMOVEDIR),
        Sysno::unlinkat => change::unlink(shared, files, guest, (a, b), flags(c)),
        Sysno::rename => change::rename(shared, files, guest, ((HERE, a), (HERE, b)), 0),
        Sysno::renameat => change::rename(shared, files, guest, ((a, b), (c, d)), 0),
        Sysno::renameat2 => change::rename(shared, files, guest, ((a, b), (c, d)), flags(e)),
        Sysno::truncate => attributes::truncate(shared, files, guest, a, b),
        Sysno::ftruncate => attributes::ftruncate(shared, files, a, b),
        Sysno::fallocate => attributes::fallocate(shared, files, a, (b, c, d)),
        Sysno::fchmod => attributes::set_of(shared, files, a, attributes::Set::Mode(flags(b))),
        Sysno::fchown => attributes::set_of(shared, files, a, owner(b, c)),
        Sysno::utimensat | Sysno::futimesat if b == 0 => {
            let times = if number == Sysno::utimensat {
                attributes::read_times(guest, c)?
            } else {
                attributes::read_old_times(guest, c, true)?
            };
            attributes::set_of(shared, files, a, times)
        }
        _ => {
            let (at, how, what) = match number {
                Sysno::chmod => ((HERE, a), 0, attributes::Set::Mode(flags(b))),
                Sysno::fchmodat => ((a, b), 0, attributes::Set::Mode(flags(c))),
                Sysno::chown => ((HERE, a), 0, owner(b, c)),
                Sysno::lchown => ((HERE, a), nofollow, owner(b, c)),
                Sysno::fchownat => ((a, b), flags(e), owner(c, d)),
                Sysno::utime => ((HERE, a), 0, attributes::read_old_times(guest, b, false)?),
                Sysno::utimes => ((HERE, a), 0, attributes::read_old_times(guest, b, true)?),
                Sysno::futimesat => ((a, b), 0, attributes::read_old_times(guest, c, true)?),
                _ => ((a, b), flags(d), attributes::read_times(guest, c)?),
            };
            attributes::set_at(shared, files, guest, at, how, what)
        }
    }
}
