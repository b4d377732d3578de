//! System calls as text, in the manner of strace(1), for whoever wants to see what a program lacks.

use std::fmt::Write;

use syscalls::Sysno;

use crate::linux::abi::{int, length};
use crate::linux::call::{Call, Outcome};
use crate::memory::user::UserMemory;

/// Most bytes of a string that are shown.
const SHOWN: usize = 64;

/// The name of a call.
pub fn name(number: u64) -> Option<&'static str> {
    let number = usize::try_from(number).ok()?;
    Sysno::new(number).map(|number| number.name())
}

/// What the arguments of a call are: `s` a string, `b` a buffer whose length comes next, `d` a number, `n` an unsigned one,
/// `o` octal, `a` a folder's descriptor, `x` anything else.
fn arguments(number: Sysno) -> &'static str {
    match number {
        Sysno::open => "sxo",
        Sysno::openat => "asxo",
        Sysno::creat | Sysno::mkdir | Sysno::chmod => "so",
        Sysno::mkdirat | Sysno::fchmodat => "aso",
        Sysno::stat | Sysno::lstat | Sysno::statfs => "sx",
        Sysno::newfstatat => "asxx",
        Sysno::statx => "asxxx",
        Sysno::access => "so",
        Sysno::faccessat => "aso",
        Sysno::faccessat2 => "asox",
        Sysno::readlink => "sxn",
        Sysno::readlinkat => "asxn",
        Sysno::unlink | Sysno::rmdir | Sysno::chdir => "s",
        Sysno::unlinkat | Sysno::utimensat => "asx",
        Sysno::rename | Sysno::link | Sysno::symlink => "ss",
        Sysno::renameat | Sysno::renameat2 | Sysno::linkat => "asasx",
        Sysno::symlinkat => "sas",
        Sysno::truncate => "sn",
        Sysno::execve => "sxx",
        Sysno::memfd_create => "sx",
        Sysno::read | Sysno::recvfrom | Sysno::getdents64 => "dxn",
        Sysno::write | Sysno::sendto => "dbn",
        Sysno::pread64 => "dxnn",
        Sysno::pwrite64 => "dbnn",
        Sysno::lseek => "ddd",
        Sysno::close | Sysno::dup | Sysno::fsync | Sysno::fdatasync | Sysno::fchdir => "d",
        Sysno::exit | Sysno::exit_group | Sysno::umask | Sysno::alarm => "d",
        Sysno::dup2 | Sysno::ftruncate | Sysno::flock | Sysno::kill | Sysno::listen => "dd",
        Sysno::fstat | Sysno::fstatfs => "dx",
        Sysno::fcntl | Sysno::ioctl => "dxx",
        Sysno::mmap => "xnxxdn",
        Sysno::munmap | Sysno::set_robust_list => "xn",
        Sysno::mprotect | Sysno::madvise => "xnx",
        Sysno::brk | Sysno::set_tid_address | Sysno::sysinfo | Sysno::uname => "x",
        Sysno::futex => "xxdxxx",
        Sysno::getpid
        | Sysno::gettid
        | Sysno::getppid
        | Sysno::getuid
        | Sysno::geteuid
        | Sysno::getgid
        | Sysno::getegid
        | Sysno::sched_yield
        | Sysno::pause
        | Sysno::sync
        | Sysno::rt_sigreturn
        | Sysno::fork
        | Sysno::vfork => "",
        Sysno::poll => "xnd",
        Sysno::socket => "ddd",
        Sysno::bind | Sysno::connect => "dxn",
        Sysno::accept => "dxx",
        Sysno::accept4 => "dxxx",
        Sysno::setsockopt | Sysno::getsockopt => "dddxx",
        Sysno::epoll_ctl => "dddx",
        Sysno::epoll_wait | Sysno::epoll_pwait => "dxdd",
        Sysno::tgkill => "ddd",
        Sysno::rt_sigaction | Sysno::rt_sigprocmask => "dxxn",
        Sysno::clock_gettime | Sysno::clock_getres => "dx",
        Sysno::setuid | Sysno::setgid | Sysno::setfsuid | Sysno::setfsgid => "d",
        Sysno::getgroups | Sysno::setgroups => "dx",
        Sysno::setreuid | Sysno::setregid => "dd",
        Sysno::setresuid | Sysno::setresgid => "ddd",
        Sysno::getrandom => "xnx",
        Sysno::prlimit64 => "ddxx",
        _ => "xxxx",
    }
}

