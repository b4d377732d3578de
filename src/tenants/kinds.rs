//! The kinds of settings: how each is given in VCL and in JSON, and what is checked of it.
#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use forkvm::{
    AllowedPath, BadDebugAddress, BadListenRule, BadRule, BadVolume, DebugAddress, Header,
    ListenRule, NetRule, Volume, parse_header,
};
use serde_json::{Map, Value};

use crate::tenants::keys::Key;
use crate::tenants::version::{NotAVersion, Version};
use crate::tenants::words;

/// A kind of settings.
pub trait Kind {
    /// As it is given, in VCL's terms: times in seconds, sizes in bytes.
    type Given<'a>: Clone + Debug;
    /// As the table has a default.
    type Default;
    /// Between which it has to be.
    type Bounds;
    /// When it is checked.
    type Checked: Clone + Debug + PartialEq + Eq;

    /// The table's default, as if it were given.
    fn default(default: Self::Default) -> Self::Given<'static>;

    /// As it stands in JSON. An error says what is wrong with it, and so in `check`: to be read after the setting's name.
    fn of_json(value: &Value) -> Result<Self::Given<'_>, String>;

    /// Checks what is given.
    fn check(given: &Self::Given<'_>, bounds: Self::Bounds) -> Result<Self::Checked, String>;
}

/// A list, as it is given.
#[derive(Debug, Clone)]
pub enum List<'a> {
    /// In one string of VCL's.
    Words(&'a [u8]),
    /// In one string each.
    Items(Vec<&'a str>),
}

impl List<'_> {
    fn split(&self) -> Result<Vec<String>, String> {
        match self {
            Self::Words(value) => words::split(utf8(value)?).map_err(|bad| bad.to_string()),
            Self::Items(items) => Ok(items.iter().map(|&item| item.to_owned()).collect()),
        }
    }
}

/// In seconds; in JSON a number of them.
pub enum Time {}

impl Kind for Time {
    type Given<'a> = f64;
    type Default = f64;
    type Bounds = RangeInclusive<f64>;
    type Checked = Duration;

    fn default(default: f64) -> f64 {
        default
    }

    fn of_json(value: &Value) -> Result<f64, String> {
        value.as_f64().ok_or_else(|| "must be a number".into())
    }

    fn check(seconds: &f64, bounds: RangeInclusive<f64>) -> Result<Duration, String> {
        let (min, max) = (bounds.start(), bounds.end());
        if !bounds.contains(seconds) {
            return Err(format!("is {seconds} s, must be {min} s to {max} s"));
        }
        Duration::try_from_secs_f64(*seconds).map_err(|error| error.to_string())
    }
}

/// In bytes; in JSON a number of megabytes.
pub enum Size {}

impl Kind for Size {
    type Given<'a> = i64;
    type Default = i64;
    type Bounds = RangeInclusive<i64>;
    type Checked = u64;

    fn default(default: i64) -> i64 {
        default
    }

    fn of_json(value: &Value) -> Result<i64, String> {
        let size = value
            .as_i64()
            .ok_or("must be a whole number of megabytes")?;
        size.checked_mul(1 << 20)
            .ok_or_else(|| format!("is {size} megabytes, which is too much"))
    }

    fn check(bytes: &i64, bounds: RangeInclusive<i64>) -> Result<u64, String> {
        let (min, max) = (bounds.start(), bounds.end());
        match u64::try_from(*bytes) {
            Ok(size) if bounds.contains(bytes) => Ok(size),
            _ => Err(format!("is {bytes} bytes, must be {min} to {max}")),
        }
    }
}

/// So many of something.
pub enum Count {}

impl Kind for Count {
    type Given<'a> = i64;
    type Default = i64;
    type Bounds = RangeInclusive<i64>;
    type Checked = u32;

    fn default(default: i64) -> i64 {
        default
    }

    fn of_json(value: &Value) -> Result<i64, String> {
        value
            .as_i64()
            .ok_or_else(|| "must be a whole number".into())
    }

