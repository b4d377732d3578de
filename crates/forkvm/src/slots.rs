//! What a guest knows by numbers, from 1 on: so many at most, and a number that is free is given again.

/// Them, by their numbers.
#[derive(Debug, Clone)]
pub struct Slots<T, const MOST: usize>(Vec<Option<T>>);

impl<T, const MOST: usize> Default for Slots<T, MOST> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MOST: usize> Slots<T, MOST> {
    /// Whether there are as many as may be.
    pub fn is_full(&self) -> bool {
        self.0.iter().flatten().count() >= MOST
    }

    /// Adds one. Its number; `None` if there are as many as may be.
    pub fn add(&mut self, value: T) -> Option<usize> {
        if self.is_full() {
            return None;
        }
        let index = match self.0.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.0.push(None);
                self.0.len() - 1
            }
        };
        self.0[index] = Some(value);
        Some(index + 1)
    }

    /// The one of this number.
    pub fn get(&self, number: u64) -> Option<&T> {
        self.0.get(index(number)?)?.as_ref()
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        self.0.get_mut(index(number)?)?.as_mut()
    }

    /// Takes the one of this number away.
    pub fn take(&mut self, number: u64) -> Option<T> {
        self.0.get_mut(index(number)?)?.take()
    }
}

fn index(number: u64) -> Option<usize> {
    usize::try_from(number).ok()?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_again() {
        let mut slots = Slots::<_, 3>::default();
        assert_eq!(
            ["a", "b", "c"].map(|name| slots.add(name)),
            [1, 2, 3].map(Some)
        );
        assert!(slots.is_full());
        assert_eq!(slots.add("d"), None);
        assert_eq!((slots.take(2), slots.take(2)), (Some("b"), None));
        assert_eq!((slots.get(2), slots.get(3)), (None, Some(&"c")));
        assert_eq!(slots.add("e"), Some(2));
        assert_eq!(slots.get_mut(2), Some(&mut "e"));
        for none in [0, 4, 1 << 63, u64::MAX] {
            assert_eq!(slots.get(none), None);
            assert_eq!(slots.take(none), None);
        }
    }
}
