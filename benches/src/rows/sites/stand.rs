//! What answers for one page: the page's server natively and by `forkvm serve`, once for each way, and Varnish before some of them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::apps::{App, Way};
use crate::measure::us;
use crate::rows::servers::search_path;
use crate::settings::Options;
use crate::stand::{
    Cgi, Connection, Folder, Load, Measured, Nginx, Server, Varnish, listening, vmod,
};

/// Requests before a server is frozen, and the time it gets for what it does some time after its start.
const WARM_UP: [&str; 2] = ["--warmup=50", "--warmup-time=1"];
/// Forks at once in Varnish.
const CONCURRENCY: usize = 8;
/// Environment of all ways alike.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("NODE_ENV", "production"),
    ("DENO_DIR", "/tmp/deno"),
    ("DENO_NO_UPDATE_CHECK", "1"),
];

/// All ways of a page, running. They end with its drop.
pub struct Stand {
    // In the order they end in.
    varnish: Varnish,
    _nginx: Nginx,
    _cgi: Cgi,
    _behind: Server,
    servers: BTreeMap<Way, Running>,
    folder: Folder,
    oha: PathBuf,
}

struct Running {
    server: Server,
    address: SocketAddr,
}

impl Stand {
    pub fn start(options: &Options, app: &App) -> Result<Self> {
        let folder = Folder::new()?;
        let path = folder.0.as_path();
        let mut servers = BTreeMap::new();
        for way in app.ways() {
            let command = match app.natively.iter().find(|&&(of, _)| of == way) {
                Some((_, command)) => command,
                None => app.command,
            };
            let running = match way.flags() {
                Some(flags) => forks(options, path, app, way, flags)?,
                // With kept connections it is the same server.
                None if way == Way::NativeKept || way.by_varnish() => continue,
                None => native(options, path, way, command)?,
            };
            servers.insert(way, running);
        }
        let cgi = cgi_program(options, app);
        let fcgiwrap = Cgi::start(&options.tool("fcgiwrap"), path, |c| {
            // A page's name is what its server's last argument is.
            environment(c, options).env("PAGE", app.command.last().unwrap_or(&""));
            c.current_dir(pages());
        })?;
        let nginx = Nginx::start(&options.tool("nginx"), path, &cgi)?;
        let behind = behind_varnish(options, path, app)?;
        let varnish = Varnish::with_vcl(path, &source(options, path, app)?)?;
        let stand = Self {
            varnish,
            _nginx: nginx,
            _cgi: fcgiwrap,
            _behind: behind,
            servers,
            folder,
            oha: options.tool("oha"),
        };
        for way in app.ways() {
            stand.expect(app, way).with_context(|| way.title())?;
        }
        Ok(stand)
    }

    fn expect(&self, app: &App, way: Way) -> Result<()> {
        let has = |body: &[u8]| {
            body.windows(app.has.len())
                .any(|part| part == app.has.as_bytes())
        };
        if way.by_varnish() {
            return self.varnish.expect(way.name(), has);
        }
        let answer = fetch(self.address(way)?)?;
        ensure!(
            has(&answer),
            "it answers {}",
            String::from_utf8_lossy(answer.get(..300).unwrap_or(&answer))
        );
        Ok(())
    }

    fn address(&self, way: Way) -> Result<SocketAddr> {
        if way.by_varnish() {
            return Ok(self.varnish.address());
        }
        let way = if way == Way::NativeKept {
            Way::Native
        } else {
            way
        };
        Ok(self.servers.get(&way).context("no such server")?.address)
    }

    /// Loads one way and measures.
    pub fn load(&self, way: Way, load: Load) -> Result<Measured> {
        let path = if way.by_varnish() { way.name() } else { "" };
        let url = format!("http://{}/{path}", self.address(way)?);
        load.run(&self.oha, &url)
            .with_context(|| format!("{}, {load:?}", way.title()))
    }

    /// The access log of a `forkvm serve`.
    pub fn access_log(&self, way: Way) -> Result<String> {
        let log = access_log(&self.folder.0, way);
        std::fs::read_to_string(&log).with_context(|| log.display().to_string())
    }

    /// The process that has a way's forks.
    pub fn pid(&self, way: Way) -> Result<u32> {
        Ok(self
            .servers
            .get(&way)
            .context("no such server")?
            .server
            .pid())
    }
}

