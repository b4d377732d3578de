//! What is in a file of the overlay: chunks that clones share until one of them writes, and beneath them the host's file
//! that it was made from.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::linux::abi::length;
use crate::linux::files::host_files::HostFile;
use crate::memory::arena::{Arena, SLOT, Slot};
use crate::memory::space::vmas::{MAX_OFFSET, PageSource};

/// Bytes of a chunk: what a first write to a shared file copies.
const CHUNK: u64 = SLOT as u64;
/// Least bytes that a chunk has: what memory is given by.
const LEAST: u64 = 4 << 10;
/// What a chunk costs beside its bytes.
const CHUNK_COST: u64 = 64;

/// Most chunks: of a mebibyte of mebibytes.
const MOST: usize = 1 << 26;

/// What a file of so many bytes takes of a budget, at most.
pub fn cost(bytes: u64) -> u64 {
    let chunks = bytes.div_ceil(CHUNK);
    chunks.saturating_mul(CHUNK + CHUNK_COST)
}

/// How many bytes one machine may have newly in its overlay, and the memory for them. What it has from the machine it is a clone
/// of is counted there.
pub struct Budget {
    limit: u64,
    used: AtomicU64,
    arena: Arc<Arena>,
}

/// Without what is used, which is each machine's own and no state that a reset puts back.
impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budget")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl Budget {
    /// Nothing used yet.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicU64::new(0),
            arena: Arena::new(
                usize::try_from(limit / (LEAST + CHUNK_COST)).map_or(MOST, |slots| slots.min(MOST)),
            ),
        })
    }

    /// Most bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that are still to be had.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    fn take(self: &Arc<Self>, bytes: u64) -> Result<Share, Errno> {
        let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|_| Errno::NOSPC)?;
        Ok(Share {
            budget: Arc::clone(self),
            bytes,
        })
    }
}

/// Bytes of a budget, given back when this is dropped.
#[derive(Debug)]
struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

/// Of no budget: what a snapshot has is the master's, and counts for no machine.
impl Default for Share {
    fn default() -> Self {
        Self {
            budget: Budget::new(0),
            bytes: 0,
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Some bytes of a file; those missing at its end are zero.
#[derive(Debug, Serialize, Deserialize)]
struct Chunk {
    bytes: Bytes,
    #[serde(skip)]
    _share: Share,
}

/// A chunk's bytes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(from = "Vec<u8>", into = "Vec<u8>")]
enum Bytes {
    /// A machine's own.
    Slot(Slot),
    /// From a snapshot.
    Read(Vec<u8>),
}

impl Clone for Bytes {
    fn clone(&self) -> Self {
        Self::Read(self.to_vec())
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Read(bytes)
    }
}

impl From<Bytes> for Vec<u8> {
    fn from(bytes: Bytes) -> Self {
        bytes.to_vec()
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Slot(slot) => slot,
            Self::Read(bytes) => bytes,
        }
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Slot(slot) => slot,
            Self::Read(bytes) => bytes,
        }
    }
}

impl Chunk {
    /// A chunk of so many bytes at least, that starts with these.
    fn new(bytes: &[u8], len: u64, budget: &Arc<Budget>) -> Result<Arc<Self>, Errno> {
        let len = len
            .max(length(bytes.len()))
            .max(LEAST)
            .next_power_of_two()
            .min(CHUNK);
        let share = budget.take(len.saturating_add(CHUNK_COST))?;
        let count = usize::try_from(len).map_err(|_| Errno::NOSPC)?;
        let mut slot = budget.arena.take(count).map_err(|_| Errno::NOSPC)?;
        for (to, from) in slot.iter_mut().zip(bytes) {
            *to = *from;
        }
        Ok(Arc::new(Self {
            bytes: Bytes::Slot(slot),
            _share: share,
        }))
    }
}

/// The host's file beneath, as far as it counts.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Lower {
    #[serde(with = "crate::saved::listed")]
    file: Arc<HostFile>,
    len: u64,
}