/// A call that a task makes, without its result.
pub fn call(tid: i32, call: &Call, memory: &dyn UserMemory) -> String {
    let number = usize::try_from(call.number).ok().and_then(Sysno::new);
    let mut text = format!("[{tid}] ");
    let Some(number) = number else {
        // Writing to a string does not fail.
        let _ = write!(text, "syscall_{}(", call.number);
        return text + ")";
    };
    text += number.name();
    text.push('(');
    let kinds = arguments(number);
    for (i, (kind, argument)) in kinds.chars().zip(call.args).enumerate() {
        if i > 0 {
            text += ", ";
        }
        let _ = match kind {
            'd' => write!(text, "{}", int(argument)),
            'n' => write!(text, "{argument}"),
            'o' => write!(text, "0{argument:o}"),
            'a' if int(argument) == libc::AT_FDCWD => write!(text, "AT_FDCWD"),
            'a' => write!(text, "{}", int(argument)),
            's' => {
                text += &string(memory, argument, None);
                Ok(())
            }
            'b' => {
                let len = call.args.get(i.saturating_add(1)).copied();
                text += &string(memory, argument, len);
                Ok(())
            }
            _ if argument == 0 => write!(text, "0"),
            _ => write!(text, "{argument:#x}"),
        };
    }
    text.push(')');
    text
}

/// What is at an address, to its NUL or so many bytes.
fn string(memory: &dyn UserMemory, address: u64, len: Option<u64>) -> String {
    if address == 0 && len.is_none() {
        return "NULL".into();
    }
    let most = len.map_or(SHOWN, |len| {
        usize::try_from(len).unwrap_or(SHOWN).min(SHOWN)
    });
    let mut bytes = Vec::new();
    let mut ended = len.is_some_and(|len| usize::try_from(len).is_ok_and(|len| len <= SHOWN));
    let places = (0..length(most)).map_while(|i| address.checked_add(i));
    for at in places {
        let mut byte = [0];
        if memory.read(at, &mut byte).is_err() {
            if bytes.is_empty() {
                return format!("{address:#x}");
            }
            break;
        }
        if len.is_none() && byte == [0] {
            ended = true;
            break;
        }
        bytes.extend(byte);
    }
    let more = if ended { "" } else { "…" };
    format!("\"{}\"{more}", bytes.escape_ascii())
}

/// A result as RAX has it.
fn value(result: i64) -> String {
    match i32::try_from(result) {
        Ok(errno @ -4095..=-1) => {
            let errno = syscalls::Errno::new(errno.saturating_neg());
            format!("-1 {}", errno.name().unwrap_or("E?"))
        }
        _ if result > 0xffff => format!("{result:#x}"),
        _ => result.to_string(),
    }
}

/// A call and what came of it.
pub fn with_result(made: &str, outcome: &Outcome) -> String {
    match outcome {
        Outcome::Return(result) => format!("{made} = {}", value(*result)),
        Outcome::Block(_) => format!("{made} waits"),
        Outcome::Clone(_) => format!("{made} = a thread"),
        Outcome::Exec(_) | Outcome::Exit(_) | Outcome::ExitThread(_) => made.into(),
        Outcome::Killed(signal) => format!("{made}: ended by signal {signal}"),
        _ => format!("{made} = 0"),
    }
}

/// A call that had to wait, and what came of it.
pub fn resumed(tid: i32, call: &Call, result: i64) -> String {
    let name = name(call.number).unwrap_or("?");
    format!("[{tid}] {name} resumed = {}", value(result))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{Machine, SCRATCH};

    fn text(machine: &Machine, number: Sysno, args: [u64; 6]) -> String {
        let made = Call {
            number: number.id() as u64,
            args,
            rsp: 0,
        };
        call(1, &made, &machine.memory)
    }

    #[test]
    fn calls_are_told_with_their_strings() {
        let mut machine = Machine::new(Vec::new());
        let path = machine.put_str(0, "/a \"b\"\n");
        assert_eq!(
            text(
                &machine,
                Sysno::openat,
                [libc::AT_FDCWD as u64, path, 0x241, 0o644, 0, 0]
            ),
            r#"[1] openat(AT_FDCWD, "/a \"b\"\n", 0x241, 0644)"#
        );
        let long = machine.put(1, &[b'x'; 100]);
        let made = text(&machine, Sysno::write, [1, long, 100, 0, 0, 0]);
        assert_eq!(made, format!("[1] write(1, \"{}\"…, 100)", "x".repeat(64)));
        // At the end of memory, and beyond.
        let end = SCRATCH + 64 * 4096;
        assert_eq!(
            text(&machine, Sysno::unlink, [end, 0, 0, 0, 0, 0]),
            format!("[1] unlink({end:#x})")
        );
        text(&machine, Sysno::unlink, [u64::MAX; 6]);
        text(&machine, Sysno::write, [u64::MAX; 6]);
        assert_eq!(
            with_result(&made, &Outcome::Return(-32)),
            format!("{made} = -1 EPIPE")
        );
    }
}
