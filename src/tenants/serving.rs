//! What the engine needs to run a tenant's unmodified server: its command, and what it may have.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use forkvm::{AllowedPath, Command, SEARCH_PATH, Sandbox, program_paths, system_paths};

use crate::file;
use crate::tenants::store::{SUFFIX, prefix};
use crate::tenants::tenant::Tenant;

/// How much of a file is compared at a time.
const PIECE: usize = 64 << 10;

/// A server that is to be booted.
pub struct Serving {
    /// How it is run.
    pub command: Command,
    /// What it may have.
    pub sandbox: Sandbox,
    /// To be kept as long as the program.
    pub keep: Option<Keep>,
}

/// Something that is dropped with a program.
pub type Keep = Box<dyn std::any::Any + Send + Sync>;

/// A file that is there as long as this: as long as the program runs, whose requests may read it.
#[derive(Debug)]
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        // What can't be removed, or a crash has left, the store clears away at a change after the next start.
        let _ = fs::remove_file(&self.0);
    }
}

impl Serving {
    /// Of this program of the tenant's, which sees itself at the tenant's path whatever file it is in.
    pub fn new(tenant: &Tenant, program: &[u8]) -> io::Result<Self> {
        let settings = &tenant.settings;
        let (path, config) = (&settings.path, &settings.config);
        let (mut allowed_paths, aside) = if holds(path, program)? {
            (program_paths(path), None)
        } else {
            let aside = Aside::write(tenant.store.folder(), program)?;
            let seen = AllowedPath {
                seen: path.clone(),
                ..AllowedPath::from(&aside.0)
            };
            (vec![seen], Some(aside))
        };
        allowed_paths.extend(system_paths());
        allowed_paths.extend(config.allowed_paths.iter().cloned());
        let bytes = |text: &str| text.as_bytes().to_vec();
        let path = path.to_string_lossy();
        let arguments = config.main_arguments.iter().map(|word| bytes(word));
        let own = [
            format!("PATH={SEARCH_PATH}"),
            format!("KVM_NAME={}", config.name),
            format!("KVM_GROUP={}", config.group),
        ];
        let name = |entry: &str| entry.split_once('=').map(|(name, _)| name.to_owned());
        let is_given = |own: &&String| {
            config
                .environment
                .iter()
                .any(|entry| name(entry) == name(own))
        };
        // getenv(3) finds the first of a name.
        let environment = own
            .iter()
            .filter(|own| !is_given(own))
            .chain(&config.environment);
        Ok(Self {
            command: Command {
                path: bytes(&path),
                arguments: std::iter::once(bytes(&path)).chain(arguments).collect(),
                environment: environment.map(|entry| bytes(entry)).collect(),
            },
            sandbox: Sandbox {
                allowed_paths,
                current_working_directory: config.current_working_directory.clone(),
                max_memory: config.limits.max_memory,
                allowed_net: settings.values.allow_net.clone(),
                overlay_bytes: Sandbox::default()
                    .overlay_bytes
                    .min(config.limits.max_request_memory),
                ..Sandbox::default()
            },
            keep: aside.map(|aside| Box::new(aside) as Keep),
        })
    }
}

/// Whether the file holds just this.
fn holds(path: &Path, program: &[u8]) -> io::Result<bool> {
    let Ok((mut file, identity)) = file::open(path) else {
        return Ok(false);
    };
    if identity.size() != program.len() as u64 {
        return Ok(false);
    }
    let mut piece = vec![0; PIECE];
    for expected in program.chunks(PIECE) {
        let piece = &mut piece[..expected.len()];
        if file.read_exact(piece).is_err() || *piece != *expected {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Aside {
    /// Puts a program into a file of its own: what is booted is stored only once it has booted.
    fn write(folder: &Path, program: &[u8]) -> io::Result<Self> {
        let (mut file, aside) = Self::create(folder)?;
        file.write_all(program)
            .map_err(|error| told(&aside.0, &error))?;
        Ok(aside)
    }

    fn create(folder: &Path) -> io::Result<(File, Self)> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{}{number}{SUFFIX}", prefix()));
            let mut options = OpenOptions::new();
            options.create_new(true).write(true).mode(0o700);
            match options.open(&path) {
                Ok(file) => return Ok((file, Self(path))),
                // Of a process before us that had our number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(told(&path, &error)),
            }
        }
    }
}

fn told(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
