//! What programs have fetched by HTTP, and who does that for them: the engine copies requests out of a guest and answers into it,
//! and knows no HTTP client.

use std::time::Instant;

use crate::header::Header;

/// The header by which a request that programs have made of their own Varnish is known (RFC 8586), and what stands there for each time.
pub const LOOP_HEADER: &str = "CDN-Loop";
/// See [`LOOP_HEADER`].
pub const LOOP_NAME: &str = "vmod-kvm";

/// Fetches for a tenant's programs. What it holds for them is shared by all their forks.
pub trait Fetcher: Send + Sync {
    /// Longest body of a request or a response, in bytes.
    fn max_size(&self) -> u64;

    /// Begins a fetch, and does not wait for it. It ends when it is dropped.
    ///
    /// # Errors
    /// See [`FetchError`]: what is known at once.
    fn begin(&self, request: FetchRequest) -> Result<Box<dyn Fetching>, FetchError>;
}

/// A fetch under way. First its head is taken, then its body.
pub trait Fetching: Send {
    /// Waits for the head, until this time at most; `None` if it has not come by then.
    ///
    /// # Errors
    /// See [`FetchError`].
    fn head(&mut self, until: Instant) -> Result<Option<FetchHead>, FetchError>;

    /// Waits for more of the body, and gives how much of it is in `buf` now; 0 at its end. `None` if nothing has come by then.
    ///
    /// # Errors
    /// See [`FetchError`].
    fn read(&mut self, buf: &mut [u8], until: Instant) -> Result<Option<usize>, FetchError>;
}

/// What is to be fetched. Nothing of it has been checked but that headers are valid, and that none of them is about the
/// connection or the body's length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRequest {
    /// Where from.
    pub target: FetchTarget,
    /// The method.
    pub method: String,
    /// Headers.
    pub headers: Vec<Header<'static>>,
    /// The body; `None` is none at all.
    pub body: Option<Vec<u8>>,
    /// Whether redirects are followed.
    pub follow: bool,
    /// Whether certificates are not to be looked at.
    pub unverified: bool,
    /// When all of it has to be over.
    pub deadline: Instant,
}

/// Where something is fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchTarget {
    /// By its URL.
    Url(String),
    /// From who has sent the request that is being answered.
    Own {
        /// Path and query.
        path: String,
        /// How often in a row that was so by now.
        depth: usize,
    },
}

/// The head of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchHead {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: Vec<Header<'static>>,
    /// Its body's length, as far as that is said.
    pub length: Option<u64>,
}

/// Why something was not fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// There is nobody to fetch it.
    #[error("there is nobody here to fetch for programs")]
    NotThere,
    /// It can't ask who has asked it.
    #[error("nobody has said how its own Varnish is asked (kvm.init_self_requests())")]
    NoOwn,
    /// The tenant may not: why.
    #[error("{0}")]
    NotAllowed(String),
    /// What is to be fetched makes no sense: why.
    #[error("{0}")]
    Bad(String),
    /// As many as may be are under way.
    #[error("{0} fetches are under way, which are all that may be (max_fetches)")]
    TooMany(usize),
    /// The same of those that ask its own Varnish.
    #[error(
        "{0} requests to its own Varnish are under way, which are all that a tenant may have (max_concurrent of \
         kvm.init_self_requests())"
    )]
    TooManyOwn(usize),
    /// A body is too long.
    #[error("a body of more than {0} bytes (max_fetch_size)")]
    TooLong(u64),
    /// The memory for requests' bodies is taken.
    #[error("no room for its body beside the others' (max_request_memory)")]
    NoRoom,
    /// A name has no address.
    #[error("no address of {0} is known")]
    NoAddress(String),
    /// Nobody is there, or they have ended the connection: how.
    #[error("{0}")]
    Unreachable(String),
    /// No TLS: why.
    #[error("TLS: {0}")]
    Tls(String),
    /// No HTTP: why.
    #[error("HTTP: {0}")]
    Protocol(String),
    /// One leads to the next.
    #[error("{0}")]
    Loop(&'static str),
    /// It was not done in time.
    #[error("not done in time")]
    Timeout,
}

impl FetchError {
    /// The error's number for a program, of Linux's.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotThere | Self::NoOwn => libc::ENOSYS,
            Self::NotAllowed(_) => libc::EACCES,
            Self::Bad(_) => libc::EINVAL,
            Self::TooMany(_) | Self::TooManyOwn(_) | Self::NoRoom => libc::EAGAIN,
            Self::TooLong(_) => libc::EMSGSIZE,
            Self::NoAddress(_) => libc::EHOSTUNREACH,
            Self::Unreachable(_) => libc::ECONNREFUSED,
            Self::Tls(_) | Self::Protocol(_) => libc::EPROTO,
            Self::Loop(_) => libc::ELOOP,
            Self::Timeout => libc::ETIMEDOUT,
        }
    }
}