/// The first request of a server's fork that is made for it, in microseconds: its forks are given up after a second, and so the next
/// request finds none.
pub fn first_request_us(options: &Options, app: &App, times: usize) -> Result<Vec<f64>> {
    let folder = Folder::new()?;
    let flags = ["-t1", "--max-fork-idle-time=1"];
    let running = forks(options, &folder.0, app, Way::Reset, &flags)?;
    (0..times)
        .map(|_| {
            fetch(running.address)?;
            std::thread::sleep(Duration::from_millis(2500));
            let start = Instant::now();
            fetch(running.address)?;
            Ok(us(start.elapsed()))
        })
        .collect()
}

/// The folder of the pages, which all servers are run in.
fn pages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pages")
}

fn environment<'a>(command: &'a mut Command, options: &Options) -> &'a mut Command {
    command.envs(ENVIRONMENT).env("PATH", search_path(options))
}

/// A fetch on a connection of its own.
fn fetch(address: SocketAddr) -> Result<Vec<u8>> {
    Connection::whole(address, "/")
}

fn native(options: &Options, folder: &Path, way: Way, command: &[&str]) -> Result<Running> {
    let address = free_port()?;
    let mut server = start(options, folder, way, command, &address.port().to_string())?;
    server.wait(|| fetch(address).ok())?;
    Ok(Running { server, address })
}

/// The native server that Varnish asks, by a Unix socket.
fn behind_varnish(options: &Options, folder: &Path, app: &App) -> Result<Server> {
    let socket = folder.join("native.socket");
    let listen = socket.display().to_string();
    let mut server = start(options, folder, Way::Varnish, app.command, &listen)?;
    server.wait(|| socket.exists().then_some(()))?;
    Ok(server)
}

fn start(
    options: &Options,
    folder: &Path,
    way: Way,
    command: &[&str],
    listen: &str,
) -> Result<Server> {
    let (program, arguments) = command.split_first().context("no command")?;
    Server::start(way.name(), Path::new(program), folder, Stdio::null(), |c| {
        environment(c, options)
            .args(arguments)
            .env("LISTEN", listen)
            .current_dir(pages());
    })
}

/// A port that nothing listens at.
fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn access_log(folder: &Path, way: Way) -> PathBuf {
    folder.join(format!("{}.access.log", way.name()))
}

fn forks(options: &Options, folder: &Path, app: &App, way: Way, flags: &[&str]) -> Result<Running> {
    let command = options.lib.join("forkvm");
    let log = access_log(folder, way);
    let mut server = Server::start(way.name(), &command, folder, Stdio::null(), |c| {
        c.args(["serve", "--listen=127.0.0.1:0", "--allow-all"])
            .arg(format!("--access-log={}", log.display()))
            .args(WARM_UP)
            .args(flags);
        for (name, value) in ENVIRONMENT {
            c.arg(format!("--env={name}={value}"));
        }
        environment(c, options)
            .arg("--")
            .args(app.command)
            .current_dir(pages());
    })?;
    let path = folder.join(format!("{}.log", way.name()));
    let address = listening(&mut server, &path)?;

    Ok(Running { server, address })
}

fn cgi_program(options: &Options, app: &App) -> PathBuf {
    match app.cgi.strip_prefix("./") {
        Some(name) => pages().join(name),
        None => options.servers.join("bin").join(app.cgi),
    }
}

/// A program's path, as the shell finds it.
fn program(options: &Options, name: &str) -> Result<PathBuf> {
    std::env::split_paths(&search_path(options))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("there is no {name}"))
}

/// The VCL: a URL for each way.
fn source(options: &Options, folder: &Path, app: &App) -> Result<String> {
    let (name, arguments) = app.command.split_first().context("no command")?;
    let entries: Vec<String> = ENVIRONMENT
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    Ok(format!(
        r#"vcl 4.1;
import kvm from "{kvm}";

backend native {{ .path = "{folder}/native.socket"; }}
backend nginx {{ .path = "{folder}/nginx.socket"; }}

sub vcl_init {{
    kvm.server("app", "{program}", "{arguments}", environment = "{environment}",
        allowed_paths = "{pages}", current_working_directory = "{pages}", max_boot_time = 30s, warmup = 50, warmup_time = 1s,
        max_memory = 2GB, max_request_memory = 256MB, concurrency = {CONCURRENCY},
        max_wait = 20s, max_queue = 1000);
}}

sub vcl_recv {{
    return (pass);
}}

sub vcl_backend_fetch {{
    if (bereq.url == "/vmod") {{ set bereq.backend = kvm.backend("app"); }}
    else if (bereq.url == "/cgi") {{ set bereq.backend = nginx; }}
    else {{ set bereq.backend = native; }}
}}
"#,
        kvm = vmod(options, "kvm")?,
        folder = folder.display(),
        program = program(options, name)?.display(),
        arguments = arguments.join(" "),
        environment = entries.join(" "),
        pages = pages().display(),
    ))
}
