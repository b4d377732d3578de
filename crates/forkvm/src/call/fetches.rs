//! The fetches that a request has open. They end with it.

use crate::fetch::{FetchHead, Fetching};

/// Those of one request, by their numbers.
#[derive(Default)]
pub struct Fetches(Vec<Option<Open>>);

impl std::fmt::Debug for Fetches {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = self.0.iter().flatten().count();
        write!(out, "Fetches({open} open)")
    }
}

/// One of them.
pub struct Open {
    /// What comes.
    pub begun: Box<dyn Fetching>,
    /// Its head, once that has come.
    pub head: Option<FetchHead>,
}

impl Fetches {
    /// Most that are open at a time.
    pub const MOST: usize = 8;

    /// Whether there are no more to be opened.
    pub fn is_full(&self) -> bool {
        self.0.iter().flatten().count() >= Self::MOST
    }

    /// Adds one, and gives its number, from 1 on.
    pub fn add(&mut self, begun: Box<dyn Fetching>) -> i64 {
        let index = match self.0.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.0.push(None);
                self.0.len() - 1
            }
        };
        self.0[index] = Some(Open { begun, head: None });
        index as i64 + 1
    }

    fn slot(&mut self, number: u64) -> Option<&mut Option<Open>> {
        let index = number.checked_sub(1)?.try_into().ok();
        self.0.get_mut::<usize>(index?)
    }

    /// The one of this number.
    pub fn get(&mut self, number: u64) -> Option<&mut Open> {
        self.slot(number)?.as_mut()
    }

    /// Ends the one of this number. False if there is none.
    pub fn close(&mut self, number: u64) -> bool {
        self.slot(number).is_some_and(|slot| slot.take().is_some())
    }
}
