//! The settings of `kvm.tenant()`: checked, and turned into the engine's terms. `table.rs` has them all.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use forkvm::{AllowedPath, Config, Debugging, Limits, Queue, StorageKind, WarmUp};
use serde_json::Value;

use crate::tenants::keys::Key;
use crate::tenants::kinds::{self, Kind};
use crate::tenants::name;
use crate::tenants::table::*;

/// A setting's name, and what is wrong with it.
type Problem = (&'static str, String);

macro_rules! structures {
    ($(
        $(#[doc = $doc:literal])*
        $name:ident $(as $in_json:literal)?: $kind:ident $(($bounds:expr))? = $default:expr;
    )*) => {
        /// What was given, in VCL's terms: times in seconds, sizes in bytes.
        #[derive(Debug, Clone)]
        pub struct Given<'a> {
            pub name: &'a [u8],
            pub path: &'a [u8],
            /// Whether the program is an unmodified server.
            pub server: bool,
            $(pub $name: <kinds::$kind as Kind>::Given<'a>,)*
        }

        /// The value of each setting, checked on its own.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Values {
            $($(#[doc = $doc])* pub $name: <kinds::$kind as Kind>::Checked,)*
        }

        impl<'a> Given<'a> {
            /// The defaults.
            pub fn new(name: &'a [u8]) -> Self {
                Self {
                    name,
                    path: b"",
                    server: false,
                    $($name: kinds::$kind::default($default),)*
                }
            }

            /// Takes the setting that has this name in JSON over from there. False if none has. The error says what is wrong
            /// with the value.
            pub fn set(&mut self, in_json: &str, value: &'a Value) -> Result<bool, String> {
                match in_json {
                    $(
                        name if name == [$($in_json,)? stringify!($name)][0] => {
                            self.$name = kinds::$kind::of_json(value)?;
                        }
                    )*
                    "server" => self.server = kinds::Flag::of_json(value)?,
                    "filename" => self.path = kinds::string(value)?.as_bytes(),
                    _ => return Ok(false),
                }
                Ok(true)
            }

            fn check_each(&self) -> Result<Values, Problem> {
                Ok(Values {
                    $($name: kinds::$kind::check(&self.$name, ($($bounds)?))
                        .map_err(|problem| (stringify!($name), problem))?,)*
                })
            }
        }

        /// The settings' names, and those in JSON.
        pub const NAMES: &[(&str, &str)] = &[
            ("path", "filename"),
            $((stringify!($name), [$($in_json,)? stringify!($name)][0]),)*
        ];
    };
}
settings!(structures);

/// A tenant's settings. Equal settings and the same file are the same program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the program is.
    pub path: PathBuf,
    /// Where it is fetched from, to be kept there.
    pub source: Option<String>,
    /// Whether that is an unmodified server.
    pub server: bool,
    /// Who may update and debug it.
    pub key: Key,
    /// The folder that its updates are stored in, each tenant's in one of its own.
    pub state_dir: PathBuf,
    /// All settings, for those who need one as it is.
    pub values: Values,
    /// What the engine needs to know of them.
    pub config: Config,
    /// Why no program can run with them, if none can.
    pub fault: Option<String>,
}

/// A setting that makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("tenant(\"{tenant}\"): {setting} {problem}")]
pub struct BadSetting {
    /// The tenant's name.
    pub tenant: String,
    /// The setting's name.
    pub setting: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What is said of a value may have the value in it.
fn printable(text: &str) -> String {
    let mut said = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() && c != '\n' {
            true => said.extend(c.escape_default()),
            false => said.push(c),
        }
    }
    said
}

impl BadSetting {
    /// Of the tenant of this name.
    pub fn new(tenant: &[u8], setting: &str, problem: String) -> Self {
        Self {
            tenant: tenant.escape_ascii().to_string(),
            setting: setting.into(),
            problem: printable(&problem),
        }
    }

    /// The same by the setting's name in JSON.
    pub fn in_json(mut self) -> Self {
        if let Some((_, in_json)) = NAMES.iter().find(|(name, _)| *name == self.setting) {
            self.setting = (*in_json).into();
        }
        self
    }
}

impl Settings {
    /// Checks what was given.
    pub fn check(given: &Given<'_>) -> Result<Self, BadSetting> {
        Self::checked(given)
            .map_err(|(setting, problem)| BadSetting::new(given.name, setting, problem))
    }

    /// Whether the program at `path` is one that comes with the folder.
    pub fn is_in_folder(&self) -> bool {
        let folder = self.values.folder.as_ref();
        folder.is_some_and(|folder| self.path.starts_with(folder))
    }

    /// Whether what is fetched has a place to be kept in.
    pub fn is_kept(&self) -> bool {
        !self.path.starts_with(NOWHERE)
    }

    fn checked(given: &Given<'_>) -> Result<Self, Problem> {
        let name = name_of(given)?;
        let values = given.check_each()?;
        let source = source(&values)?;
        let path = path_of(given, &name, &values, source.is_some())?;
        responses_fit(&values)?;
        is_of_kind(given.server, &values)?;
        Ok(Self {
            key: key(&values)?,
            state_dir: state_dir(&values, &path),
            config: config(name, &values),
            path,
            source,
            server: given.server,
            values,
            fault: None,
        })
    }
}

fn name_of(given: &Given<'_>) -> Result<String, Problem> {
    match name::canonical(given.name) {
        Some(name) => Ok(name.into_owned()),
        None => Err((
            "name",
            format!(
                "must be 1 to {} letters, digits and characters of . _ - [ ] @ + ~, with colons between [ ] only: no port",
                name::MAX_LEN
            ),
        )),
    }
}

/// Where nothing is, as the passwd of most systems has it.
const NOWHERE: &str = "/nonexistent";

/// Where the program is: at its path, or where it is kept once it has been fetched, which may be nowhere.
fn path_of(
    given: &Given<'_>,
    name: &str,
    values: &Values,
    fetched: bool,
) -> Result<PathBuf, Problem> {
    let path = match given.path {
        b"" => None,
        path => Some(kinds::Path::check(&path, ()).map_err(|problem| ("path", problem))?),
    };
    if path.is_some() && values.cold_start_file.is_some() {
        return Err(("cold_start_file", "and a path are both given".into()));
    }
    let local = values.uri.strip_prefix(LOCAL).map(str::to_owned);
    let place = path.or(local).or_else(|| values.cold_start_file.clone());
    match place {
        Some(path) => Ok(path.into()),
        None if fetched => {
            let folder = values.state_dir.as_deref().unwrap_or(NOWHERE);
            Ok(Path::new(folder).join(format!("{name}.program")))
        }
        None => Err(("path", "is empty".into())),
    }
}

/// How a URI begins that is a path.
const LOCAL: &str = "file://";

/// Where the program has to be fetched from, if it has to be.
fn source(values: &Values) -> Result<Option<String>, Problem> {
    let uri = &values.uri;
    let is = |scheme: &str| {
        let start = uri.get(..scheme.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    match uri.as_str() {
        "" => Ok(None),
        _ if is("http://") || is("https://") => Ok(Some(uri.clone())),
        _ if uri
            .strip_prefix(LOCAL)
            .is_some_and(|path| path.starts_with('/')) =>
        {
            Ok(None)
        }
        _ => Err((
            "uri",
            "is not http://..., https://... or file:///...".into(),
        )),
    }
}

/// The longest response must have room, or it never would have.
fn responses_fit(values: &Values) -> Result<(), Problem> {
    let (size, memory) = (values.max_response_size, values.max_response_memory);
    match size > memory {
        true => Err((
            "max_response_memory",
            format!("is {memory} bytes, less than max_response_size ({size} bytes)"),
        )),
        false => Ok(()),
    }
}

/// Debugging and storage are of programs with handlers only, and only servers reach the network.
fn is_of_kind(server: bool, values: &Values) -> Result<(), Problem> {
    if server {
        return match &values.folder {
            _ if values.storage != StorageKind::None => Err((
                "storage",
                "is set, but a server has none: its requests call nothing".into(),
            )),
            _ if !values.ephemeral || values.control_ephemeral => Err((
                if values.ephemeral {
                    "control_ephemeral"
                } else {
                    "ephemeral"
                },
                "is set, but a server's requests are isolated from each other in any case".into(),
            )),
            _ if values.shared_memory > 0 => Err((
                "shared_memory",
                "is set, but a server has none: it is for programs with handlers".into(),
            )),
            _ if values.executable_heap => Err((
                "executable_heap",
                "is set, but a server says itself what of its memory may be executed".into(),
            )),
            _ if values.allow_debug => Err((
                "allow_debug",
                "is set, but a server can't be debugged (debugging.md says what helps)".into(),
            )),
            Some(folder) => is_place(folder).map_err(|problem| ("folder", problem)),
            None => Ok(()),
        };
    }
    let of_servers = [
        ("folder", values.folder.is_some()),
        ("allow_listen", !values.allow_listen.is_empty()),
        ("drop_connections", values.drop_connections),
        ("snapshot", values.snapshot.is_some()),
        ("keep_snapshot", values.keep_snapshot),
        ("warmup_time", !values.warmup_time.is_zero()),
    ];
    match of_servers.into_iter().find(|(_, is_set)| *is_set) {
        Some((setting, _)) => Err((
            setting,
            "is set, but the tenant is no server (kvm.server(), in JSON \"server\": true)".into(),
        )),
        None => Ok(()),
    }
}

/// Whether a folder may be seen there: not in the place of all files.
fn is_place(folder: &str) -> Result<(), String> {
    use std::path::Component;
    let mut parts = Path::new(folder).components();
    match parts.all(|part| matches!(part, Component::RootDir | Component::Normal(_))) {
        true if Path::new(folder).parent().is_some() => Ok(()),
        true => Err("is /, must be a folder in it".into()),
        false => Err(format!("has .. in it: {folder:?}")),
    }
}

/// The key for updates and debugging, of which there may be one.
fn key(values: &Values) -> Result<Key, Problem> {
    match &values.update_key_file {
        None => Ok(values.update_key.clone()),
        Some(_) if values.update_key.is_set() => {
            Err(("update_key", "and update_key_file are both given".into()))
        }
        Some(file) => Ok(Key::File(file.into())),
    }
}

/// Where updates are stored: beside the program unless set.
fn state_dir(values: &Values, path: &Path) -> PathBuf {
    match &values.state_dir {
        Some(dir) => dir.into(),
        None => path.parent().unwrap_or(Path::new("/")).into(),
    }
}

/// What the program may read, and what it may change of that in memory. What a server has besides depends on what it is booted
/// from (`serving.rs`).
fn paths(values: &Values) -> (Vec<AllowedPath>, Vec<PathBuf>) {
    let (mut allowed, mut writable) = (Vec::new(), Vec::new());
    for volume in values.allowed_paths.iter().chain(&values.volumes) {
        if volume.overlaid {
            writable.push(volume.path.seen.clone());
        }
        allowed.push(volume.path.clone());
    }
    // What is in the application's folder comes with it, not from the host's folder of that path.
    let comes = |path: &PathBuf| {
        let folder = values.folder.as_ref();
        folder.is_some_and(|folder| path.starts_with(folder))
    };
    let folders = values.writable_paths.iter();
    let of_host = folders.clone().filter(|path| !comes(path));
    allowed.extend(of_host.map(AllowedPath::from));
    writable.extend(folders.cloned());
    (allowed, writable)
}

/// What the engine needs to know.
fn config(name: String, values: &Values) -> Config {
    let concurrency = values.concurrency as usize;
    let (allowed_paths, writable_paths) = paths(values);
    Config {
        group: values.group.clone(),
        main_arguments: values.main_arguments.clone(),
        environment: values.environment.clone(),
        allowed_paths,
        writable_paths,
        max_file_memory: values.max_file_memory.min(values.max_request_memory),
        max_volume_writes: values.max_volume_writes,
        executable_heap: values.executable_heap,
        current_working_directory: values.current_working_directory.clone(),
        concurrency,
        queue: Queue::new(match values.max_queue {
            Some(most) => most as usize,
            None => Config::default_queue(concurrency),
        }),
        idle_time: values.idle_time,
        limits: Limits {
            max_boot_time: values.max_boot_time,
            max_request_time: values.max_request_time,
            max_wait: values.max_wait,
            max_memory: values.max_memory,
            max_request_memory: values.max_request_memory,
            req_mem_limit_after_reset: values.req_mem_limit_after_reset,
            max_response_size: values.max_response_size,
            max_storage_time: values.max_storage_time,
            max_state_size: values.max_state_size,
        },
        warm_up: warm_up(values),
        warm_up_time: values.warmup_time,
        drop_connections: values.drop_connections,
        debugging: Debugging {
            allowed: values.allow_debug,
            address: values.debug_address.clone(),
            timeout: values.debug_timeout,
            exceptions: values.debug_exceptions,
            only: false,
        },
        ephemeral: values.ephemeral,
        control_ephemeral: values.control_ephemeral,
        shared_memory: values.shared_memory,
        storage: values.storage,
        ..Config::new(name)
    }
}

/// The warm-up requests; none for 0 of them.
fn warm_up(values: &Values) -> Option<WarmUp> {
    (values.warmup > 0).then(|| WarmUp {
        num_requests: values.warmup,
        url: values.warmup_url.clone(),
        method: values.warmup_method.clone(),
        headers: values.warmup_headers.clone(),
        forks: values.warmup_forks,
    })
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
