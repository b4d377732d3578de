//! A tenant's storage, as far as it runs outside of requests: what it outputs, its share of the processor, and what is said and
//! counted of it.
#![forbid(unsafe_code)]

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use forkvm::{Host, StorageEvent, StorageOwner};
use rustix::io::Errno;
use varnish::vcl::LogTag;

use crate::tenants::fetches::Fetches;
use crate::tenants::places::Place;
use crate::tenants::store::Store;
use crate::tenants::tenant::Tenant;
use crate::tenants::writers::{Unwritten, Writer};
use crate::varnish::counters::count;
use crate::varnish::logging::{self, LateOutput};

/// Whose storage it is: a program's.
pub struct Keeper {
    tenant: String,
    stdout: bool,
    fetches: Option<Arc<Fetches>>,
    store: Store,
    /// Nothing, if it is booted only to be debugged.
    writer: Option<Writer>,
    /// The log has said that its state can't be saved, since it last could.
    complained: AtomicBool,
}

impl Keeper {
    /// Of a tenant's next program, which may save its state or not.
    pub fn new(tenant: &Tenant, saves: bool) -> Self {
        Self {
            tenant: tenant.name().to_owned(),
            stdout: tenant.settings.values.stdout,
            fetches: tenant.fetches.clone(),
            store: tenant.store.clone(),
            writer: saves.then(|| Writer::new(tenant.number, &tenant.store)),
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

    fn load_state(&self, most: u64) -> io::Result<Option<Vec<u8>>> {
        self.store.read_state(most).map_err(|error| {
            self.log(LogTag::Error, &format!("state of its storage: {error}"));
            error.into()
        })
    }

    fn save_state(&self, content: &[u8]) -> io::Result<()> {
        let Some(writer) = &self.writer else {
            return Err(Errno::ROFS.into());
        };
        let saved = writer.write(content);
        let complained = self.complained.swap(saved.is_err(), Ordering::Relaxed);
        saved.map_err(|unwritten| {
            if !complained {
                self.log(LogTag::Error, &format!("state of its storage: {unwritten}"));
            }
            match unwritten {
                Unwritten::Later => Errno::STALE.into(),
                Unwritten::Store(error) => error.into(),
            }
        })
    }

    fn event(&self, event: &StorageEvent) {
        match event {
            StorageEvent::InService => self.writer.iter().for_each(Writer::begin),
            StorageEvent::Failed(why) => {
                count(|counters| &counters.storage_restarts);
                self.log(LogTag::Error, &format!("storage begins again: {why}"));
            }
            StorageEvent::Down(why) => {
                self.log(LogTag::Error, &format!("storage can't begin again: {why}"));
            }
            StorageEvent::NotSaved(why) => {
                self.log(
                    LogTag::Error,
                    &format!("storage has not saved at its end: {why}"),
                );
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
