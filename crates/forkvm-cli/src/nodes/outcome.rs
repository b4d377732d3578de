//! What a node's answer means, in words.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use super::client::{Answer, Lost};

/// A node refused, with a status of 400 and up: curl's number for it.
pub const REFUSED: u8 = 22;
/// No connection, as curl's.
const UNREACHABLE: u8 = 7;
/// No answer in time, as curl's.
const TIMED_OUT: u8 = 28;
/// Not the answer of a live update, as curl's for what it can't read.
const BROKEN: u8 = 56;

/// How many characters of a version are shown.
const SHORT: usize = 12;
/// How many lines of a guest's output are shown.
const LAST_LINES: usize = 20;
/// How many characters of a reason that is not in JSON.
const LONGEST_REASON: usize = 300;

/// How it went at one node.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It runs the program that was asked for.
    Done(String),
    /// It did not take it.
    Refused {
        /// The answer's status.
        status: u16,
        /// In the server's words, or ours if it has none.
        reason: String,
        /// The end of what the program wrote when it failed.
        output: String,
    },
    /// There was no connection.
    Unreachable(String),
    /// There was no answer within this time.
    TimedOut(Duration),
    /// There was an answer, but not that of a live update.
    Broken(String),
    /// It was not asked, because the program is no good.
    NotAsked,
}

impl Outcome {
    /// Reads an answer, or says why there is none. `version` is the one that must run now, if it is known.
    pub fn of(answer: Result<Answer, Lost>, version: Option<&str>, timeout: Duration) -> Self {
        let answer = match answer {
            Ok(answer) => answer,
            Err(Lost::Unreachable(why)) => return Self::Unreachable(why),
            Err(Lost::TimedOut) => return Self::TimedOut(timeout),
            Err(Lost::Broken(why)) => return Self::Broken(why),
        };
        let json = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        match answer.status {
            200 | 201 => match json["version"].as_str() {
                Some(runs) if version.is_none_or(|version| version.eq_ignore_ascii_case(runs)) => {
                    Self::Done(done(answer.status, runs, &json))
                }
                Some(runs) => Self::Broken(format!(
                    "{} says that version {} runs now, which is not this program",
                    answer.status,
                    short(runs)
                )),
                // Such as the page of a tenant's program, or of another server.
                None => Self::Broken(format!(
                    "{} is not the answer of a live update; {IS_IT_SET_UP}",
                    answer.status
                )),
            },
            400.. => Self::Refused {
                status: answer.status,
                reason: reason(&json, &answer),
                output: printable(json["stderr"].as_str().unwrap_or_default()),
            },
            status => Self::Broken(format!(
                "{status} is not the answer of a live update; {IS_IT_SET_UP}"
            )),
        }
    }

    /// True if the node runs the program now.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done(_))
    }

    /// True if other nodes will say the same: the program is no program, or its main() fails.
    pub fn is_the_programs_fault(&self) -> bool {
        matches!(self, Self::Refused { status: 422, .. })
    }

    /// The command's exit status, had this been the only node.
    pub fn code(&self) -> u8 {
        match self {
            Self::Done(_) | Self::NotAsked => 0,
            Self::Refused { .. } => REFUSED,
            Self::Unreachable(_) => UNREACHABLE,
            Self::TimedOut(_) => TIMED_OUT,
            Self::Broken(_) => BROKEN,
        }
    }

    /// The result, in one line.
    pub fn line(&self) -> String {
        match self {
            Self::Done(what) => what.clone(),
            Self::Refused { status, reason, .. } => {
                format!("{status} {}", reason.lines().next().unwrap_or_default())
            }
            Self::Unreachable(why) => format!("could not connect: {why}"),
            Self::TimedOut(after) => format!(
                "no answer within {} s; it may still take the program",
                after.as_secs_f64()
            ),
            Self::Broken(why) => why.clone(),
            Self::NotAsked => "not tried".into(),
        }
    }

    /// More about a failure, for the one who has to do something about it; lines.
    pub fn explanation(&self, tenant: &str) -> String {
        let Self::Refused {
            status,
            reason,
            output,
        } = self
        else {
            return String::new();
        };
        let mut text = String::new();
        for line in reason.lines().skip(1) {
            let _ = writeln!(text, "  {line}");
        }
        let lines: Vec<_> = output.lines().collect();
        if !lines.is_empty() {
            text += "  the end of what it wrote to stderr:\n";
        }
        for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
            let _ = writeln!(text, "  | {line}");
        }
        if let Some(advice) = advice(*status, tenant) {
            let _ = writeln!(text, "  {advice}");
        }
        text
    }
}

const IS_IT_SET_UP: &str = "does its VCL have live updates (include vcl/kvm.vcl)?";

fn done(status: u16, version: &str, json: &Value) -> String {
    let mut line = format!("{status} version {}", short(version));
    if status == 200 {
        line += ", which it had already";
        return line;
    }
    if let Some(previous) = json["previous"].as_str() {
        let _ = write!(line, " (was {})", short(previous));
    }
    if let Some(ms) = json["ready_ms"].as_f64() {
        let _ = write!(line, ", ready in {ms:.0} ms");
    }
    line
}

fn short(version: &str) -> String {
    printable(version).chars().take(SHORT).collect()
}

fn reason(json: &Value, answer: &Answer) -> String {
    if let Some(reason) = json["error"].as_str() {
        return printable(reason);
    }
    let text = String::from_utf8_lossy(&answer.body);
    let text = text.trim();
    // Varnish's own error pages are HTML.
    if text.is_empty() || text.starts_with('<') {
        return format!("without a reason; {IS_IT_SET_UP}");
    }
    printable(text).chars().take(LONGEST_REASON).collect()
}

/// What to do about a status.
fn advice(status: u16, tenant: &str) -> Option<String> {
    Some(match status {
        401 => "The node got no key: give --key-file or --key-env.".into(),
        403 => format!(
            "Compare the key with the node's update_key or update_key_file of {tenant}; without one, updates are off."
        ),
        404 => format!("The node has no tenant {tenant}: compare --tenant with its kvm.tenant()."),
        409 => "Another update of this tenant is under way there: try again when it is done.".into(),
        413 => "Leave out debug information (strip --strip-debug), or raise max_size of kvm.live_update().".into(),
        422 => "The node goes on with the program it had. Try this one with: forkvm run PROGRAM /".into(),
        503 => "The node can't take it now: try again, and see its log (varnishlog -g raw -q 'Error ~ kvm:').".into(),
        _ => return None,
    })
}

/// Text from the network without what could steer a terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}
