//! What a VCL function leaves with its task for the fetch: which tenant, and a request or an order.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use crate::tenants::signature::Action;
use crate::tenants::tenant::Tenant;
use crate::varnish::fetch::{Fetch, of_task};

/// A program of a chain: its answer is what the next one is asked.
pub struct Link {
    /// Its tenant, or why there is none.
    pub tenant: Result<Arc<Tenant>, String>,
    /// `None` is the request's own.
    pub url: Option<Vec<u8>>,
    pub arg: Vec<u8>,
    /// An answer with this status or above ends the chain.
    pub error_threshold: u16,
}

/// The programs that `kvm.chain()` was called for in a task, until something ends the chain.
#[derive(Default)]
pub struct Chain(pub Vec<Link>);

/// What `kvm.backend()` or one like it was called with. `None` is the default: Host, and bereq.url.
#[derive(Default)]
pub struct Target {
    pub tenant: Option<Vec<u8>>,
    pub url: Option<Vec<u8>>,
    pub arg: Vec<u8>,
    /// The programs before it.
    pub chain: Chain,
    /// Something else than a request of the tenant's program.
    pub order: Option<Order>,
}

of_task!(Chain);
of_task!(Arc<Target>);

impl Target {
    /// What `kvm.backend()` was called with in a fetch's task. `None` if it was not, or the task was rolled back since.
    pub fn of(fetch: &Fetch<'_, '_>) -> Option<Arc<Self>> {
        fetch.kept::<Arc<Self>>().cloned()
    }
}

/// Something that needs a key.
#[derive(Debug)]
pub enum Order {
    /// Another program for the tenant.
    Upload(Upload),
    /// A request that is debugged.
    Debug(Debug),
}

/// Another program for the tenant.
#[derive(Debug)]
pub enum Upload {
    /// The body is the new program.
    Update {
        /// The key that was sent.
        key: Sent,
        /// The longest body; 0 is the tenant's setting.
        max_size: usize,
    },
    /// The program before comes back.
    Rollback {
        /// The key that was sent.
        key: Sent,
    },
}

impl Upload {
    /// The key that was sent, and what for.
    pub fn key(&self) -> (&Sent, Action) {
        match self {
            Self::Update { key, .. } => (key, Action::Update),
            Self::Rollback { key } => (key, Action::Rollback),
        }
    }
}

impl Debug {
    /// What the key was sent for.
    pub fn action(&self) -> Action {
        match self.upload {
            Some(_) => Action::LiveDebug,
            None => Action::Debug,
        }
    }
}

/// A request is to stop at its handler's entry.
#[derive(Debug)]
pub struct Debug {
    /// The key that was sent.
    pub key: Sent,
    /// The request's body is the program to be debugged, of at most so many bytes. Without it, the one that is live.
    pub upload: Option<usize>,
}

/// A key that somebody sent, who may be anybody.
pub struct Sent(Vec<u8>);

impl Sent {
    /// As it came.
    pub fn new(key: &[u8]) -> Self {
        Self(key.to_vec())
    }

    /// To be compared.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
}
