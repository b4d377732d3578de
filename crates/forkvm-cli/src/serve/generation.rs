//! A booted server with its forks, and the place where its successor is put.

use std::sync::Arc;
use std::time::Duration;

use forkvm::Server;
use parking_lot::Mutex;

use super::forks::{Forks, Setup};
use super::observed::observer::Observer;
use super::output::Output;
use super::settings::Serve;
use super::snapshot;
use super::turns::Turns;

/// A booted server and what its connections are held to.
pub struct Generation {
    pub server: Arc<Server>,
    pub forks: Forks,
    pub fork_count: usize,
    pub per_request: bool,
    pub max_idle_time: Duration,
    pub max_time: Duration,
    pub max_upgraded_time: Duration,
}

impl Generation {
    /// Boots the program, or loads its snapshot, and makes its forks.
    pub fn boot(
        settings: &Serve,
        observer: &Arc<Observer>,
        turns: &Turns,
    ) -> Result<Arc<Self>, String> {
        let output = Output {
            strace: settings.strace,
        };
        let server = match &settings.snapshot {
            Some(path) => snapshot::load(path, settings)?,
            None => snapshot::boot(settings, output)?,
        };
        let fork_count = settings.fork_count();
        let setup = Setup {
            count: fork_count,
            backlog: settings.backlog,
            max_wait: settings.max_request_time.min(settings.max_time),
            resets: !settings.no_reset,
            max_idle: settings.max_fork_idle_time,
            output,
        };
        let forks = Forks::start(&server, setup, observer, turns)?;
        Ok(Arc::new(Self {
            server,
            forks,
            fork_count,
            per_request: settings.per_request,
            max_idle_time: settings.max_idle_time,
            max_time: settings.max_time,
            max_upgraded_time: settings.max_upgraded_time,
        }))
    }

    /// Says which system calls the program missed, if any.
    pub fn tell_unsupported(&self) {
        let names = self.server.unsupported();
        if !names.is_empty() {
            err!(
                "forkvm: system calls that are not supported (the program got ENOSYS): {}",
                names.join(", ")
            );
        }
    }
}

/// The generation that new connections and requests go to.
pub struct Current(Mutex<Arc<Generation>>);

impl Current {
    /// This one at first.
    pub fn new(first: Arc<Generation>) -> Self {
        Self(Mutex::new(first))
    }

    /// Which it is now.
    pub fn get(&self) -> Arc<Generation> {
        self.0.lock().clone()
    }

    /// Puts another in its place. What the old one has under way it brings to its end.
    pub fn replace(&self, by: Arc<Generation>) -> Arc<Generation> {
        std::mem::replace(&mut *self.0.lock(), by)
    }
}
