//! A tenant's storage, as far as it runs outside of requests: what it outputs, its share of the processor, and what is said and
//! counted of it.
#![forbid(unsafe_code)]

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use forkvm::{Host, StorageEvent, StorageOwner};
use varnish::vcl::LogTag;

use crate::tenants::fetches::Fetches;
use crate::tenants::places::Place;
use crate::tenants::store::Store;
use crate::varnish::counters::count;
use crate::varnish::logging::{self, LateOutput};

/// Whose storage it is.
pub struct Keeper {
    tenant: String,
    stdout: bool,
    fetches: Option<Arc<Fetches>>,
    store: Store,
    /// The log has said that its state can't be saved, since it last could.
    complained: AtomicBool,
}

impl Keeper {
    /// Of the tenant of this name, whose standard output goes to the log, or does not, for which this is fetched, and which has its files
    /// there.
    pub fn new(tenant: String, stdout: bool, fetches: Option<Arc<Fetches>>, store: Store) -> Self {
        Self {
            tenant,
            stdout,
            fetches,
            store,
            complained: AtomicBool::new(false),
        }
    }

    fn log(&self, tag: LogTag, text: &str) {
        logging::log(tag, &self.tenant, text);
    }
}

impl StorageOwner for Keeper {
    fn host(&self) -> Box<dyn Host> {
        let output = LateOutput::new(&self.tenant, self.stdout);
        Box::new(output.with_fetcher(self.fetches.clone()))
    }

    /// Tasks begin in turn with boots.
    fn turn(&self) -> Box<dyn Any> {
        Box::new(Place::take())
    }

    fn load_state(&self) -> io::Result<Option<Vec<u8>>> {
        self.store.read_state().map_err(|error| {
            self.log(LogTag::Error, &format!("state of its storage: {error}"));
            error.into()
        })
    }

    fn save_state(&self, content: &[u8]) -> io::Result<()> {
        let saved = self.store.write_state(content);
        let failed = saved.is_err();
        if let Err(error) = &saved
            && !self.complained.load(Ordering::Relaxed)
        {
            self.log(LogTag::Error, &format!("state of its storage: {error}"));
        }
        self.complained.store(failed, Ordering::Relaxed);
        saved.map_err(Into::into)
    }

    fn event(&self, event: &StorageEvent) {
        match event {
            StorageEvent::Failed(why) => {
                count(|counters| &counters.storage_restarts);
                self.log(LogTag::Error, &format!("storage begins again: {why}"));
            }
            StorageEvent::Down(why) => {
                self.log(LogTag::Error, &format!("storage can't begin again: {why}"));
            }
            StorageEvent::TaskRan => count(|counters| &counters.storage_tasks),
            StorageEvent::TaskFailed(why) => {
                count(|counters| &counters.storage_task_failures);
                self.log(
                    LogTag::Error,
                    &format!("task of the storage failed, and is off: {why}"),
                );
            }
        }
    }
}
