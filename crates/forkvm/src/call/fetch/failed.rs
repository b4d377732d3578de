//! Why a call about fetching has failed, and the number that a program gets for that.

use crate::call::http::HeaderError;
use crate::failure::Cause;
use crate::fetch::FetchError;
use crate::memory::guest::NotRead;
use crate::memory::user::BadAddress;

/// Why a call has failed.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// A pointer or a length of the program's is wrong.
    #[error("a bad pointer or length: {0}")]
    Pointer(NotRead),
    /// The program's heap has no room for so much.
    #[error("its heap has no room for a body of {0} bytes (max_memory)")]
    NoMemory(u64),
    /// The program's buffer has none.
    #[error("a body of more than the {0} bytes of its buffer")]
    Buffer(u64),
    /// There is no such fetch.
    #[error("there is no fetch of that number")]
    NoHandle,
    /// So many are open.
    #[error("{0} fetches are open in this request, which are all that may be")]
    Open(usize),
    /// It can't be made in `main()`.
    #[error("only a request can have it fetched in parts")]
    NoRequest,
    /// It was not fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The program's run is over.
    #[error("its run is over")]
    Over(Cause),
}

impl From<BadAddress> for Failed {
    fn from(bad: BadAddress) -> Self {
        Self::Pointer(bad.into())
    }
}

impl From<NotRead> for Failed {
    fn from(bad: NotRead) -> Self {
        Self::Pointer(bad)
    }
}

impl From<HeaderError> for Failed {
    fn from(bad: HeaderError) -> Self {
        FetchError::Bad(format!("a header: {bad}")).into()
    }
}

impl Failed {
    /// Of Linux's.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Pointer(_) => libc::EFAULT,
            Self::NoMemory(_) => libc::ENOMEM,
            Self::Buffer(_) => libc::EMSGSIZE,
            Self::NoHandle => libc::EBADF,
            Self::Open(_) => libc::EMFILE,
            Self::NoRequest => libc::EPERM,
            Self::Fetch(error) => error.errno(),
            Self::Over(_) => libc::EINTR,
        }
    }
}
