//! What the engine needs to run a tenant's unmodified server: its command, and what it may have.
#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use forkvm::{
    AllowedPath, BootError, Command, Host, SEARCH_PATH, Sandbox, program_paths, system_paths,
};

use crate::file;
use crate::tenants::archive::{self, NotUnpacked};
use crate::tenants::aside::Aside;
use crate::tenants::settings::Settings;
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

/// Why a server can't be booted.
#[derive(Debug, thiserror::Error)]
pub enum NotServable {
    /// It was sent a folder, and there is no place for one.
    #[error(
        "it is an archive of a folder: give kvm.server() a folder, the path at which the server is to see it"
    )]
    NoFolder,
    /// The archive is not unpacked.
    #[error(transparent)]
    Archive(#[from] NotUnpacked),
    /// The host has no room for its files.
    #[error("{0}")]
    Host(#[from] io::Error),
}

impl From<NotServable> for BootError {
    fn from(error: NotServable) -> Self {
        let text = error.to_string();
        match error {
            NotServable::NoFolder => Self::Setting(text),
            NotServable::Archive(NotUnpacked::Stopped) => Self::Stopped,
            NotServable::Host(_) | NotServable::Archive(NotUnpacked::Host { .. }) => {
                Self::Host(text)
            }
            NotServable::Archive(_) => Self::NotServing(text),
        }
    }
}

impl Serving {
    /// Of what came: a program, which sees itself at the tenant's path whatever file it is in, or a folder, which the program
    /// at that path has. `host` may have the unpacking wait.
    pub fn new(tenant: &Tenant, came: &[u8], host: &mut dyn Host) -> Result<Self, NotServable> {
        let settings = &tenant.settings;
        let (path, config) = (&settings.path, &settings.config);
        let (mut allowed_paths, aside) = match archive::is_archive(came) {
            true => with_folder(tenant, came, host)?,
            false => with_program(tenant, came)?,
        };
        allowed_paths.extend(system_paths());
        allowed_paths.extend(config.allowed_paths.iter().cloned());
        let values = &settings.values;
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
                allowed_net: values.allow_net.clone(),
                writable_paths: config.writable_paths.clone(),
                allowed_listen: match &*values.allow_listen {
                    [] => None,
                    rules => Some(rules.to_vec()),
                },
                overlay_bytes: config.max_file_memory,
                volume_bytes: config.max_volume_writes,
                ..Sandbox::default()
            },
            keep: aside.map(|aside| Box::new(aside) as Keep),
        })
    }
}

/// What a program needs to be where it is, and beside it the tenant's folder as it is on the host, if it is.
fn with_program(
    tenant: &Tenant,
    program: &[u8],
) -> Result<(Vec<AllowedPath>, Option<Aside>), NotServable> {
    let path = &tenant.settings.path;
    let (mut allowed_paths, aside) = if holds(path, program)? {
        (program_paths(path), None)
    } else {
        let aside = Aside::file(tenant.store.folder(), program)?;
        let seen = AllowedPath {
            seen: path.clone(),
            ..AllowedPath::from(aside.path())
        };
        (vec![seen], Some(aside))
    };
    let folder = tenant.settings.values.folder.as_ref().map(Path::new);
    let folder = folder.filter(|folder| folder.is_dir());
    allowed_paths.extend(folder.map(AllowedPath::from));
    Ok((allowed_paths, aside))
}

/// The tenant's folder from an archive, and its program unless that is in there.
fn with_folder(
    tenant: &Tenant,
    archive: &[u8],
    host: &mut dyn Host,
) -> Result<(Vec<AllowedPath>, Option<Aside>), NotServable> {
    let Settings { path, values, .. } = &tenant.settings;
    let folder = values.folder.as_ref().ok_or(NotServable::NoFolder)?;
    let aside = Aside::folder(tenant.store.folder())?;
    let limits = archive::Limits {
        bytes: values.max_folder_size,
        files: values.max_folder_files,
    };
    let mut since = Instant::now();
    let mut pause = || match host.slice() {
        Some(slice) if since.elapsed() >= slice => {
            let given = host.give_way(Duration::ZERO);
            since = Instant::now();
            given
        }
        _ => ControlFlow::Continue(()),
    };
    let into = aside.opened()?.try_clone()?.into();
    archive::unpack(archive, into, limits, &mut pause)?;
    let mut allowed_paths = vec![AllowedPath {
        seen: folder.into(),
        ..AllowedPath::from(aside.path())
    }];
    if !tenant.settings.is_in_folder() {
        allowed_paths.extend(program_paths(path));
    }
    Ok((allowed_paths, Some(aside)))
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
