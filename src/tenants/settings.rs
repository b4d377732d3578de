//! The settings of `kvm.tenant()`: checked, and turned into the engine's terms.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use forkvm::{BadDebugAddress, Config, DebugAddress, Debugging, Limits, WarmUp, parse_header};

use crate::tenants::keys::Key;
use crate::tenants::{name, words};

const KIB: i64 = 1 << 10;
const MIB: i64 = 1 << 20;
const GIB: i64 = 1 << 30;
const HOUR: f64 = 3600.0;
const DAY: f64 = 24.0 * HOUR;

/// A setting that is a list.
#[derive(Debug, Clone)]
pub enum List<'a> {
    /// In one string of VCL's.
    Words(&'a [u8]),
    /// In one string each.
    Items(Vec<&'a str>),
}

/// What was given, in VCL's terms: durations in seconds, sizes in bytes.
#[derive(Debug, Clone)]
pub struct Given<'a> {
    pub name: &'a [u8],
    pub path: &'a [u8],
    pub group: &'a [u8],
    pub max_boot_time: f64,
    pub max_request_time: f64,
    pub max_wait: f64,
    pub idle_time: f64,
    pub max_memory: i64,
    pub max_request_memory: i64,
    pub req_mem_limit_after_reset: i64,
    pub concurrency: i64,
    pub main_arguments: List<'a>,
    pub environment: List<'a>,
    pub allowed_paths: List<'a>,
    pub current_working_directory: &'a [u8],
    pub stdout: bool,
    pub warmup: i64,
    pub warmup_url: &'a [u8],
    pub warmup_method: &'a [u8],
    pub warmup_headers: List<'a>,
    pub update_key: &'a [u8],
    pub update_key_file: &'a [u8],
    pub state_dir: &'a [u8],
    pub keep_versions: i64,
    pub update_without_state: bool,
    pub watch: bool,
    pub version_header: bool,
    pub allow_debug: bool,
    pub debug_address: &'a [u8],
    pub debug_timeout: f64,
    pub debug_exceptions: bool,
}

/// A tenant's settings. Equal settings and the same file are the same program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the program is.
    pub path: PathBuf,
    /// Whether the program's stdout and stderr go to the log.
    pub stdout: bool,
    /// Who may update and debug it.
    pub key: Key,
    /// The folder that its updates are stored in, each tenant's in one of its own.
    pub state_dir: PathBuf,
    /// How many earlier programs are kept.
    pub keep_versions: usize,
    /// Whether an update goes on from the beginning when the state can't be handed over.
    pub update_without_state: bool,
    /// Whether a change of the file at `path` is an update.
    pub watch: bool,
    /// Whether responses say which program made them.
    pub version_header: bool,
    /// What the engine needs to know.
    pub config: Config,
}

/// A setting that makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("tenant(\"{tenant}\"): {setting} {problem}")]
pub struct BadSetting {
    tenant: String,
    setting: String,
    problem: String,
}

impl BadSetting {
    /// Of the tenant of this name.
    pub fn new(tenant: &[u8], setting: &str, problem: String) -> Self {
        Self {
            tenant: tenant.escape_ascii().to_string(),
            setting: setting.into(),
            problem,
        }
    }

    /// The same, where a setting has another name.
    pub fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        if let Some((_, other)) = names.iter().find(|(name, _)| *name == self.setting) {
            self.setting = (*other).into();
        }
        self
    }
}

impl<'a> Given<'a> {
    /// The defaults.
    pub fn new(name: &'a [u8]) -> Self {
        let none = || List::Items(Vec::new());
        Self {
            name,
            path: b"",
            group: b"test",
            max_boot_time: 16.0,
            max_request_time: 8.0,
            max_wait: 1.0,
            idle_time: 60.0,
            max_memory: 256 * MIB,
            max_request_memory: 64 * MIB,
            req_mem_limit_after_reset: 8 * MIB,
            concurrency: 2,
            main_arguments: none(),
            environment: none(),
            allowed_paths: none(),
            current_working_directory: b"/",
            stdout: false,
            warmup: 0,
            warmup_url: b"/",
            warmup_method: b"GET",
            warmup_headers: none(),
            update_key: b"",
            update_key_file: b"",
            state_dir: b"",
            keep_versions: 2,
            update_without_state: false,
            watch: false,
            version_header: false,
            allow_debug: false,
            debug_address: b"127.0.0.1:0",
            debug_timeout: 120.0,
            debug_exceptions: false,
        }
    }
}

