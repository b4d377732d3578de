//! All state that the personality keeps for one machine.

use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::arch::context::Context;
use crate::arch::layout::XSAVE_LEN;
use crate::image::exec::{self, Command, ExecError, Features, Loaded, Placement};
use crate::linux::abi::Guest;
use crate::linux::call::{NewThread, Outcome, Retried, WaitOn};
use crate::linux::files::copies;
use crate::linux::files::fds::{Files, Kind};
use crate::linux::files::host_files::HostFiles;
use crate::linux::files::open::Executables;
use crate::linux::files::paths::{Absolute, Roots};
use crate::linux::files::poll;
use crate::linux::files::resolve::Shared;
use crate::linux::kept::Kept;
use crate::linux::memory::heap::{Full, Heap};
use crate::linux::memory::space::Break;
use crate::linux::net::allowed::Allowed;
use crate::linux::net::listening::MayListen;
use crate::linux::net::outgoing::Outgoing;
use crate::linux::process::Process;
use crate::linux::setup::{Setup, StateRight};
use crate::linux::tasks::delivery::{self, Handling};
use crate::linux::tasks::pending::Signal;
use crate::linux::tasks::signals::{self, SIGALRM, Signals, Target};
use crate::linux::tasks::task::{Blocked, State, Task, Tasks};
use crate::linux::tasks::timers::{self, Timers};
use crate::linux::tasks::{futex, pidfd, threads};
use crate::linux::time::{self, Ahead, Clocks};
use crate::linux::told::Told;
use crate::linux::trace;
use crate::memory::guest::GuestMemory;
use crate::memory::user::UserMemory;
use crate::random::Random;
use crate::request::Host;

/// The state the personality keeps for one machine.
#[derive(Debug, Clone)]
pub struct Linux {
    pub(super) shared: Arc<Shared>,
    pub(super) heap: Kept<Heap>,
    pub(super) files: Kept<Files>,
    pub(super) signals: Kept<Signals>,
    pub(super) process: Kept<Process>,
    pub(super) told: Kept<Told>,
    pub(super) clocks: Kept<Clocks>,
    pub(super) timers: Kept<Timers>,
    /// Of a program with an address space.
    pub(super) program_break: Kept<Break>,
    pub(super) tasks: Kept<Tasks>,
}

impl Linux {
    /// The state of a program that has not run yet. Opens the allowed paths; see [`Linux::unusable_paths`].
    pub fn new(setup: Setup) -> Self {
        let absolute = |path: &[u8]| Absolute::new(b"/", path);
        let directory = absolute(setup.current_working_directory.as_bytes());
        let unmodified = setup.whole_system;
        let mut roots = Roots::open(&setup.allowed_paths, unmodified);
        if unmodified {
            roots.start_in(directory.clone());
        }
        let writable = setup.writable_paths.iter();
        let shared = Shared {
            roots,
            writable: writable
                .map(|path| absolute(path.as_os_str().as_bytes()))
                .collect(),
            host_files: HostFiles::default(),
            random_addresses: setup.random_addresses,
            state: setup.state,
        };
        let mut files = Files::new(&directory.text(), setup.overlay_bytes, setup.volume_bytes);
        copies::make_places(&shared, &mut files);
        if let Some(state) = &shared.state {
            state.allow(&mut files, StateRight::Read);
        }
        files.sockets.may_listen = MayListen::new(setup.allowed_listen);
        files.sockets.outgoing = Outgoing::new(Allowed::new(setup.allowed_net));
        Self {
            heap: Kept::new(Heap::new(setup.heap)),
            files: Kept::new(files),
            signals: Kept::new(Signals::new()),
            process: Kept::new(Process::new(
                setup.executable.as_bytes(),
                setup.stack.clone(),
            )),
            told: Kept::new(Told::new()),
            clocks: Kept::new(Clocks::new()),
            timers: Kept::new(Timers::default()),
            program_break: Kept::new(Break::default()),
            tasks: Kept::new(Tasks::new()),
            shared: Arc::new(shared),
        }
    }

    /// It is the state of a program with an address space, as one that was loaded by [`Linux::exec`].
    #[cfg(test)]
    pub fn of_unmodified(&mut self) {
        self.files.of_unmodified();
    }

