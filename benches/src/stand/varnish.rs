//! The one Varnish: all ways in one VCL, by URL, so that they differ in nothing but the backend.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Way;
use super::connection::Connection;
use super::present;
use super::process::Server;
use crate::settings::Options;

/// Forks at once: as many as the most connections, so that none waits for one.
const CONCURRENCY: usize = 64;

/// The path of a tenant whose program a POST replaces.
pub const UPDATED: &str = "updated";

/// The path that kvm.synth() answers.
pub const SYNTH: &str = "synth";
/// The one that Varnish answers by itself, as long.
pub const SYNTHETIC: &str = "synthetic";

/// A running varnishd.
pub struct Varnish {
    server: Server,
    address: SocketAddr,
}

impl Varnish {
    /// Starts it on a free port of 127.0.0.1, with the VCL of all ways.
    pub fn start(options: &Options, folder: &Path, ways: &[Way], spin_us: f64) -> Result<Self> {
        Self::with_vcl(folder, &source(options, folder, ways, spin_us)?)
    }

    /// Starts it with any VCL.
    pub fn with_vcl(folder: &Path, source: &str) -> Result<Self> {
        let vcl = folder.join("bench.vcl");
        std::fs::write(&vcl, source).with_context(|| vcl.display().to_string())?;
        let state = folder.join("varnish");
        let varnishd = std::env::var_os("VARNISHD").unwrap_or_else(|| "varnishd".into());
        let mut server = Server::start(
            "varnishd",
            Path::new(&varnishd),
            folder,
            Stdio::null(),
            |command| {
                command
                    .args(["-F", "-a", "127.0.0.1:0", "-s", "malloc,64m", "-n"])
                    .arg(&state);
                // Another user may not use /dev/kvm, nor read the programs.
                if rustix::process::geteuid().is_root() {
                    command.args(["-j", "none"]);
                }
                // Threads enough for the most connections, from the start.
                command.args(["-p", "thread_pool_min=200", "-f"]).arg(&vcl);
            },
        )?;
        let address = server.wait(|| listening(&state))?;
        Ok(Self { server, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks for a path until it answers hello.
    pub fn expect_hello(&self, path: &str) -> Result<()> {
        self.expect(path, |answer| answer.ends_with(b"\r\n\r\nHello, World!\n"))
    }

    /// Asks for a path until it answers what is wanted: programs boot in the background.
    pub fn expect(&self, path: &str, wanted: impl Fn(&[u8]) -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            let answer = Connection::whole(self.address, &format!("/{path}"));
            if answer.as_ref().is_ok_and(|answer| wanted(answer)) {
                return Ok(());
            }
            if start.elapsed() > Duration::from_secs(20) {
                let said = self.server.said();
                let text = String::from_utf8_lossy(&answer?).into_owned();
                bail!("it answers {}\n{said}", text.get(..1000).unwrap_or(&text));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The address it says it listens at.
fn listening(state: &Path) -> Option<SocketAddr> {
    let output = Command::new("varnishadm")
        .args(["-t", "2", "-n"])
        .arg(state)
        .arg("debug.listen_address")
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut words = text.split_whitespace().skip(1);
    format!("{}:{}", words.next()?, words.next()?).parse().ok()
}

fn source(options: &Options, folder: &Path, ways: &[Way], spin_us: f64) -> Result<String> {
    let vmod = |name| vmod(options, name);
    let hello = options.guest("hello").display().to_string();
    let module = options.guest("hello.wasm").display().to_string();
    let (new_wasm, use_wasm) = if ways.contains(&Way::Wasm) {
        (
            format!("new wasm = bench.wasm(\"{module}\");"),
            "else if (bereq.url == \"/wasm\") { set bereq.backend = wasm.backend(); }",
        )
    } else {
        (String::new(), "")
    };
    // Varnish looks for the socket when it compiles.
    let (nginx, use_nginx) = if ways
        .iter()
        .any(|way| matches!(way, Way::Fastcgi | Way::Cgi))
    {
        (
            format!(
                "backend nginx {{ .path = \"{}/nginx.socket\"; }}",
                folder.display()
            ),
            "else { set bereq.backend = nginx; }",
        )
    } else {
        ("backend default none;".to_owned(), "")
    };
    Ok(format!(
        r#"vcl 4.1;
import kvm from "{kvm}";
import bench from "{bench}";

{nginx}

sub vcl_init {{
    kvm.tenant("bench", "{hello}", max_memory=32MB, concurrency={CONCURRENCY});
    kvm.tenant("{UPDATED}", "{hello}", max_memory=32MB, concurrency=8, update_key="bench", state_dir="{folder}",
        version_header=true);
    new native = bench.native(0);
    new spin = bench.native({spin_us:.3});
    {new_wasm}
}}

sub vcl_recv {{
    if (req.url == "/cached") {{ return (hash); }}
    if (req.url == "/{SYNTH}") {{ return (synth(700)); }}
    if (req.url == "/{SYNTHETIC}") {{ return (synth(200)); }}
    return (pass);
}}

sub vcl_synth {{
    if (resp.status == 700) {{
        if (kvm.synth(0, "bench", req.url) == 0) {{ set resp.status = 503; }}
    }} else {{
        set resp.http.Content-Type = "text/plain";
        set resp.body = {{"Hello, World!
"}};
    }}
    return (deliver);
}}

sub vcl_backend_fetch {{
    if (bereq.url == "/kvm") {{ set bereq.backend = kvm.backend("bench"); }}
    else if (bereq.url == "/{UPDATED}") {{
        if (bereq.method == "POST") {{ set bereq.backend = kvm.live_update("{UPDATED}", "bench"); }}
        else {{ set bereq.backend = kvm.backend("{UPDATED}"); }}
    }}
    else if (bereq.url == "/spin") {{ set bereq.backend = spin.backend(); }}
    else if (bereq.url == "/native" || bereq.url == "/cached") {{ set bereq.backend = native.backend(); }}
    {use_wasm}
    {use_nginx}
}}

sub vcl_backend_response {{
    if (bereq.url == "/cached") {{ set beresp.ttl = 1h; }}
}}
"#,
        kvm = vmod("kvm")?,
        bench = vmod("bench")?,
        folder = folder.display(),
    ))
}

/// The path of one of the build's VMODs.
pub fn vmod(options: &Options, name: &str) -> Result<String> {
    let path = options.lib.join(format!("libvmod_{name}.so"));
    Ok(present(&path)?.display().to_string())
}
