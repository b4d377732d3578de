//! The program at a tenant's path, if it is fetched from somewhere, and if it is the one that is wanted.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use md5::{Digest, Md5};
use rustix::fs::{MemfdFlags, memfd_create};
use varnish::vcl::LogTag;

use crate::file::{self, Identity};
use crate::tenants::places::Place;
use crate::tenants::remote::{self, Patience};
use crate::tenants::settings::{Settings, Values};
use crate::tenants::store::{self, Stored};
use crate::tenants::tenant::Tenant;
use crate::tenants::version::Version;
use crate::varnish::logging;

/// How often it is looked whether somebody still wants what is fetched.
const LOOK: Duration = Duration::from_millis(50);

/// How long an answer is waited for where another program can be booted in its place.
const IMPATIENCE: Duration = Duration::from_secs(3);

/// A program, and the file that it was read from.
pub struct Found {
    /// That file.
    pub file: File,
    /// What it holds.
    pub program: Stored,
}

/// Why there is no program.
pub enum NotFound {
    /// Whoever wanted it has been stopped.
    Stopped,
    /// What is there is not the one, or too long. It will not become another one.
    Bad(String),
    /// It can't be had just now.
    NotNow(String),
}

impl NotFound {
    fn now(why: impl ToString) -> Self {
        Self::NotNow(why.to_string())
    }

    /// Says of which path it is.
    fn at(self, path: &Path) -> Self {
        let of = |why| format!("{}: {why}", path.display());
        match self {
            Self::Stopped => Self::Stopped,
            Self::Bad(why) => Self::Bad(of(why)),
            Self::NotNow(why) => Self::NotNow(of(why)),
        }
    }
}

/// The program that a tenant is to boot, of which `at_path` is what was at its path: fetched, if it has to be, and then kept. While it
/// comes, others have the place.
pub fn program(
    tenant: &Tenant,
    at_path: Result<File, String>,
    place: &mut Place,
) -> Result<Found, NotFound> {
    let settings = &tenant.settings;
    let path = &settings.path;
    let Some(url) = &settings.source else {
        let file = at_path.map_err(NotFound::NotNow);
        let found = file.and_then(|file| read(settings, file));
        return found.map_err(|none| none.at(path));
    };
    // What another boot has kept since. With a digest it can be told to be the one without asking anybody.
    let is_certain = settings.values.sha256.is_some() || settings.values.md5.is_some();
    let kept = || -> Result<(Found, Identity), NotFound> {
        let (file, identity) = file::open(path).map_err(NotFound::NotNow)?;
        Ok((read(settings, file)?, identity))
    };
    if is_certain && let Ok((found, identity)) = kept() {
        tenant.set_identity(identity);
        return Ok(found);
    }
    match fetch(settings, url, path.exists(), place)? {
        Ok(program) => keep(tenant, program),
        Err(why) => {
            let why = format!("{}: {why}", remote::shown(url));
            let Ok((found, identity)) = kept() else {
                return Err(NotFound::NotNow(why));
            };
            let text = format!(
                "{why}; the program that is kept is booted: {}",
                path.display()
            );
            logging::log(LogTag::Notice, tenant.name(), &text);
            tenant.set_identity(identity);
            Ok(found)
        }
    }
}

/// The program that is at the tenant's path now, which need not be what its URL has.
pub fn at_path(tenant: &Tenant) -> Result<Found, NotFound> {
    let path = &tenant.settings.path;
    let opened = file::open(path).map_err(NotFound::NotNow);
    let found = opened.and_then(|(file, _)| read(&tenant.settings, file));
    found.map_err(|none| none.at(path))
}

/// The same, fetched anew if it is fetched at all.
pub fn anew(tenant: &Tenant) -> Result<Found, NotFound> {
    let opened = file::open(&tenant.settings.path).map(|(file, _)| file);
    program(tenant, opened, &mut Place::take())
}

