//! What a key in JSON means: a setting of ours, something of the C++ VMOD that is not here, or nothing.
#![forbid(unsafe_code)]

use forkvm::WarmUp;
use serde_json::Value;

use crate::tenants::kinds::{Flag, Kind, Time};
use crate::tenants::settings::{self, Given};

/// What programs of the C++ VMOD rely on where it is set, and is not there.
const RELIED_ON: [&str; 5] = [
    "executable_heap",
    "remapping",
    "executable_remapping",
    "server",
    "websocket_server",
];
/// What the C++ VMOD knows, and no program relies on.
const NONE_HERE: [&str; 22] = [
    "start",
    "hugepages",
    "address_space",
    "control_ephemeral",
    "blackout_area",
    "smp",
    "download",
    "sha256",
    "md5",
    "cold_start_file",
    "limit_workmem_after_req",
    "ephemeral_keep_working_memory",
    "hugepage_arena_size",
    "request_hugepages",
    "request_hugepage_arena_size",
    "split_hugepages",
    "transparent_hugepages",
    "mmap_backed_files",
    "relocate_fixed_mmap",
    "verbose",
    "verbose_syscalls",
    "verbose_pagetables",
];
/// Whether a key means something.
pub enum Meaning {
    /// It does.
    Setting,
    /// It does in the C++ VMOD.
    NoneHere,
    /// It does not.
    Unknown,
}

/// Why a setting can't be taken over.
pub enum Refusal {
    /// The value is none for it: the document is wrong.
    Wrong(String),
    /// It is right, and what its program relies on is not there: the program can't run.
    NotThere(String),
}

impl From<String> for Refusal {
    fn from(problem: String) -> Self {
        Self::Wrong(problem)
    }
}

/// What is said of a key that is none, with the one that may be meant.
pub fn unknown(key: &str) -> String {
    match nearest(key) {
        Some(name) => format!("is unknown, did you mean {name}?"),
        None => "is unknown".into(),
    }
}

/// The key that is most like one that is none: what has that name in VCL, or one that was misspelt.
fn nearest(key: &str) -> Option<&'static str> {
    /// Keys that differ in more letters than one in so many have nothing to do with each other.
    const ONE_IN: usize = 3;
    /// No key is that long.
    const LONG: usize = 64;

    if let Some((_, name)) = settings::NAMES.iter().find(|(in_vcl, _)| *in_vcl == key) {
        return Some(name);
    }
    if key.len() > LONG {
        return None;
    }
    let names = settings::NAMES
        .iter()
        .map(|(_, name)| match name.split_once('.') {
            // A key of an object is meant by such a one only.
            Some((object, _)) if !key.contains('.') => object,
            _ => name,
        });
    names
        .map(|name| (strsim::damerau_levenshtein(key, name), name))
        .min()
        .filter(|(distance, _)| distance * ONE_IN <= key.len())
        .map(|(_, name)| name)
}

/// Whether an entry of `allowed_paths` is to be written to.
fn has_writable(value: &Value) -> bool {
    let paths = value.as_array().map(Vec::as_slice).unwrap_or_default();
    paths
        .iter()
        .any(|path| path.get("writable") == Some(&Value::Bool(true)))
}

/// Whether a value asks for something, whatever its type.
fn asks(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(parts) => !parts.is_empty(),
        _ => true,
    }
}

/// Takes one setting over. The error says what is wrong with its value.
pub fn set<'a>(given: &mut Given<'a>, key: &str, value: &'a Value) -> Result<Meaning, Refusal> {
    let not_there = |problem: &str| Err(Refusal::NotThere(problem.into()));
    match key {
        "warmup" => set_warm_up(given, value)?,
        // What a program can't do without must not be passed over.
        "uri" => return not_there("can't be fetched, only a filename can be read"),
        "shared_memory" if Time::of_json(value)? != 0.0 => {
            return not_there("is not 0, which is not supported");
        }
        "ephemeral" if !Flag::of_json(value)? => {
            return not_there("is false, but every request starts from the frozen program");
        }
        // In the C++ VMOD an object with a port: another server, beside the program.
        "server" if value.is_boolean() => {
            given.set(key, value)?;
        }
        key if RELIED_ON.contains(&key) && asks(value) => {
            return not_there("is set, which is not supported");
        }
        "allowed_paths" if has_writable(value) => {
            return not_there("has a writable path, but programs can only read");
        }
        "shared_memory" | "ephemeral" => {}
        "remote_debug_on_exception" => {
            given.set("debug_exceptions", value)?;
        }
        key if RELIED_ON.contains(&key) => {}
        key if NONE_HERE.contains(&key) => return Ok(Meaning::NoneHere),
        // A name with a dot is a key of an object.
        key if !key.contains('.') && given.set(key, value)? => {}
        _ => return Ok(Meaning::Unknown),
    }
    Ok(Meaning::Setting)
}

/// Warm-up requests, of which there are the engine's number unless it is said. Nothing of the group's is left.
fn set_warm_up<'a>(given: &mut Given<'a>, value: &'a Value) -> Result<(), String> {
    let Value::Object(settings) = value else {
        return Err("must be an object".into());
    };
    let default = Given::new(b"");
    given.warmup = WarmUp::default().num_requests.into();
    given.warmup_url = default.warmup_url;
    given.warmup_method = default.warmup_method;
    given.warmup_headers = default.warmup_headers;
    given.warmup_forks = default.warmup_forks;
    given.warmup_time = default.warmup_time;
    for (key, value) in settings {
        given
            .set(&format!("warmup.{key}"), value)
            .map_err(|problem| format!("has {key}, which {problem}"))?;
    }
    Ok(())
}