/// The bytes of a file. A clone costs no bytes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Content {
    size: u64,
    chunks: BTreeMap<u64, Arc<Chunk>>,
    lower: Option<Lower>,
}

impl Content {
    /// What a file of the host has, so many bytes of it.
    pub fn of_host(file: Arc<HostFile>, len: u64) -> Self {
        Self {
            size: len,
            chunks: BTreeMap::new(),
            lower: Some(Lower { file, len }),
        }
    }

    /// Whether what was read from a snapshot can be.
    pub fn is_sound(&self) -> bool {
        let fits = |(place, chunk): (&u64, &Arc<Chunk>)| {
            *place <= MAX_OFFSET / CHUNK && length(chunk.bytes.len()) <= CHUNK
        };
        self.size <= MAX_OFFSET
            && self.chunks.iter().all(fits)
            && self.lower.as_ref().is_none_or(|of| of.len <= MAX_OFFSET)
    }

    /// The file's size.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that it has memory for.
    pub fn allocated(&self) -> u64 {
        let beneath = self.lower.as_ref().map_or(0, |lower| lower.len);
        let own = self.chunks.values().map(|chunk| length(chunk.bytes.len()));
        own.sum::<u64>().max(beneath)
    }

    /// Reads what is at an offset, fewer bytes only at the end.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let left = self.size.saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let mut rest = buf.get_mut(..len).unwrap_or_default();
        let mut at = offset;
        while !rest.is_empty() {
            let within = at % CHUNK;
            let most = usize::try_from(CHUNK - within).unwrap_or(rest.len());
            let (piece, after) = rest.split_at_mut(most.min(rest.len()));
            match self.chunks.get(&(at / CHUNK)) {
                Some(chunk) => {
                    let start = usize::try_from(within).unwrap_or(usize::MAX);
                    let there = chunk.bytes.get(start..).unwrap_or_default();
                    let there = there.split_at(there.len().min(piece.len())).0;
                    let (data, zeros) = piece.split_at_mut(there.len());
                    data.copy_from_slice(there);
                    zeros.fill(0);
                }
                None => self.read_beneath(at, piece)?,
            }
            at = at.saturating_add(length(piece.len()));
            rest = after;
        }
        Ok(len)
    }

    /// What the host's file has there, and zeros where it has none.
    fn read_beneath(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        buf.fill(0);
        let Some(lower) = &self.lower else {
            return Ok(());
        };
        let left = usize::try_from(lower.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut done = 0;
        let wanted = left.min(buf.len());
        while let Some(piece) = buf.get_mut(done..wanted).filter(|piece| !piece.is_empty()) {
            let at = offset.saturating_add(length(done));
            match rustix::io::pread(&lower.file, piece, at) {
                // It has become shorter.
                Ok(0) => break,
                Ok(got) => done = done.saturating_add(got),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Writes at an offset. Gives fewer bytes where the budget ends.
    pub fn write(
        &mut self,
        offset: u64,
        bytes: &[u8],
        budget: &Arc<Budget>,
    ) -> Result<usize, Errno> {
        let end = offset
            .checked_add(length(bytes.len()))
            .filter(|end| *end <= MAX_OFFSET)
            .ok_or(Errno::FBIG)?;
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let most = usize::try_from(CHUNK - at % CHUNK).unwrap_or(rest.len());
            let (piece, after) = rest.split_at(most.min(rest.len()));
            match self.write_chunk(at, piece, budget) {
                Ok(()) => {}
                Err(errno) if at == offset => return Err(errno),
                Err(_) => break,
            }
            at = at.saturating_add(length(piece.len()));
            self.size = self.size.max(at);
            rest = after;
        }
        debug_assert!(at <= end);
        Ok(bytes.len().saturating_sub(rest.len()))
    }

    fn write_chunk(
        &mut self,
        offset: u64,
        bytes: &[u8],
        budget: &Arc<Budget>,
    ) -> Result<(), Errno> {
        let (number, within) = (offset / CHUNK, offset % CHUNK);
        let end = within.saturating_add(length(bytes.len()));
        let start = usize::try_from(within).map_err(|_| Errno::FBIG)?;
        let place = |chunk: &mut Chunk| {
            let place = chunk.bytes.get_mut(start..).unwrap_or_default();
            for (to, from) in place.iter_mut().zip(bytes) {
                *to = *from;
            }
        };
        let old = self.chunks.get_mut(&number);
        if let Some(chunk) = old.and_then(Arc::get_mut)
            && length(chunk.bytes.len()) >= end
        {
            place(chunk);
            return Ok(());
        }
        let mut new = self.chunk_of(number, end, budget)?;
        if let Some(chunk) = Arc::get_mut(&mut new) {
            place(chunk);
        }
        self.chunks.insert(number, new);
        Ok(())
    }

    /// A chunk of its own, of so many bytes at least, with what is there now.
    fn chunk_of(&self, number: u64, len: u64, budget: &Arc<Budget>) -> Result<Arc<Chunk>, Errno> {
        if let Some(old) = self.chunks.get(&number) {
            return Chunk::new(&old.bytes, len, budget);
        }
        let first = number.saturating_mul(CHUNK);
        let beneath = self.lower.as_ref().map_or(0, |lower| lower.len);
        let there = beneath.saturating_sub(first).min(CHUNK);
        let mut copy = vec![0; usize::try_from(there).map_err(|_| Errno::FBIG)?];
        self.read_beneath(first, &mut copy)?;
        Chunk::new(&copy, len, budget)
    }

    /// Makes it as long as this; what is added is zero.
    pub fn set_size(&mut self, size: u64, budget: &Arc<Budget>) -> Result<(), Errno> {
        if size > MAX_OFFSET {
            return Err(Errno::FBIG);
        }
        if size < self.size {
            // What is cut off must not come back when it grows again.
            let end = self.size.min(size.next_multiple_of(CHUNK));
            let last = size / CHUNK;
            if !size.is_multiple_of(CHUNK) && self.chunks.contains_key(&last) {
                let zeros = vec![0; usize::try_from(end - size).map_err(|_| Errno::FBIG)?];
                let old = self.size;
                self.write(size, &zeros, budget)?;
                self.size = old;
            }
            self.chunks.split_off(&size.div_ceil(CHUNK));
            if let Some(lower) = &mut self.lower {
                lower.len = lower.len.min(size);
            }
            if self.lower.as_ref().is_some_and(|lower| lower.len == 0) {
                self.lower = None;
            }
        }
        self.size = size;
        Ok(())
    }

    /// Has memory for so many bytes from an offset on, as fallocate(2) does.
    pub fn allocate(&mut self, offset: u64, len: u64, budget: &Arc<Budget>) -> Result<(), Errno> {
        let end = offset.checked_add(len).ok_or(Errno::FBIG)?;
        if len > budget.limit() {
            return Err(Errno::NOSPC);
        }
        for number in offset / CHUNK..end.div_ceil(CHUNK) {
            if !self.chunks.contains_key(&number) {
                let chunk = self.chunk_of(number, CHUNK, budget)?;
                self.chunks.insert(number, chunk);
            }
        }
        Ok(())
    }

    /// Makes a range zero.
    pub fn clear(&mut self, offset: u64, len: u64, budget: &Arc<Budget>) -> Result<(), Errno> {
        let end = offset.saturating_add(len).min(self.size);
        let beneath = self.lower.as_ref().map_or(0, |lower| lower.len);
        let mut at = offset;
        while at < end {
            let next = (at - at % CHUNK).saturating_add(CHUNK).min(end);
            // Holes are zero already; a program may name a long range.
            if at >= beneath && !self.chunks.contains_key(&(at / CHUNK)) {
                match self.chunks.range(at / CHUNK..).next() {
                    Some((number, _)) => at = number.saturating_mul(CHUNK).max(next),
                    None => break,
                }
                continue;
            }
            let zeros = vec![0; usize::try_from(next - at).map_err(|_| Errno::FBIG)?];
            self.write_chunk(at, &zeros, budget)?;
            at = next;
        }
        Ok(())
    }
}

/// A file of the overlay as it was when it was mapped.
#[derive(Debug, Serialize, Deserialize)]
pub struct Snapshot {
    content: Content,
    path: Arc<[u8]>,
    identity: (u64, u64),
    node: (u64, bool),
    #[serde(skip)]
    _share: Share,
}

impl Snapshot {
    /// The content as it is now. What it keeps alive counts as long as it is mapped.
    pub fn new(
        content: &Content,
        path: Arc<[u8]>,
        identity: (u64, u64),
        node: (u64, bool),
        budget: &Arc<Budget>,
    ) -> Result<Self, Errno> {
        let cost = length(content.chunks.len()).saturating_mul(CHUNK_COST);
        let share = budget
            .take(cost.saturating_add(CHUNK_COST))
            .map_err(|_| Errno::NOMEM)?;
        Ok(Self {
            content: content.clone(),
            path,
            identity,
            node,
            _share: share,
        })
    }
}

impl Snapshot {
    /// Whether what was read from a snapshot of a machine can be.
    pub fn is_sound(&self) -> bool {
        self.content.is_sound()
    }
}

impl PageSource for Snapshot {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        Ok(self.content.read(offset, buf)?)
    }

    fn path(&self) -> &[u8] {
        &self.path
    }

    fn identity(&self) -> (u64, u64) {
        self.identity
    }

    fn node(&self) -> Option<(u64, bool)> {
        Some(self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(content: &Content) -> Vec<u8> {
        let mut bytes = vec![0xee; content.size() as usize];
        assert_eq!(content.read(0, &mut bytes).unwrap(), bytes.len());
        bytes
    }

    proptest! {
        /// A file is what a vector of bytes would be, and a clone does not see what is written after it.
        #[test]
        fn it_is_as_a_vector(steps in prop::collection::vec((0u8..4, 0u64..100_000, 0u64..40_000, any::<u8>()), 1..20)) {
            let budget = Budget::new(1 << 30);
            let mut content = Content::default();
            let mut model: Vec<u8> = Vec::new();
            for (what, offset, len, byte) in steps {
                let (before, model_before) = (content.clone(), model.clone());
                let end = (offset + len) as usize;
                match what {
                    0 => {
                        let bytes = vec![byte; len as usize];
                        prop_assert_eq!(content.write(offset, &bytes, &budget), Ok(bytes.len()));
                        if len > 0 && model.len() < end {
                            model.resize(end, 0);
                        }
                        if len > 0 {
                            model[offset as usize..end].fill(byte);
                        }
                    }
                    1 => {
                        content.set_size(offset, &budget).unwrap();
                        model.resize(offset as usize, 0);
                    }
                    2 => {
                        content.clear(offset, len, &budget).unwrap();
                        let end = end.min(model.len());
                        if let Some(range) = model.get_mut(offset as usize..end) {
                            range.fill(0);
                        }
                    }
                    _ => content.allocate(offset, len, &budget).unwrap(),
                }
                prop_assert_eq!(&all(&content), &model);
                prop_assert_eq!(all(&before), model_before);
            }
            drop(content);
            prop_assert_eq!(budget.left(), budget.limit());
        }
    }

    #[test]
    fn bytes_are_bounded() {
        let budget = Budget::new(100_000);
        let mut content = Content::default();
        assert_eq!(content.write(0, &[1; 200_000], &budget), Ok(6 * (16 << 10)));
        assert_eq!(
            content.write(1 << 20, &[1; 9000], &budget),
            Err(Errno::NOSPC)
        );
        assert_eq!(content.write(MAX_OFFSET, &[1], &budget), Err(Errno::FBIG));
        content.set_size(1 << 60, &budget).unwrap();
        assert_eq!(content.allocate(0, 1 << 60, &budget), Err(Errno::NOSPC));
        content.clear(0, 1 << 60, &budget).unwrap();
        content.set_size(0, &budget).unwrap();
        assert_eq!(budget.left(), 100_000);
    }
}
