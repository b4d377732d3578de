//! A program's storage: a machine that is never reset, which its requests call. One call at a time; who calls waits for its turn
//! within its own deadline, and runs the machine on its own thread.
//!
//! A call that crashes, or takes too long, leaves nothing that could be gone on with: the machine is thrown away, and another
//! fork of the frozen one takes its place, with the state of the last hand-over if there was one.

pub mod boot;
mod live;
pub mod owner;
mod tasks;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::call::stored::{NewTask, NotStored, StorageCall, Stored};
use crate::failure::Cause;
use crate::fork::ForkError;
use crate::master::Master;
use crate::master::handover::HandedOver;
use crate::memory::guest::GuestMemory;
use crate::pool::keeper::Keeper;
use crate::request::{Host, Quiet};
use crate::storage::live::Live;
use crate::storage::owner::StorageEvent;
pub use crate::storage::tasks::Tasks;
use crate::storage::tasks::{Performer, TaskHost};

/// How long calls fail at once after the storage could not be started.
const PAUSE: Duration = Duration::from_secs(1);

/// A program's storage.
#[derive(Debug)]
pub struct Storage {
    master: Arc<Master>,
    seat: Mutex<Seat>,
    /// Somebody may go on who waits for another machine.
    changed: Condvar,
    tasks: Arc<Tasks>,
    /// The state that it has from the storage before.
    handed_over: Mutex<Option<Arc<[u8]>>>,
    keeper: &'static Keeper,
    counters: Counters,
    me: Weak<Self>,
}

/// Where the machine is.
#[derive(Debug)]
enum Seat {
    Ready(Box<Live>),
    /// A thread has it, or starts another one, and brings it.
    Away,
    /// It is not there: why, and since when.
    Down(Option<(String, Instant)>),
}

#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    failures: AtomicU64,
    restarts: AtomicU64,
    tasks: AtomicU64,
    task_failures: AtomicU64,
    exits: AtomicU64,
}

/// What is counted of a storage. All only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StorageStats {
    /// Calls that had their turn.
    pub calls: u64,
    /// Calls that failed, those included that had none; but not those with pointers or lengths that are no good.
    pub failures: u64,
    /// How often it was started again, because it had failed.
    pub restarts: u64,
    /// Runs of tasks.
    pub tasks: u64,
    /// Of these, those that failed.
    pub task_failures: u64,
    /// How often its machine came back from `KVM_RUN` in calls and tasks.
    pub exits: u64,
}

impl Storage {
    /// Forks a frozen program for storage. `tasks` are those that its `main()` has added.
    pub fn new(master: Arc<Master>, tasks: Arc<Tasks>) -> Result<Arc<Self>, ForkError> {
        let keeper = Keeper::get().map_err(ForkError::Keeper)?;
        let live = Live::new(master.clone(), tasks.clone())?;
        Ok(Arc::new_cyclic(|me| Self {
            master,
            seat: Mutex::new(Seat::Ready(Box::new(live))),
            changed: Condvar::new(),
            tasks,
            handed_over: Mutex::default(),
            keeper,
            counters: Counters::default(),
            me: me.clone(),
        }))
    }

    /// Its tasks may run from now on: the program is in service.
    pub fn begin_tasks(&self) {
        if let Err(error) = self.tasks.begin(self.me.clone() as Weak<dyn Performer>) {
            self.event(&StorageEvent::TaskFailed(error.to_string()));
        }
    }

    /// Has none of its tasks begin until they go on.
    pub fn pause_tasks(&self) {
        self.tasks.set_paused(true);
    }

    /// After [`Storage::pause_tasks`].
    pub fn go_on_with_tasks(&self) {
        self.tasks.set_paused(false);
    }

    /// Whether it has a handler in this slot.
    pub fn has(&self, slot: usize) -> bool {
        self.master.wait_point.handlers.get(slot).is_some()
    }

    /// Bytes of the state that it has from the storage before, if it does.
    pub fn restored(&self) -> Option<u64> {
        let state = self.handed_over.lock();
        state.as_ref().map(|state| state.len() as u64)
    }

    /// Ends its tasks for good. Calls go on.
    pub fn stop_tasks(&self) {
        self.tasks.stop();
    }

