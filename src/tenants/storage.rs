//! A tenant's storage, as far as it runs outside of requests: what it outputs, its share of the processor, and what is said and
//! counted of it.
#![forbid(unsafe_code)]

use std::any::Any;
use std::sync::Arc;

use forkvm::{Host, StorageEvent, StorageOwner};
use varnish::vcl::LogTag;

use crate::tenants::fetches::Fetches;
use crate::tenants::places::Place;
use crate::varnish::counters::count;
use crate::varnish::logging::{self, LateOutput};

/// Whose storage it is.
pub struct Keeper {
    tenant: String,
    stdout: bool,
    fetches: Option<Arc<Fetches>>,
}

impl Keeper {
    /// Of the tenant of this name, whose standard output goes to the log, or does not, and for which this is fetched.
    pub fn new(tenant: String, stdout: bool, fetches: Option<Arc<Fetches>>) -> Self {
        Self {
            tenant,
            stdout,
            fetches,
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
