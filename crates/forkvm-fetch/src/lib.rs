//! Fetches for programs ([`forkvm::Fetcher`]): HTTP/1.1, with TLS or without, to what a tenant's rules name and nothing else.
//!
//! A [`Client`] is a tenant's. Its connections are shared by all forks of the tenant's programs, and by no other tenant. The work is
//! done on two threads of this crate's, so that the thread that a program runs on only waits, whatever stack it has. Names
//! are looked up by the host, every address is checked, and the address that was checked is connected to. Neither proxies
//! of the environment nor cookies are used, and bodies are passed on as they are.

mod connect;
mod exchange;
mod fetching;
mod names;
mod own;
mod pool;
mod runtime;
mod settings;
mod shared;
mod target;
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use forkvm::{FetchError, FetchRequest, FetchTarget, Fetcher, Fetching};
use tokio::sync::Semaphore;

pub use crate::names::Lookup;
pub use crate::own::{BadOwn, Own, OwnSlot};
pub use crate::settings::{Settings, Told};

use crate::connect::Connector;
use crate::exchange::Exchange;
use crate::fetching::Waiting;
use crate::names::Names;
use crate::own::Inside;
use crate::shared::Shared;
use crate::target::Target;
use crate::tls::Tls;

/// What a client has done. They only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Fetches that were asked for.
    pub fetches: u64,
    /// Of these, those that came to nothing.
    pub failures: u64,
}

/// A tenant's client.
pub struct Client {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Client")
            .field("settings", &self.shared.settings)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// One that finds names as the host does.
    ///
    /// # Errors
    /// What is wrong with the file of certificates.
    pub fn new(settings: Settings) -> Result<Self, String> {
        Self::with_lookup(settings, Arc::new(forkvm::addresses))
    }

    /// One that finds names otherwise.
    ///
    /// # Errors
    /// See [`Client::new`].
    pub fn with_lookup(settings: Settings, lookup: Lookup) -> Result<Self, String> {
        let connector = Connector {
            reach: settings.reach.clone(),
            names: Names::new(lookup),
            tls: Tls::new(settings.ca_file.as_deref())?,
        };
        Ok(Self {
            shared: Arc::new(Shared {
                connector,
                pool: Arc::default(),
                places: Arc::new(Semaphore::new(
                    settings.max_fetches.min(Semaphore::MAX_PERMITS),
                )),
                inside: Inside::default(),
                fetches: AtomicU64::new(0),
                failures: AtomicU64::new(0),
                settings,
            }),
        })
    }

    /// What it has done.
    pub fn stats(&self) -> Stats {
        Stats {
            fetches: self.shared.fetches.load(Ordering::Relaxed),
            failures: self.shared.failures.load(Ordering::Relaxed),
        }
    }

    fn try_begin(&self, request: FetchRequest) -> Result<Box<dyn Fetching>, FetchError> {
        let shared = &self.shared;
        let settings = &shared.settings;
        let body = request.body.as_ref().map_or(0, Vec::len);
        if body as u64 > settings.max_size {
            return Err(FetchError::TooLong(settings.max_size));
        }
        if request.unverified && !settings.unverified {
            let what = "its program does not want the certificate's name looked at, which it may not have (fetch_unverified)";
            return Err(FetchError::NotAllowed(what.into()));
        }
        let (target, own) = match &request.target {
            FetchTarget::Url(url) => {
                let target = Target::parse(url)?;
                shared.connector.check(&target)?;
                (target, None)
            }
            FetchTarget::Own { path, depth } => {
                let own = settings.own.get().ok_or(FetchError::NoOwn)?;
                (own.target(path)?, Some(own.enter(*depth, &shared.inside)?))
            }
        };
        let limit = settings.max_fetches;
        let places = shared.places.clone();
        let place = places
            .try_acquire_owned()
            .map_err(|_| FetchError::TooMany(limit))?;
        let deadline = request.deadline.min(Instant::now() + settings.max_time);
        let exchange = Exchange::new(request, target, own.as_ref(), settings.max_size)?;
        let runtime = runtime::handle()?;
        Ok(Box::new(Waiting::begin(
            runtime,
            shared.clone(),
            exchange,
            deadline,
            place,
            own,
        )))
    }
}

impl Fetcher for Client {
    fn max_size(&self) -> u64 {
        self.shared.settings.max_size
    }

    fn begin(&self, request: FetchRequest) -> Result<Box<dyn Fetching>, FetchError> {
        self.shared.fetches.fetch_add(1, Ordering::Relaxed);
        (self.shared.settings.told)(Told::Asked);
        self.try_begin(request)
            .inspect_err(|_| self.shared.failed())
    }
}
