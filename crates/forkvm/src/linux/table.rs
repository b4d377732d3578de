//! The table of system calls: number to function.

use rustix::io::Errno;
use syscalls::Sysno;

use crate::linux::abi::{Guest, HERE, Reply, flags, int};
use crate::linux::call::{Call, Outcome};
use crate::linux::files::pieces::{Pieces, Wishes};
use crate::linux::files::{
    control, fds, file_system, folders, hints, io, locks, open, pipe_calls, poll, reports,
    shared_maps, splice, stat, state_file, transfer,
};
use crate::linux::net::table as net;
use crate::linux::state::Linux;
use crate::linux::tasks::signals::awaited;
use crate::linux::tasks::{delivery, futex, ids, pidfd, signals, table, threads};
use crate::linux::{file_calls, memory_calls, process, signal_calls, time, trace};
use crate::memory::user::UserMemory;
use crate::random::Random;
use crate::request::Host;

impl Linux {
    /// Carries out one system call. Never panics, whatever the arguments, and never waits for anything but the host's file
    /// systems: one that does not answer (NFS without its server) holds the thread, past the request's deadline too.
    /// Its work is bounded by [`crate::linux::abi::MOST_BYTES`] or by one pass over the program's memory.
    pub fn call(
        &mut self,
        call: Call,
        memory: &mut dyn UserMemory,
        host: &mut dyn Host,
        random: &mut Random,
    ) -> Outcome {
        self.pump_outside();
        let outcome = self.call_traced(call, memory, host, random);
        // What it has sent is not to wait for the next one.
        self.pump_outside();
        outcome
    }

    fn call_traced(
        &mut self,
        call: Call,
        memory: &mut dyn UserMemory,
        host: &mut dyn Host,
        random: &mut Random,
    ) -> Outcome {
        if !host.traces() || memory.space().is_none() {
            return self.call_again(call, memory, host, random);
        }
        // Before the call, which may change what it names.
        let made = trace::call(self.tasks.tid(), &call, memory);
        let outcome = self.call_again(call, memory, host, random);
        host.trace(&trace::with_result(&made, &outcome));
        outcome
    }

    /// The same without a trace of it: a call that could not be carried out before.
    pub(super) fn call_again(
        &mut self,
        call: Call,
        memory: &mut dyn UserMemory,
        host: &mut dyn Host,
        random: &mut Random,
    ) -> Outcome {
        let guest = &mut Guest {
            memory,
            host,
            random,
        };
        let maps = self.files.overlay.has_shared() && uses_files(call.number);
        if maps {
            shared_maps::take_over(&mut self.files, guest);
        }
        let outcome = dispatch(self, guest, call);
        if self.files.sockets.outgoing.has_lines() {
            let lines = self.files.sockets.outgoing.take_lines();
            self.told.tell_lines(lines, guest);
        }
        if self.files.written.has_refused() {
            let line = self.files.written.take_line();
            self.told.tell_lines(line, guest);
        }
        if maps {
            shared_maps::show(&mut self.files, guest);
        }
        if self.tasks.progress() != 0 && !matches!(outcome, Outcome::Block(_)) {
            self.tasks.current().progress = 0;
        }
        if guest.memory.space().is_none() && self.signal_is_due() {
            return self.without_handlers(guest, outcome);
        }
        outcome
    }

    /// What comes of a call after which a signal would be delivered, where no handler is ever run.
    fn without_handlers(&mut self, guest: &mut Guest<'_>, outcome: Outcome) -> Outcome {
        match delivery::next(&mut self.signals, &mut self.tasks) {
            delivery::Next::GoOn | delivery::Next::MakeAgain(_) => outcome,
            delivery::Next::Die(signal) => Outcome::Killed(signal),
            delivery::Next::Handle(handling) => {
                let (signal, handler) = (handling.signal.number, handling.action.handler);
                guest.note(&format!(
                    "signal {signal} ends the program: running its handler at {handler:#x} is not supported"
                ));
                Outcome::Killed(signal)
            }
        }
    }
}

/// Whether a call may look at what is in a file, change it, or take a mapping of it away.
fn uses_files(number: u64) -> bool {
    let number = usize::try_from(number).ok().and_then(Sysno::new);
    !matches!(
        number,
        Some(
            Sysno::futex
                | Sysno::clock_gettime
                | Sysno::gettid
                | Sysno::getpid
                | Sysno::sched_yield
                | Sysno::rt_sigprocmask
                | Sysno::rt_sigreturn
                | Sysno::fcntl
                | Sysno::poll
                | Sysno::ppoll
                | Sysno::nanosleep
                | Sysno::clock_nanosleep
                | Sysno::getrandom
                | Sysno::mprotect
        )
    )
}

