//! The text of a document in JSON: its entries and their settings, and on which line each is.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::tenants::settings::BadSetting;

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
    #[error("line {line}: {} has a value that can't be read: {problem}", key.escape_debug())]
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

/// Settings that are paths, which may begin with a variable of varnishd's environment.
const PATH_KEYS: [&str; 9] = [
    "filename",
    "cold_start_file",
    "allowed_paths",
    "folder",
    "writable_paths",
    "volumes",
    "current_working_directory",
    "state_dir",
    "update_key_file",
];
/// The variables.
const VARIABLES: [&str; 2] = ["HOME", "PWD"];

/// A tenant or a group.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: String,
    pub line: usize,
    /// In their order.
    pub settings: Vec<Setting>,
}

/// A setting, as it is given.
#[derive(Debug, Clone)]
pub struct Setting {
    pub key: String,
    pub line: usize,
    pub value: Value,
}

impl Entry {
    /// The setting of this name.
    pub fn setting(&self, key: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.key == key)
    }

    /// Gives it these settings in the place of its own by their names.
    pub fn replace(&mut self, settings: Vec<Setting>) {
        self.settings
            .retain(|own| settings.iter().all(|setting| setting.key != own.key));
        self.settings.extend(settings);
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
pub struct Text<'j> {
    json: &'j [u8],
    ends: Vec<usize>,
}

impl<'j> Text<'j> {
    /// Of JSON without comments.
    pub fn new(json: &'j [u8]) -> Self {
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
    pub fn entries(&self) -> Result<Vec<Entry>, BadDocument> {
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

    /// The document's object as the settings of a tenant.
    pub fn settings(&self, name: &str) -> Result<Entry, BadDocument> {
        let value: &RawValue = serde_json::from_slice(self.json).map_err(BadDocument::Json)?;
        self.entry(name.to_owned(), value)
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

/// The text, as long as it was and with all its line ends, so that the place of an error is right.
pub fn without_comments(json: &[u8]) -> Result<Vec<u8>, BadDocument> {
    let mut stripped = json.to_vec();
    json_strip_comments::strip_slice(&mut stripped).map_err(|_| BadDocument::Slash)?;
    for (stripped, original) in stripped.iter_mut().zip(json) {
        if *original == b'\n' {
            *stripped = b'\n';
        }
    }
    Ok(stripped)
}

/// Puts the value of a variable in the place of its name where a path begins with it: `$HOME`, `$PWD`. One that is not set
/// leaves a path that is not absolute, which is said then.
pub fn expand(value: &mut Value, variable: &dyn Fn(&str) -> Option<String>) {
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
