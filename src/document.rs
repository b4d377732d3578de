//! Tenants described in JSON, as the C++ VMOD of the same name reads it: an object whose entries are tenants, and
//! groups of settings that tenants share.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::Value;

use crate::registry;
use crate::settings::{BadSetting, Given, List, Settings};

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
    /// It is not JSON, or not an object of objects.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
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
        self.0
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut entries, mut keys) = (Entries(Vec::new()), HashSet::new());
                while let Some(key) = map.next_key::<String>()? {
                    if !keys.insert(key.clone()) {
                        let twice = format!("{key:?} is there twice");
                        return Err(serde::de::Error::custom(twice));
                    }
                    entries.0.push((key, map.next_value()?));
                }
                Ok(entries)
            }
        }

        deserializer.deserialize_map(Object(std::marker::PhantomData))
    }
}

/// Reads a file with a document.
pub fn load(path: &Path) -> Result<Document, BadDocument> {
    let text = || -> Result<String, String> {
        let (file, identity) = registry::open(path)?;
        if identity.size() > FILE_LIMIT {
            return Err(format!("has more than {} MB", FILE_LIMIT >> 20));
        }
        let mut text = String::new();
        file.take(FILE_LIMIT)
            .read_to_string(&mut text)
            .map_err(|error| error.to_string())?;
        Ok(text)
    };
    parse(text().map_err(BadDocument::File)?)
}

/// Reads a document. Comments are allowed.
pub fn parse(mut text: String) -> Result<Document, BadDocument> {
    json_strip_comments::strip(&mut text).map_err(|_| BadDocument::Slash)?;
    let Entries(entries) = serde_json::from_str::<Entries<Entries<Value>>>(&text)?;
    let (tenants, groups): (Vec<_>, Vec<_>) = entries
        .into_iter()
        .partition(|(_, entry)| TENANT_KEYS.iter().any(|key| entry.get(key).is_some()));
    let groups = Entries(groups);

    let mut warnings = Vec::new();
    for (name, entry) in groups.0.iter().chain(&tenants) {
        for (key, value) in &entry.0 {
            match set(&mut Given::new(b""), key, value) {
                Ok(Meaning::Setting) => {}
                Ok(Meaning::NoneHere) => warnings.push(format!("{name:?}: {key} has no effect")),
                Ok(Meaning::Unknown) => warnings.push(format!("{name:?}: {key} is unknown")),
                // In a group that no tenant is in, this is all that is wrong with it.
                Err(problem) => warnings.push(format!("{name:?}: {key} {problem}")),
            }
        }
    }
    let tenants = tenants
        .iter()
        .map(|(name, entry)| settings(name, entry, &groups))
        .collect::<Result<_, _>>()?;
    Ok(Document { tenants, warnings })
}

/// A tenant's settings: its own, and of its group those it has not.
fn settings(
    name: &str,
    entry: &Entries<Value>,
    groups: &Entries<Entries<Value>>,
) -> Result<Settings, BadSetting> {
    let bad = |key: &str, problem| BadSetting::new(name.as_bytes(), key, problem);
    let group = match entry.get("group") {
        Some(value) => string(value).map_err(|problem| bad("group", problem))?,
        None => DEFAULT_GROUP,
    };
    let shared = groups.get(group);
    if shared.is_none() && group != DEFAULT_GROUP {
        return Err(bad("group", format!("is {group:?}, which is not there")));
    }
    let mut given = Given {
        group: group.as_bytes(),
        ..Given::new(name.as_bytes())
    };
    let inherited = shared.iter().flat_map(|shared| &shared.0);
    for (key, value) in inherited.chain(&entry.0) {
        set(&mut given, key, value).map_err(|problem| bad(key, problem))?;
    }
    if given.path.is_empty() {
        return Err(bad("filename", "is missing".into()));
    }
    Settings::check(&given)
}

