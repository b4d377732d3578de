//! Tenants described in JSON, as the C++ VMOD of the same name reads it: an object whose entries are tenants, and
//! groups of settings that tenants share.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use forkvm::WarmUp;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::file;
use crate::tenants::kinds::{self, Flag, Kind, Time};
use crate::tenants::settings::{self, BadSetting, Given, Settings};

/// Longest file.
const FILE_LIMIT: u64 = 16 << 20;
/// The group of tenants that name none. It has no settings unless the document gives it some.
const DEFAULT_GROUP: &str = "test";
/// An entry with one of these is a tenant, any other a group.
const TENANT_KEYS: [&str; 3] = ["group", "filename", "uri"];

/// A tenant that a document describes.
#[derive(Debug)]
pub struct Described {
    /// Its settings.
    pub settings: Settings,
    /// The line that it begins on.
    pub line: usize,
}

/// Why a document is of no use.
#[derive(Debug, thiserror::Error)]
pub enum BadDocument {
    /// The file can't be read.
    #[error("{0}")]
    File(String),
    /// It is not JSON.
    #[error("{0}")]
    Json(serde_json::Error),
    /// It is not an object of objects. The value that is not one is not told, since it may be a key.
    #[error("line {line}: an object of objects must be there")]
    Shape {
        /// Where.
        line: usize,
    },
    /// Two entries, or two settings of one, have the same name.
    #[error("line {line}: {name:?} is there twice")]
    Twice {
        /// Where the second one is.
        line: usize,
        /// The name.
        name: String,
    },
    /// Neither JSON nor a comment.
    #[error("a / that begins no comment")]
    Slash,
    /// A value that JSON allows and we don't: a number that is too large, say.
    #[error("line {line}: {key} has a value that can't be read: {problem}")]
    Value {
        /// Where.
        line: usize,
        /// The setting's name.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A setting makes no sense.
    #[error("line {line}: {bad}")]
    Setting {
        /// Where it is, or the tenant that lacks it.
        line: usize,
        /// Which one.
        bad: BadSetting,
    },
}

/// What programs of the C++ VMOD rely on where it is set, and is not there.
const RELIED_ON: [&str; 5] = [
    "executable_heap",
    "remapping",
    "executable_remapping",
    "server",
    "websocket_server",
];
/// What the C++ VMOD knows, and no program relies on.
const NONE_HERE: [&str; 23] = [
    "start",
    "hugepages",
    "address_space",
    "max_storage_time",
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
/// Settings that are paths, which may begin with a variable of varnishd's environment.
const PATH_KEYS: [&str; 5] = [
    "filename",
    "allowed_paths",
    "current_working_directory",
    "state_dir",
    "update_key_file",
];
/// The variables.
const VARIABLES: [&str; 2] = ["HOME", "PWD"];

/// Whether a key means something.
enum Meaning {
    Setting,
    /// It does in the C++ VMOD.
    NoneHere,
    Unknown,
}

/// Why a setting can't be taken over.
enum Refusal {
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

/// A tenant or a group.
struct Entry {
    name: String,
    line: usize,
    /// In their order.
    settings: Vec<Setting>,
}

struct Setting {
    key: String,
    line: usize,
    value: Value,
}

impl Entry {
    fn setting(&self, key: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.key == key)
    }
}

/// An object's members in their order, each with its value's text.
struct Members<'j>(Vec<(String, &'j RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// A document's text, and where its lines end.
struct Text<'j> {
    json: &'j [u8],
    ends: Vec<usize>,
}

impl<'j> Text<'j> {
    fn new(json: &'j [u8]) -> Self {
        let ends = json.iter().enumerate().filter(|(_, c)| **c == b'\n');
        Self {
            json,
            ends: ends.map(|(at, _)| at).collect(),
        }
    }

    /// The line of a value, which is a part of the text.
    fn line(&self, value: &RawValue) -> usize {
        let at = value.get().as_ptr().addr() - self.json.as_ptr().addr();
        1 + self.ends.partition_point(|&end| end < at)
    }

    /// The objects in the document's object.
    fn entries(&self) -> Result<Vec<Entry>, BadDocument> {
        let Members(members) =
            serde_json::from_slice(self.json).map_err(|error| match error.classify() {
                Category::Data => BadDocument::Shape { line: error.line() },
                _ => BadDocument::Json(error),
            })?;
        self.check_names(&members)?;
        members
            .into_iter()
            .map(|(name, value)| self.entry(name, value))
            .collect()
    }

