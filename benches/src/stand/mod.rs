//! The processes that the rows through Varnish need: Varnish, nginx and the programs behind it, and the load.

mod connection;
mod forkvm;
mod load;
mod nginx;
mod process;
mod varnish;

pub use connection::Connection;
pub use forkvm::{Counts, counts, listening};
pub use load::{Load, Measured, Until};
pub use nginx::{Cgi, Nginx};
pub use process::Server;
pub use varnish::{SYNTH, SYNTHETIC, UPDATED, Varnish, vmod};

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::rows::say;
use crate::settings::Options;
use nginx::FastCgi;

/// A way to answer a request. Each has its URL at the one Varnish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    Cached,
    Native,
    Spin,
    Kvm,
    Wasm,
    Fastcgi,
    Cgi,
}

impl Way {
    pub const ALL: [Self; 7] = [
        Self::Cached,
        Self::Native,
        Self::Spin,
        Self::Kvm,
        Self::Wasm,
        Self::Fastcgi,
        Self::Cgi,
    ];

    /// Its name in figures, and its URL's path.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Native => "native",
            Self::Spin => "spin",
            Self::Kvm => "kvm",
            Self::Wasm => "wasm",
            Self::Fastcgi => "fastcgi",
            Self::Cgi => "cgi",
        }
    }

    /// Its name for readers.
    pub fn title(self) -> &'static str {
        match self {
            Self::Cached => "cache hit",
            Self::Native => "native backend in Varnish",
            Self::Spin => "native, and a round trip's time",
            Self::Kvm => "this VMOD",
            Self::Wasm => "wasmtime in Varnish, fresh instance",
            Self::Fastcgi => "nginx, persistent FastCGI",
            Self::Cgi => "nginx, CGI (fork and exec)",
        }
    }
}

/// All of it, running. Ends with its drop.
pub struct Stand {
    // In the order they end in.
    varnish: Varnish,
    _nginx: Option<Nginx>,
    _fastcgi: Option<FastCgi>,
    _cgi: Option<Cgi>,
    _folder: Folder,
    oha: PathBuf,
    ways: Vec<Way>,
}

impl Stand {
    /// Starts what the ways need and asks each once. [`Way::Spin`] computes for the time of a bare round trip.
    pub fn start(options: &Options, roundtrip_us: f64, ways: Vec<Way>) -> Result<Self> {
        let folder = Folder::new()?;
        let path = folder.0.as_path();
        let has = |way| ways.contains(&way);
        let fastcgi = has(Way::Fastcgi).then(|| FastCgi::start(&options.guest("hello.fcgi"), path));
        let cgi = has(Way::Cgi).then(|| Cgi::start(&options.tool("fcgiwrap"), path, |_| {}));
        let (fastcgi, cgi) = (fastcgi.transpose()?, cgi.transpose()?);
        let nginx = (fastcgi.is_some() || cgi.is_some())
            .then(|| Nginx::start(&options.tool("nginx"), path, &options.guest("hello.cgi")))
            .transpose()?;
        let varnish = Varnish::start(options, path, &ways, roundtrip_us)?;
        let oha = options.tool("oha");
        let stand = Self {
            varnish,
            _nginx: nginx,
            _fastcgi: fastcgi,
            _cgi: cgi,
            _folder: folder,
            oha,
            ways,
        };
        for &way in stand.ways() {
            stand
                .varnish
                .expect_hello(way.name())
                .with_context(|| way.title())?;
        }
        for path in [UPDATED, SYNTH, SYNTHETIC] {
            stand.varnish.expect_hello(path).context(path)?;
        }
        Ok(stand)
    }

    /// The ways there are.
    pub fn ways(&self) -> &[Way] {
        &self.ways
    }

    /// Loads one way and measures.
    pub fn load(&self, way: Way, load: Load) -> Result<Measured> {
        self.load_path(way.name(), load)
    }

    /// Loads any path and measures.
    pub fn load_path(&self, path: &str, load: Load) -> Result<Measured> {
        let url = format!("http://{}/{path}", self.varnish.address());
        load.run(&self.oha, &url)
            .with_context(|| format!("/{path}, {load:?}"))
    }

    /// A connection of our own.
    pub fn connection(&self) -> Result<Connection> {
        Connection::open(self.varnish.address())
    }
}

/// A temporary folder, for sockets and settings.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("forkvm-bench.{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::fs::remove_dir_all(&self.0).is_err() {
            say(&format!("{} is left behind", self.0.display()));
        }
    }
}

/// An error for a tool that is not there.
fn present(path: &Path) -> Result<&Path> {
    if !path.exists() {
        bail!(
            "no {}; `make bench` sets it up, or scripts/bench-setup.sh alone",
            path.display()
        );
    }
    Ok(path)
}