impl Settings {
    /// Checks what was given.
    pub fn check(given: &Given<'_>) -> Result<Self, BadSetting> {
        Self::checked(given)
            .map_err(|(setting, problem)| BadSetting::new(given.name, setting, problem))
    }

    fn checked(given: &Given<'_>) -> Result<Self, (&'static str, String)> {
        let name = name::canonical(given.name).ok_or_else(|| {
            (
                "name",
                format!(
                    "must be 1 to {} letters, digits and characters of . _ - : [ ] @ + ~",
                    name::MAX_LEN
                ),
            )
        })?;
        let path = text("path", given.path)?;
        if path.is_empty() {
            return Err(("path", "is empty".into()));
        }
        if !Path::new(path).is_absolute() {
            return Err(("path", format!("is not absolute: {path:?}")));
        }
        let limits = Limits {
            max_boot_time: duration("max_boot_time", given.max_boot_time, 0.001, HOUR)?,
            max_request_time: duration("max_request_time", given.max_request_time, 0.001, HOUR)?,
            max_wait: duration("max_wait", given.max_wait, 0.0, HOUR)?,
            max_memory: bytes("max_memory", given.max_memory, MIB, 64 * GIB)?,
            max_request_memory: bytes(
                "max_request_memory",
                given.max_request_memory,
                64 * KIB,
                64 * GIB,
            )?,
            req_mem_limit_after_reset: bytes(
                "req_mem_limit_after_reset",
                given.req_mem_limit_after_reset,
                0,
                64 * GIB,
            )?,
        };
        let concurrency = match usize::try_from(given.concurrency) {
            Ok(n @ 1..=255) => n,
            _ => {
                return Err((
                    "concurrency",
                    format!("is {}, must be 1 to 255", given.concurrency),
                ));
            }
        };
        let environment = list("environment", &given.environment)?;
        if let Some(bad) = environment
            .iter()
            .find(|entry| entry.find('=').is_none_or(|at| at == 0))
        {
            return Err((
                "environment",
                format!("has an entry that is not KEY=value: {bad:?}"),
            ));
        }
        let allowed_paths = list("allowed_paths", &given.allowed_paths)?;
        if let Some(bad) = allowed_paths
            .iter()
            .find(|path| !Path::new(path).is_absolute())
        {
            return Err((
                "allowed_paths",
                format!("has a path that is not absolute: {bad:?}"),
            ));
        }
        let current_working_directory =
            text("current_working_directory", given.current_working_directory)?;
        if !Path::new(current_working_directory).is_absolute() {
            return Err((
                "current_working_directory",
                format!("is not absolute: {current_working_directory:?}"),
            ));
        }
        let keep_versions = match usize::try_from(given.keep_versions) {
            Ok(n @ 0..=100) => n,
            _ => {
                return Err((
                    "keep_versions",
                    format!("is {}, must be 0 to 100", given.keep_versions),
                ));
            }
        };
        Ok(Self {
            path: path.into(),
            stdout: given.stdout,
            key: key(given)?,
            state_dir: state_dir(given, path)?,
            keep_versions,
            update_without_state: given.update_without_state,
            watch: given.watch,
            version_header: given.version_header,
            config: Config {
                group: text("group", given.group)?.into(),
                main_arguments: list("main_arguments", &given.main_arguments)?,
                environment,
                allowed_paths: allowed_paths.into_iter().map(Into::into).collect(),
                current_working_directory: current_working_directory.into(),
                concurrency,
                idle_time: duration("idle_time", given.idle_time, 0.0, DAY)?,
                limits,
                warm_up: warm_up(given)?,
                debugging: debugging(given)?,
                ..Config::new(name)
            },
        })
    }
}

