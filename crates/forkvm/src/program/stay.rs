//! A request's right to its program's storage.

use std::sync::Arc;

use crate::call::stored::Stored;
use crate::program::turnstile::Inside;
use crate::storage::Storage;

/// What a request of a program with storage has as long as that runs for it: by its callbacks and its segments as well. A live update
/// waits for its end, since what is stored after the hand-over is lost.
#[derive(Debug)]
pub struct Stay {
    storage: Arc<Storage>,
    _inside: Inside,
}

impl Stay {
    /// With this storage, inside.
    pub fn new(storage: Arc<Storage>, inside: Inside) -> Self {
        Self {
            storage,
            _inside: inside,
        }
    }
}

/// Storage as a request calls it, if it has some.
pub fn stored(stay: Option<&Stay>) -> Option<&dyn Stored> {
    stay.map(|stay| &*stay.storage as &dyn Stored)
}
