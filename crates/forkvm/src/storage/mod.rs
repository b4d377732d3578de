//! A program's storage: a machine that is never reset, which its requests call. One call at a time; who calls waits for its turn
//! within its own deadline, and runs the machine on its own thread.
//!
//! A call that crashes, or takes too long, leaves nothing that could be gone on with: the machine is thrown away, and another
//! fork of the frozen one takes its place, with the state of the last hand-over if there was one.

pub mod boot;
mod counters;
pub mod ending;
mod live;
pub mod owner;
mod tasks;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::call::handlers::Handlers;
use crate::call::stored::{NewTask, NotStored, StorageCall, Stored};
use crate::failure::Cause;
use crate::fork::ForkError;
use crate::master::Master;
use crate::master::handover::HandedOver;
use crate::memory::guest::GuestMemory;
use crate::pool::keeper::Keeper;
use crate::request::Host;
use crate::storage::counters::Counters;
pub use crate::storage::counters::StorageStats;
use crate::storage::ending::Saves;
use crate::storage::live::Live;
use crate::storage::owner::{StorageEvent, StorageOwner};
pub use crate::storage::tasks::Tasks;
use crate::storage::tasks::{Performer, SLICE, TaskHost};

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
    is_in_service: AtomicBool,
    /// The state that it has from the storage before.
    handed_over: Mutex<Option<Arc<Vec<u8>>>>,
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