/// Carries out one call. Calls that are not in the table give ENOSYS.
fn dispatch(linux: &mut Linux, guest: &mut Guest<'_>, call: Call) -> Outcome {
    let Some(number) = usize::try_from(call.number).ok().and_then(Sysno::new) else {
        return crate::linux::abi::failed(Errno::NOSYS);
    };
    let args = call.args;
    let [a, b, c, d, ..] = args;
    let Linux {
        shared,
        heap,
        files,
        signals,
        process,
        told,
        clocks,
        timers: _,
        program_break: _,
        tasks,
    } = linux;
    let stack = process.stack.clone();
    let limits = (&stack, files.most());

    match number {
        // Memory.
        Sysno::brk
        | Sysno::mmap
        | Sysno::munmap
        | Sysno::mremap
        | Sysno::mprotect
        | Sysno::madvise
        | Sysno::mincore
        | Sysno::msync
        | Sysno::mlock
        | Sysno::mlock2
        | Sysno::munlock
        | Sysno::mlockall
        | Sysno::munlockall => memory_calls::call(linux, guest, number, args).into(),

        // Reading and writing.
        Sysno::read => net::read(linux, guest, a, &Pieces::one(b, c), None).into(),
        Sysno::pread64 => net::read(linux, guest, a, &Pieces::one(b, c), Some(d)).into(),
        Sysno::readv | Sysno::preadv | Sysno::preadv2 => {
            vectored(linux, guest, number, args).into()
        }
        Sysno::write => net::write(linux, guest, a, &Pieces::one(b, c), None).into(),
        Sysno::pwrite64 => net::write(linux, guest, a, &Pieces::one(b, c), Some(d)).into(),
        Sysno::writev | Sysno::pwritev | Sysno::pwritev2 => {
            vectored(linux, guest, number, args).into()
        }
        Sysno::lseek => io::lseek(files, a, b, c).into(),
        Sysno::fsync | Sysno::fdatasync => {
            let stored = shared
                .state
                .as_ref()
                .map_or(Ok(()), |state| state.store(files, a));
            let data = number == Sysno::fdatasync;
            stored.and_then(|()| hints::sync(files, a, data)).into()
        }
        Sysno::syncfs => hints::sync_system(files, a).into(),
        Sysno::fadvise64 => hints::advise(files, a, c, d).into(),
        Sysno::readahead => hints::read_ahead(files, a).into(),
        Sysno::flock => locks::flock(files, a, b).into(),
        Sysno::sync => {
            shared.roots.sync_volumes();
            ok(0)
        }
        Sysno::pipe => pipe_calls::pipe2(files, guest, a, 0).into(),
        Sysno::pipe2 => pipe_calls::pipe2(files, guest, a, b).into(),
        Sysno::poll => poll::poll((files, awaited(signals, tasks)), guest, a, b, c).into(),
        Sysno::ppoll => signals::mask_for_call(tasks, guest, d, args[4])
            .and_then(|()| poll::ppoll((files, awaited(signals, tasks)), guest, a, b, c))
            .into(),
        Sysno::select => poll::select(
            (files, awaited(signals, tasks)),
            guest,
            args,
            poll::Timeout::Timeval,
        )
        .into(),
        Sysno::pselect6 => poll::mask_of_pselect(guest, args[5])
            .and_then(|(mask, size)| signals::mask_for_call(tasks, guest, mask, size))
            .and_then(|()| {
                poll::select(
                    (files, awaited(signals, tasks)),
                    guest,
                    args,
                    poll::Timeout::Timespec,
                )
            })
            .into(),

        // Descriptors.
        Sysno::close => state_file::close(shared.state.as_ref(), files, a).into(),
        Sysno::close_range => fds::close_range(files, a, b, c).into(),
        Sysno::dup => fds::dup(files, a).into(),
        Sysno::dup2 => fds::dup2(files, a, b).into(),
        Sysno::dup3 => fds::dup3(files, a, b, c).into(),
        Sysno::fcntl => control::fcntl(files, guest, tasks.pid(), [a, b, c]).into(),
        Sysno::ioctl => control::ioctl(files, guest, a, b, c).into(),

        // Files and folders.
        Sysno::open | Sysno::openat | Sysno::creat => {
            let creat = u64::from(fds::O_CREAT | fds::O_TRUNC | 1);
            let args = match number {
                Sysno::open => [HERE, a, b, c],
                Sysno::openat => [a, b, c, d],
                _ => [HERE, a, creat, b],
            };
            let seen = reports::Seen {
                process,
                heap,
                tasks,
                clocks,
            };
            files.overlay.owner = tasks.ids().owner();
            open::openat(shared, &seen, files, guest, args).into()
        }
        Sysno::fstat => stat::fstat(files, guest, a, b).into(),
        Sysno::stat => stat::fstatat(shared, files, guest, [HERE, a, b, 0, 0, 0]).into(),
        Sysno::lstat => {
            stat::fstatat(shared, files, guest, [HERE, a, b, stat::NOFOLLOW, 0, 0]).into()
        }
        Sysno::newfstatat => stat::fstatat(shared, files, guest, args).into(),
        Sysno::statx => stat::statx(shared, files, guest, args).into(),
        Sysno::access => stat::access(shared, files, guest, [HERE, a, b, 0, 0, 0]).into(),
        Sysno::faccessat => stat::access(shared, files, guest, [a, b, c, 0, 0, 0]).into(),
        Sysno::faccessat2 => stat::access(shared, files, guest, args).into(),
        Sysno::readlink => {
            stat::readlink(shared, process, files, guest, [HERE, a, b, c, 0, 0]).into()
        }
        Sysno::readlinkat => stat::readlink(shared, process, files, guest, args).into(),
        Sysno::getdents64 => folders::getdents64(shared, files, guest, a, b, c).into(),
        Sysno::getcwd => folders::getcwd(files, guest, a, b).into(),
        Sysno::chdir => folders::chdir(shared, files, guest, a).into(),
        Sysno::fchdir => folders::fchdir(files, a).into(),
        Sysno::umask => ok(process::umask(process, a)),
        Sysno::statfs if shared.has_overlay() => {
            file_system::statfs(shared, files, guest, a, b).into()
        }
        Sysno::fstatfs if shared.has_overlay() => file_system::fstatfs(files, guest, a, b).into(),
        Sysno::memfd_create if shared.has_overlay() => {
            files.overlay.owner = tasks.ids().owner();
            transfer::memfd_create(files, guest, a, b).into()
        }
        Sysno::sendfile if shared.has_overlay() => {
            transfer::sendfile(files, tasks, guest, [a, b, c, d]).into()
        }
        Sysno::copy_file_range if shared.has_overlay() => {
            transfer::copy_file_range(files, guest, args).into()
        }
        Sysno::splice if shared.has_overlay() => splice::splice(files, tasks, guest, args).into(),
        Sysno::tee if shared.has_overlay() => splice::tee(files, tasks, [a, b, c, d]).into(),
        Sysno::vmsplice if shared.has_overlay() => {
            splice::vmsplice(files, tasks, guest, [a, b, c, d]).into()
        }
        Sysno::sync_file_range if shared.has_overlay() => {
            hints::sync_range(files, [a, b, c, d]).into()
        }
        Sysno::inotify_init if shared.has_overlay() => transfer::inotify_init(files, 0).into(),
        Sysno::inotify_init1 if shared.has_overlay() => transfer::inotify_init(files, a).into(),
        Sysno::inotify_add_watch if shared.has_overlay() => {
            transfer::inotify_add(shared, files, guest, [a, b, c]).into()
        }
        Sysno::inotify_rm_watch if shared.has_overlay() => {
            transfer::inotify_remove(files, a, b).into()
        }
        Sysno::getxattr
        | Sysno::lgetxattr
        | Sysno::fgetxattr
        | Sysno::listxattr
        | Sysno::llistxattr
        | Sysno::flistxattr
        | Sysno::setxattr
        | Sysno::lsetxattr
        | Sysno::fsetxattr
        | Sysno::removexattr
        | Sysno::lremovexattr
        | Sysno::fremovexattr
            if shared.has_overlay() =>
        {
            file_system::xattr(shared, files, guest, number, args).into()
        }

        // Changing files and folders.
        Sysno::mkdir
        | Sysno::mkdirat
        | Sysno::mknod
        | Sysno::mknodat
        | Sysno::symlink
        | Sysno::symlinkat
        | Sysno::link
        | Sysno::linkat
        | Sysno::unlink
        | Sysno::unlinkat
        | Sysno::rmdir
        | Sysno::rename
        | Sysno::renameat
        | Sysno::renameat2
        | Sysno::chmod
        | Sysno::fchmod
        | Sysno::fchmodat
        | Sysno::chown
        | Sysno::lchown
        | Sysno::fchown
        | Sysno::fchownat
        | Sysno::truncate
        | Sysno::ftruncate
        | Sysno::fallocate
        | Sysno::utime
        | Sysno::utimes
        | Sysno::utimensat
        | Sysno::futimesat => file_calls::change(linux, guest, number, args).into(),

        // Time.
        Sysno::clock_gettime => time::clock_gettime(clocks, guest, a, b).into(),
        // The clocks are the host's.
        Sysno::clock_settime | Sysno::settimeofday => refuse(Errno::PERM),
        Sysno::clock_getres => time::clock_getres(guest, a, b).into(),
        Sysno::gettimeofday => time::gettimeofday(guest, a, b).into(),
        Sysno::time => time::time(guest, a).into(),
        Sysno::times => time::times(clocks, guest, a).into(),
        Sysno::nanosleep => time::nanosleep(guest, a).into(),
        Sysno::clock_nanosleep => time::clock_nanosleep(clocks, guest, a, b, c).into(),
        Sysno::getitimer | Sysno::setitimer | Sysno::alarm => {
            signal_calls::timer(linux, guest, number, args).into()
        }

        // The process.
        Sysno::gettid => ok(i64::from(tasks.tid())),
        Sysno::getpid => {
            // It is called from where getpid(3) goes back to.
            let caller = guest.read_u64(call.rsp).ok();
            ok(i64::from(tasks.pid_for(caller)))
        }
        Sysno::getppid => ok(i64::from(tasks.parent())),
        Sysno::getpgid | Sysno::getsid if int(a) != 0 && !tasks.has(int(a)) => refuse(Errno::SRCH),
        Sysno::getpgrp | Sysno::getpgid | Sysno::getsid | Sysno::setsid => ok(1),
        Sysno::set_tid_address => {
            tasks.current().clear_child_tid = a;
            ok(i64::from(tasks.tid()))
        }
        Sysno::getuid
        | Sysno::geteuid
        | Sysno::getgid
        | Sysno::getegid
        | Sysno::getgroups
        | Sysno::getresuid
        | Sysno::getresgid => ids::call(&mut tasks.ids(), guest, number, args).into(),
        Sysno::setuid
        | Sysno::setgid
        | Sysno::setgroups
        | Sysno::setfsuid
        | Sysno::setfsgid
        | Sysno::setreuid
        | Sysno::setregid
        | Sysno::setresuid
        | Sysno::setresgid => process::change_ids(process, tasks, guest, number, args).into(),
        Sysno::uname => process::uname(guest, a).into(),
        Sysno::sysinfo => process::sysinfo(clocks, heap, guest, a).into(),
        Sysno::getrlimit => process::rlimit(guest, limits, a, 0, b).into(),
        Sysno::setrlimit => process::rlimit(guest, limits, a, b, 0).into(),
        Sysno::prlimit64 | Sysno::sched_getaffinity if !tasks.has(int(a)) => refuse(Errno::SRCH),
        Sysno::prlimit64 => process::rlimit(guest, limits, b, c, d).into(),
        Sysno::getrusage => process::getrusage(clocks, guest, a, b).into(),
        Sysno::sched_getaffinity => process::sched_getaffinity(guest, b, c).into(),
        Sysno::sched_yield if tasks.len() > 1 => Outcome::Yield,
        Sysno::sched_yield => ok(0),
        Sysno::getcpu => process::getcpu(guest, a, b).into(),
        Sysno::prctl => process::prctl(process, guest, args).into(),
        Sysno::arch_prctl => process::arch_prctl(a, b).into(),
        Sysno::capget => process::capget(guest, a, b).into(),
        // PER_LINUX; asking with 0xffffffff changes nothing.
        Sysno::personality if matches!(flags(a), 0 | u32::MAX) => ok(0),
        Sysno::personality => refuse(Errno::INVAL),
        Sysno::getrandom => process::getrandom(guest, a, b, c).into(),
        Sysno::exit if tasks.len() > 1 => Outcome::ExitThread(int(a) & 0xff),
        Sysno::exit | Sysno::exit_group => Outcome::Exit(int(a) & 0xff),

        // Signals.
        Sysno::rt_sigaction => signals::rt_sigaction(signals, tasks, guest, args).into(),
        Sysno::rt_sigprocmask => signals::rt_sigprocmask(tasks, guest, args).into(),
        Sysno::rt_sigpending => signals::rt_sigpending(signals, tasks, guest, a, b).into(),
        Sysno::rt_sigsuspend => signals::suspend(tasks, guest, Some((a, b))).into(),
        Sysno::pause => signals::suspend(tasks, guest, None).into(),
        Sysno::rt_sigtimedwait => signals::rt_sigtimedwait(signals, tasks, guest, args).into(),
        Sysno::sigaltstack => signals::sigaltstack(tasks, guest, call.rsp, a, b).into(),
        Sysno::kill
        | Sysno::tkill
        | Sysno::tgkill
        | Sysno::rt_sigqueueinfo
        | Sysno::rt_tgsigqueueinfo => signal_calls::send(linux, guest, number, args).into(),
        Sysno::pidfd_open => pidfd::open(files, tasks, a, b).into(),
        Sysno::pidfd_send_signal => {
            pidfd::send_signal(files, (signals, tasks), guest, [a, b, c, d]).into()
        }
        Sysno::rt_sigreturn if guest.memory.space().is_some() => Outcome::ReturnFromHandler,

        // Threads.
        Sysno::futex => futex::futex(tasks, clocks, guest, args).into(),
        Sysno::futex_waitv => {
            futex::wait_for_any(tasks, clocks, guest, [a, b, c, d, args[4]]).into()
        }
        Sysno::set_robust_list => futex::set_robust_list(tasks, a, b).into(),
        // MEMBARRIER_CMD_QUERY: no command is supported.
        Sysno::membarrier if int(a) == 0 => ok(0),
        Sysno::membarrier => refuse(Errno::INVAL),
        Sysno::clone => threads::clone(told, guest, args).into(),
        Sysno::clone3 => threads::clone3(told, guest, a, b).into(),
        Sysno::execve => threads::execve(told, guest, a, b, c).into(),
        Sysno::fork if guest.memory.space().is_some() => Outcome::Fork(None),
        Sysno::fork => refuse(threads::refuse_process(told, guest, "fork(2)")),
        Sysno::vfork => refuse(threads::refuse_process(told, guest, "vfork(2)")),
        Sysno::execveat => refuse(threads::refuse_process(told, guest, "execveat(2)")),
        Sysno::waitid => pidfd::waitid(files, a, b, d).into(),
        // WNOHANG, WUNTRACED, WCONTINUED, __WNOTHREAD, __WALL, __WCLONE.
        Sysno::wait4 if flags(c) & !0xe000_000b != 0 => refuse(Errno::INVAL),
        Sysno::wait4 => refuse(Errno::CHILD),

        // Newer C libraries ask at every start, and do without.
        Sysno::rseq => refuse(Errno::NOSYS),
        // How tasks are scheduled; sockets, and waiting for descriptors.
        _ => match table::call(linux, guest, number, args)
            .or_else(|| net::call(linux, guest, number, args))
        {
            Some(outcome) => outcome,
            // Not there: io_uring, and whatever Linux gets in the future.
            None => {
                let name = trace::name(call.number).unwrap_or("?");
                linux.told.tell_call(name, call.number, guest);
                refuse(Errno::NOSYS)
            }
        },
    }
}

