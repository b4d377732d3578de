//! The Varnish nodes that a command talks to: which ones, as whom, and what they said.

mod client;
mod key;
mod outcome;
mod progress;
mod tenant;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use ureq::http::Uri;

use crate::settings::parse_seconds;
use client::Node;
use key::Key;
use outcome::{Outcome, Question};
use progress::Body;

/// What the commands that talk to nodes say about their exit status.
pub const EXIT_STATUS: &str = "\
Exit status:
  0   every node runs the program that was asked for (it answered 200 or 201)
  1   a problem here: no such file, not a program, no usable key; nothing was sent
  2   wrong arguments
  7   could not connect to a node
  22  a node refused, with an HTTP status of 400 or more
  28  a node did not answer in time; it may still do it
  56  a node's answer was cut short, or not that of a live update
If nodes failed in different ways, it is 22 if one refused, else that of the first one that failed.

Varnish speaks plain HTTP, and so does this command: whoever sees the traffic sees the program, but not the key, which is not
sent. Orders are signed with it, each for one node: give the nodes themselves, not what shares requests out among them.";

/// The nodes, and the tenant there.
#[derive(Debug, Args)]
pub struct Nodes {
    /// The tenant, as the nodes' kvm.tenant() names it.
    #[arg(short, long, value_parser = tenant::parse)]
    tenant: String,
    /// A node's address, such as http://127.0.0.1:8080; may be given several times.
    #[arg(short, long = "url", value_name = "URL", required = true, value_parser = parse_url)]
    urls: Vec<String>,
    /// The file with the tenant's update key, which signs the order and is not sent; white space around it does not count.
    /// Without it and without --key-env, a terminal is asked for the key.
    #[arg(short, long, value_name = "FILE", conflicts_with = "key_env")]
    key_file: Option<PathBuf>,
    /// The environment variable with the tenant's update key.
    #[arg(long, value_name = "VARIABLE")]
    key_env: Option<String>,
    /// Longest time for one node, from the connection to its answer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse_seconds)]
    timeout: Duration,
}

fn parse_url(text: &str) -> Result<String, String> {
    let url = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let uri: Uri = url.parse().map_err(|error| format!("{error}"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err(
                "Varnish speaks plain HTTP: give the address where it listens itself, with http://"
                    .into(),
            );
        }
        _ => return Err("a URL starts with http://".into()),
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err("a URL with a user in it; updates go by a key (--key-file)".into());
    }
    Ok(url)
}

/// What is asked of the nodes.
pub enum Order<'a> {
    /// To run this program.
    Update {
        /// The ELF file.
        program: &'a [u8],
        /// Its SHA-256, in hexadecimal digits.
        version: &'a str,
    },
    /// To run the program before the present one.
    Rollback,
    /// Which programs there are.
    Versions,
}

impl Nodes {
    /// Asks one node after another: a program that does not start stops at the first one, and never are all of them
    /// busy with it. Each result is a line on standard output. A node that fails does not keep the next from its turn.
    pub fn ask(&self, order: &Order<'_>) -> ExitCode {
        let key = match self.key() {
            Ok(key) => key,
            Err(what) => {
                err!("forkvm: {what}");
                return ExitCode::FAILURE;
            }
        };
        let mut outcomes = Vec::new();
        let mut stop = false;
        let uploads = matches!(order, Order::Update { .. });
        for url in &self.urls {
            let outcome = if stop {
                Outcome::NotAsked
            } else {
                self.ask_one(url, order, &key).unwrap_or_else(|early| early)
            };
            stop |= uploads && outcome.is_the_programs_fault();
            // Who reads the results may leave; the nodes are updated all the same.
            for line in outcome.lines() {
                out!("{url}: {line}");
            }
            for line in outcome.explanation(&self.tenant, uploads).lines() {
                err!("{line}");
            }
            outcomes.push(outcome);
        }
        let done = outcomes.iter().filter(|outcome| outcome.is_done()).count();
        if outcomes.len() > 1 && done < outcomes.len() {
            err!("forkvm: done on {done} of {} nodes", outcomes.len());
        }
        ExitCode::from(exit_code(&outcomes))
    }

    /// Asks a node. An error is what came of it before there was an order.
    fn ask_one(&self, url: &str, order: &Order<'_>, key: &Key) -> Result<Outcome, Outcome> {
        let mut question = Question {
            version: None,
            timeout: self.timeout,
        };
        let mut node = Node {
            url,
            tenant: &self.tenant,
            key,
            timeout: self.timeout,
        };
        // An order is signed for the node as it calls itself. And whether a program would be taken is known before it is sent:
        // a key is wrong more often than a program.
        let start = Instant::now();
        let asked = node.get(client::Order::UPDATE);
        node.timeout = self.timeout.saturating_sub(start.elapsed());
        let answer = match *order {
            Order::Versions => return Ok(Outcome::of_versions(asked, &question)),
            Order::Update { program, version } => {
                let stamp = outcome::stamp(asked, &question)?;
                question.version = Some(version);
                let headers = [
                    ("Content-Type", "application/octet-stream"),
                    ("Content-Length", &program.len().to_string()),
                    ("X-Sha256", version),
                ];
                let mut body = Body::new(url, program);
                node.post(client::Order::UPDATE, &stamp, version, &headers, &mut body)
            }
            Order::Rollback => {
                let stamp = outcome::stamp(asked, &question)?;
                node.post(
                    client::Order::ROLLBACK,
                    &stamp,
                    client::NO_BODY,
                    &[("Content-Length", "0")],
                    &mut io::empty(),
                )
            }
        };
        Ok(Outcome::of(answer, &question))
    }

    /// The key, with a warning on standard error if everyone can read it.
    fn key(&self) -> Result<Key, String> {
        match (&self.key_file, &self.key_env) {
            (Some(path), _) => {
                let (key, warning) = Key::from_file(path)?;
                if let Some(warning) = warning {
                    err!("forkvm: warning: {warning}");
                }
                Ok(key)
            }
            (None, Some(variable)) => Key::from_environment(variable),
            (None, None) => Key::from_terminal(&self.tenant),
        }
    }
}

fn exit_code(outcomes: &[Outcome]) -> u8 {
    let codes = || outcomes.iter().map(Outcome::code).filter(|&code| code != 0);
    codes()
        .find(|&code| code == outcome::REFUSED)
        .or_else(|| codes().next())
        .unwrap_or(0)
}
