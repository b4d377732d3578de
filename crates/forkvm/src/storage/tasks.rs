//! What is to run in a program's storage later, once or again and again: a list, and a thread that there is while something is on
//! it.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::call::stored::{NewTask, NotStored, Stored};
use crate::fetch::Fetcher;
use crate::request::{Host, Stream};

/// Most tasks of a program.
const MOST_TASKS: usize = 256;
/// How soon a task notices that it is to end, and how long it has its turn.
pub const SLICE: Duration = Duration::from_millis(20);
/// The same of one that sleeps.
const NAP: Duration = Duration::from_millis(200);

/// Who carries tasks out.
pub trait Performer: Send + Sync {
    /// Runs one, and says whether it is to run again if it has a period.
    fn perform(&self, task: &NewTask) -> bool;
}

/// A program's tasks.
#[derive(Debug, Default)]
pub struct Tasks {
    list: Mutex<List>,
    changed: Condvar,
    /// They are over for good.
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct List {
    tasks: BTreeMap<u32, Waiting>,
    last: u32,
    /// Who carries them out, once it is there.
    performer: Option<Weak<dyn Performer>>,
    /// There is a thread.
    runs: bool,
    /// None is to begin.
    paused: bool,
}

#[derive(Debug)]
struct Waiting {
    task: Arc<NewTask>,
    due: Instant,
}

impl std::fmt::Debug for dyn Performer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Performer")
    }
}

impl Stored for Arc<Tasks> {
    fn add_task(&self, task: NewTask) -> Result<u32, NotStored> {
        self.add(task)
    }

    fn stop_task(&self, number: u64) -> bool {
        self.remove(number)
    }
}

impl Tasks {
    /// Puts a task on the list, if that is not full.
    pub fn add(self: &Arc<Self>, task: NewTask) -> Result<u32, NotStored> {
        let mut list = self.list.lock();
        if self.are_stopped() {
            return Err(NotStored::Down("it is being replaced".into()));
        }
        if list.tasks.len() >= MOST_TASKS {
            return Err(NotStored::Tasks(MOST_TASKS));
        }
        let mut number = list.last;
        loop {
            number = number.wrapping_add(1).max(1);
            // A program has it as a C `int`.
            if number <= i32::MAX as u32 && !list.tasks.contains_key(&number) {
                break;
            }
        }
        list.last = number;
        let due = Instant::now() + task.start;
        let task = Arc::new(task);
        list.tasks.insert(number, Waiting { task, due });
        self.see_to(&mut list)?;
        Ok(number)
    }

    /// Takes one off the list. If it runs just now, it does so to its end.
    pub fn remove(&self, number: u64) -> bool {
        let mut list = self.list.lock();
        let number = u32::try_from(number).unwrap_or_default();
        list.tasks.remove(&number).is_some()
    }

    /// They can run from now on.
    pub fn begin(self: &Arc<Self>, performer: Weak<dyn Performer>) -> Result<(), NotStored> {
        let mut list = self.list.lock();
        list.performer = Some(performer);
        self.see_to(&mut list)
    }

    /// Whether none is to begin.
    pub fn set_paused(&self, paused: bool) {
        self.list.lock().paused = paused;
        self.changed.notify_all();
    }

    /// Ends them for good, the one that runs too, within its slice.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.list.lock().tasks.clear();
        self.changed.notify_all();
    }

    /// Whether they are over.
    pub fn are_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Has a thread look at the list.
    fn see_to(self: &Arc<Self>, list: &mut List) -> Result<(), NotStored> {
        let Some(performer) = list.performer.clone().filter(|_| !list.tasks.is_empty()) else {
            return Ok(());
        };
        if list.runs {
            self.changed.notify_all();
            return Ok(());
        }
        let tasks = self.clone();
        std::thread::Builder::new()
            .name("forkvm-tasks".into())
            .spawn(move || tasks.keep(&performer))
            .map_err(|error| NotStored::Down(format!("no thread for its tasks: {error}")))?;
        list.runs = true;
        Ok(())
    }

    /// Carries out what is due until there is nothing more to wait for.
    fn keep(&self, performer: &Weak<dyn Performer>) {
        let mut list = self.list.lock();
        loop {
            let first = list.tasks.iter().min_by_key(|(_, waiting)| waiting.due);
            let Some((&number, waiting)) = first else {
                break;
            };
            let (task, due) = (waiting.task.clone(), waiting.due);
            if list.paused {
                self.changed.wait(&mut list);
                continue;
            }
            if due > Instant::now() {
                self.changed.wait_until(&mut list, due);
                continue;
            }
            let goes_on = parking_lot::MutexGuard::unlocked(&mut list, || {
                performer
                    .upgrade()
                    .is_some_and(|performer| performer.perform(&task))
            });
            let same = |waiting: &&mut Waiting| Arc::ptr_eq(&waiting.task, &task);
            match (list.tasks.get_mut(&number).filter(same), task.period) {
                // What was missed is not made up for.
                (Some(waiting), Some(period)) if goes_on => {
                    waiting.due = (due + period).max(Instant::now());
                }
                (Some(_), _) => {
                    list.tasks.remove(&number);
                }
                // It was taken off meanwhile.
                (None, _) => {}
            }
        }
        list.runs = false;
    }
}

/// The host of a task: it ends with the list.
pub struct TaskHost<'a> {
    pub tasks: &'a Tasks,
    pub of_owner: Box<dyn Host>,
    /// Its turn, for a slice.
    pub turn: Option<Box<dyn Any>>,
}

impl Host for TaskHost<'_> {
    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        self.of_owner.output(stream, bytes);
    }

    fn note(&mut self, line: &str) {
        self.of_owner.note(line);
    }

    fn fetcher(&self) -> Option<Arc<dyn Fetcher>> {
        self.of_owner.fetcher()
    }

    fn slice(&self) -> Option<Duration> {
        Some(SLICE)
    }

    fn give_way(&mut self, time: Duration) -> ControlFlow<()> {
        self.turn = None;
        let end = Instant::now() + time;
        loop {
            if self.tasks.are_stopped() {
                return ControlFlow::Break(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return ControlFlow::Continue(());
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}
