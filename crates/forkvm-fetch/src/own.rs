//! The Varnish that programs run in, as they may ask it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forkvm::FetchError;
use parking_lot::RwLock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::target::Target;

/// How often in a row a program may ask its own Varnish by way of others.
const MOST_DEPTH: usize = 4;

/// How it is asked.
#[derive(Debug)]
pub struct Own {
    /// Each has another one.
    pub(crate) number: u64,
    socket: Option<PathBuf>,
    prefix: Target,
    places: Arc<Semaphore>,
    most: usize,
}

/// It can't be asked so: why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadOwn(pub String);

impl std::fmt::Display for BadOwn {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for BadOwn {}

/// Where it is said how, once somebody has. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct OwnSlot(Arc<RwLock<Option<Arc<Own>>>>);

impl OwnSlot {
    /// Says how, from now on.
    pub fn set(&self, own: Own) {
        *self.0.write() = Some(Arc::new(own));
    }

    /// How, if that has been said.
    pub fn get(&self) -> Option<Arc<Own>> {
        self.0.read().clone()
    }
}

/// One that is under way, or is to be.
#[derive(Debug)]
pub struct Entered {
    /// Whom to ask.
    pub own: Arc<Own>,
    /// The how many-th it is in a row.
    pub depth: usize,
    _place: OwnedSemaphorePermit,
}

impl Own {
    /// By this socket of Unix's, or else by TCP; paths are appended to the prefix, a URL; so many at once at most.
    ///
    /// # Errors
    /// What is wrong with that.
    pub fn new(socket: Option<PathBuf>, prefix: &str, most: usize) -> Result<Self, BadOwn> {
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let parsed = Target::parse(prefix).map_err(|error| BadOwn(error.to_string()))?;
        if socket.is_some() && parsed.origin.tls {
            return Err(BadOwn("a URL of https for a socket of Unix's".into()));
        }
        if prefix.contains(['?', '#']) {
            return Err(BadOwn("a URL with a query".into()));
        }
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Ok(Self {
            number: COUNT.fetch_add(1, Ordering::Relaxed),
            socket,
            prefix: parsed,
            places: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
            most,
        })
    }

    /// The socket, if it is one of Unix's.
    pub fn socket(&self) -> Option<&std::path::Path> {
        self.socket.as_deref()
    }

    /// Where a path leads to.
    pub(crate) fn target(&self, path: &str) -> Result<Target, FetchError> {
        if !path.starts_with('/') {
            let what = "a path of its own Varnish's that does not begin with /";
            return Err(FetchError::Bad(what.into()));
        }
        let Target {
            origin,
            path: prefix,
        } = &self.prefix;
        let prefix = if prefix == "/" { "" } else { prefix };
        Target::parse(&format!("{origin}{prefix}{path}"))
    }

    /// One more, if it may be.
    pub(crate) fn enter(self: &Arc<Self>, depth: usize) -> Result<Entered, FetchError> {
        if depth >= MOST_DEPTH {
            return Err(FetchError::Loop(
                "the program asks its own Varnish for what asks it again, too often in a row",
            ));
        }
        let places = self.places.clone();
        let place = places
            .try_acquire_owned()
            .map_err(|_| FetchError::TooMany(self.most))?;
        Ok(Entered {
            own: self.clone(),
            depth: depth + 1,
            _place: place,
        })
    }
}
