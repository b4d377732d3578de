//! What all fetches of a client share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Semaphore;

use crate::connect::Connector;
use crate::own::Inside;
use crate::pool::Pool;
use crate::settings::{Settings, Told};

/// What its fetches share.
pub struct Shared {
    pub settings: Settings,
    pub connector: Connector,
    pub pool: Arc<Pool>,
    pub places: Arc<Semaphore>,
    pub inside: Inside,
    pub fetches: AtomicU64,
    pub failures: AtomicU64,
}

impl Shared {
    /// Counts one that came to nothing.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        (self.settings.told)(Told::Failed);
    }
}