/// The machine, off its seat. That is its place again afterwards, or whoever comes next finds none there and has it started.
type Taken<'a> = (MutexGuard<'a, Seat>, Box<Live>);

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
            is_in_service: AtomicBool::new(false),
            handed_over: Mutex::default(),
            keeper,
            counters: Counters::default(),
            me: me.clone(),
        }))
    }

    /// The program is in service: its tasks may run from now on, and it saves at the end.
    pub fn begin(&self) {
        self.is_in_service.store(true, Ordering::SeqCst);
        self.event(&StorageEvent::InService);
        if self.has(Handlers::ON_STORAGE_SAVE) {
            ending::enter(self.me.clone());
        }
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

    /// Another program is in service: its tasks are over, and it saves no more. Calls go on.
    pub fn retire(&self) {
        self.is_in_service.store(false, Ordering::SeqCst);
        self.tasks.stop();
    }

    /// Nobody calls it any more: its memory is given back.
    pub fn give_up(&self) {
        let mut seat = self.seat.lock();
        let why = ("another program is in service".into(), Instant::now());
        if let Seat::Ready(live) = std::mem::replace(&mut *seat, Seat::Down(Some(why))) {
            self.keeper.free(live);
        }
        *self.handed_over.lock() = None;
    }

    /// Its program is gone: its tasks are over, and if it was in service until now it saves.
    pub fn end(self: Arc<Self>) {
        if self.has(Handlers::ON_STORAGE_SAVE) && self.is_in_service.load(Ordering::SeqCst) {
            // One that runs just now comes to its end first: stopped in its middle, it would take the machine with it.
            self.tasks.set_paused(true);
            ending::save(self);
        } else {
            self.tasks.stop();
        }
    }

    /// Has the program save what has to outlive it, if it has a handler for that.
    pub fn save(&self) -> Result<(), NotStored> {
        if !self.has(Handlers::ON_STORAGE_SAVE) {
            return Ok(());
        }
        let host = &mut *self.host();
        self.with(self.deadline(), |live| live.save(self.deadline(), host))
    }

    /// What has been counted.
    pub fn stats(&self) -> StorageStats {
        self.counters.stats()
    }

    /// Runs `on_live_update` in it, as part of another program's boot. Its state may have `most` bytes.
    pub fn give_state(
        &self,
        most: u64,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<HandedOver, NotStored> {
        self.with(deadline, |live| live.give_state(most, deadline, host))?
    }

    /// Runs `on_live_restore` in it, with the state of the one before. That is what it begins with from now on, should it fail. One that
    /// does not take it is gone: half a state may be worse than none.
    pub fn take_state(
        &self,
        state: Vec<u8>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<(), NotStored> {
        let state = Arc::new(state);
        let (mut seat, mut live) = self.take(deadline)?;
        live.take_state(&state, deadline, host)
            .map_err(|cause| self.not_stored(cause))?;
        *seat = Seat::Ready(live);
        *self.handed_over.lock() = Some(state);
        Ok(())
    }

    /// Does something with the machine when it is free.
    fn with<T>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&mut Live) -> Result<T, Cause>,
    ) -> Result<T, NotStored> {
        let taken = self.take(deadline)?;
        self.work_in(taken, work)
    }

    /// Takes the machine off its seat, as soon as both are there.
    fn take(&self, deadline: Instant) -> Result<Taken<'_>, NotStored> {
        let mut seat = self.seat.try_lock_until(deadline).ok_or(NotStored::Busy)?;
        let live = self.sit_down(&mut seat, deadline)?;
        Ok((seat, live))
    }

    fn work_in<T>(
        &self,
        (mut seat, mut live): Taken<'_>,
        work: impl FnOnce(&mut Live) -> Result<T, Cause>,
    ) -> Result<T, NotStored> {
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
                // What was stopped with its program is no failure.
                if cause != Cause::Stopped || !self.tasks.are_stopped() {
                    self.has_failed(&cause);
                }
                self.start(&mut seat, Some(live));
                Err(self.not_stored(cause))
            }
        }
    }

    /// What somebody is told whose work ended the machine.
    fn not_stored(&self, cause: Cause) -> NotStored {
        match cause {
            Cause::Stopped => NotStored::Stopped,
            cause => NotStored::Failed(self.describe(&cause)),
        }
    }

    fn count_exits(&self, exits: u64) {
        self.counters.exits.fetch_add(exits, Ordering::Relaxed);
    }

    /// Counts and tells that it is to be started again.
    fn has_failed(&self, cause: &Cause) {
        self.counters.restarts.fetch_add(1, Ordering::Relaxed);
        self.event(&StorageEvent::Failed(self.describe(cause)));
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
            let result = live.finish(&mut *storage.host());
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
            live.take_state(&state, deadline, &mut *self.host())
                .map_err(|cause| format!("on_live_restore: {}", self.describe(&cause)))?;
        }
        Ok(live)
    }

    fn bring(&self, brought: Result<Box<Live>, String>) {
        let mut seat = self.seat.lock();
        if !matches!(*seat, Seat::Away) {
            // It was given up meanwhile.
            if let Ok(live) = brought {
                self.keeper.free(live);
            }
            return;
        }
        *seat = match brought {
            Ok(live) => Seat::Ready(live),
            Err(why) => {
                self.event(&StorageEvent::Down(why.clone()));
                Seat::Down(Some((why, Instant::now())))
            }
        };
        self.changed.notify_all();
    }

    fn owner(&self) -> &dyn StorageOwner {
        self.master.config.storage_owner.get()
    }

    /// Of what runs outside of requests.
    fn host(&self) -> Box<dyn Host> {
        self.owner().host()
    }

    fn event(&self, event: &StorageEvent) {
        self.owner().event(event);
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
    fn longest(&self) -> u64 {
        self.master.config.limits.max_request_memory
    }

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

impl Saves for Storage {
    fn save_and_tell(&self) {
        if self.is_in_service.load(Ordering::SeqCst)
            && let Err(why) = self.save()
        {
            self.event(&StorageEvent::NotSaved(why.to_string()));
        }
    }

    fn is_over(&self) {
        self.tasks.stop();
    }
}

impl Performer for Storage {
    fn perform(&self, task: &NewTask) -> bool {
        let run = || {
            let mut host = TaskHost {
                tasks: &self.tasks,
                of_owner: self.host(),
                turn: Some(self.owner().turn()),
            };
            if self.tasks.are_stopped() {
                return Ok(());
            }
            let deadline = self.deadline();
            let taken = match self.take(deadline.min(Instant::now() + SLICE)) {
                // Who waits for the storage keeps nobody else from his turn.
                Err(NotStored::Busy) => {
                    host.turn = None;
                    self.take(deadline)?
                }
                taken => taken?,
            };
            self.work_in(taken, |live| {
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
