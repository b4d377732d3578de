//! What a client may do.

use std::path::PathBuf;
use std::time::Duration;

use forkvm::Reach;

use crate::own::OwnSlot;

/// What a tenant's programs may fetch, and its limits.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where from.
    pub reach: Reach,
    /// Longest body of a request or a response, in bytes.
    pub max_size: u64,
    /// Most fetches at once.
    pub max_fetches: usize,
    /// Longest time for one, within its request's.
    pub max_time: Duration,
    /// A file in PEM with certificates that are good, besides the host's.
    pub ca_file: Option<PathBuf>,
    /// Whether a program may have it that a certificate is not of the name that it asks.
    pub unverified: bool,
    /// How the programs' own Varnish is asked, if at all.
    pub own: OwnSlot,
    /// Who counts with it.
    pub told: fn(Told),
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A fetch was asked for.
    Asked,
    /// It has come to nothing.
    Failed,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            reach: Reach::default(),
            max_size: 16 << 20,
            max_fetches: 64,
            max_time: Duration::from_secs(3600),
            ca_file: None,
            unverified: false,
            own: OwnSlot::default(),
            told: |_| {},
        }
    }
}