    fn check(number: &i64, bounds: RangeInclusive<i64>) -> Result<u32, String> {
        let (min, max) = (bounds.start(), bounds.end());
        match u32::try_from(*number) {
            Ok(checked) if bounds.contains(number) => Ok(checked),
            _ => Err(format!("is {number}, must be {min} to {max}")),
        }
    }
}

/// So many of something, or what suits the other settings: -1 in the table and in VCL.
pub enum CountOrDefault {}

impl Kind for CountOrDefault {
    type Given<'a> = i64;
    type Default = i64;
    type Bounds = RangeInclusive<i64>;
    type Checked = Option<u32>;

    fn default(default: i64) -> i64 {
        default
    }

    fn of_json(value: &Value) -> Result<i64, String> {
        Count::of_json(value)
    }

    fn check(number: &i64, bounds: RangeInclusive<i64>) -> Result<Option<u32>, String> {
        match number {
            -1 => Ok(None),
            number => Count::check(number, bounds).map(Some),
        }
    }
}

/// Whether or not.
pub enum Flag {}

impl Kind for Flag {
    type Given<'a> = bool;
    type Default = bool;
    type Bounds = ();
    type Checked = bool;

    fn default(default: bool) -> bool {
        default
    }

    fn of_json(value: &Value) -> Result<bool, String> {
        value
            .as_bool()
            .ok_or_else(|| "must be true or false".into())
    }

    fn check(flag: &bool, (): ()) -> Result<bool, String> {
        Ok(*flag)
    }
}

/// Whether a program has storage: true, false or "fork", in VCL as one string.
pub enum StorageKind {}

impl Kind for StorageKind {
    type Given<'a> = &'a [u8];
    type Default = &'static str;
    type Bounds = ();
    type Checked = forkvm::StorageKind;

