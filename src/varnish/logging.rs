//! Text for Varnish's log: records of a readable length, without control characters, and the guests' output in them.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::sync::Arc;

use forkvm::{Fetcher, Host, Stream};
use varnish::vcl::LogTag;

use crate::varnish::fetch::Fetch;

/// Longest text of a record, in bytes. varnishd cuts records at `vsl_reclen`, 255 unless set.
const RECORD: usize = 200;
/// Most that one request may have logged of the guest's output, in bytes.
const REQUEST_OUTPUT: usize = 16 << 10;
/// The same for one boot.
const BOOT_OUTPUT: usize = 64 << 10;
/// How much of the last that a program wrote to stderr is kept, to be shown when it fails, in bytes.
const STDERR_TAIL: usize = 4 << 10;
/// Most that is logged of that, in bytes: short lines are longer there than they were.
const STDERR_RECORDS: usize = 8 << 10;

/// What is said of a tenant's output once, when it is not logged for the first time.
pub const DROPPED: &str =
    "what the program writes to stdout and stderr is not logged (stdout = true logs it)";

/// Logs outside of a transaction: what happens at boot, in a thread of our own.
pub fn log(tag: LogTag, tenant: &str, text: &str) {
    for record in about(tenant, text) {
        write(tag, &record);
    }
}

/// Logs in a fetch's transaction.
pub fn log_in(fetch: &mut Fetch<'_, '_>, tag: LogTag, tenant: &str, text: &str) {
    for record in about(tenant, text) {
        fetch.log(tag, &record);
    }
}

/// Writes a record outside of a transaction.
pub fn write(tag: LogTag, record: &str) {
    // Unit tests run outside of varnishd, where there is no log.
    #[cfg(not(test))]
    varnish::vcl::log(tag, record);
    #[cfg(test)]
    println!("{tag:?} {record}");
}

/// Records about a tenant, each with its name in front.
pub fn about(tenant: &str, text: &str) -> impl Iterator<Item = String> {
    records(text.as_bytes()).map(move |record| format!("kvm: tenant {tenant}: {record}"))
}

/// Cuts text into records: at line ends, and where it is too long. Anything but printable ASCII is escaped, since
/// logs are read in terminals and the text may be a guest's. (Text in other scripts stays legible in varnishlog
/// only if the guest writes ASCII; UTF-8 can't be told from bytes once it may be cut anywhere.)
pub fn records(text: &[u8]) -> impl Iterator<Item = String> {
    text.split(|&c| c == b'\n')
        .filter(|line| !line.is_empty())
        .flat_map(|line| line.chunks(RECORD))
        .map(escape)
}

/// One line of text for a terminal: printable ASCII, the rest escaped.
pub fn escape(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    for &c in line.strip_suffix(b"\r").unwrap_or(line) {
        match c {
            b' '..=b'~' => text.push(c.into()),
            b'\t' => text.push(' '),
            _ => text.extend(c.escape_ascii().map(char::from)),
        }
    }
    text
}

/// Bytes that come in pieces, made into lines.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// Takes a piece, and emits the lines that it ends.
    fn push(&mut self, mut bytes: &[u8], mut emit: impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|&c| c == b'\n') {
            let (line, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.begun.is_empty() {
                emit(line);
            } else {
                self.begun.extend_from_slice(line);
                emit(&self.begun);
                self.begun.clear();
            }
        }
        self.begun.extend_from_slice(bytes);
        // What is too long for a record needs no line end.
        let full = self.begun.len() / RECORD * RECORD;
        for piece in self.begun.drain(..full).as_slice().chunks(RECORD) {
            emit(piece);
        }
    }

    /// Emits what has no line end.
    fn finish(&mut self, mut emit: impl FnMut(&[u8])) {
        if !self.begun.is_empty() {
            emit(&self.begun);
            self.begun.clear();
        }
    }
}

/// Log records about a tenant, and not too many of them.
struct Records<'a, F: FnMut(&str)> {
    tenant: Cow<'a, str>,
    /// Bytes that may still be logged, with what stands in front of each record: many short ones fill a log too.
    left: usize,
    /// Whether the log says that there was more.
    truncated: bool,
    emit: F,
}

impl<F: FnMut(&str)> Records<'_, F> {
    fn line(&mut self, label: &str, line: &[u8]) {
        for text in records(line) {
            if self.truncated {
                return;
            }
            let tenant = &self.tenant;
            let record = format!("kvm: tenant {tenant}: {label}{text}");
            if let Some(left) = self.left.checked_sub(record.len()) {
                self.left = left;
                (self.emit)(&record);
            } else {
                self.truncated = true;
                (self.emit)(&format!(
                    "kvm: tenant {tenant}: ...truncated, more output is not logged"
                ));
            }
        }
    }
}

