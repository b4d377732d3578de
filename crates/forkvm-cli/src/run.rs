//! `forkvm run`: requests to a program, with curl's habits.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use forkvm::{Answer, DebugAddress, Debugging, Fetcher, Header, Program, Request};
use forkvm_fetch::OwnSlot;

use crate::settings::{Settings, Terminal, file_name, parse_seconds};

/// Exit status with `-f` for a response of 400 and up, as curl's.
const HTTP_ERROR: u8 = 22;

/// Arguments of `forkvm run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Print status and headers before each body.
    #[arg(short, long)]
    include: bool,
    /// Exit with status 22 and print no body if a response has a status of 400 or more.
    #[arg(short, long)]
    fail: bool,
    /// The request method [default: GET, or POST with --data].
    #[arg(short = 'X', long, value_name = "METHOD")]
    request: Option<String>,
    /// A request header; may be given several times.
    #[arg(short = 'H', long, value_name = "NAME: VALUE", value_parser = parse_header)]
    header: Vec<Header<'static>>,
    /// The request body; @FILE reads it from a file, @- from standard input, byte for byte.
    #[arg(short, long, value_name = "DATA|@FILE")]
    data: Option<String>,
    /// The free argument that VCL's kvm.backend() can give.
    #[arg(long, default_value = "")]
    arg: String,
    #[command(flatten)]
    settings: Settings,
    /// Stop each request at its handler's entry and wait for gdb: on 127.0.0.1, any free port, or on the PORT or the
    /// Unix socket given. Where to connect is printed.
    #[arg(
        long,
        value_name = "ADDRESS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "127.0.0.1:0"
    )]
    gdb: Option<DebugAddress>,
    /// Longest time from a request's first stop to its end, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = parse_seconds)]
    gdb_timeout: Duration,
    /// The program: a static Linux executable; - reads it from standard input.
    program: PathBuf,
    /// The URLs, requested one after another in one fork that is reset between them.
    #[arg(required = true)]
    urls: Vec<String>,
}

fn parse_header(text: &str) -> Result<Header<'static>, String> {
    forkvm::parse_header(text.as_bytes())
        .map_err(|bad| format!("{bad} (it has the form 'Name: value')"))
}

/// What went wrong, for the terminal.
#[derive(Debug)]
struct Problem(String);

