//! A tenant: its settings, its program once that is ready, and its figures.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use forkvm::Program;
use parking_lot::{Condvar, Mutex};

use crate::registry::Identity;
use crate::settings::Settings;

/// A tenant, shared by all VCLs that name it with the same settings and the same file.
pub struct Tenant {
    /// As given in VCL.
    pub settings: Settings,
    /// The file that its program is booted from. `None` if there was none.
    pub identity: Option<Identity>,
    state: Mutex<State>,
    settled: Condvar,
    /// Requests handed to the program.
    pub requests: AtomicU64,
    /// Requests that the program failed.
    pub failures: AtomicU64,
    /// Bytes of request bodies in memory.
    bodies: AtomicU64,
}

/// How far a tenant's program is.
#[derive(Clone)]
pub enum State {
    /// Waits for its turn to boot, or boots.
    Booting,
    /// Takes requests.
    Ready(Arc<Program>),
    /// Did not become ready, and why.
    Failed(Arc<str>),
}

/// Why a tenant has no program for a request.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The deadline came first.
    #[error("its program still boots, max_request_time is over")]
    Booting,
    /// It failed to boot.
    #[error("its program is not ready: {0}")]
    Failed(Arc<str>),
}

impl Tenant {
    /// A tenant whose program is about to be booted.
    pub fn new(settings: Settings, identity: Option<Identity>) -> Self {
        Self {
            settings,
            identity,
            state: Mutex::new(State::Booting),
            settled: Condvar::new(),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            bodies: AtomicU64::new(0),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.settings.config.name
    }

    /// How far its program is now.
    pub fn state(&self) -> State {
        self.state.lock().clone()
    }

    /// Ends the wait of those who want its program.
    pub fn settle(&self, state: State) {
        let before = std::mem::replace(&mut *self.state.lock(), state);
        self.settled.notify_all();
        // Not under the lock: it may be the last reference to a program.
        drop(before);
    }

    /// Its program, as soon as it is ready.
    pub fn program(&self, deadline: Instant) -> Result<Arc<Program>, NotReady> {
        let mut state = self.state.lock();
        let mut late = false;
        loop {
            match &*state {
                State::Ready(program) => return Ok(program.clone()),
                State::Failed(reason) => return Err(NotReady::Failed(reason.clone())),
                State::Booting if late => return Err(NotReady::Booting),
                State::Booting => late = self.settled.wait_until(&mut state, deadline).timed_out(),
            }
        }
    }

    /// Room for a request body.
    pub fn body_room(self: &Arc<Self>) -> BodyRoom {
        BodyRoom {
            tenant: self.clone(),
            bytes: 0,
        }
    }
}

/// Memory that a request body takes on the host. Bodies are read before the wait for a fork, so without a limit on
/// their sum many waiting uploads could take all memory.
pub struct BodyRoom {
    tenant: Arc<Tenant>,
    bytes: u64,
}

impl BodyRoom {
    /// Takes `more` bytes, or says that there are too many.
    pub fn take(&mut self, more: u64) -> bool {
        let config = &self.tenant.settings.config;
        let limit = config
            .limits
            .max_request_memory
            .saturating_mul(config.concurrency as u64);
        let taken = self
            .tenant
            .bodies
            .fetch_add(more, Ordering::Relaxed)
            .saturating_add(more);
        self.bytes += more;
        taken <= limit
    }
}

impl Drop for BodyRoom {
    fn drop(&mut self) {
        self.tenant.bodies.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
