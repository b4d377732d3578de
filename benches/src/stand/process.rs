//! Processes that end with us.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often a server is asked whether it is ready: some of them are after 20 ms, and that is measured.
const POLL: Duration = Duration::from_millis(1);
/// Time for a process to end by itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// A server. Ends with its drop, or when we die.
pub struct Server {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts a program whose output goes to a log in `folder`. `stdin` is its descriptor 0.
    pub fn start(
        name: &'static str,
        program: &Path,
        folder: &Path,
        stdin: Stdio,
        arguments: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        // setpriv: should we be killed the hard way, the server ends too.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).arg(program);
        arguments(&mut command);
        let child = command
            .stdin(stdin)
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| {
                format!(
                    "starting {name} (setpriv, of util-linux, {})",
                    program.display()
                )
            })?;
        Ok(Self { name, child, log })
    }

    /// Waits until `ready` gives something; fails when the server has ended, or after half a minute.
    pub fn wait<T>(&mut self, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
        let start = Instant::now();
        loop {
            if let Some(value) = ready() {
                return Ok(value);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}): {}", self.name, self.said());
            }
            if start.elapsed() > Duration::from_secs(30) {
                bail!("{} is not ready: {}", self.name, self.said());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of its log.
    pub fn said(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.log) {
            let _ = file.read_to_string(&mut text);
        }
        let from = text.char_indices().rev().nth(999).map_or(0, |(at, _)| at);
        text[from..].trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.child);
        // Varnish's child waits for its threads, up to a minute: two seconds of it are enough here.
        let children = children(pid);
        let _ = kill_process(pid, Signal::TERM);
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for child in children {
            let _ = kill_process(child, Signal::KILL);
        }
        let _ = kill_process(pid, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// The processes that a process's first thread has started.
fn children(of: Pid) -> Vec<Pid> {
    let pid = of.as_raw_nonzero();
    let list =
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect()
}