    fn entry(&self, name: String, value: &'j RawValue) -> Result<Entry, BadDocument> {
        let line = self.line(value);
        let Members(members) =
            serde_json::from_str(value.get()).map_err(|_| BadDocument::Shape { line })?;
        self.check_names(&members)?;
        let settings = members.into_iter().map(|(key, value)| {
            let line = self.line(value);
            match serde_json::from_str(value.get()) {
                Ok(mut value) => {
                    if PATH_KEYS.contains(&key.as_str()) {
                        expand(&mut value, &|name| std::env::var(name).ok());
                    }
                    Ok(Setting { key, line, value })
                }
                Err(error) => Err(BadDocument::Value {
                    line,
                    key,
                    problem: without_place(&error),
                }),
            }
        });
        Ok(Entry {
            name,
            line,
            settings: settings.collect::<Result<_, _>>()?,
        })
    }

    fn check_names(&self, members: &[(String, &RawValue)]) -> Result<(), BadDocument> {
        let mut names = HashSet::new();
        match members.iter().find(|(name, _)| !names.insert(name)) {
            Some((name, value)) => Err(BadDocument::Twice {
                line: self.line(value),
                name: name.clone(),
            }),
            None => Ok(()),
        }
    }
}

/// What is wrong, without the place, which is one in the value alone.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((what, _)) => what.into(),
        None => text,
    }
}

/// Reads a file with a document. As [`parse`].
pub fn load(path: &Path, warnings: &mut Vec<String>) -> Result<Vec<Described>, BadDocument> {
    if !path.is_absolute() {
        return Err(BadDocument::File("is not absolute".into()));
    }
    parse(
        &file::read(path, FILE_LIMIT).map_err(BadDocument::File)?,
        warnings,
    )
}

/// Reads a document, and has its tenants in their order. Comments are allowed. What means nothing is a warning.
pub fn parse(json: &[u8], warnings: &mut Vec<String>) -> Result<Vec<Described>, BadDocument> {
    let json = without_comments(json)?;
    let (tenants, groups): (Vec<_>, Vec<_>) = Text::new(&json)
        .entries()?
        .into_iter()
        .partition(|entry| TENANT_KEYS.iter().any(|key| entry.setting(key).is_some()));

    for entry in groups.iter().chain(&tenants) {
        for setting in &entry.settings {
            let warn =
                |(key, what)| format!("line {}: {:?}: {key} {what}", setting.line, entry.name);
            warnings.extend(meaningless(setting).into_iter().map(warn));
        }
    }
    tenants
        .iter()
        .map(|tenant| {
            Ok(Described {
                settings: settings(tenant, &groups)?,
                line: tenant.line,
            })
        })
        .collect()
}

/// The text, as long as it was and with all its line ends, so that the place of an error is right.
fn without_comments(json: &[u8]) -> Result<Vec<u8>, BadDocument> {
    let mut stripped = json.to_vec();
    json_strip_comments::strip_slice(&mut stripped).map_err(|_| BadDocument::Slash)?;
    for (stripped, original) in stripped.iter_mut().zip(json) {
        if *original == b'\n' {
            *stripped = b'\n';
        }
    }
    Ok(stripped)
}

/// What of a setting means nothing: its name, and why.
fn meaningless(Setting { key, value, .. }: &Setting) -> Vec<(String, String)> {
    match (set(&mut Given::new(b""), key, value), value) {
        (Ok(Meaning::Setting), Value::Object(parts)) => parts
            .keys()
            .map(|part| format!("{key}.{part}"))
            .filter(|part| !settings::NAMES.iter().any(|(_, name)| name == part))
            .map(|part| {
                let what = unknown(&part);
                (part, what)
            })
            .collect(),
        (Ok(Meaning::Setting), _) => Vec::new(),
        (Ok(Meaning::NoneHere), _) => vec![(key.clone(), "has no effect".into())],
        (Ok(Meaning::Unknown), _) => vec![(key.clone(), unknown(key))],
        // In a group that no tenant is in, this is all that is wrong with it.
        (Err(Refusal::Wrong(problem) | Refusal::NotThere(problem)), _) => {
            vec![(key.clone(), problem)]
        }
    }
}