    fn default(default: &'static str) -> &'static [u8] {
        default.as_bytes()
    }

    fn of_json(value: &Value) -> Result<&[u8], String> {
        match value {
            Value::Bool(true) => Ok(b"true"),
            Value::Bool(false) => Ok(b"false"),
            Value::String(text) => Ok(text.as_bytes()),
            _ => Err("must be true, false or \"fork\"".into()),
        }
    }

    fn check(text: &&[u8], (): ()) -> Result<forkvm::StorageKind, String> {
        match *text {
            b"true" => Ok(forkvm::StorageKind::Machine),
            b"false" => Ok(forkvm::StorageKind::None),
            b"fork" => Ok(forkvm::StorageKind::Fork),
            other => {
                let other = other.escape_ascii();
                Err(format!("is \"{other}\", must be true, false or \"fork\""))
            }
        }
    }
}

/// The kinds that are one string, in VCL as in JSON.
macro_rules! strings {
    ($($(#[$doc:meta])* $kind:ident -> $checked:ty: $check:expr;)*) => {$(
        $(#[$doc])*
        pub enum $kind {}

        impl Kind for $kind {
            type Given<'a> = &'a [u8];
            type Default = &'static str;
            type Bounds = ();
            type Checked = $checked;

            fn default(default: &'static str) -> &'static [u8] {
                default.as_bytes()
            }

            fn of_json(value: &Value) -> Result<&[u8], String> {
                string(value).map(str::as_bytes)
            }

            fn check(text: &&[u8], (): ()) -> Result<$checked, String> {
                let check: fn(&[u8]) -> Result<$checked, String> = $check;
                check(text)
            }
        }
    )*};
}

strings! {
    /// Any text.
    Text -> String: |text| Ok(utf8(text)?.into());
    /// An absolute path.
    Path -> String: |path| absolute(utf8(path)?);
    /// An absolute path, or nothing.
    PathOrNone -> Option<String>: |path| match utf8(path)? {
        "" => Ok(None),
        path => absolute(path).map(Some),
    };
    /// A key, which is never shown. Nothing is none.
    Secret -> Key: |key| Ok(Key::given(key));
    /// A SHA-256 in hex, or nothing.
    Digest -> Option<Version>: |digest| match utf8(digest)? {
        "" => Ok(None),
        digest => digest.parse().map(Some).map_err(|bad: NotAVersion| bad.to_string()),
    };
    /// An MD5 in hex, or nothing.
    Md5Digest -> Option<[u8; 16]>: |digest| match utf8(digest)? {
        "" => Ok(None),
        digest => md5_of_hex(digest).map(Some).ok_or_else(|| "is not an MD5: 32 hexadecimal digits".into()),
    };
    /// Where gdb can connect.
    Address -> DebugAddress: |address| utf8(address)?
        .parse()
        .map_err(|bad: BadDebugAddress| format!("is {bad}"));
}

/// The kinds that are a list: one string of words in VCL, an array of strings in JSON.
macro_rules! lists {
    ($($(#[$doc:meta])* $kind:ident -> $item:ty: $check:expr;)*) => {$(
        $(#[$doc])*
        pub enum $kind {}

        impl Kind for $kind {
            type Given<'a> = List<'a>;
            type Default = &'static str;
            type Bounds = ();
            type Checked = Vec<$item>;

            fn default(default: &'static str) -> List<'static> {
                List::Words(default.as_bytes())
            }

            fn of_json(value: &Value) -> Result<List<'_>, String> {
                items(value)
            }

            fn check(list: &List<'_>, (): ()) -> Result<Vec<$item>, String> {
                let check: fn(Vec<String>) -> Result<Vec<$item>, String> = $check;
                check(list.split()?)
            }
        }
    )*};
}

lists! {
    /// Any words.
    Words -> String: Ok;
    /// `KEY=value` entries.
    Environment -> String: |entries| all("an entry that is not KEY=value", entries, |entry| {
        entry.find('=').is_some_and(|at| at > 0)
    });
    /// Absolute paths of folders.
    Folders -> PathBuf: |paths| {
        let path = |path: &String| absolute(path).map(PathBuf::from).map_err(|why| format!("has a path that {why}"));
        paths.iter().map(path).collect()
    };
    /// `HOST:GUEST`, and how it may be changed.
    Volumes -> Volume: |volumes| {
        let volume = |text: &String| {
            let volume: Volume = text.parse().map_err(|bad: BadVolume| format!("has {text:?}: {bad}"))?;
            match volume.path.real.is_absolute() {
                true => Ok(volume),
                false => Err(format!("has {text:?}: the host's path has to be absolute")),
            }
        };
        volumes.iter().map(volume).collect()
    };
    /// Where something may listen.
    ListenRules -> ListenRule: |rules| {
        let rule = |rule: &String| rule.parse().map_err(|bad: BadListenRule| format!("has {rule:?}: {bad}"));
        rules.iter().map(rule).collect()
    };
    /// Places of the network.
    NetRules -> NetRule: |rules| {
        let rule = |rule: &String| rule.parse().map_err(|bad: BadRule| format!("has {rule:?}: {bad}"));
        rules.iter().map(rule).collect()
    };
    /// `Name: value` lines.
    Headers -> Header<'static>: |lines| {
        let header = |(i, line): (usize, &String)| {
            // Not the line itself, which may hold a secret.
            parse_header(line.as_bytes()).map_err(|why| format!("has as number {}: {why}", i + 1))
        };
        lines.iter().enumerate().map(header).collect()
    };
}

/// Absolute paths of files and folders, as they are given.
#[derive(Debug, Clone)]
pub enum Allowed<'a> {
    /// In one string of VCL's.
    Words(&'a [u8]),
    /// In JSON's terms.
    Paths(Vec<Volume>),
}

/// Files and folders that a program may read. In JSON an array of paths, or of objects that say more of one: where it
/// is (`real`), where the program finds it (`virtual`), whether with all beneath it (`prefix`, which may be that path
/// itself), whether the program is to see a symbolic link (`symlink`), and whether it may change it (`writable`): in memory, until
/// the request's end, or in the host, for good (`persistent`).
pub enum Paths {}

impl Kind for Paths {
    type Given<'a> = Allowed<'a>;
    type Default = &'static str;
    type Bounds = ();
    type Checked = Vec<Volume>;

    fn default(default: &'static str) -> Allowed<'static> {
        Allowed::Words(default.as_bytes())
    }

    fn of_json(value: &Value) -> Result<Allowed<'_>, String> {
        let Value::Array(items) = value else {
            return Err("must be an array of paths".into());
        };
        let path = |item: &Value| match item {
            Value::Object(parts) => allowed_path(parts),
            path => string(path)
                .map(only_read)
                .map_err(|problem| format!("has an entry that {problem}")),
        };
        Ok(Allowed::Paths(
            items.iter().map(path).collect::<Result<_, _>>()?,
        ))
    }

    fn check(given: &Allowed<'_>, (): ()) -> Result<Vec<Volume>, String> {
        let paths: Vec<Volume> = match given {
            Allowed::Words(words) => {
                let words = List::Words(words).split()?;
                words.into_iter().map(only_read).collect()
            }
            Allowed::Paths(paths) => paths.clone(),
        };
        let both = paths
            .iter()
            .flat_map(|Volume { path, .. }| [&path.real, &path.seen]);
        for path in both {
            if !path.is_absolute() {
                return Err(format!("has a path that is not absolute: {path:?}"));
            }
        }
        Ok(paths)
    }
}

/// A path that is only read.
fn only_read(path: impl Into<PathBuf>) -> Volume {
    Volume {
        path: AllowedPath::from(path),
        overlaid: false,
    }
}

fn allowed_path(parts: &Map<String, Value>) -> Result<Volume, String> {
    let wrong = |key: &str, problem| format!("has an object with {key}, which {problem}");
    let text = |key: &str| match parts.get(key) {
        Some(value) => string(value)
            .map(Some)
            .map_err(|problem| wrong(key, problem)),
        None => Ok(None),
    };
    let flag = |key: &str| match parts.get(key) {
        Some(value) => Flag::of_json(value).map_err(|problem| wrong(key, problem)),
        None => Ok(false),
    };
    const KNOWN: [&str; 6] = [
        "real",
        "virtual",
        "prefix",
        "writable",
        "persistent",
        "symlink",
    ];
    if let Some(key) = parts.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(wrong(key, "is unknown".into()));
    }
    let (writable, persistent) = (flag("writable")?, flag("persistent")?);
    if persistent && !writable {
        return Err(wrong("persistent", "is nothing without writable".into()));
    }
    let (prefix, beneath) = match parts.get("prefix") {
        Some(Value::Bool(beneath)) => (None, *beneath),
        Some(_) => (text("prefix")?, true),
        None => (None, true),
    };
    let (real, seen) = (text("real")?, text("virtual")?);
    let real = real.or(prefix).or(seen);
    let real = real.ok_or("has an object without real, virtual or prefix")?;
    Ok(Volume {
        path: AllowedPath {
            real: real.into(),
            seen: seen.or(prefix).unwrap_or(real).into(),
            beneath,
            link: flag("symlink")?,
            writes: persistent,
        },
        overlaid: writable && !persistent,
    })
}

fn md5_of_hex(digits: &str) -> Option<[u8; 16]> {
    if digits.len() != 32 || !digits.bytes().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    let number = u128::from_str_radix(digits, 16).ok()?;
    Some(number.to_be_bytes())
}

fn utf8(text: &[u8]) -> Result<&str, String> {
    str::from_utf8(text).map_err(|_| "is not UTF-8".into())
}

fn is_absolute(path: &str) -> bool {
    std::path::Path::new(path).is_absolute()
}

/// An absolute path.
pub fn absolute(path: &str) -> Result<String, String> {
    match is_absolute(path) {
        true => Ok(path.into()),
        false => Err(format!("is not absolute: {path:?}")),
    }
}

fn all(
    otherwise: &str,
    items: Vec<String>,
    is_good: fn(&str) -> bool,
) -> Result<Vec<String>, String> {
    match items.iter().find(|item| !is_good(item)) {
        Some(bad) => Err(format!("has {otherwise}: {bad:?}")),
        None => Ok(items),
    }
}

/// A string in JSON. C has none with a NUL.
pub fn string(value: &Value) -> Result<&str, String> {
    match value {
        Value::String(text) if text.contains('\0') => Err("has a NUL in it".into()),
        Value::String(text) => Ok(text),
        _ => Err("must be a string".into()),
    }
}

fn items(value: &Value) -> Result<List<'_>, String> {
    let Value::Array(items) = value else {
        return Err("must be an array of strings".into());
    };
    let items: Result<_, _> = items.iter().map(string).collect();
    Ok(List::Items(items.map_err(|problem| {
        format!("has an entry that {problem}")
    })?))
}
