//! What came of an update: what was done, or why nothing was.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::tenants::boot::BootFailure;
use crate::tenants::store::StoreError;
use crate::tenants::version::Version;

/// An update that was done.
#[derive(Debug)]
pub struct Done {
    /// What runs now.
    pub version: Version,
    /// What ran before, if something did. Equal to `version` if nothing has changed.
    pub previous: Option<Version>,
    /// Length of the file.
    pub bytes: usize,
    /// From its start until main() was done and the machine frozen.
    pub boot: Duration,
    /// From the upload's end until the switch.
    pub ready: Duration,
    /// Bytes of state that were handed over.
    pub state: Option<u64>,
}

impl Done {
    /// Whether it is another program than before.
    pub fn changed(&self) -> bool {
        self.previous != Some(self.version)
    }
}

/// Why an update was not done.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// One at a time.
    #[error("another update of this tenant is in progress")]
    Busy,
    /// There is nothing to take the place of yet.
    #[error("the tenant's first program still boots")]
    Booting,
    /// It is no program, or does not become ready.
    #[error("{reason}")]
    BadProgram {
        /// Why.
        reason: String,
        /// The last it wrote to stderr.
        stderr: Vec<u8>,
    },
    /// Not for now.
    #[error("{0}")]
    NoResources(String),
    /// Rollback without anything to go back to.
    #[error("no earlier version is kept (keep_versions)")]
    NothingBefore,
    /// It could not be stored.
    #[error("it can't be stored: {0}")]
    Store(StoreError),
    /// Nobody waits any longer.
    #[error("it is not done yet; what comes of it will be in the log")]
    TooLong,
    /// A bug.
    #[error("internal error, logged separately")]
    Internal,
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Busy(_) => Self::Busy,
            error if is_shortage(&error) => Self::NoResources(error.to_string()),
            error => Self::Store(error),
        }
    }
}

/// Whether it may go better later.
pub fn is_shortage(error: &StoreError) -> bool {
    use rustix::io::Errno;
    let StoreError::Io { error, .. } = error else {
        return false;
    };
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM)
    )
}

impl From<BootFailure> for Refused {
    fn from(failure: BootFailure) -> Self {
        if failure.is_hosts() {
            return Self::NoResources(failure.reason);
        }
        Self::BadProgram {
            reason: failure.reason,
            stderr: failure.stderr,
        }
    }
}

/// What came of an update.
pub type Outcome = Result<Done, Refused>;
