//! Load on a URL, by oha.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::present;

/// What to ask for.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub connections: usize,
    pub until: Until,
    /// Requests a second, sent by the clock whatever the answers do (open loop). `None`: each connection sends its next
    /// request when it has its answer.
    pub rate: Option<f64>,
    /// Connections stay open between requests.
    pub keep_alive: bool,
}

/// When it ends.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// After a time. What is under way then is given up.
    Time(Duration),
    /// After so many answers.
    Answers(usize),
}

/// What came of it. Times in microseconds; under open load from the time a request was due.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Measured {
    pub requests_per_second: f64,
    pub average_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    summary: Summary,
    latency_percentiles: BTreeMap<String, Option<f64>>,
    #[serde(default)]
    status_code_distribution: BTreeMap<String, u64>,
    #[serde(default)]
    error_distribution: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    requests_per_sec: f64,
    /// Seconds.
    average: f64,
}

impl Load {
    /// Runs oha.
    pub fn run(self, oha: &Path, url: &str) -> Result<Measured> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).arg(present(oha)?);
        command.args(["--no-tui", "--output-format", "json", "--redirect", "0"]);
        command.args(["-c", &self.connections.to_string()]);
        match self.until {
            Until::Time(time) => command.args(["-z", &format!("{}ms", time.as_millis())]),
            Until::Answers(count) => command.args(["-n", &count.to_string()]),
        };
        if let Some(rate) = self.rate {
            // Latency from the time a request was due, not from when there was a connection free for it.
            command.args(["-q", &format!("{rate:.0}"), "--latency-correction"]);
        }
        if !self.keep_alive {
            command.arg("--disable-keepalive");
        }
        let output = command
            .arg(url)
            .stderr(Stdio::piped())
            .output()
            .context("oha")?;
        if !output.status.success() {
            bail!(
                "oha: {} {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let said: Said = serde_json::from_slice(&output.stdout).context("oha's JSON")?;
        said.measured()
    }
}

impl Said {
    fn measured(&self) -> Result<Measured> {
        let all: u64 = self.status_code_distribution.values().sum();
        let good = self
            .status_code_distribution
            .get("200")
            .copied()
            .unwrap_or(0);
        ensure!(
            good > 0 && good == all,
            "statuses {:?}",
            self.status_code_distribution
        );
        // At the end of its time oha gives up what is under way and counts it as errors.
        let lost: u64 = self
            .error_distribution
            .iter()
            .filter(|(error, _)| !error.contains("deadline"))
            .map(|(_, count)| count)
            .sum();
        ensure!(lost == 0, "errors {:?}", self.error_distribution);
        let percentile = |name: &str| -> Result<f64> {
            let seconds = self.latency_percentiles.get(name).copied().flatten();
            Ok(seconds.with_context(|| format!("oha gives no {name}"))? * 1e6)
        };
        Ok(Measured {
            requests_per_second: self.summary.requests_per_sec,
            average_us: self.summary.average * 1e6,
            p50_us: percentile("p50")?,
            p90_us: percentile("p90")?,
            p99_us: percentile("p99")?,
            p999_us: percentile("p99.9")?,
        })
    }
}
