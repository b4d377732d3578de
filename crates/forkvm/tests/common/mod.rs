//! What the engine's tests share: guest programs, a tenant to ask, and how long things may take.
// Each test binary uses a part of it.
#![allow(
    dead_code,
    unused_macros,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used
)]

pub mod batch_gdb;
pub mod gdb;
pub mod pace;
pub mod sums;

use std::fs::OpenOptions;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use forkvm::{
    Answer, BootError, CachePolicy, Config, Failure, Header, Host, Program, Quiet, Request, Stream,
    Streaming,
};

/// Ends the test at once where there is no KVM: a skip, but a failure in CI.
macro_rules! kvm_or_skip {
    () => {
        if !common::have_kvm() {
            return;
        }
    };
}
pub(crate) use kvm_or_skip;

pub use pace::{ENOUGH, emulated, few, scaled};

/// Whether a test that needs KVM can run.
pub fn have_kvm() -> bool {
    let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") else {
        return true;
    };
    assert!(std::env::var_os("CI").is_none(), "/dev/kvm: {error}");
    eprintln!("SKIPPED, /dev/kvm: {error}");
    false
}

/// Ways to die that QEMU's software emulation does not have: alignment checks, SIMD exceptions, and the check that
/// `wbinvd` runs in ring 0.
pub const NOT_EMULATED: [&str; 3] = ["alignment-check", "sse-fpe", "wbinvd"];

/// The folder of the guest programs: the examples, and those of the tests in test/.
pub fn guests_dir() -> PathBuf {
    std::env::var_os("GUESTS_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests"),
        PathBuf::from,
    )
}

/// A guest program's file.
pub fn guest_path(name: &str) -> PathBuf {
    let dir = guests_dir();
    let found = [dir.join(name), dir.join("test").join(name)]
        .into_iter()
        .find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "{} has no guest {name}: `make guests test-guests` first",
            dir.display()
        )
    })
}

/// A guest program.
pub fn guest(name: &str) -> Vec<u8> {
    std::fs::read(guest_path(name)).unwrap()
}

/// Settings for a test: one fork, and time enough.
pub fn config(name: &str) -> Config {
    let mut config = Config::new(name);
    config.concurrency = 1;
    config.limits.max_boot_time = ENOUGH;
    config.limits.max_request_time = ENOUGH;
    config.limits.max_wait = ENOUGH;
    config
}

/// A booted program.
pub struct Tenant(Arc<Program>);

impl From<Arc<Program>> for Tenant {
    fn from(program: Arc<Program>) -> Self {
        Self(program)
    }
}

impl Deref for Tenant {
    type Target = Arc<Program>;

    fn deref(&self) -> &Arc<Program> {
        &self.0
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub content_type: String,
    pub headers: Vec<Header<'static>>,
    pub cache: Option<CachePolicy>,
    pub failure: Option<Failure>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))?;
        Some(str::from_utf8(&header.value).unwrap())
    }
}

impl Tenant {
    /// Boots a guest with [`config`].
    pub fn boot(name: &str) -> Self {
        Self::boot_with(name, |_| {})
    }