/// Takes one setting over. The error says what is wrong with its value.
fn set<'a>(given: &mut Given<'a>, key: &str, value: &'a Value) -> Result<Meaning, String> {
    match key {
        "group" => given.group = string(value)?.as_bytes(),
        "filename" => given.path = string(value)?.as_bytes(),
        "key" | "update_key" => given.update_key = string(value)?.as_bytes(),
        "update_key_file" => given.update_key_file = string(value)?.as_bytes(),
        "max_boot_time" => given.max_boot_time = number(value)?,
        "max_request_time" => given.max_request_time = number(value)?,
        "max_wait" => given.max_wait = number(value)?,
        "idle_time" => given.idle_time = number(value)?,
        "max_memory" => given.max_memory = megabytes(value)?,
        "max_request_memory" => given.max_request_memory = megabytes(value)?,
        "req_mem_limit_after_reset" => given.req_mem_limit_after_reset = megabytes(value)?,
        "concurrency" => given.concurrency = integer(value)?,
        "main_arguments" => given.main_arguments = strings(value)?,
        "environment" => given.environment = strings(value)?,
        "allowed_paths" => given.allowed_paths = strings(value)?,
        "current_working_directory" => {
            given.current_working_directory = string(value)?.as_bytes();
        }
        "stdout" => given.stdout = boolean(value)?,
        "warmup" => set_warm_up(given, value)?,
        "state_dir" => given.state_dir = string(value)?.as_bytes(),
        "keep_versions" => given.keep_versions = integer(value)?,
        "update_without_state" => given.update_without_state = boolean(value)?,
        "watch" => given.watch = boolean(value)?,
        "version_header" => given.version_header = boolean(value)?,
        "allow_debug" => given.allow_debug = boolean(value)?,
        "debug_address" => given.debug_address = string(value)?.as_bytes(),
        "debug_timeout" => given.debug_timeout = number(value)?,
        "debug_exceptions" => given.debug_exceptions = boolean(value)?,
        // What a program can't do without must not be passed over.
        "uri" => return Err("can't be fetched, only a filename can be read".into()),
        "storage" if boolean(value)? => return Err("is true, which is not supported".into()),
        "shared_memory" if number(value)? != 0.0 => {
            return Err("is not 0, which is not supported".into());
        }
        "ephemeral" if !boolean(value)? => {
            return Err("is false, but every request starts from the frozen program".into());
        }
        "storage" | "shared_memory" | "ephemeral" => {}
        "start" | "hugepages" | "address_space" | "max_storage_time" | "control_ephemeral" => {
            return Ok(Meaning::NoneHere);
        }
        _ => return Ok(Meaning::Unknown),
    }
    Ok(Meaning::Setting)
}

/// Warm-up requests, which there are 20 of unless it is said.
fn set_warm_up<'a>(given: &mut Given<'a>, value: &'a Value) -> Result<(), String> {
    let Value::Object(settings) = value else {
        return Err("must be an object".into());
    };
    given.warmup = 20;
    for (key, value) in settings {
        let set = match key.as_str() {
            "num_requests" => integer(value).map(|n| given.warmup = n),
            "url" => string(value).map(|url| given.warmup_url = url.as_bytes()),
            "method" => string(value).map(|method| given.warmup_method = method.as_bytes()),
            "headers" => strings(value).map(|headers| given.warmup_headers = headers),
            _ => return Err(format!("has {key:?}, which is unknown")),
        };
        set.map_err(|problem| format!("has {key}, which {problem}"))?;
    }
    Ok(())
}

fn string(value: &Value) -> Result<&str, String> {
    match value {
        Value::String(text) if text.contains('\0') => Err("has a NUL in it".into()),
        Value::String(text) => Ok(text),
        _ => Err("must be a string".into()),
    }
}

fn strings(value: &Value) -> Result<List<'_>, String> {
    let Value::Array(items) = value else {
        return Err("must be an array of strings".into());
    };
    let items: Result<_, _> = items.iter().map(string).collect();
    Ok(List::Items(items.map_err(|problem| {
        format!("has an entry that {problem}")
    })?))
}

fn number(value: &Value) -> Result<f64, String> {
    value.as_f64().ok_or_else(|| "must be a number".into())
}

fn integer(value: &Value) -> Result<i64, String> {
    value
        .as_i64()
        .ok_or_else(|| "must be a whole number".into())
}