/// Which program is at the tenant's path now.
pub fn version_of_path(tenant: &Tenant) -> Option<Version> {
    let (file, _) = file::open(&tenant.settings.path).ok()?;
    Version::of_file(file).ok()
}

/// Reads a file that has to hold the program that the settings name, if they do.
fn read(settings: &Settings, file: File) -> Result<Found, NotFound> {
    let program = read_file(settings, &file).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => NotFound::Bad(error.to_string()),
        _ => NotFound::now(error),
    })?;
    let program = Stored::new(program);
    check(&settings.values, &program).map_err(NotFound::Bad)?;
    Ok(Found { file, program })
}

/// Reads a program that a tenant with these settings could run. One that is too long is `FileTooLarge`.
pub fn read_file(settings: &Settings, file: impl Read) -> io::Result<Vec<u8>> {
    let limit = settings.config.limits.max_memory;
    file::read_all(file, limit).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => io::Error::new(
            error.kind(),
            format!("is larger than max_memory ({limit} bytes)"),
        ),
        _ => error,
    })
}

/// Whether this is the program that the settings name. The error says what it is.
fn check(values: &Values, program: &Stored) -> Result<(), String> {
    if let Some(wanted) = values.sha256
        && wanted != program.version
    {
        let is = program.version;
        return Err(format!("its SHA-256 is {is}, not {wanted} (sha256)"));
    }
    if let Some(wanted) = values.md5
        && wanted != *Md5::digest(&program.elf)
    {
        return Err("its MD5 is another one (md5)".into());
    }
    Ok(())
}

/// Fetches a program, and looks whether it is the one.
fn fetch(
    settings: &Settings,
    url: &str,
    has_another: bool,
    place: &mut Place,
) -> Result<Result<Stored, String>, NotFound> {
    let limits = &settings.config.limits;
    let (most, all) = (limits.max_memory, limits.max_boot_time);
    let first = if has_another {
        IMPATIENCE.min(all)
    } else {
        all
    };
    let patience = Patience { first, all };
    let (to, of) = sync_channel(1);
    let from = url.to_owned();
    let spawned = thread::Builder::new().name("kvm-fetch".into());
    let spawned = spawned.spawn(move || {
        // Nobody may want it any more.
        let _ = to.send(remote::load(&from, most, patience));
    });
    spawned.map_err(NotFound::now)?;
    loop {
        match of.recv_timeout(Duration::ZERO) {
            Ok(Ok(program)) => {
                let program = Stored::new(program);
                return Ok(check(&settings.values, &program).map(|()| program));
            }
            Ok(Err(bad)) => return Ok(Err(bad.to_string())),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(NotFound::now("internal error, logged separately"));
            }
            Err(RecvTimeoutError::Timeout) => {
                if let ControlFlow::Break(()) = place.give_way(LOOK) {
                    return Err(NotFound::Stopped);
                }
            }
        }
    }
}

/// Keeps a program that has come, if there is a place for it and it is not there already.
fn keep(tenant: &Tenant, program: Stored) -> Result<Found, NotFound> {
    let path = &tenant.settings.path;
    if tenant.settings.is_kept() {
        let is_there = version_of_path(tenant) == Some(program.version);
        let written = match is_there {
            true => Ok(()),
            false => store::write_whole(path, &program.elf),
        };
        match written {
            Ok(()) => {
                let (file, identity) = file::open(path).map_err(NotFound::NotNow)?;
                tenant.set_identity(identity);
                return Ok(Found { file, program });
            }
            Err(error) => {
                let text = format!("the program that was fetched can't be kept: {error}");
                logging::log(LogTag::Error, tenant.name(), &text);
            }
        }
    }
    let made = || -> io::Result<File> {
        let mut file = File::from(memfd_create(c"forkvm-fetched", MemfdFlags::CLOEXEC)?);
        file.write_all(&program.elf)?;
        Ok(file)
    };
    let file = made().map_err(NotFound::now)?;
    Ok(Found { file, program })
}
