//! Tenants described in JSON, as the C++ VMOD of the same name reads it: an object whose entries are tenants, and
//! groups of settings that tenants share.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::file;
use crate::tenants::entries::{self, BadDocument, Entry, Setting, Text};
use crate::tenants::kinds;
use crate::tenants::meaning::{Meaning, Refusal, of_part, set, unknown, without_effect};
use crate::tenants::remote::{self, Patience};
use crate::tenants::settings::{BadSetting, Given, Settings};
use crate::tenants::waits::Waits;

/// Longest file.
const FILE_LIMIT: u64 = 16 << 20;
/// The group of tenants that name none. It has no settings unless the document gives it some.
const DEFAULT_GROUP: &str = "test";
/// An entry with one of these is a tenant, any other a group.
const TENANT_KEYS: [&str; 3] = ["group", "filename", "uri"];

/// Whether a tenant boots when the VCL is loaded.
const START: &str = "start";

/// A tenant that a document describes.
#[derive(Debug)]
pub struct Described {
    /// Its settings.
    pub settings: Settings,
    /// The line that it begins on.
    pub line: usize,
    /// As it is described.
    pub definition: Definition,
}

/// A tenant's description, of which something may be changed until it is started.
#[derive(Debug, Clone)]
pub struct Definition {
    entry: Entry,
    groups: Arc<Vec<Entry>>,
}

/// What is to be said about a document, a line each.
#[derive(Debug, Default)]
pub struct Warnings {
    pub lines: Vec<String>,
    /// How many are about keys that nobody knows.
    pub unknown: usize,
}

/// Longest time to fetch a document.
const FETCH_TIME: Duration = Duration::from_secs(10);

/// Fetches a document, within what a load may wait. As [`parse`].
pub fn fetch(
    url: &str,
    waits: &Waits,
    warnings: &mut Warnings,
) -> Result<Vec<Described>, BadDocument> {
    parse(&fetched(url, waits)?, warnings)
}

fn fetched(url: &str, waits: &Waits) -> Result<Vec<u8>, BadDocument> {
    let json = waits.spend(FETCH_TIME, |time| {
        let patience = Patience {
            first: time,
            all: time,
        };
        match time.is_zero() {
            true => Err(format!("is not fetched: {}", waits.over())),
            false => remote::load(url, FILE_LIMIT, patience).map_err(|bad| bad.to_string()),
        }
    });
    json.map_err(BadDocument::File)
}

/// Fetches a library, or reads one from a file: a document whose tenants are started when they are first asked for, unless they
/// say something else.
pub fn library(
    uri: &str,
    waits: &Waits,
    warnings: &mut Warnings,
) -> Result<Vec<Described>, BadDocument> {
    let json = match uri.strip_prefix("file://") {
        Some(path) => file::read(Path::new(path), FILE_LIMIT).map_err(BadDocument::File)?,
        None => fetched(uri, waits)?,
    };
    read(&json, false, warnings)
}

/// A tenant with these settings, as a document has them, in the place of those that it has been described with; if it has not, all that
/// it has, and it is started when it is first asked for.
pub fn configured(
    name: &str,
    known: Option<Definition>,
    json: &[u8],
    warnings: &mut Warnings,
) -> Result<Described, BadDocument> {
    let json = entries::without_comments(json)?;
    let given = Text::new(&json).settings(name)?;
    warn(&given, warnings);
    let line = given.line;
    let Definition { mut entry, groups } = known.unwrap_or_else(|| Definition {
        entry: Entry {
            name: name.to_owned(),
            line,
            settings: vec![asleep(line)],
        },
        groups: Arc::default(),
    });
    entry.replace(given.settings);
    described(entry, groups)
}

/// That a tenant is not started before it is asked for.
fn asleep(line: usize) -> Setting {
    Setting {
        key: START.into(),
        line,
        value: Value::Bool(false),
    }
}

/// Reads a file with a document. As [`parse`].
pub fn load(path: &Path, warnings: &mut Warnings) -> Result<Vec<Described>, BadDocument> {
    if !path.is_absolute() {
        return Err(BadDocument::File("is not absolute".into()));
    }
    parse(
        &file::read(path, FILE_LIMIT).map_err(BadDocument::File)?,
        warnings,
    )
}

/// Reads a document, and has its tenants in their order. Comments are allowed. What means nothing is a warning.
pub fn parse(json: &[u8], warnings: &mut Warnings) -> Result<Vec<Described>, BadDocument> {
    read(json, true, warnings)
}

/// The same, whose tenants `start` unless it says something else of them.
fn read(json: &[u8], start: bool, warnings: &mut Warnings) -> Result<Vec<Described>, BadDocument> {
    let json = entries::without_comments(json)?;
    let (mut tenants, groups): (Vec<_>, Vec<_>) = Text::new(&json)
        .entries()?
        .into_iter()
        .partition(|entry| TENANT_KEYS.iter().any(|key| entry.setting(key).is_some()));

    for entry in groups.iter().chain(&tenants) {
        warn(entry, warnings);
    }
    if !start {
        for tenant in &mut tenants {
            let group = group_of(tenant, &groups)?.entry();
            let says = |entry: &Entry| entry.setting(START).is_some();
            if !says(tenant) && !group.is_some_and(says) {
                tenant.settings.push(asleep(tenant.line));
            }
        }
    }
    let groups = Arc::new(groups);
    let tenants = tenants.into_iter();
    tenants
        .map(|entry| described(entry, groups.clone()))
        .collect()
}

fn described(entry: Entry, groups: Arc<Vec<Entry>>) -> Result<Described, BadDocument> {
    Ok(Described {
        settings: settings(&entry, &groups)?,
        line: entry.line,
        definition: Definition { entry, groups },
    })
}

/// Says what of an entry means nothing.
fn warn(entry: &Entry, warnings: &mut Warnings) {
    for setting in &entry.settings {
        for (key, what, unknown) in meaningless(setting) {
            let line = setting.line;
            let key = key.escape_debug();
            let text = format!("line {line}: {:?}: {key} {what}", entry.name);
            warnings.lines.push(text);
            warnings.unknown += usize::from(unknown);
        }
    }
}

/// What of a setting means nothing: its name, why, and whether nobody knows it.
fn meaningless(Setting { key, value, .. }: &Setting) -> Vec<(String, String, bool)> {
    let one = |what: String, unknown| vec![(key.clone(), what, unknown)];
    match (set(&mut Given::new(b""), key, value), value) {
        (Ok(Meaning::Setting), Value::Object(parts)) => {
            let said = parts
                .keys()
                .filter_map(|part| Some((part, of_part(key, part)?)));
            said.map(|(part, (what, unknown))| (format!("{key}.{part}"), what, unknown))
                .collect()
        }
        (Ok(Meaning::Setting), _) => Vec::new(),
        (Ok(Meaning::NoneHere(why)), _) => one(without_effect(why), false),
        (Ok(Meaning::Unknown), _) => one(unknown(key), true),
        // In a group that no tenant is in, this is all that is wrong with it.
        (Err(Refusal::Wrong(problem) | Refusal::NotThere(problem)), _) => one(problem, false),
    }
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
    if given.path.is_empty() && given.uri.is_empty() {
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

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
