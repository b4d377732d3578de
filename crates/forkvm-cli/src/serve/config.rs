//! `forkvm.toml`: its keys are the flags' names, since it is read as flags. What the command's own description says of a flag holds
//! for the key as well.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::builder::ValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser};
use toml::{Table, Value};

use super::settings::Serve;

/// The key of the program and its arguments.
const PROGRAM: &str = "program";
/// Flags that are about the file, and so in none.
const NOT_IN_FILES: [&str; 4] = ["config", "print_config", "help", "output"];

/// The arguments after `serve`, or `snapshot`.
#[derive(Debug, Parser)]
#[command(name = "forkvm serve", no_binary_name = true)]
struct Arguments {
    #[command(flatten)]
    serve: Serve,
    /// Of `snapshot`.
    #[arg(short, long, hide = true)]
    output: Option<PathBuf>,
}

/// Settings, and what they were parsed from.
#[derive(Debug)]
pub struct Effective {
    pub settings: Serve,
    matches: ArgMatches,
}

/// The settings in force: the arguments after `serve`, and what the file has that they name.
pub fn effective(arguments: Vec<OsString>) -> Result<Effective, String> {
    let given = matches(arguments.clone())?;
    let Some(path) = given.get_one::<std::path::PathBuf>("config") else {
        return Effective::of(given);
    };
    let named = |what: String| format!("{}: {what}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let text = error.to_string();
        named(text.trim_end().to_owned())
    })?;
    let (mut all, program) = as_arguments(&table, &given).map_err(named)?;
    all.extend(arguments);
    if !program.is_empty() {
        if all.last().is_none_or(|last| last != "--") {
            all.push("--".into());
        }
        all.extend(program);
    }
    Effective::of(matches(all).map_err(named)?)
}

impl Effective {
    fn of(matches: ArgMatches) -> Result<Self, String> {
        let settings = Serve::from_arg_matches(&matches).map_err(words)?;
        if settings.program.is_empty() && settings.snapshot.is_none() {
            let path = settings.config.as_deref().unwrap_or(Path::new(""));
            return Err(format!(
                "no program is named: give it after `--`, or as `program = [\"PROGRAM\", …]` in {}",
                path.display()
            ));
        }
        Ok(Self { settings, matches })
    }

    /// The file that says the same.
    pub fn as_toml(&self) -> Result<String, String> {
        let mut table = Table::new();
        let command = Arguments::command();
        for arg in command.get_arguments().filter(|arg| is_key(arg)) {
            if let Some(value) = as_value(arg, &self.matches)? {
                table.insert(key(arg).to_owned(), value);
            }
        }
        Ok(table.to_string())
    }
}

fn matches(arguments: Vec<OsString>) -> Result<ArgMatches, String> {
    Arguments::command()
        .try_get_matches_from(arguments)
        .map_err(words)
}

/// Clap's message without the usage.
fn words(error: clap::Error) -> String {
    let text = error.to_string();
    let text = text.split("\n\n").next().unwrap_or_default();
    text.trim_start_matches("error: ").trim_end().to_owned()
}

fn is_key(arg: &Arg) -> bool {
    !NOT_IN_FILES.contains(&arg.get_id().as_str())
}

/// A flag's name, without its dashes.
fn key(arg: &Arg) -> &str {
    arg.get_long().unwrap_or(PROGRAM)
}

/// What a file says, as flags; without those that are given. And the program.
fn as_arguments(
    table: &Table,
    given: &ArgMatches,
) -> Result<(Vec<OsString>, Vec<OsString>), String> {
    let command = Arguments::command();
    let (mut flags, mut program) = (Vec::new(), Vec::new());
    for (name, value) in table {
        let arg = command
            .get_arguments()
            .find(|arg| is_key(arg) && key(arg) == name)
            .ok_or_else(|| unknown(&command, name))?;
        if given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine) {
            continue;
        }
        if name == PROGRAM {
            let Value::Array(values) = value else {
                return Err(format!(
                    "{PROGRAM}: a list is needed, as [\"python3\", \"app.py\"]"
                ));
            };
            for value in values {
                program.push(text_of(name, value)?.into());
            }
            continue;
        }
        match (value, arg.get_action()) {
            (Value::Boolean(true), _) => flags.push(format!("--{name}").into()),
            (Value::Boolean(false), ArgAction::SetTrue) => {}
            (_, ArgAction::SetTrue) => return Err(format!("{name}: true or false is needed")),
            (Value::Array(values), ArgAction::Append) => {
                for value in values {
                    flags.push(format!("--{name}={}", text_of(name, value)?).into());
                }
            }
            (value, _) => flags.push(format!("--{name}={}", text_of(name, value)?).into()),
        }
    }
    Ok((flags, program))
}

