//! What a key in JSON means: a setting of ours, something of the C++ VMOD that is not here, or nothing.
#![forbid(unsafe_code)]

use forkvm::WarmUp;
use serde_json::Value;

use crate::tenants::settings::{self, Given};

/// What is to be done instead of a server beside the program.
const NO_SERVER_BESIDE: &str = "asks for a server beside the program: an unmodified server is a tenant by \"server\": true, and \
     WebSockets come to it by return (pipe)";
/// Why memory is nowhere but where programs put it.
const NO_REMAPPING: &str = "asks for memory at addresses of its own, which programs with handlers have not: link it as static-PIE, \
     or run it as an unmodified server (\"server\": true)";
/// What programs of the C++ VMOD rely on where it is set, and is not there: what to do.
const RELIED_ON: [(&str, &str); 4] = [
    ("remapping", NO_REMAPPING),
    ("executable_remapping", NO_REMAPPING),
    ("server", NO_SERVER_BESIDE),
    ("websocket_server", NO_SERVER_BESIDE),
];
/// Why huge pages change nothing.
const SMALL_PAGES: &str =
    "memory has pages of 4 KB, since a reset copies those that were written to";
/// Why there is nothing to be verbose about.
const LOGGED: &str = "the log says what fails; stdout = true logs what the program writes, forkvm run shows it by hand";
/// What the C++ VMOD knows, and no program relies on: why it has no effect.
const NONE_HERE: [(&str, &str); 16] = [
    ("hugepages", SMALL_PAGES),
    ("hugepage_arena_size", SMALL_PAGES),
    ("request_hugepages", SMALL_PAGES),
    ("request_hugepage_arena_size", SMALL_PAGES),
    ("split_hugepages", SMALL_PAGES),
    ("transparent_hugepages", SMALL_PAGES),
    ("address_space", "a program has all of its address space"),
    (
        "blackout_area",
        "nothing is put where the program has not asked for it",
    ),
    (
        "smp",
        "a fork has one processor; concurrency is how many run at once",
    ),
    ("download", "a uri is fetched whenever it has to be"),
    (
        "ephemeral_keep_working_memory",
        "a fork keeps its memory up to req_mem_limit_after_reset",
    ),
    (
        "mmap_backed_files",
        "what is mapped of a file is read into the program's memory",
    ),
    (
        "relocate_fixed_mmap",
        "a mapping is at its fixed address, or fails",
    ),
    ("verbose", LOGGED),
    ("verbose_syscalls", LOGGED),
    ("verbose_pagetables", LOGGED),
];
/// Parts of `warmup` that have no effect.
const NO_PARTS: [(&str, &str); 1] = [("exact", "each warm-up request is made just as it is given")];

/// Whether a key means something.
pub enum Meaning {
    /// It does.
    Setting,
    /// It does in the C++ VMOD: why not here.
    NoneHere(&'static str),
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

/// Whether a value asks for something, whatever its type.
fn asks(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(parts) => !parts.is_empty(),
        _ => true,
    }
}

/// What is said of a key.
fn named(keys: &[(&str, &'static str)], key: &str) -> Option<&'static str> {
    let found = keys.iter().find(|(name, _)| *name == key);
    found.map(|(_, what)| *what)
}

/// What is said of a part of an object that is a setting, if it is none: and whether nobody knows it.
pub fn of_part(key: &str, part: &str) -> Option<(String, bool)> {
    let name = format!("{key}.{part}");
    if settings::NAMES.iter().any(|(_, known)| *known == name) {
        return None;
    }
    Some(match named(&NO_PARTS, part).filter(|_| key == "warmup") {
        Some(why) => (without_effect(why), false),
        None => (unknown(&name), true),
    })
}

/// What is said of a key that the C++ VMOD knows.
pub fn without_effect(why: &str) -> String {
    format!("has no effect: {why}")
}

/// Takes one setting over. The error says what is wrong with its value.
pub fn set<'a>(given: &mut Given<'a>, key: &str, value: &'a Value) -> Result<Meaning, Refusal> {
    let not_there = |problem: &str| Err(Refusal::NotThere(problem.into()));
    match key {
        "warmup" => set_warm_up(given, value)?,
        // In the C++ VMOD an object with a port: another server, beside the program.
        "server" if value.is_boolean() => {
            given.set(key, value)?;
        }
        "limit_workmem_after_req" => {
            given.set("req_mem_limit_after_reset", value)?;
        }
        // What a program can't do without must not be passed over.
        key if let Some(what) = named(&RELIED_ON, key) => {
            if asks(value) {
                return not_there(what);
            }
        }
        "remote_debug_on_exception" => {
            given.set("debug_exceptions", value)?;
        }
        key if let Some(why) = named(&NONE_HERE, key) => return Ok(Meaning::NoneHere(why)),
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
    let settings = settings.iter();
    for (key, value) in settings.filter(|(key, _)| named(&NO_PARTS, key).is_none()) {
        given
            .set(&format!("warmup.{key}"), value)
            .map_err(|problem| format!("has {key}, which {problem}"))?;
    }
    Ok(())
}
