//! How much a machine writes to the host's files.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What a new name counts for, in bytes.
pub const NAME: u64 = 4096;

/// What a machine may write to the host's files, and has. A reset puts back the count, not the files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Written {
    limit: u64,
    bytes: u64,
    refused: bool,
}

impl Written {
    /// Nothing of so many bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            bytes: 0,
            refused: false,
        }
    }

    /// As much as this one may.
    pub fn be_limited_as(&mut self, other: &Self) {
        self.limit = other.limit;
    }

    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.bytes > 0
    }

    /// From now on it counts anew.
    pub fn begin(&mut self) {
        self.bytes = 0;
    }

    /// Counts what is going to be written: EDQUOT if that is too much.
    pub fn take(&mut self, bytes: u64) -> Result<(), Errno> {
        let after = self.bytes.saturating_add(bytes);
        if after > self.limit {
            self.refused = true;
            return Err(Errno::DQUOT);
        }
        self.bytes = after;
        Ok(())
    }

    /// Not so much was.
    pub fn give_back(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Whether something was refused that nobody has been told of.
    pub fn has_refused(&self) -> bool {
        self.refused
    }

    /// Why, once.
    pub fn take_line(&mut self) -> Vec<String> {
        self.refused = false;
        vec![format!(
            "the program has written as much to the host's files as a machine may, {} MiB: --max-volume-writes allows more",
            self.limit >> 20
        )]
    }
}
