//! Work that is done when somebody asks for what comes of it, and not before.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// What is never sent: whoever waits for it waits for the end of who would.
pub enum Never {}

type Work<T> = Box<dyn FnOnce() -> T + Send>;

/// Work that waits to be asked for, if there is some.
pub struct Later<T> {
    /// Whether there is some: all requests look, and few find any.
    is_set: AtomicBool,
    work: Mutex<Option<Work<T>>>,
}

impl<T> Default for Later<T> {
    fn default() -> Self {
        Self {
            is_set: AtomicBool::new(false),
            work: Mutex::new(None),
        }
    }
}

impl<T> Later<T> {
    /// Has it done later, in place of any that was to be.
    pub fn set(&self, work: impl FnOnce() -> T + Send + 'static) {
        let mut kept = self.work.lock();
        *kept = Some(Box::new(work));
        self.is_set.store(true, Ordering::Release);
    }

    /// Whether there is some.
    pub fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// Does it now, if there is some.
    pub fn run(&self) -> Option<T> {
        if !self.is_set() {
            return None;
        }
        let mut work = self.work.lock();
        self.is_set.store(false, Ordering::Release);
        let taken = work.take();
        // It may want to be done later again.
        drop(work);
        taken.map(|work| work())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn work_is_done_once_and_may_come_back() {
        let later = Arc::new(Later::default());
        assert!(!later.is_set() && later.run().is_none());
        let again = later.clone();
        later.set(|| 0);
        later.set(move || {
            again.set(|| 2);
            1
        });
        assert!(later.is_set());
        assert_eq!(
            [later.run(), later.run(), later.run()],
            [Some(1), Some(2), None]
        );
        assert!(!later.is_set());
    }
}
