//! Forks' numbers, by which a program can tell them apart: small ones, so that it may have a table by them.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

/// The numbers that forks of one program have at present.
#[derive(Debug, Default)]
pub struct Numbers(Mutex<BTreeSet<u32>>);

impl Numbers {
    /// The lowest number, from 1 on, that no other fork has.
    pub fn take(self: &Arc<Self>) -> Number {
        let mut taken = self.0.lock();
        let number = (1..)
            .zip(&*taken)
            .find(|(free, taken)| free != *taken)
            .map_or(taken.len() as u32 + 1, |(free, _)| free);
        taken.insert(number);
        Number {
            number,
            of: Arc::clone(self),
        }
    }
}

/// A fork's number, its own until this is dropped.
#[derive(Debug)]
pub struct Number {
    number: u32,
    of: Arc<Numbers>,
}

impl Number {
    pub fn get(&self) -> u32 {
        self.number
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        self.of.0.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_small_and_each_ones_own() {
        let numbers = Arc::<Numbers>::default();
        let [one, two, three] = [(); 3].map(|()| numbers.take());
        assert_eq!([one.get(), two.get(), three.get()], [1, 2, 3]);
        drop(two);
        let again = numbers.take();
        assert_eq!((again.get(), numbers.take().get()), (2, 4));
        drop(one);
        assert_eq!(numbers.take().get(), 1);
    }
}