fn text_of(name: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        other => Err(format!(
            "{name}: text or a number is needed, not {}",
            other.type_str()
        )),
    }
}

fn unknown(command: &clap::Command, name: &str) -> String {
    let keys = command.get_arguments().filter(|arg| is_key(arg)).map(key);
    let like = |key: &str| strsim::jaro_winkler(key, &name.replace('_', "-"));
    let nearest = keys.max_by(|a, b| like(a).total_cmp(&like(b)));
    match nearest.filter(|key| like(key) > 0.8) {
        Some(key) => format!("there is no key `{name}`; is `{key}` meant?"),
        None => format!("there is no key `{name}`: keys are the names of `forkvm serve`'s flags"),
    }
}

/// A setting's value as a file has it. `None` if it has none.
fn as_value(arg: &Arg, matches: &ArgMatches) -> Result<Option<Value>, String> {
    let id = arg.get_id().as_str();
    if let ArgAction::SetTrue = arg.get_action() {
        return Ok(Some(Value::Boolean(matches.get_flag(id))));
    }
    let Some(raw) = matches.get_raw(id) else {
        return Ok(None);
    };
    let is_number = is_number(arg.get_value_parser());
    let value = |raw: &OsStr| -> Result<Value, String> {
        let text = raw
            .to_str()
            .ok_or_else(|| format!("{}: {} is not UTF-8, as TOML is", key(arg), raw.display()))?;
        let number = || -> Option<Value> {
            let integer = text.parse().map(Value::Integer).ok();
            integer.or_else(|| text.parse().map(Value::Float).ok())
        };
        let number = is_number.then(number).flatten();
        Ok(number.unwrap_or_else(|| Value::String(text.into())))
    };
    let values: Vec<Value> = raw.map(value).collect::<Result<_, _>>()?;
    let is_list = matches!(arg.get_action(), ArgAction::Append);
    Ok(if is_list {
        Some(Value::Array(values))
    } else {
        values.into_iter().next()
    })
}

/// Whether a flag's values are numbers, times among them, which are numbers of seconds.
fn is_number(parser: &ValueParser) -> bool {
    use std::any::TypeId;
    let id = parser.type_id();
    [
        TypeId::of::<std::time::Duration>(),
        TypeId::of::<std::num::NonZeroUsize>(),
        TypeId::of::<u64>(),
        TypeId::of::<u32>(),
        TypeId::of::<usize>(),
    ]
    .into_iter()
    .any(|number| id == number)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    fn arguments(text: &str, given: &[&str]) -> Result<Vec<String>, String> {
        let given = given.iter().map(OsString::from).collect();
        let (flags, program) = as_arguments(&table(text), &matches(given).unwrap())?;
        let all = flags.into_iter().chain(program);
        Ok(all.map(|text| text.into_string().unwrap()).collect())
    }

    #[test]
    fn keys_are_flags() {
        let text = r#"
            allow-read = true
            env = ["A=1", "B=x y"]
            forks = 3
            listen = ["8000"]
            max-time = 1.5
            no-reset = false
            per-request = true
            program = ["p", "-x"]
        "#;
        let all = [
            "--allow-read",
            "--env=A=1",
            "--env=B=x y",
            "--forks=3",
            "--listen=8000",
            "--max-time=1.5",
            "--per-request",
            "p",
            "-x",
        ];
        assert_eq!(arguments(text, &["--config=f"]).unwrap(), all);
        // What is given counts.
        let rest = [
            "--allow-read",
            "--listen=8000",
            "--max-time=1.5",
            "--per-request",
        ];
        let given = ["--env=C=3", "-t1", "q"];
        assert_eq!(arguments(text, &given).unwrap(), rest);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("max_request_tim = 3", "is `max-request-time` meant?"),
            ("zzz = 3", "names of `forkvm serve`'s flags"),
            ("config = 'x'", "there is no key `config`"),
            ("per-request = 1", "per-request: true or false"),
            (
                "forks = { a = 1 }",
                "forks: text or a number is needed, not table",
            ),
            ("program = 'x'", "program: a list"),
            ("env = [[]]", "env: text or a number is needed, not array"),
        ] {
            let error = arguments(text, &["--config=f"]).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
