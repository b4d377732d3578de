//! The program at a tenant's path, if it is fetched from somewhere, and if it is the one that is wanted.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::ops::ControlFlow;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use md5::{Digest, Md5};
use rustix::fs::{MemfdFlags, memfd_create};
use varnish::vcl::LogTag;

use crate::file;
use crate::tenants::places::Place;
use crate::tenants::remote::{self, Patience};
use crate::tenants::settings::{Settings, Values};
use crate::tenants::store::{self, Stored};
use crate::tenants::tenant::Tenant;
use crate::varnish::logging;

/// How often it is looked whether somebody still wants what is fetched.
const LOOK: Duration = Duration::from_millis(50);

/// How long an answer is waited for where another program can be booted in its place.
const IMPATIENCE: Duration = Duration::from_secs(3);

/// Why there is no file for a boot.
pub enum NoFile {
    /// The boot was stopped.
    Stopped,
    /// In words.
    Failed(String),
}

/// The file that a tenant is to boot, of which `at_path` is what was there: fetched, if it has to be, and then kept. While it comes,
/// others have the place.
pub fn file_of(
    tenant: &Tenant,
    at_path: Result<File, String>,
    place: &mut Place,
) -> Result<File, NoFile> {
    let settings = &tenant.settings;
    let Some(url) = &settings.source else {
        return at_path.map_err(NoFile::Failed);
    };
    // What another boot has kept since.
    let kept = file::open(&settings.path);
    if let Ok((file, identity)) = &kept
        && is_certain(&settings.values)
        && is_wanted(settings, file).is_ok()
    {
        tenant.set_identity(*identity);
        return file.try_clone().map_err(failed);
    }
    match fetch(settings, url, kept.is_ok(), place)? {
        Ok(program) => keep(tenant, &program),
        Err(why) => {
            let why = format!("{url}: {why}");
            let (file, identity) = kept.map_err(|_| NoFile::Failed(why.clone()))?;
            let path = settings.path.display();
            let text = format!("{why}; the program that is kept is booted: {path}");
            logging::log(LogTag::Notice, tenant.name(), &text);
            tenant.set_identity(identity);
            Ok(file)
        }
    }
}

fn failed(error: impl ToString) -> NoFile {
    NoFile::Failed(error.to_string())
}

/// Whether a program can be told to be the one without asking anybody.
fn is_certain(values: &Values) -> bool {
    values.sha256.is_some() || values.md5.is_some()
}

fn is_wanted(settings: &Settings, mut file: &File) -> Result<(), String> {
    let most = settings.config.limits.max_memory;
    let mut program = Vec::new();
    let read = |file: &mut &File, program: &mut Vec<u8>| -> io::Result<()> {
        file.rewind()?;
        file.take(most.saturating_add(1)).read_to_end(program)?;
        file.rewind()
    };
    read(&mut file, &mut program).map_err(|error| error.to_string())?;
    check(&settings.values, &Stored::new(program))
}

/// Whether this is the program that the settings name. The error says what it is.
pub fn check(values: &Values, program: &Stored) -> Result<(), String> {
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
) -> Result<Result<Stored, String>, NoFile> {
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
    spawned.map_err(failed)?;
    loop {
        match of.recv_timeout(Duration::ZERO) {
            Ok(Ok(program)) => {
                let program = Stored::new(program);
                return Ok(check(&settings.values, &program).map(|()| program));
            }
            Ok(Err(bad)) => return Ok(Err(bad.to_string())),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(failed("internal error, logged separately"));
            }
            Err(RecvTimeoutError::Timeout) => {
                if let ControlFlow::Break(()) = place.give_way(LOOK) {
                    return Err(NoFile::Stopped);
                }
            }
        }
    }
}

/// Keeps a program that has come, if there is a place for it, and opens it.
fn keep(tenant: &Tenant, program: &Stored) -> Result<File, NoFile> {
    let settings = &tenant.settings;
    if settings.is_kept() {
        match store::write_whole(&settings.path, &program.elf) {
            Ok(()) => {
                let (file, identity) = file::open(&settings.path).map_err(NoFile::Failed)?;
                tenant.set_identity(identity);
                return Ok(file);
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
        file.rewind()?;
        Ok(file)
    };
    made().map_err(failed)
}
