//! `--access-log`: a line of JSON for each connection or request.
//!
//! Lines go by way of a thread, so that a disk or a pipe that is slow holds up no fork; what finds its queue full is dropped and
//! counted. That, and that a line is one value of serde's, is why `tracing` is not used: it would bring a subscriber, its
//! layers and a formatter for what is one call here.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::record::Record;

/// Lines on their way to the file.
const QUEUE: usize = 8192;
/// How long the end of the command waits for the last of them.
const LAST: Duration = Duration::from_secs(5);

/// The log's writing end.
#[derive(Debug)]
pub struct AccessLog {
    lines: SyncSender<Order>,
}

enum Order {
    Write(Record),
    /// The file has been moved away, as logrotate(8) does.
    Reopen,
    /// Tells when all before it is written.
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// Appends to this file; `-` is standard output.
    pub fn open(path: &Path) -> Result<Self, String> {
        let target = Target::open(path)?;
        let (lines, orders) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_all(target, &orders))
            .map_err(|error| format!("a thread for the access log: {error}"))?;
        Ok(Self { lines })
    }

    /// Writes a line. False if it was dropped.
    pub fn write(&self, record: Record) -> bool {
        self.lines.try_send(Order::Write(record)).is_ok()
    }

    /// Opens the file anew.
    pub fn reopen(&self) {
        // One that is stuck can't be helped by this.
        let _ = self.lines.try_send(Order::Reopen);
    }

    /// Waits, within bounds, until all lines are written.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.lines.try_send(Order::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(LAST);
        }
    }
}

/// Where the lines go.
struct Target {
    path: PathBuf,
    writer: BufWriter<Box<dyn Write + Send>>,
    /// What went wrong has been said.
    told: bool,
}

impl Target {
    fn open(path: &Path) -> Result<Self, String> {
        Ok(Self {
            path: path.into(),
            writer: BufWriter::new(writer(path)?),
            told: false,
        })
    }

    fn reopen(&mut self) {
        match writer(&self.path) {
            Ok(writer) => self.writer = BufWriter::new(writer),
            Err(what) => err!("forkvm: {what}; the old file goes on"),
        }
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        serde_json::to_writer(&mut self.writer, record)?;
        self.writer.write_all(b"\n")
    }

    fn note(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.told = false,
            Err(error) if !self.told => {
                self.told = true;
                err!("forkvm: access log {}: {error}", self.path.display());
            }
            Err(_) => {}
        }
    }
}

fn writer(path: &Path) -> Result<Box<dyn Write + Send>, String> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdout()));
    }
    let file = File::options().append(true).create(true).open(path);
    let file = file.map_err(|error| format!("access log {}: {error}", path.display()))?;
    Ok(Box::new(file))
}

fn write_all(mut target: Target, orders: &Receiver<Order>) {
    loop {
        // Lines are flushed when no other one follows at once.
        let order = match orders.recv_timeout(Duration::ZERO) {
            Ok(order) => order,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let flushed = target.writer.flush();
                target.note(flushed);
                match orders.recv() {
                    Ok(order) => order,
                    Err(_) => return,
                }
            }
        };
        match order {
            Order::Write(record) => {
                let written = target.write(&record);
                target.note(written);
            }
            Order::Reopen => {
                let flushed = target.writer.flush();
                target.note(flushed);
                target.reopen();
            }
            Order::Flush(done) => {
                let flushed = target.writer.flush();
                target.note(flushed);
                let _ = done.try_send(());
            }
        }
    }
}
