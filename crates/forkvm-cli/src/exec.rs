//! `forkvm exec`: an unmodified program in a machine of its own, to its exit.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use forkvm::{
    AllowedPath, BadVolume, Command, Ended, Host, ListenRule, NetPlace, NetRule, SEARCH_PATH,
    Sandbox, Stream, Volume, program_paths, system_paths,
};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::settings::parse_seconds;
use crate::terminal;

/// A list's entry that means everything.
const ALL: &str = "*";
/// Exit status where the program could not be run at all, as shells have it.
const NOT_RUN: u8 = 126;
/// Added to a signal's number for the exit status, as shells do.
const SIGNALLED: u8 = 128;

/// What a program may have, for every way to run one.
#[derive(Debug, Args)]
pub struct Allow {
    /// Allow everything there is to allow.
    #[arg(short = 'A', long)]
    allow_all: bool,
    /// Files and folders the program may read, comma-separated; without a value all. Libraries and the system's programs are
    /// readable anyway, and so are time zones, locales, certificates and of /etc hosts, resolv.conf, nsswitch.conf, host.conf, localtime, passwd, group,
    /// services and protocols.
    #[arg(long, value_name = "PATH,…", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = "/")]
    allow_read: Vec<PathBuf>,
    /// Folders where the program may change files, comma-separated; without a value all. Changes are kept in memory and
    /// forgotten: they never reach the host. In /tmp and /dev/shm it may do so anyway.
    #[arg(long, value_name = "PATH,…", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = "/")]
    allow_write: Vec<PathBuf>,
    /// Where the program may connect and send to, comma-separated: names, `*.NAME` for all beneath one, addresses, or `*` for all that is public, each with
    /// `:PORT` for one port only; without a value all that is public. What is not (loopback, private and link-local networks,
    /// clouds' own addresses, this host's) is reached only by an address that is named; loopback also by `localhost`.
    #[arg(long, value_name = "HOST[:PORT],…", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = "*")]
    allow_net: Vec<NetRule>,
    /// Where the program may listen, by TCP or UDP, comma-separated: ports, addresses, ADDRESS:PORT or `*`. Unless given, everywhere:
    /// it is heard within its machine, and by the clients of `forkvm serve`.
    #[arg(long, value_name = "[ADDRESS:]PORT,…", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = ALL)]
    allow_listen: Vec<ListenRule>,
    /// Most memory for changed files, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    max_file_memory: u64,
    /// A folder or file of the host and where the program sees it, to be read; with `:overlay` to be changed as well, in memory;
    /// with `:rw` to be changed in the host, at once and for good. May be given several times.
    #[arg(long, value_name = "HOST:GUEST[:overlay|:rw]")]
    volume: Vec<String>,
    /// Most that is written to volumes that are `:rw`, in MiB: of a server by each connection. A new name counts for 4 KiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    max_volume_writes: u64,
    /// Variables of our environment that the program gets, comma-separated; without a value all.
    #[arg(long, value_name = "NAME,…", num_args = 0..=1, require_equals = true, value_delimiter = ',', default_missing_value = ALL)]
    allow_env: Vec<String>,
    /// An entry of the program's environment; may be given several times. A name alone takes the value from ours.
    #[arg(long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// The working directory the program sees.
    #[arg(long, value_name = "PATH")]
    cwd: Option<PathBuf>,
    /// Guest memory, in MiB. What is only reserved costs nothing.
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    max_memory: u64,
    /// Have the program at the same addresses every time.
    #[arg(long)]
    no_random_addresses: bool,
    /// Have every system call leave the machine, also those that our code in it could answer.
    #[arg(long)]
    no_dispatcher: bool,
}

impl Allow {
    /// The program to run, found as a shell finds it.
    pub fn command(&self, program: &[OsString]) -> Result<Command, String> {
        let name = program.first().ok_or("no program is named")?;
        let path = find_program(name)?;
        Ok(Command {
            path: path.into_os_string().into_vec(),
            arguments: program
                .iter()
                .map(|text| text.as_bytes().to_vec())
                .collect(),
            environment: self.environment(),
        })
    }

    /// Its environment: of what has the same name, the last counts.
    fn environment(&self) -> Vec<Vec<u8>> {
        let mut all = BTreeMap::from([("PATH".into(), SEARCH_PATH.into())]);
        let every = self.allow_all || self.allow_env.iter().any(|name| name == ALL);
        let is_allowed = |name: &OsStr| every || self.allow_env.iter().any(|one| **one == *name);
        all.extend(std::env::vars_os().filter(|(name, _)| is_allowed(name)));
        for entry in &self.env {
            if let Some((name, value)) = entry.split_once('=') {
                all.insert(name.into(), value.into());
            } else if let Some(value) = std::env::var_os(entry) {
                all.insert(entry.into(), value);
            }
        }
        let entry = |(name, value): (OsString, OsString)| {
            [name.as_bytes(), b"=", value.as_bytes()].concat()
        };
        all.into_iter().map(entry).collect()
    }

