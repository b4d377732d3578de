//! What the engine needs to run a tenant's unmodified server: its command, and what it may have.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use forkvm::{AllowedPath, Command, Sandbox, usual_paths};

use crate::file;
use crate::tenants::tenant::Tenant;

/// How much of a file is compared at a time.
const PIECE: usize = 64 << 10;

/// A server that is to be booted.
pub struct Serving {
    /// How it is run.
    pub command: Command,
    /// What it may have.
    pub sandbox: Sandbox,
    _aside: Option<Aside>,
}

/// A file that is there as long as this.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        // What can't be removed the store clears away at its next change.
        let _ = fs::remove_file(&self.0);
    }
}

impl Serving {
    /// Of this program of the tenant's, which sees itself at the tenant's path whatever file it is in.
    pub fn new(tenant: &Tenant, program: &[u8]) -> io::Result<Self> {
        let settings = &tenant.settings;
        let (path, config) = (&settings.path, &settings.config);
        let mut allowed_paths = usual_paths(path);
        let aside = if holds(path, program)? {
            None
        } else {
            let aside = write_aside(tenant.store.folder(), program)?;
            // The first of the same place counts.
            allowed_paths.insert(
                0,
                AllowedPath {
                    seen: path.clone(),
                    ..AllowedPath::from(&aside.0)
                },
            );
            Some(aside)
        };
        allowed_paths.extend(config.allowed_paths.iter().cloned());
        let bytes = |text: &str| text.as_bytes().to_vec();
        let path = path.to_string_lossy();
        let arguments = config.main_arguments.iter().map(|word| bytes(word));
        let own = [
            "PATH=/usr/local/bin:/usr/bin:/bin".to_owned(),
            format!("KVM_NAME={}", config.name),
            format!("KVM_GROUP={}", config.group),
        ];
        let environment = own.iter().chain(&config.environment);
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
                ..Sandbox::default()
            },
            _aside: aside,
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

/// Puts a program into a file of its own: what is booted is stored only once it has booted.
fn write_aside(folder: &Path, program: &[u8]) -> io::Result<Aside> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!("boot-{}-{number}.tmp", std::process::id()));
    let told =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut file: File = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o700)
        .open(&path)
        .map_err(told)?;
    let aside = Aside(path.clone());
    file.write_all(program).map_err(told)?;
    Ok(aside)
}