    /// What has been counted.
    pub fn stats(&self) -> StorageStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        StorageStats {
            calls: get(&counters.calls),
            failures: get(&counters.failures),
            restarts: get(&counters.restarts),
            tasks: get(&counters.tasks),
            task_failures: get(&counters.task_failures),
            exits: get(&counters.exits),
        }
    }

    /// Runs `on_live_update` in it, as part of another program's boot. Its state may have `most` bytes.
    pub fn give_state(
        &self,
        most: u64,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<HandedOver, NotStored> {
        self.with(deadline, |live| live.give_state(most, deadline, host))
    }

    /// Runs `on_live_restore` in it, with the state of the one before. That is what it begins with from now on, should it fail.
    pub fn take_state(
        &self,
        state: Vec<u8>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<(), NotStored> {
        let state: Arc<[u8]> = state.into();
        self.with(deadline, |live| live.take_state(&state, deadline, host))?;
        *self.handed_over.lock() = Some(state);
        Ok(())
    }

    /// Does something with the machine when it is free.
    fn with<T>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&mut Live) -> Result<T, Cause>,
    ) -> Result<T, NotStored> {
        let mut seat = self.seat.try_lock_until(deadline).ok_or(NotStored::Busy)?;
        let mut live = self.sit_down(&mut seat, deadline)?;
        let before = live.exits();
        let result = work(&mut live);
        self.count_exits(live.exits() - before);
        match result {
            Ok(value) => {
                *seat = Seat::Ready(live);
                Ok(value)
            }
            Err(_) if live.is_unfinished() => {
                self.finish(&mut seat, live);
                Err(NotStored::Late)
            }
            Err(cause) => {
                let why = self.has_failed(&cause);
                self.start(&mut seat, Some(live));
                Err(match cause {
                    Cause::Stopped => NotStored::Stopped,
                    _ => NotStored::Failed(why),
                })
            }
        }
    }

    fn count_exits(&self, exits: u64) {
        self.counters.exits.fetch_add(exits, Ordering::Relaxed);
    }

    /// Counts and tells that it is to be started again. Gives why.
    fn has_failed(&self, cause: &Cause) -> String {
        self.counters.restarts.fetch_add(1, Ordering::Relaxed);
        let why = self.describe(cause);
        self.event(&StorageEvent::Failed(why.clone()));
        why
    }

    /// Takes the machine off its seat, as soon as it is there. If the caller panics, the next one finds none, and has it started.
    fn sit_down(
        &self,
        seat: &mut MutexGuard<'_, Seat>,
        deadline: Instant,
    ) -> Result<Box<Live>, NotStored> {
        loop {
            match std::mem::replace(&mut **seat, Seat::Down(None)) {
                Seat::Ready(live) => return Ok(live),
                Seat::Down(Some((why, since))) if since.elapsed() < PAUSE => {
                    **seat = Seat::Down(Some((why.clone(), since)));
                    return Err(NotStored::Down(why));
                }
                Seat::Down(_) => self.start(seat, None),
                Seat::Away => **seat = Seat::Away,
            }
            if self.changed.wait_until(seat, deadline).timed_out()
                && !matches!(**seat, Seat::Ready(_))
            {
                return Err(NotStored::Busy);
            }
        }
    }

    /// Has a thread start it anew, once the one before is gone: there are never two.
    fn start(&self, seat: &mut Seat, before: Option<Box<Live>>) {
        self.on_own_thread(seat, |storage| {
            drop(before);
            storage.started()
        });
    }

    /// Has a thread go on with a call that its caller does not wait for any more: his time is no reason to lose what others have
    /// stored.
    fn finish(&self, seat: &mut Seat, mut live: Box<Live>) {
        self.on_own_thread(seat, |storage| {
            let before = live.exits();
            let result = live.finish(&mut Quiet);
            storage.count_exits(live.exits() - before);
            match result {
                Ok(()) => Ok(live),
                Err(cause) => {
                    storage.has_failed(&cause);
                    drop(live);
                    storage.started()
                }
            }
        });
    }

    /// Has a thread bring the machine.
    fn on_own_thread(
        &self,
        seat: &mut Seat,
        bring: impl FnOnce(&Self) -> Result<Box<Live>, String> + Send + 'static,
    ) {
        let me = self.me.clone();
        let thread = std::thread::Builder::new().name("forkvm-storage".into());
        let begun = thread.spawn(move || {
            if let Some(storage) = me.upgrade() {
                let brought = catch_unwind(AssertUnwindSafe(|| bring(&storage)));
                let brought = brought.unwrap_or_else(|_| Err("an internal error".into()));
                storage.bring(brought);
            }
        });
        *seat = match begun {
            Ok(_) => Seat::Away,
            Err(error) => Seat::Down(Some((format!("no thread for it: {error}"), Instant::now()))),
        };
    }

    fn started(&self) -> Result<Box<Live>, String> {
        let live = Live::new(self.master.clone(), self.tasks.clone());
        let mut live = Box::new(live.map_err(|error| error.to_string())?);
        let state = self.handed_over.lock().clone();
        if let Some(state) = state {
            let deadline = Instant::now() + self.master.config.limits.max_boot_time;
            let mut host = self.master.config.storage_owner.get().host();
            live.take_state(&state, deadline, &mut *host)
                .map_err(|cause| format!("on_live_restore: {}", self.describe(&cause)))?;
        }
        Ok(live)
    }

    fn bring(&self, brought: Result<Box<Live>, String>) {
        let mut seat = self.seat.lock();
        *seat = match brought {
            Ok(live) => Seat::Ready(live),
            Err(why) => {
                self.event(&StorageEvent::Down(why.clone()));
                Seat::Down(Some((why, Instant::now())))
            }
        };
        self.changed.notify_all();
    }

    fn event(&self, event: &StorageEvent) {
        self.master.config.storage_owner.get().event(event);
    }

    fn describe(&self, cause: &Cause) -> String {
        let limits = &self.master.config.limits;
        let time = format!("{:?} (max_storage_time)", limits.max_storage_time);
        let stack = self.master.wait_point.layout.stack_window();
        cause.describe(&self.master.symbols, &stack, &time, "max_memory")
    }

    /// Whether a function may be called by others than the storage itself.
    fn check(&self, function: u64) -> Result<(), NotStored> {
        match self.master.wait_point.allowed.contains(&function) {
            true => Ok(()),
            false => Err(NotStored::NotAllowed(
                self.master.symbols.describe(function),
            )),
        }
    }

    /// When something is over that begins now.
    fn deadline(&self) -> Instant {
        Instant::now() + self.master.config.limits.max_storage_time
    }

    fn called(
        &self,
        call: &StorageCall,
        caller: &mut GuestMemory,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<u64, NotStored> {
        self.check(call.function)?;
        self.with(deadline, |live| {
            self.counters.calls.fetch_add(1, Ordering::Relaxed);
            live.call(call, caller, (deadline, self.deadline()), host)
        })?
    }
}

