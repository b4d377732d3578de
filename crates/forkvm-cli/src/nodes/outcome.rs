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

/// What was asked of a node, to read its answer by.
pub struct Question<'a> {
    /// The version that has to run now, if it is known.
    pub version: Option<&'a str>,
    /// How long was waited at most.
    pub timeout: Duration,
}

/// How it went at one node.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It runs the program that was asked for, or has said what it runs; lines.
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
    /// Reads an answer, or says why there is none.
    pub fn of(answer: Result<Answer, Lost>, question: &Question<'_>) -> Self {
        let answer = match answer {
            Ok(answer) => answer,
            Err(lost) => return Self::lost(lost, question),
        };
        let json = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        let text = |name: &str| json[name].as_str().map(printable);
        let status = answer.status;
        match status {
            200 | 201 => match text("version") {
                Some(runs) if question.version.is_none_or(|version| version == runs) => {
                    let ready_ms = json["ready_ms"].as_f64();
                    Self::Done(done(status, &runs, text("previous"), ready_ms))
                }
                Some(runs) => Self::Broken(format!(
                    "{status} says that version {} runs now, which is not this program",
                    short(&runs)
                )),
                // Such as the page of a tenant's program, or of another server.
                None => Self::Broken(not_an_update(status)),
            },
            400.. => Self::Refused {
                status,
                reason: text("error").unwrap_or_else(|| {
                    let body = String::from_utf8_lossy(&answer.body);
                    reason(&printable(body.trim()))
                }),
                output: text("stderr").unwrap_or_default(),
            },
            status => Self::Broken(not_an_update(status)),
        }
    }

    fn lost(lost: Lost, question: &Question<'_>) -> Self {
        match lost {
            Lost::Unreachable(why) => Self::Unreachable(why),
            Lost::TimedOut => Self::TimedOut(question.timeout),
            Lost::Broken(why) => Self::Broken(why),
        }
    }

    /// Reads the list of a tenant's programs.
    pub fn of_versions(answer: Result<Answer, Lost>, question: &Question<'_>) -> Self {
        let answer = match answer {
            Ok(answer) if answer.status == 200 => answer,
            other => return Self::of(other, question),
        };
        let json: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let Some(versions) = json["versions"].as_array() else {
            return Self::Broken(not_an_update(answer.status));
        };
        let lines = versions.iter().map(|program| {
            let version = printable(program["version"].as_str().unwrap_or("?"));
            let mut line = short(&version);
            line += match program["running"].as_bool() {
                Some(true) => " runs",
                _ => " is kept",
            };
            match program["bytes"].as_u64() {
                Some(bytes) => {
                    let _ = write!(line, ", {bytes} bytes");
                }
                // It is stored when another one takes its place.
                None => line += ", from the tenant's path",
            }
            line
        });
        let lines: Vec<_> = lines.collect();
        Self::Done(match lines.is_empty() {
            true => "no program runs, and none is kept".into(),
            false => lines.join("\n"),
        })
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

    /// The result, in lines: one, but for a list of versions.
    pub fn lines(&self) -> Vec<String> {
        let line = match self {
            Self::Done(lines) => return lines.lines().map(str::to_owned).collect(),
            Self::Refused { status, reason, .. } => {
                format!("{status} {}", reason.lines().next().unwrap_or_default())
            }
            Self::Unreachable(why) => format!("could not connect: {why}"),
            Self::TimedOut(after) => format!(
                "no answer within {} s; it may still do it",
                after.as_secs_f64()
            ),
            Self::Broken(why) => why.clone(),
            Self::NotAsked => "not tried".into(),
        };
        vec![line]
    }

    /// More about a failure, for the one who has to do something about it; lines.
    pub fn explanation(&self, tenant: &str, uploads: bool) -> String {
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
        // What is not a node's own answer says nothing about its tenants.
        let is_nodes = !reason.ends_with(IS_IT_SET_UP);
        if let Some(advice) = advice(*status, tenant, uploads).filter(|_| is_nodes) {
            let _ = writeln!(text, "  {advice}");
        }
        text
    }
}

/// What a node calls itself, by its answer to which programs there are; or what came of the order, which can't be given without.
pub fn stamp(answer: Result<Answer, Lost>, question: &Question<'_>) -> Result<String, Outcome> {
    let answer = match answer {
        Ok(answer) if answer.status < 400 => answer,
        failed => return Err(Outcome::of(failed, question)),
    };
    let json: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let stamp = json["node"].as_str();
    // It goes into a header.
    let is_stamp = |text: &&str| text.len() == 32 && text.bytes().all(|c| c.is_ascii_hexdigit());
    let stamp = stamp.filter(is_stamp).map(str::to_owned);
    // Such as the page of a tenant's program, or of another server.
    stamp.ok_or_else(|| Outcome::Broken(not_an_update(answer.status)))
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

const IS_IT_SET_UP: &str = "does its VCL have live updates (include vcl/kvm.vcl)?";

fn not_an_update(status: u16) -> String {
    format!("{status} is not the answer of a live update; {IS_IT_SET_UP}")
}

fn done(status: u16, version: &str, previous: Option<String>, ready_ms: Option<f64>) -> String {
    let mut line = format!("{status} version {}", short(version));
    if status == 200 {
        line += ", which it had already";
        return line;
    }
    if let Some(previous) = previous {
        let _ = write!(line, " (was {})", short(&previous));
    }
    if let Some(ms) = ready_ms {
        let _ = write!(line, ", ready in {ms:.0} ms");
    }
    line
}

fn short(version: &str) -> String {
    version.chars().take(SHORT).collect()
}

/// A reason that is not in JSON.
fn reason(body: &str) -> String {
    // Varnish's own error pages are HTML.
    if body.is_empty() || body.starts_with('<') {
        return format!("without a reason; {IS_IT_SET_UP}");
    }
    body.chars().take(LONGEST_REASON).collect()
}

/// What to do about a status.
fn advice(status: u16, tenant: &str, uploads: bool) -> Option<String> {
    Some(match status {
        401 => "The node got no signature: what is between lets no header of this name through.".into(),
        403 => format!(
            "If it is about the key, compare it with the node's update_key or update_key_file of {tenant}; without one, updates \
             are off."
        ),
        404 => format!("The node has no tenant {tenant}: compare --tenant with its kvm.tenant()."),
        409 => "Another update of this tenant is under way there: try again when it is done.".into(),
        413 => "Leave out debug information (strip --strip-debug), or raise max_size of kvm.live_update().".into(),
        422 if uploads => "Nothing has changed there. To see the same here: forkvm run PROGRAM /".into(),
        422 => "Nothing has changed there.".into(),
        503 => "The node can't take it now: try again, and see its log (varnishlog -d -g raw -q 'Error ~ kvm:').".into(),
        _ => return None,
    })
}
