//! Names and their addresses: looked up on a few threads, since a lookup can be neither made not to wait nor ended.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use forkvm::FetchError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many are looked up at once, by all clients together.
pub const THREADS: usize = 8;
/// The same by one of them, so that one whose names are slow leaves threads for others.
const OF_ONE: usize = 2;

/// Finds a name's addresses. It may take as long as it likes.
pub type Lookup = Arc<dyn Fn(&str) -> Vec<IpAddr> + Send + Sync>;

/// The names of one client.
pub struct Names {
    lookup: Lookup,
    own: Arc<Semaphore>,
}

impl Names {
    /// Found so.
    pub fn new(lookup: Lookup) -> Self {
        Self {
            lookup,
            own: Arc::new(Semaphore::new(OF_ONE)),
        }
    }

    /// The addresses of a name. What waits for them may stop to do so at any time.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, FetchError> {
        let places = (place(&self.own).await?, place(of_all()).await?);
        let (lookup, asked) = (self.lookup.clone(), name.to_owned());
        let looked_up = tokio::task::spawn_blocking(move || {
            // Until it is done, whether somebody waits for it or not.
            let _places = places;
            lookup(&asked)
        });
        match looked_up.await {
            Ok(addresses) if !addresses.is_empty() => Ok(addresses),
            _ => Err(FetchError::NoAddress(name.into())),
        }
    }
}

fn of_all() -> &'static Arc<Semaphore> {
    static ALL: OnceLock<Arc<Semaphore>> = OnceLock::new();
    ALL.get_or_init(|| Arc::new(Semaphore::new(THREADS)))
}

async fn place(of: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, FetchError> {
    // None is ever closed.
    of.clone()
        .acquire_owned()
        .await
        .map_err(|_| FetchError::Timeout)
}
