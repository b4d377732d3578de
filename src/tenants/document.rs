//! Tenants described in JSON, as the C++ VMOD of the same name reads it: an object whose entries are tenants, and
//! groups of settings that tenants share.
#![forbid(unsafe_code)]

use std::path::Path;

use serde_json::Value;

use crate::file;
use crate::tenants::entries::{self, BadDocument, Entry, Setting, Text};
use crate::tenants::kinds;
use crate::tenants::meaning::{Meaning, Refusal, set, unknown};
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
    let json = entries::without_comments(json)?;
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

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
