//! The pages, and the ways to answer for one.

use serde::{Deserialize, Serialize};

/// A page by a server in one language: its commands, run in benches/pages. Each listens at `$LISTEN`, or at port 8000.
pub struct App {
    pub name: &'static str,
    pub title: &'static str,
    pub command: &'static [&'static str],
    /// The server ends each connection after one answer.
    pub closes: bool,
    /// What a page of it has in it.
    pub has: &'static str,
    /// The file that CGI runs, in benches/pages or, of a program without a `/`, in the search path.
    pub cgi: &'static str,
    /// Other servers of the same page, which isolate requests natively.
    pub natively: &'static [(Way, &'static [&'static str])],
}

const NODE_ISOLATES: &[&str] = &["node", "--no-node-snapshot", "node.mjs", "react", "isolate"];

pub const APPS: [App; 4] = [
    App {
        name: "rust",
        title: "Rust's standard library, a line of text",
        command: &["std-server"],
        closes: true,
        has: "count",
        cgi: "std-server",
        natively: &[(Way::Fork, &["std-server", "fork"])],
    },
    App {
        name: "deno_hello",
        title: "Deno, a line of text",
        command: &["deno", "run", "-A", "deno.mjs", "hello"],
        closes: false,
        has: "Hello",
        cgi: "./deno-cgi.mjs",
        natively: &[(
            Way::Worker,
            &["deno", "run", "-A", "deno.mjs", "hello", "worker"],
        )],
    },
    App {
        name: "deno_react",
        title: "Deno, a page of 30 KB rendered by React",
        command: &["deno", "run", "-A", "deno.mjs", "react"],
        closes: false,
        has: "</html>",
        cgi: "./deno-cgi.mjs",
        natively: &[(
            Way::Worker,
            &["deno", "run", "-A", "deno.mjs", "react", "worker"],
        )],
    },
    App {
        name: "node_react",
        title: "Node, the same page",
        command: &["node", "node.mjs", "react"],
        closes: false,
        has: "</html>",
        cgi: "./node-cgi.mjs",
        natively: &[
            (Way::Worker, &["node", "node.mjs", "react", "worker"]),
            (Way::Isolate, NODE_ISOLATES),
        ],
    },
];

/// A way to have a page answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    NativeKept,
    Native,
    Varnish,
    NoReset,
    Reset,
    ResetAfter,
    PerRequest,
    Vmod,
    Fork,
    Worker,
    Isolate,
    Cgi,
}

impl Way {
    /// Its name in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::NativeKept => "native_kept",
            Self::Native => "native",
            Self::Varnish => "varnish",
            Self::NoReset => "no_reset",
            Self::Reset => "reset",
            Self::ResetAfter => "reset_after",
            Self::PerRequest => "per_request",
            Self::Vmod => "vmod",
            Self::Fork => "fork",
            Self::Worker => "worker",
            Self::Isolate => "isolate",
            Self::Cgi => "cgi",
        }
    }

    /// Its name for readers.
    pub fn title(self) -> &'static str {
        match self {
            Self::NativeKept => "native, connections kept",
            Self::Native => "native, a connection each",
            Self::Varnish => "native, behind Varnish",
            Self::NoReset => "forkvm serve --no-reset",
            Self::Reset => "forkvm serve, one fork",
            Self::ResetAfter => "forkvm serve, two forks",
            Self::PerRequest => "forkvm serve --per-request",
            Self::Vmod => "this VMOD",
            Self::Fork => "native, forks for each",
            Self::Worker => "native, a worker for each",
            Self::Isolate => "native, isolated-vm for each",
            Self::Cgi => "a process for each (CGI)",
        }
    }

    /// True if requests can see each other's traces, and nothing else isolates them either.
    pub fn shares(self) -> bool {
        matches!(
            self,
            Self::NativeKept | Self::Native | Self::Varnish | Self::NoReset
        )
    }

    /// True if this project isolates.
    pub fn is_ours(self) -> bool {
        matches!(
            self,
            Self::Reset | Self::ResetAfter | Self::PerRequest | Self::Vmod
        )
    }

    /// True if a runtime or an isolate starts for each request.
    pub fn is_slow(self) -> bool {
        matches!(self, Self::Worker | Self::Isolate | Self::Cgi)
    }

    /// The flags of `forkvm serve`, where it is that.
    pub fn flags(self) -> Option<&'static [&'static str]> {
        match self {
            Self::NoReset => Some(&["--no-reset"]),
            Self::Reset => Some(&["-t1"]),
            Self::ResetAfter => Some(&["-t2"]),
            Self::PerRequest => Some(&["-t2", "--per-request"]),
            _ => None,
        }
    }

    /// True if clients' connections stay open between requests.
    pub fn keeps(self) -> bool {
        matches!(
            self,
            Self::NativeKept | Self::Varnish | Self::PerRequest | Self::Vmod | Self::Cgi
        )
    }

    /// True if Varnish stands before it.
    pub fn by_varnish(self) -> bool {
        matches!(self, Self::Varnish | Self::Vmod | Self::Cgi)
    }
}

impl App {
    /// The ways that there are for it.
    pub fn ways(&self) -> Vec<Way> {
        let mut ways = vec![
            Way::Native,
            Way::Varnish,
            Way::NoReset,
            Way::Reset,
            Way::ResetAfter,
            Way::PerRequest,
            Way::Vmod,
            Way::Cgi,
        ];
        ways.extend((!self.closes).then_some(Way::NativeKept));
        ways.extend(self.natively.iter().map(|&(way, _)| way));
        ways.sort_unstable();
        ways
    }
}