impl Stored for Storage {
    fn call(
        &self,
        call: &StorageCall,
        caller: &mut GuestMemory,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<u64, NotStored> {
        self.called(call, caller, deadline, host).inspect_err(|_| {
            self.counters.failures.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn add_task(&self, task: NewTask) -> Result<u32, NotStored> {
        self.check(task.function)?;
        self.tasks.add(task)
    }

    fn stop_task(&self, number: u64) -> bool {
        self.tasks.remove(number)
    }
}

impl Performer for Storage {
    fn perform(&self, task: &NewTask) -> bool {
        let run = || {
            let owner = self.master.config.storage_owner.get();
            let mut host = TaskHost {
                tasks: &self.tasks,
                of_owner: owner.host(),
                turn: Some(owner.turn()),
            };
            if self.tasks.are_stopped() {
                return Ok(());
            }
            self.with(self.deadline(), |live| {
                self.counters.tasks.fetch_add(1, Ordering::Relaxed);
                live.run_task(task, self.deadline(), &mut host)
            })?
            .map(drop)
        };
        let result = catch_unwind(AssertUnwindSafe(run))
            .unwrap_or_else(|_| Err(NotStored::Failed("an internal error".into())));
        match &result {
            Ok(()) => self.event(&StorageEvent::TaskRan),
            Err(why) => {
                self.counters.task_failures.fetch_add(1, Ordering::Relaxed);
                let function = self.master.symbols.describe(task.function);
                self.event(&StorageEvent::TaskFailed(format!("{function}: {why}")));
            }
        }
        result.is_ok()
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.tasks.stop();
        // That takes time.
        let seat = std::mem::replace(self.seat.get_mut(), Seat::Down(None));
        if let Seat::Ready(live) = seat {
            self.keeper.free(live);
        }
    }
}
