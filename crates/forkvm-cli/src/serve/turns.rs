//! Who computes for long has less of the processors: connections that need little find one at once, also where others never end.
//!
//! A thread's nice value is raised (sched(7): from weight 1024 to 110). Without rights nobody lowers it again, so the thread ends with
//! its connection, and another takes its place.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, getpriority_process, setpriority_process};
use rustix::thread::gettid;

/// How often it is looked.
const INTERVAL: Duration = Duration::from_millis(100);
/// Who has had a processor for more than this of it, on one connection, computes for long.
const LONG: Duration = Duration::from_millis(60);
/// So much its nice value is raised.
const NICE: i32 = 10;

/// What a thread goes on with.
type Job = Box<dyn FnOnce() + Send>;

/// Looks at the threads that serve.
#[derive(Debug, Clone)]
pub struct Turns {
    threads: Arc<Mutex<Vec<Arc<Turn>>>>,
    jobs: Sender<Job>,
}

/// A thread that serves, and what it does just now.
#[derive(Debug)]
pub struct Turn {
    thread: Pid,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    serves: bool,
    /// What it had of the processors at the last look at this connection.
    had: Option<Duration>,
    lowered: bool,
}

impl Turns {
    /// Begins to look.
    pub fn new() -> Result<Self, String> {
        let (jobs, inbox) = channel();
        let threads = Arc::new(Mutex::new(Vec::new()));
        let of_thread = threads.clone();
        std::thread::Builder::new()
            .name("turns".into())
            .spawn(move || look(&of_thread, &inbox))
            .map_err(|error| format!("a thread: {error}"))?;
        Ok(Self { threads, jobs })
    }

    /// Looks at the calling thread as long as it has this.
    pub fn of_this_thread(&self) -> Arc<Turn> {
        let turn = Arc::new(Turn {
            thread: gettid(),
            state: Mutex::default(),
        });
        self.threads.lock().push(turn.clone());
        turn
    }

    /// Has another thread go on with this: one that was not lowered.
    pub fn hand_on(&self, job: impl FnOnce() + Send + 'static) {
        // The other end is there as long as the process.
        let _ = self.jobs.send(Box::new(job));
    }
}

impl Turn {
    /// The thread begins to serve a connection.
    pub fn begin(&self) {
        self.state.lock().serves = true;
    }

    /// It has ended. True if the thread was lowered.
    pub fn end(&self) -> bool {
        std::mem::take(&mut *self.state.lock()).lowered
    }

    fn look(&self) {
        let mut state = self.state.lock();
        if !state.serves || state.lowered {
            return;
        }
        let has = has_had(self.thread);
        if let (Some(before), Some(now)) = (state.had, has)
            && now.saturating_sub(before) > LONG
        {
            // Who may not do this has all as equals.
            let lower = |nice| setpriority_process(Some(self.thread), nice + NICE);
            state.lowered = getpriority_process(Some(self.thread))
                .and_then(lower)
                .is_ok();
        }
        state.had = has;
    }
}

/// How long a thread of ours has had a processor, ever (Documentation/scheduler/sched-stats.rst).
fn has_had(thread: Pid) -> Option<Duration> {
    let path = format!("/proc/self/task/{}/schedstat", thread.as_raw_nonzero());
    let text = std::fs::read_to_string(path).ok()?;
    let nanoseconds = text.split(' ').next()?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}

fn look(threads: &Mutex<Vec<Arc<Turn>>>, jobs: &Receiver<Job>) {
    let mut waiting: Vec<Job> = Vec::new();
    loop {
        waiting.extend(
            jobs.recv_timeout(INTERVAL)
                .into_iter()
                .chain(jobs.try_iter()),
        );
        while let Some(job) = waiting.pop() {
            if let Err(job) = start(job) {
                // There may be a thread for it later.
                waiting.push(job);
                break;
            }
        }
        let mut threads = threads.lock();
        threads.retain(|turn| Arc::strong_count(turn) > 1);
        for turn in &*threads {
            turn.look();
        }
    }
}

/// Starts a thread with a job, which is given back if there can be none.
fn start(job: Job) -> Result<(), Job> {
    let (sender, receiver) = channel::<Job>();
    let run = move || {
        if let Ok(job) = receiver.recv() {
            job();
        }
    };
    match std::thread::Builder::new().name("fork".into()).spawn(run) {
        Ok(_) => sender.send(job).map_err(|unsent| unsent.0),
        Err(_) => Err(job),
    }
}
