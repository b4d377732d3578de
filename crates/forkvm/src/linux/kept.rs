//! State that a reset puts back, and only when it changed.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};

/// A value with a stamp that no two different contents share: every mutable access takes a new one, a clone
/// keeps it. Equal stamps mean equal values, so a reset after a request that changed nothing copies nothing.
#[derive(Debug, Clone)]
pub struct Kept<T> {
    value: T,
    stamp: u64,
}

static NEXT_STAMP: AtomicU64 = AtomicU64::new(0);

fn new_stamp() -> u64 {
    NEXT_STAMP.fetch_add(1, Ordering::Relaxed)
}

impl<T: Clone> Kept<T> {
    /// Keeps a value.
    pub fn new(value: T) -> Self {
        Self {
            value,
            stamp: new_stamp(),
        }
    }

    /// Makes this equal to `master`, reusing what is allocated.
    pub fn restore_from(&mut self, master: &Self) {
        if self.stamp != master.stamp {
            self.value.clone_from(&master.value);
            self.stamp = master.stamp;
        }
    }
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Kept<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.stamp = new_stamp();
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restores_what_changed_only() {
        let master = Kept::new(vec![1, 2, 3]);
        let mut fork = master.clone();
        fork.restore_from(&master);
        fork.push(4);
        fork.restore_from(&master);
        assert_eq!(*fork, [1, 2, 3]);
        fork.pop();
        fork.restore_from(&master);
        assert_eq!(*fork, [1, 2, 3]);
    }
}
