//! The one thread that makes forks ahead of need, gives idle ones up, and frees what is not needed any more: all that
//! takes too long for a request's thread.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;

use crate::master::Master;
use crate::pool::{Idle, Pool};

/// How often idle forks are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// How often it is looked whether a retired master can be freed.
const RETIRE: Duration = Duration::from_millis(10);

/// Work for the keeper.
pub enum Job {
    /// A new pool to sweep.
    Keep(Weak<Pool>),
    /// A fork to be made.
    Make(Weak<Pool>),
    /// Forks to be freed.
    Free(VecDeque<Idle>),
    /// A master that nobody needs any more, but forks that are still to be freed.
    Retire(Arc<Master>),
}

/// The way to the keeper's thread.
#[derive(Debug)]
pub struct Keeper {
    jobs: Sender<Job>,
}

impl Keeper {
    /// The process's keeper; its thread is started by the first call that can.
    pub fn get() -> io::Result<&'static Self> {
        static KEEPER: OnceCell<Keeper> = OnceCell::new();
        KEEPER.get_or_try_init(|| {
            let (jobs, inbox) = mpsc::channel();
            std::thread::Builder::new()
                .name("forkvm-keeper".into())
                .spawn(move || keep(&inbox))?;
            Ok(Self { jobs })
        })
    }

    /// Hands over a job. The thread lives as long as the process, so that a job always arrives.
    pub fn send(&self, job: Job) {
        let _ = self.jobs.send(job);
    }
}

fn keep(inbox: &Receiver<Job>) {
    let mut pools: Vec<Weak<Pool>> = Vec::new();
    let mut retired: Vec<Arc<Master>> = Vec::new();
    let mut swept = Instant::now();
    loop {
        // With no pool there is nothing to sweep: sleep until there is.
        let job = if !retired.is_empty() {
            inbox.recv_timeout(RETIRE)
        } else if pools.is_empty() {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(SWEEP)
        };
        match job {
            Ok(Job::Keep(pool)) => pools.push(pool),
            Ok(Job::Make(pool)) => {
                if let Some(pool) = pool.upgrade() {
                    pool.make();
                }
            }
            Ok(Job::Free(forks)) => drop(forks),
            Ok(Job::Retire(master)) => retired.push(master),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // Nobody can get a new reference to one of these any more.
        retired.retain(|master| Arc::strong_count(master) > 1);
        let now = Instant::now();
        if now.duration_since(swept) >= SWEEP {
            swept = now;
            pools.retain(|pool| pool.strong_count() > 0);
            for pool in pools.iter().filter_map(Weak::upgrade) {
                drop(pool.sweep(now));
            }
        }
    }
}
