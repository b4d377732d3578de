//! What is noted of a connection or, with `--per-request`, of a request when it is over.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use serde::{Serialize, Serializer};

/// How one ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The program closed the connection.
    Server,
    /// The client did, or is gone.
    Client,
    /// Neither had anything to say for too long.
    Idle,
    /// A time limit.
    TimedOut,
    /// The memory limit.
    OutOfMemory,
    /// The program failed: a fault, or its exit.
    Failed,
    /// There was no fork, and no place to wait for one; or none became free in time.
    Refused,
    /// No fork could be made.
    NoFork,
}

impl End {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Server,
        Self::Client,
        Self::Idle,
        Self::TimedOut,
        Self::OutOfMemory,
        Self::Failed,
        Self::Refused,
        Self::NoFork,
    ];

    /// Its name in the log and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Idle => "idle",
            Self::TimedOut => "timed-out",
            Self::OutOfMemory => "out-of-memory",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::NoFork => "no-fork",
        }
    }
}

/// A fork's part in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// How long it waited for the fork.
    pub wait: Duration,
    /// How often the machine came back from `KVM_RUN`.
    pub exits: u64,
    /// Pages that the reset puts back.
    pub pages: u64,
    /// Bytes that the client was sent.
    pub bytes: u64,
    /// How it ended.
    pub end: End,
}

impl Served {
    /// No fork had a part.
    pub fn not_at_all(wait: Duration, end: End) -> Self {
        Self {
            wait,
            exits: 0,
            pages: 0,
            bytes: 0,
            end,
        }
    }
}

/// The request's part.
#[derive(Debug, Clone, Serialize)]
pub struct Http {
    /// As the client sent it; what is longer than [`LONGEST_METHOD`] is cut.
    pub method: String,
    /// With the query, as the client sent it; what is longer than [`LONGEST_PATH`] is cut.
    pub path: String,
    /// `None` if the client was gone before there was one.
    pub status: Option<u16>,
}

/// Longest path that is noted, in bytes.
pub const LONGEST_PATH: usize = 2048;
/// Longest method: clients may make one up.
pub const LONGEST_METHOD: usize = 64;

/// When something began.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    pub at: SystemTime,
    pub instant: Instant,
}

impl Begun {
    /// Now.
    pub fn now() -> Self {
        Self {
            at: SystemTime::now(),
            instant: Instant::now(),
        }
    }
}

/// A line of the access log.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// When its first bytes were there, or the request's head.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    pub peer: Option<SocketAddr>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// Bytes for the client: of a request's body, or all of a connection's.
    pub bytes: u64,
    #[serde(rename = "wait_us", serialize_with = "microseconds")]
    pub wait: Duration,
    #[serde(rename = "duration_us", serialize_with = "microseconds")]
    pub duration: Duration,
    pub exits: u64,
    pub pages: u64,
    pub end: End,
}

impl Record {
    /// Of what is over now.
    pub fn new(begun: Begun, peer: Option<SocketAddr>, served: Served) -> Self {
        Self {
            time: begun.at,
            peer,
            http: None,
            bytes: served.bytes,
            wait: served.wait,
            duration: begun.instant.elapsed(),
            exits: served.exits,
            pages: served.pages,
            end: served.end,
        }
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}

fn microseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_json_whatever_the_client_sent() {
        let served = Served {
            bytes: 7,
            ..Served::not_at_all(Duration::from_micros(3), End::OutOfMemory)
        };
        let begun = Begun {
            at: SystemTime::UNIX_EPOCH,
            instant: Instant::now(),
        };
        let mut record = Record::new(begun, "1.2.3.4:5".parse().ok(), served);
        record.duration = Duration::from_millis(2);
        record.http = Some(Http {
            method: "GET".into(),
            path: "/\"\n\u{1b}".into(),
            status: Some(200),
        });
        assert_eq!(
            serde_json::to_string(&record).unwrap(),
            r#"{"time":"1970-01-01T00:00:00.000Z","peer":"1.2.3.4:5","method":"GET","path":"/\"\n\u001b","status":200,"bytes":7,"wait_us":3,"duration_us":2000,"exits":0,"pages":0,"end":"out-of-memory"}"#
        );
        for end in End::ALL {
            let json = serde_json::to_string(&end).unwrap();
            assert_eq!(json, format!("\"{}\"", end.name()));
        }
    }
}