/// The end of what was written, when only that is wanted.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(STDERR_TAIL)..];
        let kept = self.0.len().min(STDERR_TAIL - bytes.len());
        self.0.drain(..self.0.len() - kept);
        self.0.extend_from_slice(bytes);
    }
}

/// A guest's output as log records.
pub struct Output<'a, F: FnMut(&str)> {
    /// Whether stdout and stderr are logged. The `log` hypercall always is.
    stdio: bool,
    /// Whether something was written that is not logged for that reason.
    dropped: bool,
    stdout: Lines,
    stderr: Lines,
    tail: Tail,
    records: Records<'a, F>,
    /// Who fetches for the guest.
    fetcher: Option<Arc<dyn Fetcher>>,
}

/// The output of a request whose response is still being made when its head has gone out. It is logged outside of the fetch's
/// transaction, as it comes.
pub struct LateOutput(Option<Output<'static, fn(&str)>>);

impl LateOutput {
    /// Of a request to this tenant.
    pub fn new(tenant: &str, stdio: bool) -> Self {
        let emit: fn(&str) = |record| write(LogTag::VclLog, record);
        Self(Some(Output::of_request(tenant.to_owned(), stdio, emit)))
    }

    /// The same of a guest for whom somebody fetches.
    pub fn with_fetcher(self, fetcher: Option<Arc<impl Fetcher + 'static>>) -> Self {
        let mut this = self;
        this.0 = this.0.take().map(|output| output.with_fetcher(fetcher));
        this
    }
}

impl Host for LateOutput {
    fn fetcher(&self) -> Option<Arc<dyn Fetcher>> {
        self.0.as_ref()?.fetcher()
    }

    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        if let Some(output) = &mut self.0 {
            output.output(stream, bytes);
        }
    }
}

impl Drop for LateOutput {
    fn drop(&mut self) {
        // What is left of lines without an end.
        self.0.take().map(Output::finish);
    }
}

/// What is known about a guest's output when it is over.
pub struct Written {
    /// Something was written to stdout or stderr, which are not logged.
    pub dropped: bool,
    /// The log has all of it.
    pub logged: bool,
    /// The end of what was written to stderr.
    pub stderr: Vec<u8>,
}

impl<'a, F: FnMut(&str)> Output<'a, F> {
    /// The output of one request; `emit` takes the records.
    pub fn of_request(tenant: impl Into<Cow<'a, str>>, stdio: bool, emit: F) -> Self {
        Self {
            stdio,
            dropped: false,
            stdout: Lines::default(),
            stderr: Lines::default(),
            tail: Tail::default(),
            records: Records {
                tenant: tenant.into(),
                left: REQUEST_OUTPUT,
                truncated: false,
                emit,
            },
            fetcher: None,
        }
    }

    /// The same of a guest for whom somebody fetches.
    pub fn with_fetcher(mut self, fetcher: Option<Arc<impl Fetcher + 'static>>) -> Self {
        self.fetcher = fetcher.map(|fetcher| fetcher as _);
        self
    }

    /// Ends the output: logs what is left of lines without an end.
    pub fn finish(mut self) -> Written {
        let records = &mut self.records;
        self.stdout.finish(|line| records.line("stdout: ", line));
        self.stderr.finish(|line| records.line("stderr: ", line));
        Written {
            dropped: self.dropped,
            logged: !self.dropped && !records.truncated,
            stderr: self.tail.0,
        }
    }
}

impl<'a> Output<'a, fn(&str)> {
    /// The output of `tenant`'s main().
    pub fn of_boot(tenant: &'a str, stdio: bool) -> Self {
        let mut output: Self =
            Output::of_request(tenant, stdio, |record| write(LogTag::VclLog, record));
        output.records.left = BOOT_OUTPUT;
        output
    }
}

impl<F: FnMut(&str)> Host for Output<'_, F> {
    /// Whoever is to attach a debugger needs to know now; a transaction's records come when it is over.
    fn note(&mut self, line: &str) {
        log(LogTag::Notice, &self.records.tenant, line);
    }

    fn fetcher(&self) -> Option<Arc<dyn Fetcher>> {
        self.fetcher.clone()
    }

    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        if matches!(stream, Stream::Stderr) {
            self.tail.push(bytes);
        }
        if !(self.stdio || matches!(stream, Stream::Log)) {
            self.dropped |= !bytes.is_empty();
            return;
        }
        let records = &mut self.records;
        if records.truncated {
            return;
        }
        match stream {
            // A call is a record, or several if it is long.
            Stream::Log => records.line("", bytes),
            Stream::Stdout => self
                .stdout
                .push(bytes, |line| records.line("stdout: ", line)),
            Stream::Stderr => self
                .stderr
                .push(bytes, |line| records.line("stderr: ", line)),
        }
    }
}

