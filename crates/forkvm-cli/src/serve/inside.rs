//! What all connections share.

use std::sync::Arc;

use super::ending::Ending;
use super::generation::Current;
use super::observed::observer::Observer;
use super::seats::Seats;

/// What all connections share.
pub struct Inside {
    /// Where they go.
    pub current: Current,
    /// How many there may be.
    pub seats: Arc<Seats>,
    /// Who is told of them.
    pub observer: Arc<Observer>,
    /// Whether the command is to end.
    pub ending: Arc<Ending>,
}