    /// Boots a guest with other settings.
    pub fn boot_with(name: &str, change: impl FnOnce(&mut Config)) -> Self {
        Self::try_boot(name, change).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Boots a guest that may be refused.
    pub fn try_boot(name: &str, change: impl FnOnce(&mut Config)) -> Result<Self, BootError> {
        let mut config = config(name);
        change(&mut config);
        Program::boot(&guest(name), config, &mut Quiet).map(Self)
    }

    /// Sends a request and reads its answer to the end.
    pub fn try_send(
        &self,
        request: &Request<'_>,
        deadline: Instant,
        host: &mut dyn Host,
    ) -> Result<Reply, Failure> {
        let mut answer = self.0.answer(request, deadline, host)?;
        let body = match answer.take_streaming() {
            Some(mut streaming) => read_streaming(&mut streaming, host)?,
            None => read_whole(&mut answer),
        };
        Ok(Reply {
            status: answer.status(),
            content_type: String::from_utf8_lossy(answer.content_type()).into_owned(),
            headers: answer.headers().to_vec(),
            cache: answer.cache(),
            failure: answer.failure().cloned(),
            body,
        })
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.config().limits.max_request_time
    }

    /// Sends a request that has to be answered.
    pub fn send(&self, request: &Request<'_>) -> Reply {
        self.try_send(request, self.deadline(), &mut Quiet)
            .unwrap_or_else(|failure| {
                panic!(
                    "{} {}: {failure}",
                    request.method,
                    String::from_utf8_lossy(request.url)
                )
            })
    }

    pub fn try_get(&self, url: &str) -> Result<Reply, Failure> {
        self.try_send(
            &Request {
                method: "GET",
                url: url.as_bytes(),
                ..Default::default()
            },
            self.deadline(),
            &mut Quiet,
        )
    }

    pub fn get(&self, url: &str) -> Reply {
        self.send(&Request {
            method: "GET",
            url: url.as_bytes(),
            ..Default::default()
        })
    }

    pub fn post(&self, url: &str, body: &[u8]) -> Reply {
        self.send(&Request {
            method: "POST",
            url: url.as_bytes(),
            body,
            ..Default::default()
        })
    }

    /// A request that has to fail; what the log would say.
    pub fn failure(&self, url: &str) -> Failure {
        match self.try_get(url) {
            Ok(reply) => panic!(
                "{url} was answered: {} {:?}",
                reply.status,
                String::from_utf8_lossy(&reply.body)
            ),
            Err(failure) => failure,
        }
    }

    /// A request that has to run out of time after `time`.
    pub fn timeout(&self, url: &str, time: Duration) -> Failure {
        let request = Request {
            method: "GET",
            url: url.as_bytes(),
            ..Default::default()
        };
        let failure = self
            .try_send(&request, Instant::now() + time, &mut Quiet)
            .expect_err(url);
        assert!(failure.is_timeout(), "{url}: {failure}");
        failure
    }

    /// Checks that the idle forks, all there are, have the master's memory.
    pub fn assert_pristine(&self) {
        let stats = self.stats();
        assert_eq!(stats.idle, stats.forks, "not all forks are idle: {stats:?}");
        assert_eq!(self.differing_pages(), 0, "pages differ from the master's");
    }
}

fn read_whole(answer: &mut Answer) -> Vec<u8> {
    let len = usize::try_from(answer.body_len()).unwrap();
    let mut body = vec![0; len + 1];
    let mut read = 0;
    while let n @ 1.. = answer.read_body(&mut body[read..]) {
        read += n;
    }
    assert_eq!(read, len, "the body's length was announced otherwise");
    body.truncate(read);
    body
}

fn read_streaming(streaming: &mut Streaming, host: &mut dyn Host) -> Result<Vec<u8>, Failure> {
    let (mut body, mut piece) = (Vec::new(), vec![0; 10_000]);
    while let n @ 1.. = streaming.read(&mut piece, host)? {
        body.extend_from_slice(&piece[..n]);
    }
    Ok(body)
}

/// Makes headers.
pub fn headers<'a>(fields: &[(&'a str, &'a str)]) -> Vec<Header<'a>> {
    fields
        .iter()
        .map(|&(name, value)| Header::new(name, value.as_bytes()))
        .collect()
}

/// A host that keeps a guest's output.
#[derive(Debug, Default)]
pub struct Recorder {
    pub output: Vec<(Stream, Vec<u8>)>,
}

impl Recorder {
    /// All that came this way, in one.
    pub fn text(&self, way: Stream) -> String {
        let pieces = self.output.iter().filter(|(stream, _)| *stream == way);
        String::from_utf8(pieces.flat_map(|(_, bytes)| bytes.clone()).collect()).unwrap()
    }
}

impl Host for Recorder {
    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        self.output.push((stream, bytes.to_vec()));
    }
}

/// Waits, within bounds, for something that another thread does.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + ENOUGH;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not so after a long wait");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A folder that is gone after the test.
pub struct Folder(pub PathBuf);

impl Folder {
    /// An empty one, named after the test.
    pub fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("forkvm-test-{}-{test}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