fn ok(value: i64) -> Outcome {
    Outcome::Return(value)
}

fn refuse(errno: Errno) -> Outcome {
    crate::linux::abi::failed(errno)
}

/// readv(2), writev(2), and their forms with an offset.
fn vectored(linux: &mut Linux, guest: &mut Guest<'_>, number: Sysno, args: [u64; 6]) -> Reply {
    let [fd, vector, len, offset, _, how] = args;
    let pieces = Pieces::vector(guest, vector, len)?;
    let mut wishes = match number {
        Sysno::preadv | Sysno::pwritev => Wishes {
            offset: Some(offset),
            ..Default::default()
        },
        Sysno::preadv2 | Sysno::pwritev2 => Wishes::read(offset, how)?,
        _ => Wishes::default(),
    };
    let reads = matches!(number, Sysno::readv | Sysno::preadv | Sysno::preadv2);
    if wishes.append && !reads {
        let kind = &linux.files.get(fd)?.kind;
        wishes.offset = Some(io::size(&linux.files, kind)?);
    }
    let reply = match reads {
        true => net::read(linux, guest, fd, &pieces, wishes.offset),
        false => net::write(linux, guest, fd, &pieces, wishes.offset),
    };
    match reply {
        // What it has sent by now it says.
        Ok(Outcome::Block(_)) if wishes.now => match linux.tasks.progress() {
            0 => Err(Errno::AGAIN),
            done => Ok(Outcome::Return(done.cast_signed())),
        },
        Ok(Outcome::Return(done)) if wishes.syncs && !reads => {
            // Of what is no file there is nothing to be done.
            match hints::sync(&linux.files, fd, true) {
                Ok(_) | Err(Errno::INVAL) => Ok(Outcome::Return(done)),
                Err(errno) => Err(errno),
            }
        }
        reply => reply,
    }
}