/// Sizes are in megabytes.
fn megabytes(value: &Value) -> Result<i64, String> {
    let size = integer(value).map_err(|_| "must be a whole number of megabytes")?;
    size.checked_mul(1 << 20)
        .ok_or_else(|| format!("is {size} megabytes, which is too much"))
}

fn boolean(value: &Value) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| "must be true or false".into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn tenants(text: &str) -> Vec<Settings> {
        parse(text.into()).unwrap().tenants
    }

    #[test]
    fn a_tenant_has_its_groups_settings_and_its_own() {
        let tenants = tenants(
            r#"{
                // Those of group "test".
                "b.example": { "filename": "/srv/b" },
                "test": { "concurrency": 3 },
                "large": { /* for two */
                    "max_memory": 1024, "max_request_time": 0.5, "main_arguments": ["-v", "two words"],
                    "filename_is_not": "/a/tenant's"
                },
                "a.example": { "group": "large", "filename": "/srv/a", "max_request_time": 4 },
                "C.example": { "group": "large", "filename": "/srv/c", "main_arguments": [] }
            }"#,
        );
        let seen: Vec<_> = tenants
            .iter()
            .map(|settings| {
                let config = &settings.config;
                (
                    config.name.as_str(),
                    config.group.as_str(),
                    config.concurrency,
                    config.limits.max_memory >> 20,
                    config.limits.max_request_time,
                    config.main_arguments.len(),
                )
            })
            .collect();
        let ms = Duration::from_millis;
        assert_eq!(
            seen,
            [
                ("b.example", "test", 3, 256, ms(8000), 0),
                ("a.example", "large", 2, 1024, ms(4000), 2),
                ("c.example", "large", 2, 1024, ms(500), 0),
            ]
        );
    }

    #[test]
    fn every_setting_is_taken_over() {
        let [all, plain] = &tenants(
            r#"{
                "all": {
                    "group": "test", "filename": "/srv/a", "key": "secret", "max_boot_time": 1.5,
                    "max_request_time": 2, "max_wait": 0, "idle_time": 3, "max_memory": 2,
                    "max_request_memory": 1, "req_mem_limit_after_reset": 0, "concurrency": 255,
                    "main_arguments": ["a b"], "environment": ["A=b c"], "allowed_paths": ["/etc"],
                    "current_working_directory": "/tmp", "stdout": true,
                    "warmup": { "url": "/w", "method": "POST", "headers": ["A: b"] },
                    "state_dir": "/var/lib", "keep_versions": 0, "update_without_state": true, "watch": true,
                    "version_header": true, "allow_debug": true, "debug_address": "127.0.0.1:1",
                    "debug_timeout": 1, "debug_exceptions": true,
                    "storage": false, "shared_memory": 0, "ephemeral": true
                },
                "plain": { "filename": "/srv/a" }
            }"#,
        )[..] else {
            panic!()
        };
        // Every field there is. The compiler says when one is new.
        let Settings {
            path,
            stdout,
            key,
            state_dir,
            keep_versions,
            update_without_state,
            watch,
            version_header,
            config,
        } = all;
        assert_eq!(path, &plain.path);
        assert!(key.is_set() && !plain.key.is_set());
        assert!(*stdout && *update_without_state && *watch && *version_header);
        assert_eq!(state_dir, Path::new("/var/lib"));
        assert_eq!(*keep_versions, 0);
        let text = format!("{config:?}");
        let default = format!("{:?}", plain.config);
        let fields = |text: &str| -> Vec<String> { text.split(", ").map(str::to_owned).collect() };
        let same: Vec<_> = fields(&text)
            .into_iter()
            .filter(|field| fields(&default).contains(field))
            .collect();
        // The group was given as it is by default; `only` is no setting.
        assert_eq!(same, ["group: \"test\"", "only: false }"], "{text}");
        let warm_up = config.warm_up.as_ref().unwrap();
        assert_eq!((warm_up.num_requests, &*warm_up.url), (20, "/w"));
        assert_eq!(warm_up.headers.len(), 1);
    }

    #[test]
    fn what_means_nothing_is_a_warning() {
        let document = parse(
            r#"{
                "g": { "hugepages": true, "typo": 1, "max_wait": "1s" },
                "a": { "filename": "/p", "start": false, "comment": [] }
            }"#
            .into(),
        )
        .unwrap();
        assert_eq!(document.tenants.len(), 1);
        assert_eq!(
            document.warnings,
            [
                "\"g\": hugepages has no effect",
                "\"g\": typo is unknown",
                "\"g\": max_wait must be a number",
                "\"a\": start has no effect",
                "\"a\": comment is unknown",
            ]
        );
        assert!(parse("{}".into()).unwrap().tenants.is_empty());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let of_a = |entry: &str| format!("{{ \"a\": {{ \"filename\": \"/p\", {entry} }} }}");
        for (text, reason) in [
            ("", "EOF while parsing a value at line 1"),
            ("[]", "invalid type: sequence, expected an object at line 1"),
            ("{ \"a\": 1 }", "expected an object at line 1"),
            ("{\n\n\"a\" {} }", "expected `:` at line 3"),
            ("{ /* \"a\": {} }", "EOF while parsing an object at line 1"),
            ("{ / \"a\": {} }", "a / that begins no comment"),
            (
                r#"{ "a": {"filename": "/p"}, "a": {"filename": "/q"} }"#,
                "\"a\" is there twice",
            ),
            (
                &of_a(r#""stdout": true, "stdout": false"#),
                "\"stdout\" is there twice",
            ),
            (
                r#"{ "a b": {"filename": "/p"} }"#,
                r#"tenant("a b"): name must be"#,
            ),
            (
                r#"{ "a": {"group": "test"} }"#,
                r#"tenant("a"): filename is missing"#,
            ),
            (
                r#"{ "a": {"uri": "http://h/"} }"#,
                r#"tenant("a"): uri can't be fetched"#,
            ),
            (
                r#"{ "a": {"filename": "p"} }"#,
                r#"tenant("a"): path is not absolute"#,
            ),
            (
                &of_a(r#""group": "g""#),
                r#"tenant("a"): group is "g", which is not there"#,
            ),
            (&of_a(r#""group": 1"#), "group must be a string"),
            (&of_a(r#""key": null"#), "key must be a string"),
            (&of_a(r#""key": "\u0000""#), "key has a NUL in it"),
            (&of_a(r#""concurrency": 0"#), "concurrency is 0, must be"),
            (
                &of_a(r#""concurrency": 1.5"#),
                "concurrency must be a whole number",
            ),
            (
                &of_a(r#""max_memory": "1GB""#),
                "max_memory must be a whole number of megabytes",
            ),
            (
                &of_a(r#""max_memory": 9007199254740992"#),
                "max_memory is 9007199254740992 megabytes, which is too much",
            ),
            (&of_a(r#""max_memory": -1"#), "max_memory is -1048576 bytes"),
            (&of_a(r#""max_wait": true"#), "max_wait must be a number"),
            (&of_a(r#""stdout": 1"#), "stdout must be true or false"),
            (
                &of_a(r#""main_arguments": "-v""#),
                "main_arguments must be an array of strings",
            ),
            (
                &of_a(r#""environment": ["A=b", 1]"#),
                "environment has an entry that must be a string",
            ),
            (&of_a(r#""warmup": 3"#), "warmup must be an object"),
            (
                &of_a(r#""warmup": {"requests": 3}"#),
                "warmup has \"requests\", which is unknown",
            ),
            (
                &of_a(r#""warmup": {"url": 3}"#),
                "warmup has url, which must be a string",
            ),
            (
                &of_a(r#""warmup": {"headers": ["A"]}"#),
                "warmup_headers has \"A\": no colon in it",
            ),
            (&of_a(r#""storage": true"#), "storage is true"),
            (&of_a(r#""shared_memory": 1"#), "shared_memory is not 0"),
            (&of_a(r#""ephemeral": false"#), "ephemeral is false"),
        ] {
            let error = parse(text.into()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
