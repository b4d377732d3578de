//! The file: what comes first says how long all the rest is and what its hashes are, so that each piece is looked at only after it
//! was found to be whole.
//!
//! ```text
//! magic, format version, length of the head          16 bytes and 8
//! SHA-256 of these and the head                       32 bytes
//! head     who can read it; length and SHA-256 of the state; SHA-256 of each chunk of memory
//! state    registers, the Linux personality, address space, which pages follow
//! memory   pages that are not zero, those first that requests touch, in chunks
//! ```

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::{SnapshotError, VERSION};
use super::host::HostKind;

/// The first bytes.
const MAGIC: [u8; 12] = *b"forkvm snap\n";
/// The engine that this is.
pub const BUILD: &str = env!("FORKVM_BUILD");
/// Magic, version, length of the head.
const START: usize = 24;
/// Longest head: hashes of the chunks of 256 GiB.
const MOST_HEAD: u64 = 32 << 20;
/// Longest state.
const MOST_STATE: u64 = 1 << 30;
/// Bytes of memory that have one hash.
pub const CHUNK: usize = 256 << 10;

/// A SHA-256.
pub type Hash = [u8; 32];

/// The hash of some bytes.
pub fn hash(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// Who can read a snapshot, and what the rest of it is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Head {
    /// The engine that wrote it.
    pub build: String,
    /// Where it was written.
    pub host: HostKind,
    state_len: u64,
    state: Hash,
    /// Bytes of memory that follow.
    pub memory_len: u64,
    /// The hash of each chunk of it.
    pub chunks: Vec<Hash>,
    /// Bytes of the file before the state.
    #[serde(skip)]
    before_state: u64,
}

impl Head {
    /// Where in the file memory begins.
    pub fn memory_at(&self) -> u64 {
        self.before_state + self.state_len
    }
}

/// Writes all but the memory.
pub fn write(
    to: &mut impl Write,
    (build, host): (String, HostKind),
    state: &[u8],
    memory_len: u64,
    chunks: Vec<Hash>,
) -> io::Result<()> {
    let head = Head {
        build,
        host,
        state_len: state.len() as u64,
        state: hash(state),
        memory_len,
        chunks,
        before_state: 0,
    };
    let head = postcard::to_stdvec(&head).map_err(io::Error::other)?;
    let start = start(VERSION, head.len() as u64);
    to.write_all(&start)?;
    to.write_all(&root(&start, &head))?;
    to.write_all(&head)?;
    to.write_all(state)
}

fn start(version: u32, head_len: u64) -> [u8; START] {
    let mut start = [0; START];
    start[..12].copy_from_slice(&MAGIC);
    start[12..16].copy_from_slice(&version.to_le_bytes());
    start[16..].copy_from_slice(&head_len.to_le_bytes());
    start
}

fn root(start: &[u8], head: &[u8]) -> Hash {
    Sha256::new()
        .chain_update(start)
        .chain_update(head)
        .finalize()
        .into()
}

/// Reads so many bytes, whose length was checked.
fn read(from: &mut impl Read, len: u64) -> Result<Vec<u8>, SnapshotError> {
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| SnapshotError::Truncated)?];
    read_exact(from, &mut bytes)?;
    Ok(bytes)
}

/// The same into a place.
fn read_exact(from: &mut impl Read, bytes: &mut [u8]) -> Result<(), SnapshotError> {
    from.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => SnapshotError::Truncated,
        _ => SnapshotError::NotRead(error),
    })
}

/// Reads the head of a file of so many bytes, and finds it to be whole.
pub fn read_head(from: &mut impl Read, file_len: u64) -> Result<Head, SnapshotError> {
    let mut begin = [0; START];
    read_exact(from, &mut begin).map_err(|error| match error {
        SnapshotError::Truncated => SnapshotError::NoSnapshot,
        error => error,
    })?;
    if begin[..12] != MAGIC {
        return Err(SnapshotError::NoSnapshot);
    }
    let number = |at: usize, len: usize| {
        let bytes = begin[at..at + len].iter().rev();
        bytes.fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    };
    let version = number(12, 4);
    if version != u64::from(VERSION) {
        return Err(SnapshotError::OtherVersion(version));
    }
    let head_len = number(16, 8);
    if head_len > MOST_HEAD {
        return Err(SnapshotError::Damaged("its head"));
    }
    if head_len > file_len {
        return Err(SnapshotError::Truncated);
    }
    let expected = read(from, 32)?;
    let bytes = read(from, head_len)?;
    if root(&begin, &bytes)[..] != expected[..] {
        return Err(SnapshotError::Damaged("its head"));
    }
    let mut head: Head = whole(&bytes).ok_or(SnapshotError::Damaged("its head"))?;
    if head.state_len > MOST_STATE || head.chunks.len() as u64 != chunks(head.memory_len) {
        return Err(SnapshotError::Damaged("its head"));
    }
    head.before_state = START as u64 + 32 + head_len;
    match head.memory_at().checked_add(head.memory_len) {
        Some(len) if len == file_len => Ok(head),
        Some(len) if len < file_len => Err(SnapshotError::Damaged("its end")),
        _ => Err(SnapshotError::Truncated),
    }
}

/// Reads the state, and finds it to be whole.
pub fn read_state<T: for<'a> Deserialize<'a>>(
    from: &mut impl Read,
    head: &Head,
) -> Result<T, SnapshotError> {
    whole(&state_bytes(from, head)?).ok_or(SnapshotError::Damaged("its state"))
}

/// The same as it is in the file.
pub fn state_bytes(from: &mut impl Read, head: &Head) -> Result<Vec<u8>, SnapshotError> {
    let bytes = read(from, head.state_len)?;
    if hash(&bytes) != head.state {
        return Err(SnapshotError::Damaged("its state"));
    }
    Ok(bytes)
}

/// How many chunks so many bytes have.
pub fn chunks(memory_len: u64) -> u64 {
    memory_len.div_ceil(CHUNK as u64)
}

/// A value that is all of these bytes.
fn whole<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(bytes).ok()?;
    rest.is_empty().then_some(value)
}
