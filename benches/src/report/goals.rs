//! The goals, and what was reached.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::page::number;

/// A goal for a figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Goal {
    pub figure: String,
    pub what: String,
    pub bound: Bound,
    pub reached: f64,
    pub met: bool,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "at most {}", number(*most)),
            Self::AtLeast(least) => write!(f, "at least {}", number(*least)),
        }
    }
}

impl Goal {
    /// For the terminal.
    pub fn short(&self) -> String {
        format!(
            "{}: {}",
            self.bound,
            if self.met { "met" } else { "NOT MET" }
        )
    }
}

const GOALS: [(&str, &str, Bound); 37] = [
    (
        "call_over_roundtrip",
        "a request with complete reset, over a bare KVM_RUN",
        Bound::AtMost(1.15),
    ),
    (
        "reset_us_fixed",
        "the reset's fixed part, µs",
        Bound::AtMost(0.3),
    ),
    (
        "reset_us_per_page",
        "the reset for each dirty page, up to 200, µs",
        Bound::AtMost(0.13),
    ),
    (
        "reset_us_per_page_to_1000",
        "the same, up to 1,000 pages, µs",
        Bound::AtMost(0.25),
    ),
    (
        "syscalls_per_request",
        "system calls a request, counted from outside",
        // 1.0, and an interrupted run now and then.
        Bound::AtMost(1.004),
    ),
    (
        "vmod_over_predicted",
        "requests/s at 1 connection, over 1 / (1/native + round trip)",
        Bound::AtLeast(0.9),
    ),
    (
        "vmod_over_predicted_8",
        "requests/s at 8 connections, over 1 / (1/native + round trip / 2)",
        Bound::AtLeast(0.9),
    ),
    (
        "vmod_over_fastcgi_1",
        "requests/s over FastCGI's, 1 connection",
        Bound::AtLeast(1.0),
    ),
    (
        "vmod_over_fastcgi_8",
        "requests/s over FastCGI's, 8 connections",
        Bound::AtLeast(1.0),
    ),
    (
        "vmod_over_fastcgi_64",
        "requests/s over FastCGI's, 64 connections",
        Bound::AtLeast(1.0),
    ),
    (
        "vmod_over_cgi_1",
        "requests/s over CGI's (fork and exec), 1 connection",
        Bound::AtLeast(10.0),
    ),
    (
        "vmod_over_cgi_8",
        "requests/s over CGI's (fork and exec), 8 connections",
        Bound::AtLeast(10.0),
    ),
    (
        "synth_over_fetch_1",
        "requests/s of kvm.synth() over those by a fetch, 1 connection",
        Bound::AtLeast(2.0),
    ),
    (
        "synth_over_fetch_8",
        "the same, 8 connections",
        Bound::AtLeast(1.5),
    ),
    (
        "synth_over_predicted",
        "requests/s of kvm.synth() at 1 connection, over 1 / (1/synth of Varnish's own + round trip)",
        Bound::AtLeast(0.9),
    ),
    (
        "storage_call_exits",
        "KVM_RUNs of the storage's machine that a call of it takes",
        Bound::AtMost(2.0),
    ),
    (
        "compute_over_native",
        "computing in the VM over native, the worst program",
        Bound::AtMost(1.05),
    ),
    (
        "idle_fork_over_empty_vm",
        "an idle fork's memory over that of a bare VM that has run",
        Bound::AtMost(1.3),
    ),
    (
        "idle_forks_200_mib",
        "200 idle forks of hello, 32 MiB of guest memory each, MiB (150 MB are 143)",
        Bound::AtMost(143.0),
    ),
    (
        "tail_p999_over_native",
        "p99.9 at half load over the native backend's",
        Bound::AtMost(1.5),
    ),
    (
        "server_rust_std_exits",
        "exits a request of a server of Rust's standard library",
        Bound::AtMost(3.0),
    ),
    ("server_node_exits", "the same, Node", Bound::AtMost(9.0)),
    ("server_deno_exits", "the same, Deno", Bound::AtMost(10.0)),
    ("server_go_exits", "the same, Go", Bound::AtMost(12.0)),
    ("server_axum_exits", "the same, axum", Bound::AtMost(14.0)),
    (
        "server_cpython_exits",
        "the same, CPython",
        Bound::AtMost(32.0),
    ),
    (
        "server_node_boot_over_native",
        "Node ready to serve, over native",
        Bound::AtMost(3.0),
    ),
    (
        "server_deno_boot_over_native",
        "the same, Deno",
        Bound::AtMost(3.0),
    ),
    (
        "warm_first_request_over_later",
        "the first request of a warm fork over a later one",
        Bound::AtMost(2.0),
    ),
    (
        "site_rust_vmod_over_allowed",
        "p50 in Varnish over native behind Varnish + 1.5 round trips an exit: Rust",
        Bound::AtMost(1.0),
    ),
    (
        "site_deno_hello_vmod_over_allowed",
        "the same, Deno with a line of text",
        Bound::AtMost(1.0),
    ),
    (
        "site_deno_react_reset_after_over_allowed",
        "p50 of forkvm serve over native + 1.5 round trips an exit: Deno with a page by React",
        Bound::AtMost(1.0),
    ),
    (
        "site_node_react_reset_after_over_allowed",
        "the same, Node",
        Bound::AtMost(1.0),
    ),
    (
        "site_deno_hello_vmod_over_cgi_8",
        "requests/s over CGI's, 8 connections: Deno with a line of text",
        Bound::AtLeast(10.0),
    ),
    (
        "site_deno_react_vmod_over_cgi_8",
        "the same, Deno with a page by React",
        Bound::AtLeast(10.0),
    ),
    (
        "site_node_react_vmod_over_cgi_8",
        "the same, Node with that page",
        Bound::AtLeast(10.0),
    ),
    (
        "site_rust_vmod_over_fork_8",
        "requests/s over a native fork for each, 8 connections: Rust",
        Bound::AtLeast(1.0),
    ),
];

/// The goals of the figures there are.
pub fn of(figures: &BTreeMap<String, f64>) -> Vec<Goal> {
    let goal = |&(figure, what, bound): &(&str, &str, Bound)| {
        let reached = *figures.get(figure)?;
        let met = bound.met_by(reached);
        Some(Goal {
            figure: figure.to_owned(),
            what: what.to_owned(),
            bound,
            reached,
            met,
        })
    };
    GOALS.iter().filter_map(goal).collect()
}