    /// Loads a program as execve(2) does, in place of the one before. What the process keeps, such as its open files, stays.
    pub fn exec(
        &mut self,
        memory: &mut GuestMemory,
        command: Command,
        random: &mut Random,
        features: Features,
    ) -> Result<Loaded, ExecError> {
        let mut files = Executables {
            shared: &self.shared,
            files: &self.files,
            running: &self.process.executable,
        };
        let program = exec::find(&mut files, command)?;
        let mut at_random = [0; 16];
        random.fill(&mut at_random);
        let ids = self.tasks.ids();
        let placement = Placement {
            random: self
                .shared
                .random_addresses
                .then(|| std::array::from_fn(|_| random.number())),
            at_random,
            ids: [
                ids.user.real,
                ids.user.effective,
                ids.group.real,
                ids.group.effective,
            ],
            features,
            xsave_len: XSAVE_LEN,
        };
        if let Some(mut space) = memory.address_space() {
            space.clear();
        }
        let texts = [
            program.command().arguments.clone(),
            program.command().environment.clone(),
        ];
        let loaded = program.load(memory, &placement)?;
        *self.program_break = Break {
            start: loaded.brk,
            now: loaded.brk,
        };
        self.process.exec(&loaded, at_random, &texts);
        self.forget_openings();
        self.tasks.start_anew();
        self.timers.forget_made();
        self.signals.forget_handlers();
        self.files.of_unmodified();
        self.files.close_on_exec();
        Ok(loaded)
    }

    /// The other tasks are over, and with them what they were opening.
    fn forget_openings(&mut self) {
        let tids: Vec<i32> = self.tasks.iter().map(|task| task.tid).collect();
        tids.into_iter().for_each(|tid| self.give_up_opening(tid));
    }

    /// The tasks.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// The tasks, to change.
    pub fn tasks_mut(&mut self) -> &mut Tasks {
        &mut self.tasks
    }

    /// Adds a thread that the current one makes. Gives its id, or an errno (negative).
    pub fn add_task(
        &mut self,
        memory: &mut dyn UserMemory,
        context: Context,
        thread: NewThread,
    ) -> i64 {
        let failed = |errno: Errno| -i64::from(errno.raw_os_error());
        // A pointer that is no good is found out before there is a thread; only these two are written to.
        if [thread.parent_tid, thread.child_tid]
            .into_iter()
            .flatten()
            .any(|address| !memory.can_write(address))
        {
            return failed(Errno::FAULT);
        }
        let Some(task) = self.tasks.add(context) else {
            return failed(Errno::AGAIN);
        };
        task.clear_child_tid = thread.clear_child_tid.unwrap_or(0);
        let tid = task.tid;
        for address in [thread.parent_tid, thread.child_tid].into_iter().flatten() {
            // It was writable just now.
            let _ = memory.write(address, &tid.to_le_bytes());
        }
        i64::from(tid)
    }

    /// Goes on as a child that fork(2) makes.
    pub fn become_child(&mut self, memory: &mut dyn UserMemory, child_tid: Option<u64>) {
        self.forget_openings();
        self.tasks.become_child();
        self.files.pids = self.tasks.pids();
        self.signals.forget_pending();
        *self.timers = Timers::default();
        if !self.files.locks.is_empty() {
            self.files.locks.forked();
        }
        if let Some(address) = child_tid {
            // As with Linux, a bad address is the child's own trouble.
            let _ = memory.write(address, &self.tasks.pid().to_le_bytes());
        }
    }

    /// Goes on as a fork of the frozen machine: see [`Tasks::become_fork`].
    pub fn become_fork(&mut self, seeds_anew: Vec<Range<u64>>) {
        self.tasks.become_fork(seeds_anew.into());
        self.files.pids = self.tasks.pids();
    }

    /// Gives a fork what is random about its start.
    pub fn renew_at_random(&self, memory: &mut dyn UserMemory, random: &mut Random) {
        self.process.renew_at_random(memory, random);
    }

    /// Says why there is no child.
    pub fn refuse_fork(
        &mut self,
        memory: &mut dyn UserMemory,
        host: &mut dyn Host,
        random: &mut Random,
    ) -> Errno {
        let guest = &mut Guest {
            memory,
            host,
            random,
        };
        threads::refuse_process(&mut self.told, guest, "fork(2)")
    }

    /// Ends the current task; there are others.
    pub fn end_task(
        &mut self,
        memory: &mut dyn UserMemory,
        host: &mut dyn Host,
        random: &mut Random,
    ) {
        let guest = &mut Guest {
            memory,
            host,
            random,
        };
        futex::ended(&mut self.tasks, guest);
        let tid = self.tasks.tid();
        if pidfd::is_known(&self.files, tid) {
            pidfd::ended(&mut self.files, tid);
        }
        self.tasks.remove_current();
    }

