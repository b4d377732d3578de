//! The program that is served: booted, and booted again when its file changes.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use forkvm::{Config, Fetcher, Program};

use crate::settings::Terminal;

/// How often the file is looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// A program's file and what has become of it.
pub struct Loaded {
    path: PathBuf,
    config: Config,
    fetcher: Arc<dyn Fetcher>,
    program: Mutex<Option<Arc<Program>>>,
}

/// What tells one content of a file from another, as far as can be seen without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
}

impl Seen {
    /// `None` if there is no file just now, as in the middle of a build.
    fn at(path: &Path) -> Option<Self> {
        let of = |file: Metadata| Self {
            file: (file.dev(), file.ino()),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
        };
        std::fs::metadata(path).ok().map(of)
    }
}

impl Loaded {
    /// Nothing is loaded yet.
    pub fn new(path: PathBuf, config: Config, fetcher: Arc<dyn Fetcher>) -> Self {
        Self {
            path,
            config,
            fetcher,
            program: Mutex::new(None),
        }
    }

    /// Where what it prints goes, and who fetches for it.
    pub fn terminal(&self) -> Terminal<'_> {
        Terminal {
            program: &self.path,
            tenant: &self.config.name,
            fetcher: self.fetcher.clone(),
        }
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The program as it is now, if it has started.
    pub fn program(&self) -> Option<Arc<Program>> {
        let program = self.program.lock();
        program.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Loads the file, and from now on every content that it gets.
    pub async fn keep_fresh(self: Arc<Self>) {
        let seen = Seen::at(&self.path);
        self.clone().load().await;
        tokio::spawn(self.watch(seen));
    }

    async fn watch(self: Arc<Self>, mut loaded: Option<Seen>) {
        let mut before = loaded;
        loop {
            tokio::time::sleep(INTERVAL).await;
            let now = Seen::at(&self.path);
            // A file that changes is left alone until it has been the same twice: a linker may still be writing it.
            if now.is_some() && now != loaded && now == before {
                loaded = now;
                self.clone().load().await;
            }
            before = now;
        }
    }

    async fn load(self: Arc<Self>) {
        // A panic in there has been told.
        let _ = tokio::task::spawn_blocking(move || self.boot()).await;
    }

    /// Boots the file, with the state of the program before if both have handlers for that. If it fails, that one stays.
    fn boot(&self) {
        let path = self.path.display();
        let mut terminal = self.terminal();
        let before = self.program();
        let start = Instant::now();
        let booted = std::fs::read(&self.path)
            .map_err(|error| error.to_string())
            .and_then(|elf| {
                let config = self.config.clone();
                match &before {
                    Some(program) => program.boot_successor(&elf, config, &mut terminal),
                    None => Program::boot(&elf, config, &mut terminal),
                }
                .map_err(|error| error.to_string())
            });
        let taken = booted.and_then(|program| {
            let taken = before
                .as_ref()
                .map(|before| program.take_over(before, &mut terminal));
            match taken.transpose() {
                Ok(taken) => Ok((program, taken)),
                Err(error) => Err(error.to_string()),
            }
        });
        match taken {
            Ok((program, taken)) => {
                let took = start.elapsed().as_secs_f64() * 1e3;
                err!("forkvm: {path} is ready ({took:.0} ms)");
                *self.program.lock().unwrap_or_else(PoisonError::into_inner) = Some(program);
                if let Some(taken) = taken {
                    taken.complete();
                }
            }
            Err(what) if before.is_some() => {
                err!("forkvm: {path}: {what}; the one before goes on");
            }
            Err(what) => err!("forkvm: {path}: {what}"),
        }
    }
}
