//! The Varnish that programs run in, as they may ask it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use forkvm::FetchError;
use parking_lot::RwLock;

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
    /// Most requests of one tenant's that are under way.
    most: usize,
}

/// It can't be asked so: why. To be read after the prefix's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadOwn {
    /// The prefix is no URL.
    #[error(transparent)]
    Prefix(#[from] FetchError),
    /// There is no TLS on a socket of Unix's.
    #[error("a URL of https for a socket of Unix's")]
    TlsToSocket,
    /// Paths can't be appended to it.
    #[error("a URL with a query")]
    Query,
}

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

/// How many requests of a tenant's are under way to its own Varnish.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inside(Arc<AtomicUsize>);

impl Inside {
    /// One more, if there are fewer than `most`.
    fn enter(&self, most: usize) -> Option<Place> {
        let more = |inside| (inside < most).then_some(inside + 1);
        let entered = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        entered.is_ok().then(|| Place {
            of: self.0.clone(),
            left: AtomicBool::new(false),
        })
    }
}

/// A request's place among its tenant's: until somebody leaves it, or it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    of: Arc<AtomicUsize>,
    left: AtomicBool,
}

impl Place {
    /// It is another one's from now on.
    pub fn leave(&self) {
        if !self.left.swap(true, Ordering::Relaxed) {
            self.of.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

/// One that is under way, or is to be.
#[derive(Debug, Clone)]
pub(crate) struct Entered {
    /// Whom to ask.
    pub own: Arc<Own>,
    /// The how many-th it is in a row.
    pub depth: usize,
    /// Its place, which who asks and who waits for the answer both may leave.
    pub place: Arc<Place>,
}

impl Own {
    /// By this socket of Unix's, or else by TCP; paths are appended to the prefix, a URL; of each tenant so many at once at most.
    ///
    /// # Errors
    /// See [`BadOwn`].
    pub fn new(socket: Option<PathBuf>, prefix: &str, most: usize) -> Result<Self, BadOwn> {
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let parsed = Target::parse(prefix)?;
        if socket.is_some() && parsed.origin.tls {
            return Err(BadOwn::TlsToSocket);
        }
        if prefix.contains(['?', '#']) {
            return Err(BadOwn::Query);
        }
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Ok(Self {
            number: COUNT.fetch_add(1, Ordering::Relaxed),
            socket,
            prefix: parsed,
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

    /// One more of a tenant's, if it may be.
    pub(crate) fn enter(
        self: &Arc<Self>,
        depth: usize,
        inside: &Inside,
    ) -> Result<Entered, FetchError> {
        if depth >= MOST_DEPTH {
            return Err(FetchError::Loop(
                "the program asks its own Varnish for what asks it again, too often in a row",
            ));
        }
        let place = inside.enter(self.most);
        Ok(Entered {
            own: self.clone(),
            depth: depth + 1,
            place: Arc::new(place.ok_or(FetchError::TooManyOwn(self.most))?),
        })
    }
}
