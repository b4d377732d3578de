//! What is in a snapshot beside memory.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::terms::Terms;
use crate::linux::{ListenerId, SavedLinux};
use crate::memory::space::saved::SavedSpace;

/// Neighbouring frames that are in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frames {
    /// Number of the first.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// All that is known of a frozen server but its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// What its writer says of it.
    pub label: String,
    /// What the program was run with.
    pub terms: Terms,
    /// What its Linux keeps.
    pub linux: SavedLinux,
    /// Its address space.
    pub space: SavedSpace,
    /// Where it waits.
    pub listener: ListenerId,
    /// The addresses of its stack.
    pub stack: Range<u64>,
    /// Which frames follow, those first that requests touch.
    pub frames: Vec<Frames>,
    /// How many of them requests touch.
    pub touched: u64,
}
