//! Tenants described in JSON, as the C++ VMOD of the same name reads it: an object whose entries are tenants, and
//! groups of settings that tenants share.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use forkvm::WarmUp;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;

use crate::file;
use crate::tenants::kinds::{self, Flag, Kind, Time};
use crate::tenants::settings::{self, BadSetting, Given, Settings};

/// Longest file.
const FILE_LIMIT: u64 = 16 << 20;
/// The group of tenants that name none. It has no settings unless the document gives it some.
const DEFAULT_GROUP: &str = "test";
/// An entry with one of these is a tenant, any other a group.
const TENANT_KEYS: [&str; 3] = ["group", "filename", "uri"];

/// What a document describes.
#[derive(Debug)]
pub struct Document {
    /// The tenants' settings, in the document's order.
    pub tenants: Vec<Settings>,
    /// What is there in vain.
    pub warnings: Vec<String>,
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
    #[error("an object of objects must be there, line {line} column {column}")]
    Shape {
        /// Where.
        line: usize,
        /// Where in it.
        column: usize,
    },
    /// Two entries, or two settings of one, have the same name.
    #[error("{0:?} is there twice")]
    Twice(String),
    /// Neither JSON nor a comment.
    #[error("a / that begins no comment")]
    Slash,
    /// A setting makes no sense.
    #[error(transparent)]
    Setting(#[from] BadSetting),
}

/// Whether a key means something.
enum Meaning {
    Setting,
    /// It does in the C++ VMOD.
    NoneHere,
    Unknown,
}

/// An object's entries in their order.
struct Entries<T>(Vec<(String, T)>);

impl<T> Entries<T> {
    fn get(&self, key: &str) -> Option<&T> {
        let entry = self.0.iter().find(|(name, _)| name == key);
        entry.map(|(_, value)| value)
    }

    fn check_names(&self) -> Result<(), BadDocument> {
        let mut names = HashSet::new();
        match self.0.iter().find(|(name, _)| !names.insert(name)) {
            Some((name, _)) => Err(BadDocument::Twice(name.clone())),
            None => Ok(()),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Object(PhantomData))
    }
}

/// Reads a file with a document.
pub fn load(path: &Path) -> Result<Document, BadDocument> {
    if !path.is_absolute() {
        return Err(BadDocument::File("is not absolute".into()));
    }
    parse(&file::read(path, FILE_LIMIT).map_err(BadDocument::File)?)
}

/// Reads a document. Comments are allowed.
pub fn parse(json: &[u8]) -> Result<Document, BadDocument> {
    let Entries(entries) = entries(json)?;
    let (tenants, groups): (Vec<_>, Vec<_>) = entries
        .into_iter()
        .partition(|(_, entry)| TENANT_KEYS.iter().any(|key| entry.get(key).is_some()));
    let groups = Entries(groups);

    let mut warnings = Vec::new();
    for (name, entry) in groups.0.iter().chain(&tenants) {
        let warn = |(key, what)| format!("{name:?}: {key} {what}");
        warnings.extend(entry.0.iter().flat_map(vain).map(warn));
    }
    let tenants = tenants
        .iter()
        .map(|(name, entry)| settings(name, entry, &groups))
        .collect::<Result<_, _>>()?;
    Ok(Document { tenants, warnings })
}

/// The objects in the document's object.
fn entries(json: &[u8]) -> Result<Entries<Entries<Value>>, BadDocument> {
    let mut stripped = json.to_vec();
    json_strip_comments::strip_slice(&mut stripped).map_err(|_| BadDocument::Slash)?;
    // A comment's line ends count in the place of an error.
    for (stripped, original) in stripped.iter_mut().zip(json) {
        if *original == b'\n' {
            *stripped = b'\n';
        }
    }
    let entries: Entries<Entries<Value>> =
        serde_json::from_slice(&stripped).map_err(|error| match error.classify() {
            Category::Data => BadDocument::Shape {
                line: error.line(),
                column: error.column(),
            },
            _ => BadDocument::Json(error),
        })?;
    entries.check_names()?;
    for (_, entry) in &entries.0 {
        entry.check_names()?;
    }
    Ok(entries)
}

/// What of a setting is there in vain: its name, and why.
fn vain((key, value): &(String, Value)) -> Vec<(String, String)> {
    match (set(&mut Given::new(b""), key, value), value) {
        (Ok(Meaning::Setting), Value::Object(parts)) => parts
            .keys()
            .filter(|part| {
                !settings::NAMES
                    .iter()
                    .any(|(_, name)| *name == format!("{key}.{part}"))
            })
            .map(|part| (format!("{key}.{part}"), "is unknown".into()))
            .collect(),
        (Ok(Meaning::Setting), _) => Vec::new(),
        (Ok(Meaning::NoneHere), _) => vec![(key.clone(), "has no effect".into())],
        (Ok(Meaning::Unknown), _) => vec![(key.clone(), "is unknown".into())],
        // In a group that no tenant is in, this is all that is wrong with it.
        (Err(problem), _) => vec![(key.clone(), problem)],
    }
}

/// A tenant's settings: its own, and of its group those it has not.
fn settings(
    name: &str,
    entry: &Entries<Value>,
    groups: &Entries<Entries<Value>>,
) -> Result<Settings, BadSetting> {
    let bad = |key: &str, problem| BadSetting::new(name.as_bytes(), key, problem);
    let group = match entry.get("group") {
        Some(value) => kinds::string(value).map_err(|problem| bad("group", problem))?,
        None => DEFAULT_GROUP,
    };
    let shared = groups.get(group);
    if shared.is_none() && group != DEFAULT_GROUP {
        return Err(bad("group", format!("is {group:?}, which is not there")));
    }
    let mut given = Given::new(name.as_bytes());
    for (key, value) in shared.iter().flat_map(|shared| &shared.0) {
        set(&mut given, key, value)
            .map_err(|problem| bad(key, format!("{problem}, in group {group:?}")))?;
    }
    if ["key", "update_key_file"]
        .iter()
        .any(|key| entry.get(key).is_some())
    {
        // Whichever of the two the group has.
        (given.update_key, given.update_key_file) = (b"", b"");
    }
    for (key, value) in &entry.0 {
        set(&mut given, key, value).map_err(|problem| bad(key, problem))?;
    }
    if given.path.is_empty() {
        return Err(bad("filename", "is missing".into()));
    }
    Settings::check(&given).map_err(BadSetting::in_json)
}

/// Takes one setting over. The error says what is wrong with its value.
fn set<'a>(given: &mut Given<'a>, key: &str, value: &'a Value) -> Result<Meaning, String> {
    match key {
        "warmup" => set_warm_up(given, value)?,
        // What a program can't do without must not be passed over.
        "uri" => return Err("can't be fetched, only a filename can be read".into()),
        "storage" if Flag::of_json(value)? => {
            return Err("is true, which is not supported".into());
        }
        "shared_memory" if Time::of_json(value)? != 0.0 => {
            return Err("is not 0, which is not supported".into());
        }
        "ephemeral" if !Flag::of_json(value)? => {
            return Err("is false, but every request starts from the frozen program".into());
        }
        "storage" | "shared_memory" | "ephemeral" => {}
        "start" | "hugepages" | "address_space" | "max_storage_time" | "control_ephemeral" => {
            return Ok(Meaning::NoneHere);
        }
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