/// What is said of a key that is none, with the one that may be meant.
fn unknown(key: &str) -> String {
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

/// A tenant's settings: its own, and of its group those it has not.
fn settings<'a>(tenant: &'a Entry, groups: &'a [Entry]) -> Result<Settings, BadDocument> {
    let bad = |line, key: &str, problem| BadDocument::Setting {
        line,
        bad: BadSetting::new(tenant.name.as_bytes(), key, problem),
    };
    let group = group_of(tenant, groups)?;
    // The first thing that its program lacks.
    let mut fault = match group {
        Group::Missing(name) => Some(format!("group is {name:?}, which is not there")),
        Group::None | Group::There(_) => None,
    };
    let group = group.entry();
    let mut take =
        |given: &mut _, Setting { key, line, value }: &'a Setting| match set(given, key, value) {
            Ok(_) => Ok(()),
            Err(Refusal::Wrong(problem)) => Err(bad(*line, key, problem)),
            Err(Refusal::NotThere(problem)) => {
                fault.get_or_insert(format!("{key} {problem}"));
                Ok(())
            }
        };
    let mut given = Given::new(tenant.name.as_bytes());
    for setting in group.iter().flat_map(|group| &group.settings) {
        take(&mut given, setting)?;
    }
    if ["key", "update_key_file"]
        .iter()
        .any(|key| tenant.setting(key).is_some())
    {
        // Whichever of the two the group has.
        (given.update_key, given.update_key_file) = (b"", b"");
    }
    for setting in &tenant.settings {
        take(&mut given, setting)?;
    }
    if given.path.is_empty() {
        if fault.is_none() {
            return Err(bad(tenant.line, "filename", "is missing".into()));
        }
        // A path there has to be; nothing is read from it.
        given.path = b"/";
    }
    let mut checked = Settings::check(&given);
    if let Err(bad) = &checked
        && bad.setting == "concurrency"
    {
        fault.get_or_insert(format!("concurrency {}", bad.problem));
        given.concurrency = Given::new(b"").concurrency;
        checked = Settings::check(&given);
    }
    let settings = checked.map_err(|bad| {
        let bad = bad.in_json();
        let key = bad.setting.split('.').next().unwrap_or_default();
        let setting = tenant
            .setting(key)
            .or_else(|| group.and_then(|group| group.setting(key)));
        BadDocument::Setting {
            line: setting.map_or(tenant.line, |setting| setting.line),
            bad,
        }
    })?;
    Ok(Settings { fault, ..settings })
}

/// The group that a tenant is in.
#[derive(Clone, Copy)]
enum Group<'d> {
    /// The default one, which the document has no settings for.
    None,
    /// Another one that the document does not have.
    Missing(&'d str),
    There(&'d Entry),
}

impl<'d> Group<'d> {
    fn entry(self) -> Option<&'d Entry> {
        match self {
            Self::There(entry) => Some(entry),
            Self::None | Self::Missing(_) => None,
        }
    }
}

fn group_of<'d>(tenant: &'d Entry, groups: &'d [Entry]) -> Result<Group<'d>, BadDocument> {
    let name = match tenant.setting("group") {
        Some(setting) => kinds::string(&setting.value).map_err(|problem| BadDocument::Setting {
            line: setting.line,
            bad: BadSetting::new(tenant.name.as_bytes(), "group", problem),
        })?,
        None => DEFAULT_GROUP,
    };
    Ok(match groups.iter().find(|group| group.name == name) {
        Some(group) => Group::There(group),
        None if name == DEFAULT_GROUP => Group::None,
        None => Group::Missing(name),
    })
}

/// Puts the value of a variable in the place of its name where a path begins with it: `$HOME`, `$PWD`. One that is not set
/// leaves a path that is not absolute, which is said then.
fn expand(value: &mut Value, variable: &dyn Fn(&str) -> Option<String>) {
    match value {
        Value::String(path) => {
            for name in VARIABLES {
                if let Some(rest) = path
                    .strip_prefix('$')
                    .and_then(|path| path.strip_prefix(name))
                    && (rest.is_empty() || rest.starts_with('/'))
                    && let Some(value) = variable(name)
                {
                    *path = format!("{value}{rest}");
                    return;
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| expand(item, variable)),
        Value::Object(parts) => parts.values_mut().for_each(|part| expand(part, variable)),
        _ => {}
    }
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
fn set<'a>(given: &mut Given<'a>, key: &str, value: &'a Value) -> Result<Meaning, Refusal> {
    let not_there = |problem: &str| Err(Refusal::NotThere(problem.into()));
    match key {
        "warmup" => set_warm_up(given, value)?,
        // What a program can't do without must not be passed over.
        "uri" => return not_there("can't be fetched, only a filename can be read"),
        "storage" if Flag::of_json(value)? => {
            return not_there("is true, which is not supported");
        }
        "shared_memory" if Time::of_json(value)? != 0.0 => {
            return not_there("is not 0, which is not supported");
        }
        "ephemeral" if !Flag::of_json(value)? => {
            return not_there("is false, but every request starts from the frozen program");
        }
        key if RELIED_ON.contains(&key) && asks(value) => {
            return not_there("is set, which is not supported");
        }
        "allowed_paths" if has_writable(value) => {
            return not_there("has a writable path, but programs can only read");
        }
        "storage" | "shared_memory" | "ephemeral" => {}
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
    for (key, value) in settings {
        given
            .set(&format!("warmup.{key}"), value)
            .map_err(|problem| format!("has {key}, which {problem}"))?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
