//! Servers that start from a snapshot in place of a boot: one that the operator has taken, or the tenant's own, which is written after
//! its boot.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use forkvm::{BootError, Config, Host, Program, Server, Snapshot, SnapshotError};
use varnish::vcl::LogTag;

use crate::tenants::serving::Serving;
use crate::tenants::store::StoreError;
use crate::tenants::tenant::Tenant;
use crate::tenants::version::Version;
use crate::tenants::writing::Writing;
use crate::varnish::logging;

/// Name of a tenant's own, in its folder of *state_dir*.
const NAME: &str = "server.snapshot";

static WRITING: Writing = Writing::new();

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
enum NotUsed {
    /// It is not one, or not for here.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// It is of something else.
    #[error("it is of another program, or of other arguments")]
    OtherProgram,
    /// The tenant has changed.
    #[error("the program or its settings have changed")]
    OtherSettings,
    /// What it was made of has changed.
    #[error("{0} has changed, which the program had read")]
    Outdated(PathBuf),
    /// Nobody knows whether that is so.
    #[error("the program had read too many files to know whether they have changed")]
    Unknown,
}

/// Starts a server. `came` is its program; what is at the tenant's path itself may start from a snapshot.
pub fn start(
    tenant: &Tenant,
    came: &[u8],
    serving: Serving,
    config: Config,
    host: &mut dyn Host,
) -> Result<Arc<Program>, BootError> {
    let values = &tenant.settings.values;
    let at_path = serving.keep.is_none();
    let is_lost = tenant.snapshot_is_lost();
    if let Some(path) = values
        .snapshot
        .as_ref()
        .map(Path::new)
        .filter(|_| at_path && !is_lost)
    {
        match given(path, &serving, &config) {
            Ok(program) => {
                tell_changes(tenant, path, &program);
                return Ok(program);
            }
            Err(error) => tell(tenant, LogTag::Error, path, &error),
        }
    }
    let own = (values.keep_snapshot && at_path).then(|| Own::of(tenant, came, &serving, &config));
    if let Some(own) = own.as_ref().filter(|_| !is_lost) {
        match own.load(&serving, &config) {
            Ok(Some(program)) => return Ok(program),
            Ok(None) => {}
            Err(error) => tell(tenant, LogTag::Notice, &own.path, &error),
        }
    }
    let Serving {
        command,
        sandbox,
        keep,
    } = serving;
    let program = Program::boot_server(command, &sandbox, config, keep, host)?;
    if let (Some(own), Some(server)) = (own, program.server()) {
        own.keep(tenant, &server);
    }
    Ok(program)
}

/// What is said of memory that is whole and could be written to, were there somebody who can.
const UNSEALED: &str = "the memory of its snapshot can't be sealed (F_SEAL_WRITE): the kernel holds a page of it; nobody else can write to it";

/// Waits for the memory of a program that has come from a snapshot and serves already. False if that is found to be damaged so late:
/// the program can't go on, and the next one is not to come from there.
pub fn is_whole(tenant: &Tenant, program: &Program) -> bool {
    let Some(server) = program.server() else {
        return true;
    };
    match server.wait_until_whole() {
        Ok(()) => {
            if !server.is_sealed() {
                logging::log(LogTag::Notice, tenant.name(), UNSEALED);
            }
            true
        }
        Err(error) => {
            tenant.lose_snapshot();
            let text = format!("its snapshot is not used any more, the program is booted: {error}");
            logging::log(LogTag::Error, tenant.name(), &text);
            false
        }
    }
}

fn tell(tenant: &Tenant, tag: LogTag, path: &Path, error: &NotUsed) {
    let text = format!(
        "the snapshot {} is not used, the program is booted: {error}",
        path.display()
    );
    logging::log(tag, tenant.name(), &text);
}

/// Names what has changed below a snapshot that is used all the same, since the operator said so.
fn tell_changes(tenant: &Tenant, path: &Path, program: &Program) {
    /// Enough to see what it is about.
    const MOST: usize = 8;
    let Some(server) = program.server() else {
        return;
    };
    let tell = |what: std::fmt::Arguments<'_>| {
        let text = format!("the snapshot {} is used, though {what}", path.display());
        logging::log(LogTag::Notice, tenant.name(), &text);
    };
    match server.changed_files() {
        Some(changed) => {
            for file in changed.iter().take(MOST) {
                tell(format_args!(
                    "{} has changed, which the program had read",
                    file.display()
                ));
            }
        }
        None => tell(format_args!(
            "the program had read too many files to know whether they have changed"
        )),
    }
}

/// The one that the operator has taken.
fn given(path: &Path, serving: &Serving, config: &Config) -> Result<Arc<Program>, NotUsed> {
    let snapshot = Snapshot::open(path)?;
    let (theirs, ours) = (snapshot.command(), &serving.command);
    // What it is called is a shell's business.
    if theirs.path != ours.path || theirs.arguments.get(1..) != ours.arguments.get(1..) {
        return Err(NotUsed::OtherProgram);
    }
    Ok(Program::load_server(
        snapshot,
        &serving.sandbox,
        config.clone(),
    )?)
}

/// A tenant's own.
struct Own {
    path: PathBuf,
    /// What it is of: the program, and the settings that its state depends on.
    label: String,
}

impl Own {
    fn of(tenant: &Tenant, came: &[u8], serving: &Serving, config: &Config) -> Self {
        let of = format!(
            "{} {:?} {:?} {:?} {:?} {}",
            Version::of(came),
            serving.command,
            serving.sandbox,
            config.warm_up,
            config.warm_up_time,
            config.drop_connections
        );
        Self {
            path: tenant.store.folder().join(NAME),
            label: Version::of(of.as_bytes()).to_string(),
        }
    }

    /// `None` if there is none yet.
    fn load(&self, serving: &Serving, config: &Config) -> Result<Option<Arc<Program>>, NotUsed> {
        if !self.path.exists() {
            return Ok(None);
        }
        let snapshot = Snapshot::open(&self.path)?;
        if snapshot.label() != self.label {
            return Err(NotUsed::OtherSettings);
        }
        let program = Program::load_server(snapshot, &serving.sandbox, config.clone())?;
        let server = program.server();
        match server.as_ref().and_then(|server| server.changed_files()) {
            Some([]) => Ok(Some(program)),
            Some([first, ..]) => Err(NotUsed::Outdated(first.clone())),
            None => Err(NotUsed::Unknown),
        }
    }

    /// Writes it, while requests are answered already.
    fn keep(self, tenant: &Tenant, server: &Arc<Server>) {
        let name = tenant.name().to_owned();
        // Makes the folder, for who may write there alone.
        let made = match tenant.store.lock() {
            Ok(_) | Err(StoreError::Busy(_)) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        // A server that nobody has any more by then need not be kept.
        let server = Arc::downgrade(server);
        let write = {
            let name = name.clone();
            move || {
                let Some(server) = server.upgrade() else {
                    return;
                };
                let start = Instant::now();
                let saved = made.and_then(|()| {
                    let saved = server.save(&self.path, &self.label);
                    saved.map_err(|error| error.to_string())
                });
                let (tag, text) = match saved {
                    Ok(len) => (
                        LogTag::Debug,
                        format!("its snapshot of {len} bytes took {:?}", start.elapsed()),
                    ),
                    Err(error) => (LogTag::Error, format!("its snapshot is not kept: {error}")),
                };
                logging::log(tag, &name, &text);
            }
        };
        if let Err(error) = WRITING.add(write) {
            let text = format!("its snapshot is not kept: {error}");
            logging::log(LogTag::Error, &name, &text);
        }
    }
}