    /// Looks whether a task can run: one that waits makes its call again, if that could help.
    pub fn retry(
        &mut self,
        place: usize,
        now: Instant,
        memory: &mut dyn UserMemory,
        host: &mut dyn Host,
        random: &mut Random,
    ) -> Retried {
        let Some(&blocked) = self.tasks.iter().nth(place).and_then(Task::blocked) else {
            return Retried::Runnable;
        };
        let over = blocked.until.is_some_and(|until| until <= now);
        let result = match blocked.wait.on {
            _ if let Some(result) = blocked.woken => result,
            _ if self.interrupt(place, &blocked) => {
                let left = blocked
                    .until
                    .map(|until| until.saturating_duration_since(now));
                time::write_rest(memory, blocked.call, left);
                let tid = self.tasks.iter().nth(place).map_or(0, |task| task.tid);
                self.give_up_opening(tid);
                self.part_done(place).unwrap_or_else(delivery::interrupted)
            }
            WaitOn::Time | WaitOn::Futex { .. } | WaitOn::Futexes if over => blocked.wait.result,
            WaitOn::Time | WaitOn::Futex { .. } | WaitOn::Futexes => return Retried::Waits,
            WaitOn::Signal | WaitOn::Pipe | WaitOn::Descriptor => {
                let current = self.tasks.current_place();
                self.tasks.switch_to(place);
                let before = self.tasks.progress();
                let outcome = self.call_again(blocked.call, memory, host, random);
                let moved = self.tasks.progress() != before;
                self.tasks.switch_to(current);
                let left = blocked
                    .until
                    .map(|until| until.saturating_duration_since(now));
                match outcome {
                    Outcome::Return(value) => {
                        if let Some(left) = left {
                            poll::write_left(memory, blocked.call, left);
                        }
                        value
                    }
                    Outcome::Killed(signal) => return Retried::Killed(signal),
                    _ if over => {
                        poll::write_none(memory, blocked.call);
                        poll::write_left(memory, blocked.call, Duration::ZERO);
                        self.part_done(place).unwrap_or(blocked.wait.result)
                    }
                    _ if moved => return Retried::Moved,
                    _ => return Retried::Waits,
                }
            }
        };
        if host.traces() {
            let tid = self.tasks.iter().nth(place).map_or(0, |task| task.tid);
            host.trace(&trace::resumed(tid, &blocked.call, result));
        }
        if let Some(task) = self.tasks.at(place) {
            task.state = State::Runnable;
            task.context.regs.rax = result as u64;
        }
        Retried::Runnable
    }

    /// A task does not wait any more for the other end of a named pipe.
    fn give_up_opening(&mut self, tid: i32) {
        if self.files.pipes.are_awaited() {
            self.files.give_up_opening(tid);
        }
    }

    /// What a call returns that stops waiting with a part of its work done.
    fn part_done(&mut self, place: usize) -> Option<i64> {
        let progress = std::mem::take(&mut self.tasks.at(place)?.progress);
        i64::try_from(progress).ok().filter(|done| *done > 0)
    }

    /// Whether a signal ends a task's wait.
    fn interrupt(&mut self, place: usize, blocked: &Blocked) -> bool {
        let Some(task) = self.tasks.iter().nth(place) else {
            return false;
        };
        if !delivery::has_any(&self.signals, task) {
            return false;
        }
        let Some(task) = self.tasks.at(place) else {
            return false;
        };
        let interrupts = delivery::interrupts(&mut self.signals, task);
        // One that has done a part of it says so instead.
        if interrupts && task.progress == 0 {
            task.signals.interrupted = Some(blocked.call);
        }
        interrupts
    }

    /// Whether the current task has something to do about signals before it goes on.
    pub fn signal_is_due(&self) -> bool {
        let task = self.tasks.iter().nth(self.tasks.current_place());
        task.is_some_and(|task| delivery::is_due(&self.signals, task))
    }

    /// What the current task does next about signals.
    pub fn next_signal(&mut self) -> delivery::Next {
        delivery::next(&mut self.signals, &mut self.tasks)
    }

    /// What the current task does about a signal that its own instruction has caused; `None` if that ends it.
    pub fn fault(&mut self, signal: Signal) -> Option<Handling> {
        delivery::fault(&mut self.signals, &mut self.tasks, signal)
    }

    /// The program was frozen for so long: all that waits for a time does so for this much longer, and its clock has stood still.
    pub fn add_frozen(&mut self, by: Duration) {
        let any = self.tasks.next_deadline().is_some() || self.has_alarm();
        if any {
            self.tasks.shift_deadlines(by);
            self.signals.shift_alarm(by);
        }
        if self.timers.any() {
            self.timers.shift(by);
        }
        self.clocks.add_frozen(by);
        if self
            .files
            .all_open()
            .any(|file| matches!(file.kind, Kind::TimerFd(_)))
        {
            self.files.shift_timers(by);
        }
    }

    /// Whether a timer is to send a signal.
    pub fn has_alarm(&self) -> bool {
        self.signals.next_alarm().is_some() || self.timers.next(|_| true).is_some()
    }

