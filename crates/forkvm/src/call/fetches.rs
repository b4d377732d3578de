//! The fetches that a request has open. They end with it.

use crate::fetch::{FetchHead, Fetching};
use crate::slots::Slots;

/// Most that are open at a time.
pub const MOST: usize = 8;

/// Those of one request.
pub type Fetches = Slots<Open, MOST>;

/// One of them.
pub struct Open {
    /// What comes.
    pub begun: Box<dyn Fetching>,
    /// Its head, once that has come.
    pub head: Option<FetchHead>,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Open")
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}
