//! clone(2) and its relatives. Programs with an address space have threads; other processes there are none, and other
//! programs have one thread: more is refused with an error that libraries report well.

use rustix::io::Errno;

use crate::image::exec::Command;
use crate::linux::abi::{Guest, PAGE, Reply, USER_END, field_u64};
use crate::linux::call::{NewThread, Outcome};
use crate::linux::told::{Told, Topic};

const CLONE_VM: u64 = 0x100;
const CLONE_SIGHAND: u64 = 0x800;
const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_SETTLS: u64 = 0x8_0000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
const CLONE_CHILD_SETTID: u64 = 0x100_0000;
/// What a thread shares with its siblings; without any of these it would be another process.
const THREAD: u64 = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD;

/// Size of the first published `struct clone_args`, the least that clone3(2) takes, and of the present one.
const CLONE_ARGS_SIZE_VER0: u64 = 64;
const CLONE_ARGS_SIZE: u64 = 88;

/// Most arguments, and most entries of the environment, that execve(2) takes.
const MOST_TEXTS: usize = 32 << 10;
/// Most bytes of all of them.
const MOST_TEXT_BYTES: usize = 2 << 20;

fn refuse(told: &mut Told, guest: &mut Guest<'_>, what: Topic) -> Errno {
    told.tell(what, guest);
    match what {
        // pthread_create(3) reports it as it is; ENOSYS would make it try the next older call.
        Topic::Thread => Errno::AGAIN,
        _ => Errno::NOSYS,
    }
}

/// clone(2): flags, stack, where the thread's id goes, where the child's goes, TLS.
pub fn clone(told: &mut Told, guest: &mut Guest<'_>, args: [u64; 6]) -> Reply {
    let [how, stack, parent_tid, child_tid, tls, _] = args;
    make(told, guest, how, stack, parent_tid, child_tid, tls)
}

/// clone3(2), `struct clone_args`.
pub fn clone3(told: &mut Told, guest: &mut Guest<'_>, address: u64, size: u64) -> Reply {
    if size < CLONE_ARGS_SIZE_VER0 {
        return Err(Errno::INVAL);
    }
    if size > PAGE {
        return Err(Errno::TOOBIG);
    }
    let mut args = [0; CLONE_ARGS_SIZE as usize];
    let known = usize::try_from(size.min(CLONE_ARGS_SIZE)).unwrap_or(args.len());
    guest.memory.read(address, &mut args[..known])?;
    let field = |nth: usize| field_u64(&args, nth * 8);
    // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
    let stack = field(5).checked_add(field(6)).ok_or(Errno::INVAL)?;
    make(told, guest, field(0), stack, field(3), field(2), field(7))
}

fn make(
    told: &mut Told,
    guest: &mut Guest<'_>,
    how: u64,
    stack: u64,
    parent_tid: u64,
    child_tid: u64,
    tls: u64,
) -> Reply {
    let is_fork = how & (CLONE_THREAD | CLONE_VM | CLONE_VFORK) == 0;
    if is_fork && guest.memory.space().is_some() {
        return Ok(Outcome::Fork(
            (how & CLONE_CHILD_SETTID != 0).then_some(child_tid),
        ));
    }
    if how & CLONE_THREAD == 0 {
        let call = if how & CLONE_VFORK != 0 {
            "clone(2) with CLONE_VFORK, as posix_spawn(3) and system(3) make it,"
        } else {
            "clone(2) of a process"
        };
        return Err(refuse_process(told, guest, call));
    }
    if guest.memory.space().is_none() {
        return Err(refuse(told, guest, Topic::Thread));
    }
    if how & THREAD != THREAD {
        return Err(Errno::INVAL);
    }
    let wanted = |flag, value| (how & flag != 0).then_some(value);
    // As arch_prctl(2): the processor refuses some of these, and others are not the program's.
    if wanted(CLONE_SETTLS, tls).is_some_and(|tls| tls >= USER_END) {
        return Err(Errno::PERM);
    }
    Ok(Outcome::Clone(NewThread {
        stack: (stack != 0).then_some(stack),
        tls: wanted(CLONE_SETTLS, tls),
        parent_tid: wanted(CLONE_PARENT_SETTID, parent_tid),
        child_tid: wanted(CLONE_CHILD_SETTID, child_tid),
        clear_child_tid: wanted(CLONE_CHILD_CLEARTID, child_tid),
    }))
}

/// vfork(2), execveat(2), and fork(2) where no child can take the program's place.
pub fn refuse_process(told: &mut Told, guest: &mut Guest<'_>, call: &'static str) -> Errno {
    refuse(told, guest, Topic::Process(call))
}

/// execve(2)
pub fn execve(
    told: &mut Told,
    guest: &mut Guest<'_>,
    path: u64,
    arguments: u64,
    environment: u64,
) -> Reply {
    if guest.memory.space().is_none() {
        return Err(refuse_process(told, guest, "execve(2)"));
    }
    let mut bytes = 0;
    Ok(Outcome::Exec(Box::new(Command {
        path: guest.read_path(path)?,
        arguments: read_texts(guest, arguments, &mut bytes)?,
        environment: read_texts(guest, environment, &mut bytes)?,
    })))
}

/// A vector of strings that ends with a null pointer. A null vector is an empty one.
fn read_texts(guest: &Guest<'_>, mut at: u64, bytes: &mut usize) -> Result<Vec<Vec<u8>>, Errno> {
    let mut texts = Vec::new();
    if at == 0 {
        return Ok(texts);
    }
    loop {
        let text = guest.read_u64(at)?;
        if text == 0 {
            return Ok(texts);
        }
        if texts.len() >= MOST_TEXTS {
            return Err(Errno::TOOBIG);
        }
        let text = guest.read_string(text, 128 << 10, Errno::TOOBIG)?;
        *bytes += text.len();
        if *bytes > MOST_TEXT_BYTES {
            return Err(Errno::TOOBIG);
        }
        texts.push(text);
        at = at.checked_add(8).ok_or(Errno::FAULT)?;
    }
}

#[cfg(test)]
mod tests {
    use crate::linux::abi::Layout;
    use crate::linux::testing::Machine;
    use syscalls::Sysno;

    #[test]
    fn threads_and_processes_are_refused_and_explained_once() {
        let mut machine = Machine::new(Vec::new());
        let args = machine.put(0, Layout::<88>::new().u64(0, 0x3d0f00).done());
        assert_eq!(machine.call(Sysno::clone3, &[args, 88]), -11);
        assert_eq!(machine.call(Sysno::clone, &[0x3d0f00]), -11);
        assert_eq!(machine.call(Sysno::fork, &[]), -38);
        assert_eq!(machine.call(Sysno::vfork, &[]), -38);
        assert_eq!(machine.call(Sysno::execve, &[]), -38);
        assert_eq!(machine.call(Sysno::clone, &[17]), -38);
        assert_eq!(machine.call(Sysno::clone3, &[1, 88]), -14);
        assert_eq!(machine.call(Sysno::clone3, &[args, 8]), -22);
        let told = String::from_utf8_lossy(&machine.host.stderr);
        assert_eq!(told.matches("threads are not supported yet").count(), 1);
        assert_eq!(told.matches("other processes are not supported").count(), 1);
        assert_eq!(told.lines().count(), 2);
    }
}