/// The last lines of what a program wrote to stderr, as many as there is room for in a log.
pub fn last_lines(stderr: &[u8]) -> Vec<String> {
    let mut lines: Vec<String> = records(stderr).collect();
    let mut left = STDERR_RECORDS;
    // With what stands in front of each.
    let fit = lines.iter().rev().take_while(|line| {
        let enough = left.checked_sub(line.len() + RECORD / 2);
        left = enough.unwrap_or(0);
        enough.is_some()
    });
    lines.drain(..lines.len() - fit.count());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(stdio: bool, pieces: &[(Stream, &[u8])]) -> Vec<String> {
        let mut records = Vec::new();
        let mut output = Output::of_request("x", stdio, |record| records.push(record.to_owned()));
        for (stream, bytes) in pieces {
            output.output(*stream, bytes);
        }
        output.finish();
        records
    }

    #[test]
    fn pieces_become_lines() {
        let records = request(
            true,
            &[
                (Stream::Stdout, b"on"),
                (Stream::Stderr, b"err"),
                (Stream::Stdout, b"e\n\ntwo\nthr"),
                (Stream::Log, b"l\n"),
            ],
        );
        assert_eq!(
            records,
            [
                "kvm: tenant x: stdout: one",
                "kvm: tenant x: stdout: two",
                "kvm: tenant x: l",
                "kvm: tenant x: stdout: thr",
                "kvm: tenant x: stderr: err"
            ]
        );
    }

    #[test]
    fn only_log_calls_without_stdout() {
        assert_eq!(
            request(false, &[(Stream::Stdout, b"a\n"), (Stream::Log, b"b")]),
            ["kvm: tenant x: b"]
        );
    }

    #[test]
    fn output_is_bounded() {
        let (long, short) = ([b'y'; 1000], b"y\n".repeat(500));
        for pieces in [
            [(Stream::Stdout, &long[..]); 2000],
            [(Stream::Stdout, &short[..]); 2000],
            [(Stream::Log, &b"y"[..]); 2000],
        ] {
            let records = request(true, &pieces);
            let len = records.iter().map(String::len).sum::<usize>();
            assert!(
                (REQUEST_OUTPUT / 2..=REQUEST_OUTPUT + RECORD).contains(&len),
                "{len}"
            );
            assert!(records.last().unwrap().contains("truncated"));
            assert_eq!(
                records.iter().filter(|r| r.contains("truncated")).count(),
                1
            );
        }
    }

    #[test]
    fn a_tenant_is_named_once() {
        let records: Vec<_> = about("x", "it broke\nbadly").collect();
        assert_eq!(records, ["kvm: tenant x: it broke", "kvm: tenant x: badly"]);
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(
            records(b"\x1b[31mred\x07\tx\r\n\xff").collect::<Vec<_>>(),
            ["\\x1b[31mred\\x07 x", "\\xff"]
        );
    }

    fn tail(stdio: bool, pieces: &[(Stream, &[u8])]) -> Written {
        let mut output = Output::of_request("x", stdio, |_| {});
        for (stream, bytes) in pieces {
            output.output(*stream, bytes);
        }
        output.finish()
    }

    #[test]
    fn the_end_of_stderr_is_kept() {
        let mut pieces = [(Stream::Stderr, &[b'a'; 100][..]); 101];
        pieces[100].1 = b"end";
        let written = tail(false, &pieces);
        assert_eq!(written.stderr.len(), STDERR_TAIL);
        assert!(written.stderr.ends_with(b"aend"));
        let written = tail(false, &[pieces[0], (Stream::Stderr, &[b'b'; 5000])]);
        assert_eq!(written.stderr, [b'b'; STDERR_TAIL]);
    }

    #[test]
    fn what_is_not_logged_is_known() {
        let written = |stdio, pieces: &[(Stream, &[u8])]| {
            let Written {
                dropped, logged, ..
            } = tail(stdio, pieces);
            (dropped, logged)
        };
        assert_eq!(written(false, &[(Stream::Log, b"a")]), (false, true));
        assert_eq!(written(false, &[(Stream::Stdout, b"")]), (false, true));
        assert_eq!(written(false, &[(Stream::Stdout, b"a")]), (true, false));
        assert_eq!(written(true, &[(Stream::Stderr, b"a")]), (false, true));
        let flood = [(Stream::Stdout, &[b'a'; 1000][..]); 50];
        assert_eq!(written(true, &flood), (false, false));
    }

    #[test]
    fn the_last_lines_fit_in_a_log() {
        assert_eq!(last_lines(b"one\n\n\x1b[31mtwo"), ["one", "\\x1b[31mtwo"]);
        assert!(last_lines(b"").is_empty());
        let mut short = b"y\n".repeat(STDERR_TAIL / 2);
        short.extend(b"the last\n");
        let lines = last_lines(&short);
        assert_eq!(lines.last().unwrap(), "the last");
        assert!(
            (10..=STDERR_RECORDS / 100).contains(&lines.len()),
            "{}",
            lines.len()
        );
    }
}