/// The key for updates and debugging, of which there may be one.
fn key(given: &Given<'_>) -> Result<Key, (&'static str, String)> {
    let file = text("update_key_file", given.update_key_file)?;
    if file.is_empty() {
        return Ok(Key::given(given.update_key));
    }
    if !given.update_key.is_empty() {
        return Err(("update_key", "and update_key_file are both given".into()));
    }
    if !Path::new(file).is_absolute() {
        return Err(("update_key_file", format!("is not absolute: {file:?}")));
    }
    Ok(Key::File(file.into()))
}

/// Where updates are stored: beside the program unless set.
fn state_dir(given: &Given<'_>, path: &str) -> Result<PathBuf, (&'static str, String)> {
    let dir = text("state_dir", given.state_dir)?;
    if dir.is_empty() {
        return Ok(Path::new(path)
            .parent()
            .unwrap_or(Path::new("/"))
            .to_owned());
    }
    if !Path::new(dir).is_absolute() {
        return Err(("state_dir", format!("is not absolute: {dir:?}")));
    }
    Ok(dir.into())
}

/// Whether, where and how long requests may be debugged.
fn debugging(given: &Given<'_>) -> Result<Debugging, (&'static str, String)> {
    let setting = "debug_address";
    let address: DebugAddress = text(setting, given.debug_address)?
        .parse()
        .map_err(|bad: BadDebugAddress| (setting, format!("is {bad}")))?;
    Ok(Debugging {
        allowed: given.allow_debug,
        address,
        timeout: duration("debug_timeout", given.debug_timeout, 0.001, HOUR)?,
        exceptions: given.debug_exceptions,
        only: false,
    })
}

/// The warm-up requests; none for 0 of them.
fn warm_up(given: &Given<'_>) -> Result<Option<WarmUp>, (&'static str, String)> {
    let num_requests = match u32::try_from(given.warmup) {
        Ok(0) => return Ok(None),
        Ok(n @ 1..=10_000) => n,
        _ => {
            return Err((
                "warmup",
                format!("is {} requests, must be 0 to 10000", given.warmup),
            ));
        }
    };
    let headers = list("warmup_headers", &given.warmup_headers)?
        .iter()
        .enumerate()
        .map(|(i, line)| {
            // Not the line itself, which may hold a secret.
            let bad = |why| ("warmup_headers", format!("has as number {}: {why}", i + 1));
            parse_header(line.as_bytes()).map_err(bad)
        })
        .collect::<Result<_, _>>()?;
    Ok(Some(WarmUp {
        num_requests,
        url: text("warmup_url", given.warmup_url)?.into(),
        method: text("warmup_method", given.warmup_method)?.into(),
        headers,
    }))
}

fn text<'a>(setting: &'static str, value: &'a [u8]) -> Result<&'a str, (&'static str, String)> {
    str::from_utf8(value).map_err(|_| (setting, "is not UTF-8".to_owned()))
}

fn list(setting: &'static str, list: &List<'_>) -> Result<Vec<String>, (&'static str, String)> {
    match list {
        List::Words(value) => {
            words::split(text(setting, value)?).map_err(|bad| (setting, bad.to_string()))
        }
        List::Items(items) => Ok(items.iter().map(|&item| item.to_owned()).collect()),
    }
}

fn duration(
    setting: &'static str,
    seconds: f64,
    min: f64,
    max: f64,
) -> Result<Duration, (&'static str, String)> {
    if !(min..=max).contains(&seconds) {
        return Err((
            setting,
            format!("is {seconds} s, must be {min} s to {max} s"),
        ));
    }
    Duration::try_from_secs_f64(seconds).map_err(|error| (setting, error.to_string()))
}

fn bytes(
    setting: &'static str,
    value: i64,
    min: i64,
    max: i64,
) -> Result<u64, (&'static str, String)> {
    match u64::try_from(value) {
        Ok(size) if (min..=max).contains(&value) => Ok(size),
        _ => Err((setting, format!("is {value} bytes, must be {min} to {max}"))),
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
