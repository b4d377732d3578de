//! What all connections share.

use std::sync::Arc;

use super::ending::Ending;
use super::generation::Current;
use super::observed::observer::Observer;
use super::request_body::Beginnings;
use super::seats::Seats;
use super::turns::Turns;

/// What all connections share.
pub struct Inside {
    /// Where they go.
    pub current: Current,
    /// How many there may be.
    pub seats: Arc<Seats>,
    /// Who is told of them.
    pub observer: Arc<Observer>,
    /// What is kept of requests' bodies.
    pub beginnings: Beginnings,
    /// What looks at the forks' threads.
    pub turns: Turns,
    /// Whether the command is to end.
    pub ending: Arc<Ending>,
}