impl<E: std::error::Error> From<E> for Problem {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

impl Problem {
    /// Something went wrong with a program.
    fn of(tenant: &str, error: &dyn std::error::Error) -> Self {
        Self(format!("tenant {tenant}: {error}"))
    }
}

/// Why a response was not printed to its end.
#[derive(Debug, thiserror::Error)]
enum NotPrinted {
    /// Standard output takes no more.
    #[error(transparent)]
    Output(#[from] io::Error),
    /// The program failed while it made the body.
    #[error(transparent)]
    Failed(#[from] forkvm::Failure),
}

impl Run {
    /// Runs the requests. 0 for responses, 22 with `-f` for one of 400 and up, 1 for a failure.
    pub fn execute(&self) -> ExitCode {
        match self.requests() {
            Ok(false) => ExitCode::SUCCESS,
            Ok(true) => ExitCode::from(HTTP_ERROR),
            Err(Problem(what)) => {
                err!("forkvm: {what}");
                ExitCode::FAILURE
            }
        }
    }

    /// True if `-f` was given and a response had a status of 400 and up.
    fn requests(&self) -> Result<bool, Problem> {
        if self.is_from_stdin() && self.data.as_deref() == Some("@-") {
            let twice = "the program and --data can't both be read from standard input";
            return Err(Problem(twice.into()));
        }
        let body = self.body()?;
        let fetcher = self.settings.client(OwnSlot::default()).map_err(Problem)?;
        let program = self.boot(fetcher.clone())?;
        let headers = self.headers();
        let method =
            self.request
                .as_deref()
                .unwrap_or(if self.data.is_some() { "POST" } else { "GET" });
        let mut http_error = false;
        for (index, url) in self.urls.iter().enumerate() {
            let request = Request {
                method,
                url: url.as_bytes(),
                arg: self.arg.as_bytes(),
                headers: &headers,
                body: &body,
            };
            let deadline = Instant::now() + self.settings.max_request_time;
            let tenant = &program.config().name;
            let mut terminal = Terminal {
                program: &self.program,
                tenant,
                fetcher: fetcher.clone(),
            };
            let answer = if self.gdb.is_some() {
                program.debug(&request, deadline, &mut terminal)
            } else {
                program.answer(&request, deadline, &mut terminal)
            };
            let mut answer = answer.map_err(|failure| Problem::of(tenant, &failure))?;
            if let Some(failure) = answer.failure() {
                err!("forkvm: answered by on_error: tenant {tenant}: {failure}");
            }
            let failed = self.fail && answer.status() >= 400;
            http_error |= failed;
            if failed {
                err!("forkvm: {url}: status {}", answer.status());
            }
            match self.print(&mut answer, failed, index > 0, &mut terminal) {
                // Whoever reads has seen enough ("| head").
                Err(NotPrinted::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                    break;
                }
                Err(NotPrinted::Failed(failure)) => return Err(Problem::of(tenant, &failure)),
                printed => printed?,
            }
        }
        Ok(http_error)
    }

    fn body(&self) -> Result<Vec<u8>, Problem> {
        let Some(data) = &self.data else {
            return Ok(Vec::new());
        };
        let Some(path) = data.strip_prefix('@') else {
            return Ok(data.clone().into_bytes());
        };
        let mut body = Vec::new();
        let read = match path {
            "-" => io::stdin().lock().read_to_end(&mut body).map(|_| ()),
            path => std::fs::read(path).map(|bytes| body = bytes),
        };
        read.map_err(|error| Problem(format!("--data {data}: {error}")))?;
        Ok(body)
    }

    /// Whether the program comes from standard input.
    fn is_from_stdin(&self) -> bool {
        self.program.as_os_str() == "-"
    }

    fn elf(&self) -> Result<Vec<u8>, Problem> {
        if !self.is_from_stdin() {
            return std::fs::read(&self.program)
                .map_err(|error| Problem(self.settings.unreadable(&self.program, &error)));
        }
        let mut elf = Vec::new();
        let read = io::stdin().lock().read_to_end(&mut elf);
        read.map_err(|error| Problem(format!("standard input: {error}")))?;
        Ok(elf)
    }

    fn boot(&self, fetcher: Arc<dyn Fetcher>) -> Result<Arc<Program>, Problem> {
        let elf = self.elf()?;
        let name = match self.is_from_stdin() {
            true => "stdin".into(),
            false => file_name(&self.program),
        };
        let mut config = self.settings.config(name);
        config.concurrency = 1;
        if let Some(address) = &self.gdb {
            config.debugging = Debugging {
                allowed: true,
                address: address.clone(),
                timeout: self.gdb_timeout,
                exceptions: true,
                only: false,
            };
        }
        let tenant = config.name.clone();
        let mut terminal = Terminal {
            program: &self.program,
            tenant: &tenant,
            fetcher,
        };
        Program::boot(&elf, config, &mut terminal).map_err(|error| Problem::of(&tenant, &error))
    }

    fn headers(&self) -> Vec<Header<'static>> {
        let mut headers = self.header.clone();
        let mut default = |name: &'static str, value: &'static str| {
            if !headers
                .iter()
                .any(|header| header.name.eq_ignore_ascii_case(name))
            {
                headers.push(Header::new(name, value.as_bytes()));
            }
        };
        default("Host", "localhost");
        default("User-Agent", concat!("forkvm/", env!("CARGO_PKG_VERSION")));
        default("Accept", "*/*");
        if self.data.is_some() {
            default("Content-Type", "application/x-www-form-urlencoded");
        }
        headers
    }

    /// Prints an answer, after a newline if it is not the first.
    fn print(
        &self,
        answer: &mut Answer,
        without_body: bool,
        newline: bool,
        terminal: &mut Terminal<'_>,
    ) -> Result<(), NotPrinted> {
        let mut stdout = io::stdout().lock();
        if newline {
            stdout.write_all(b"\n")?;
        }
        if self.include {
            write!(stdout, "HTTP/1.1 {}\r\n", answer.status())?;
            if !answer.content_type().is_empty() {
                stdout.write_all(&[b"Content-Type: ", answer.content_type(), b"\r\n"].concat())?;
            }
            for header in answer.headers() {
                stdout
                    .write_all(&[header.name.as_bytes(), b": ", &header.value, b"\r\n"].concat())?;
            }
            if let Some(len) = answer.announced_len() {
                write!(stdout, "Content-Length: {len}\r\n")?;
            }
            stdout.write_all(b"\r\n")?;
        }
        if !without_body {
            let mut piece = vec![0; 64 << 10];
            let mut streaming = answer.take_streaming();
            loop {
                let n = match &mut streaming {
                    Some(streaming) => streaming.read(&mut piece, terminal)?,
                    None => answer.read_body(&mut piece),
                };
                if n == 0 {
                    break;
                }
                stdout.write_all(&piece[..n])?;
                if streaming.is_some() {
                    stdout.flush()?;
                }
            }
        }
        stdout.flush()?;
        Ok(())
    }
}