    fn net_rules(&self) -> Vec<NetRule> {
        let mut rules = self.allow_net.clone();
        if self.allow_all {
            rules.push(NetRule {
                place: NetPlace::Public,
                port: None,
            });
        }
        rules
    }

    /// What it may have.
    pub fn sandbox(&self, command: &Command) -> Result<Sandbox, String> {
        let mut allowed_paths: Vec<AllowedPath> = if self.allow_all {
            vec![PathBuf::from("/").into()]
        } else {
            self.allow_read.iter().map(AllowedPath::from).collect()
        };
        let mut writable_paths = Vec::new();
        for path in &self.allow_write {
            let path = std::path::absolute(path).map_err(|error| error.to_string())?;
            writable_paths.push(path.clone());
            allowed_paths.push(path.into());
        }
        for text in &self.volume {
            let Volume { path, overlaid } = text
                .parse()
                .map_err(|bad: BadVolume| format!("--volume {text}: {bad}"))?;
            if overlaid {
                writable_paths.push(path.seen.clone());
            }
            allowed_paths.push(path);
        }
        if self.allow_all {
            writable_paths.push("/".into());
        }
        allowed_paths.extend(program_paths(OsStr::from_bytes(&command.path).as_ref()));
        allowed_paths.extend(system_paths());
        let cwd = match &self.cwd {
            Some(cwd) => cwd.clone(),
            None => std::env::current_dir().map_err(|error| error.to_string())?,
        };
        Ok(Sandbox {
            allowed_paths,
            writable_paths,
            overlay_bytes: self.max_file_memory.saturating_mul(1 << 20),
            volume_bytes: self.max_volume_writes.saturating_mul(1 << 20),
            current_working_directory: cwd.display().to_string(),
            max_memory: self.max_memory.saturating_mul(1 << 20),
            random_addresses: !self.no_random_addresses,
            dispatcher: !self.no_dispatcher,
            allowed_net: self.net_rules(),
            allowed_listen: match self.allow_all || self.allow_listen.is_empty() {
                true => None,
                false => Some(self.allow_listen.clone()),
            },
            ..Default::default()
        })
    }
}

/// A name without a slash is looked for in PATH.
fn find_program(name: &OsStr) -> Result<PathBuf, String> {
    if name.as_bytes().contains(&b'/') {
        return Ok(name.into());
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| format!("{}: no such program", name.display()))
}

/// Arguments of `forkvm exec`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: the program's own; 128 and the signal's number if a signal or a fault ended it; 126 if it could not be run, or was
stopped at a limit.")]
pub struct Exec {
    /// Longest time the program may run, in seconds.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    max_time: Option<Duration>,
    /// Show every system call, with its result and the thread's number, on standard error.
    #[arg(long)]
    strace: bool,
    #[command(flatten)]
    allow: Allow,
    /// The program and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        value_name = "PROGRAM [ARGUMENT]…"
    )]
    program: Vec<OsString>,
}

/// The program's input and output are ours.
struct Terminal {
    strace: bool,
    /// When reads of standard input have waited long enough: the program is over then.
    deadline: Option<Instant>,
}

impl Host for Terminal {
    fn note(&mut self, line: &str) {
        err!("forkvm: {line}");
    }

    fn input(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let stdin = io::stdin();
        let time = self
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
            .and_then(|time| Timespec::try_from(time).ok());
        let mut waited = [PollFd::new(&stdin, PollFlags::IN)];
        if rustix::event::poll(&mut waited, time.as_ref())? == 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        // Past the buffer of `Stdin`, which would hold back what the program has not asked for.
        Ok(rustix::io::read(&stdin, buf)?)
    }

    fn traces(&self) -> bool {
        self.strace
    }

    fn trace(&mut self, line: &str) {
        err!("{line}");
    }

    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        print(stream, bytes);
    }
}

/// Prints what a program does.
pub fn print(stream: Stream, bytes: &[u8]) {
    match stream {
        Stream::Stdout => terminal::print_bytes(io::stdout().lock(), bytes),
        _ => terminal::print_bytes(io::stderr().lock(), bytes),
    }
}

impl Exec {
    /// Runs the program. The exit status is its own; 128 and the signal's number if one ended it, be it for a fault; 126 if
    /// it could not be run, or was stopped at a limit.
    pub fn execute(&self) -> ExitCode {
        match self.run() {
            Ok(Ended::Exited(status)) => ExitCode::from((status & 0xff) as u8),
            Ok(Ended::Signalled(signal)) => ExitCode::from(SIGNALLED.wrapping_add(signal as u8)),
            Err(what) => {
                err!("forkvm: {what}");
                ExitCode::from(NOT_RUN)
            }
        }
    }

    fn run(&self) -> Result<Ended, String> {
        let command = self.allow.command(&self.program)?;
        let mut sandbox = self.allow.sandbox(&command)?;
        if let Some(time) = self.max_time {
            sandbox.max_time = time;
        }
        let mut terminal = Terminal {
            strace: self.strace,
            deadline: Instant::now().checked_add(sandbox.max_time),
        };
        forkvm::exec(command, &sandbox, &mut terminal).map_err(|error| error.to_string())
    }
}
