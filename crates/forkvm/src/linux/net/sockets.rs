//! The network: denied. Programs are told so once, on standard error, and by the error that says it.

use rustix::io::Errno;

use crate::linux::abi::Guest;
use crate::linux::files::fds::Files;
use crate::linux::told::{Told, Topic};

/// socket(2), socketpair(2): no address family is there.
pub fn make(guest: &mut Guest<'_>, told: &mut Told, family: i32) -> Errno {
    // AF_UNIX is what resolvers and loggers try first, and do without; the others are meant.
    if family != libc::AF_UNIX {
        told.tell(Topic::Network, guest);
    }
    Errno::AFNOSUPPORT
}

/// Calls on sockets: an open descriptor is none.
pub fn not_one(files: &Files, fd: u64) -> Errno {
    files.get(fd).map_or_else(|errno| errno, |_| Errno::NOTSOCK)
}

#[cfg(test)]
mod tests {
    use crate::linux::testing::Machine;
    use syscalls::Sysno;

    #[test]
    fn there_is_no_network() {
        let mut machine = Machine::new(Vec::new());
        assert_eq!(machine.call(Sysno::socket, &[1, 1, 0]), -97);
        assert!(machine.host.stderr.is_empty());
        assert_eq!(machine.call(Sysno::socket, &[2, 1, 0]), -97);
        assert_eq!(machine.call(Sysno::socket, &[10, 1, 0]), -97);
        assert_eq!(
            String::from_utf8_lossy(&machine.host.stderr)
                .lines()
                .count(),
            1
        );
        assert_eq!(machine.call(Sysno::connect, &[1, 0, 0]), -88);
        assert_eq!(machine.call(Sysno::connect, &[7, 0, 0]), -9);
    }
}