    /// When the next signal of a timer is due that changes anything. Others are sent by the way, and counted, so that a
    /// short interval is no work.
    pub fn next_alarm(&self) -> Option<Instant> {
        let matters = |to| signals::matters(&self.signals, &self.tasks, to);
        let alarm = self.signals.next_alarm();
        let times = [
            alarm.filter(|_| matters((Target::Process, SIGALRM))),
            self.timers.next(matters),
        ];
        times.into_iter().flatten().min()
    }

    /// How far the program's clocks are ahead of the host's.
    pub fn clocks_ahead(&self) -> Ahead {
        self.clocks.ahead()
    }

    /// All tasks have waited for so long.
    pub fn add_idle(&mut self, time: Duration) {
        self.clocks.add_idle(time);
    }

    /// Sends the signals that are due by now.
    pub fn tick(&mut self, now: Instant) {
        if self.signals.next_alarm().is_some_and(|at| at <= now) {
            signals::tick(&mut self.signals, &mut self.tasks, now);
        }
        if self.timers.next(|_| true).is_some_and(|at| at <= now) {
            let used = self.clocks.used();
            let to = (&mut *self.signals, &mut *self.tasks);
            timers::tick(&mut self.timers, to, now, used);
        }
    }

    /// Why nothing will ever end a wait of all tasks.
    pub fn why_all_wait(&self) -> &'static str {
        self.tasks
            .iter()
            .find_map(Task::blocked)
            .map_or("nothing is left to run", |blocked| {
                blocked.wait.on.why_never()
            })
    }

    /// The names of the calls that the program made and that are not there.
    pub fn unsupported(&self) -> Vec<&'static str> {
        self.told.calls().filter_map(trace::name).collect()
    }

    /// Whether [`Linux::unsupported`] has other names than the master's, which this is a clone of.
    pub fn lacks_more_than(&self, master: &Self) -> bool {
        self.told.differs_from(&master.told)
    }

    /// A connection begins: what was written to the host's files before is not its doing.
    pub fn begin_connection(&mut self) {
        if self.files.written.any() {
            self.files.written.begin();
        }
    }

    /// Bytes that the machine has of files which its program has changed.
    pub fn file_memory(&self) -> u64 {
        let (limit, left) = self.files.overlay.bytes();
        limit.saturating_sub(left)
    }

    /// Whether the program may change files of the host.
    pub fn changes_host_files(&self) -> bool {
        self.shared.roots.has_volumes()
    }

    /// Allowed paths that could not be opened, and why: they do not exist for the program.
    pub fn unusable_paths(&self) -> impl Iterator<Item = (&std::path::Path, std::io::Error)> {
        self.shared
            .roots
            .unusable()
            .iter()
            .map(|(path, errno)| (path.as_path(), (*errno).into()))
    }

    /// The program is the storage that runs: it may write to its state file.
    pub fn may_store(&mut self) {
        self.set_state_right(StateRight::Write);
    }

    fn set_state_right(&mut self, right: StateRight) {
        if let Some(state) = &self.shared.state {
            state.allow(&mut self.files, right);
        }
    }

    /// Maps `len` bytes (rounded up to pages) of zeroed read-write memory for the engine's own use in this machine
    /// (a request's body). `None` if the heap is full.
    pub fn map_for_engine(&mut self, len: u64, memory: &mut dyn UserMemory) -> Option<u64> {
        crate::linux::memory::map_for_engine(&mut self.heap, memory, len)
    }

    /// Takes away what [`Linux::map_for_engine`] has given.
    pub fn unmap_for_engine(&mut self, address: u64, len: u64, memory: &mut dyn UserMemory) {
        crate::linux::memory::unmap_for_engine(&mut self.heap, memory, address, len);
    }

    /// Gets a master ready to be frozen: memory that the program had and freed is cleared now, once, so that no
    /// request has to clear (and dirty) it before using it again. To be called while the memory may still be written.
    pub fn before_freeze(&mut self, memory: &mut dyn UserMemory) -> Result<(), Full> {
        self.set_state_right(StateRight::None);
        self.heap.clear_free_pages(memory)
    }

    /// Makes this state equal to the master's it was cloned from. Copies only what changed since, into what is
    /// already allocated.
    pub fn restore_from(&mut self, master: &Self) {
        let Self {
            shared,
            heap,
            files,
            signals,
            process,
            told,
            clocks,
            timers,
            program_break,
            tasks,
        } = self;
        if !Arc::ptr_eq(shared, &master.shared) {
            *shared = Arc::clone(&master.shared);
        }
        heap.restore_from(&master.heap);
        files.restore_from(&master.files);
        signals.restore_from(&master.signals);
        process.restore_from(&master.process);
        told.restore_from(&master.told);
        clocks.restore_from(&master.clocks);
        timers.restore_from(&master.timers);
        program_break.restore_from(&master.program_break);
        tasks.restore_from(&master.tasks);
    }
}
