//! State that a reset puts back, and only when it changed.

use std::ops::{Deref, DerefMut};

/// A value that knows whether it may differ from the one it is a clone of: every mutable access says so. A reset after a
/// request that changed nothing copies nothing.
#[derive(Debug)]
pub struct Kept<T> {
    value: T,
    changed: bool,
}

impl<T: Clone> Kept<T> {
    /// Keeps a value.
    pub fn new(value: T) -> Self {
        Self {
            value,
            changed: false,
        }
    }

    /// Makes this equal to `master`, which it is a clone of, reusing what is allocated.
    pub fn restore_from(&mut self, master: &Self) {
        if self.changed {
            self.value.clone_from(&master.value);
            self.changed = false;
        }
    }

    /// Whether there was a mutable access since.
    #[cfg(test)]
    pub fn changed(&self) -> bool {
        self.changed
    }
}

impl<T: Clone> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self::new(self.value.clone())
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
        self.changed = true;
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restores_what_changed_only() {
        let mut master = Kept::new(vec![1, 2, 3]);
        master.push(4);
        let mut fork = master.clone();
        assert!(!fork.changed());
        fork.restore_from(&master);
        fork.push(5);
        assert!(fork.changed());
        fork.restore_from(&master);
        assert_eq!(*fork, [1, 2, 3, 4]);
        assert!(!fork.changed());
        fork.pop();
        fork.restore_from(&master);
        assert_eq!(*fork, [1, 2, 3, 4]);
    }
}
