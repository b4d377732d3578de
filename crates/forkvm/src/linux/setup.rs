//! What the personality is told about the program at its start.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::{fmt, io};

use serde::{Deserialize, Serialize};

use crate::linux::net::allowed::NetRule;
use crate::linux::net::listening::ListenRule;

/// Where the program's memory lies. Addresses and lengths are multiples of the page size.
///
/// Heap and mappings share the same physical pages, seen through two windows of equal length:
/// byte `i` of the brk window and byte `i` of the mmap window are one. `brk` grows from the bottom,
/// `mmap` takes from the top, so either may use all of it; the personality sees that they never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeapLayout {
    /// First address of the brk window (just after the ELF's own segments, or near).
    pub brk_window: u64,
    /// First address of the mmap window.
    pub mmap_window: u64,
    /// Length of both windows in bytes.
    pub len: u64,
    /// What is in them may be executed.
    pub executable: bool,
}

/// A file or folder of the host that a program may read, or change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowedPath {
    /// Where it is in the host. Symbolic links in this path are followed, once.
    pub real: PathBuf,
    /// Where the program finds it.
    pub seen: PathBuf,
    /// Of a folder, everything beneath it too.
    pub beneath: bool,
    /// The program sees a symbolic link to `real` there.
    pub link: bool,
    /// What the program changes there is changed in the host, at once and for good.
    pub writes: bool,
}

/// With everything beneath it, and at the same place for the program.
impl<T: Into<PathBuf>> From<T> for AllowedPath {
    fn from(path: T) -> Self {
        let real = path.into();
        Self {
            seen: real.clone(),
            real,
            beneath: true,
            link: false,
            writes: false,
        }
    }
}

/// A file or folder of the host, and where an unmodified program sees it: `HOST:GUEST`, to be read; with `:overlay` to be
/// changed in memory, with `:rw` to be changed in the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Both places, and whether changes reach the host.
    pub path: AllowedPath,
    /// Changes are kept in memory.
    pub overlaid: bool,
}

/// A text that is no volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadVolume {
    /// A place is missing.
    #[error("give HOST:GUEST")]
    Places,
    /// Something else follows them.
    #[error("after HOST:GUEST there can be `:overlay` or `:rw` only")]
    How,
    /// The program sees it nowhere.
    #[error("the program's path has to be absolute")]
    NotAbsolute,
}

impl FromStr for Volume {
    type Err = BadVolume;

    fn from_str(text: &str) -> Result<Self, BadVolume> {
        let mut parts = text.split(':');
        let (Some(host), Some(guest)) = (parts.next(), parts.next()) else {
            return Err(BadVolume::Places);
        };
        let (overlaid, writes) = match (parts.next(), parts.next()) {
            (None | Some("ro"), None) => (false, false),
            (Some("overlay"), None) => (true, false),
            (Some("rw"), None) => (false, true),
            _ => return Err(BadVolume::How),
        };
        if host.is_empty() {
            return Err(BadVolume::Places);
        }
        if !guest.starts_with('/') {
            return Err(BadVolume::NotAbsolute);
        }
        let path = AllowedPath {
            seen: guest.into(),
            writes,
            ..AllowedPath::from(host)
        };
        Ok(Self { path, overlaid })
    }
}

/// Who has a program's state file.
pub trait StateStore: Send + Sync {
    /// All of it, if it is there, and no more than so many bytes.
    fn load(&self, most: u64) -> io::Result<Option<Vec<u8>>>;

    /// Puts this in its place: all of it, or nothing.
    fn save(&self, content: &[u8]) -> io::Result<()>;
}

/// A program's state file.
#[derive(Clone)]
pub struct StateFile {
    /// Who has it.
    pub store: Arc<dyn StateStore>,
    /// Its most bytes.
    pub most: u64,
}

impl fmt::Debug for StateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateFile(at most {} bytes)", self.most)
    }
}

/// What a machine may do with its program's state file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StateRight {
    /// Nothing: it answers requests.
    None,
    /// Read it: its `main()` runs.
    Read,
    /// Write it, too: it is the storage.
    Write,
}

impl StateRight {
    /// How many copies of the file it may have open, which count besides what else it changes of files.
    pub(super) fn copies(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Read => 1,
            Self::Write => 2,
        }
    }
}

/// What the personality is told about the program at its start.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The two windows of the heap.
    pub heap: HeapLayout,
    /// Address range of the stack, for `/proc/self/maps` and `getrlimit`.
    pub stack: std::ops::Range<u64>,
    /// The name that `/proc/self/exe` and `AT_EXECFN` give.
    pub executable: String,
    /// Files and folders the program may read.
    pub allowed_paths: Vec<AllowedPath>,
    /// Folders, as the program sees them, where it may change files: in memory, over what is there.
    pub writable_paths: Vec<PathBuf>,
    /// Most bytes of what it changes.
    pub overlay_bytes: u64,
    /// Most bytes that it writes to the host's files ([`AllowedPath::writes`]).
    pub volume_bytes: u64,
    /// There is what unmodified programs look for in /dev, /proc and /sys.
    pub whole_system: bool,
    /// Where programs are loaded is chosen at random, as Linux does. Only of programs with an address space.
    pub random_addresses: bool,
    /// The working directory.
    pub current_working_directory: String,
    /// What of the network outside it may reach. Only of programs with an address space.
    pub allowed_net: Vec<NetRule>,
    /// Where it may listen; `None`: everywhere.
    pub allowed_listen: Option<Vec<ListenRule>>,
    /// The file that its storage keeps its state in, if it has one.
    pub state: Option<StateFile>,
}
