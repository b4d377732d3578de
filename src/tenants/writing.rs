//! What is written while requests are answered: by one thread, one after the other. After a cold start there may be a snapshot of each
//! tenant to write.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::thread;

use parking_lot::Mutex;

type Job = Box<dyn FnOnce() + Send>;

/// What is to be written, and whether there is a thread that does.
#[derive(Default)]
pub struct Writing(Mutex<(VecDeque<Job>, bool)>);

impl Writing {
    /// Nothing as yet.
    pub const fn new() -> Self {
        Self(Mutex::new((VecDeque::new(), false)))
    }

    /// Has a thread do this when all before it is done. Fails if there is none to be had.
    pub fn add(&'static self, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut writing = self.0.lock();
        writing.0.push_back(Box::new(job));
        if writing.1 {
            return Ok(());
        }
        let thread = thread::Builder::new().name("kvm-snapshot".into());
        match thread.spawn(move || self.work()) {
            Ok(_) => {
                writing.1 = true;
                Ok(())
            }
            Err(error) => {
                writing.0.pop_back();
                Err(error)
            }
        }
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            // It has been logged, and is no reason to leave out the others.
            let _ = panic::catch_unwind(AssertUnwindSafe(job));
        }
    }

    fn next(&self) -> Option<Job> {
        let mut writing = self.0.lock();
        let job = writing.0.pop_front();
        writing.1 = job.is_some();
        job
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_is_written_at_a_time_and_in_order() {
        static WRITING: Writing = Writing::new();
        let (to, from) = channel();
        let at_once = Arc::new(AtomicUsize::new(0));
        for round in 0..2 {
            for n in 0..20 {
                let (to, at_once) = (to.clone(), at_once.clone());
                let job = move || {
                    let others = at_once.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(1));
                    at_once.fetch_sub(1, Ordering::SeqCst);
                    to.send((n, others)).unwrap();
                    assert!(n != 3, "one that fails");
                };
                WRITING.add(job).unwrap();
            }
            for n in 0..20 {
                assert_eq!(from.recv(), Ok((n, 0)), "{round}");
            }
        }
    }
}
