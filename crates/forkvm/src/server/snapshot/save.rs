//! A frozen server becomes a file.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::error::SnapshotError;
use super::format::{self, BUILD, CHUNK, Hash};
use super::host::HostKind;
use super::state::{Frames, State};
use super::touched::touched;
use super::written::write_whole;
use crate::arch::layout::PAGE;
use crate::memory::mapping::Mapping;
use crate::server::master::Server;

impl Server {
    /// Writes it to a file, from which another process can serve ([`Snapshot`](super::Snapshot)): for its owner alone, in
    /// one piece, in place of what has this name. The file has what the program has in memory, its secrets among it. `label`
    /// is for who reads it ([`Snapshot::label`](super::Snapshot::label)). Gives how many bytes it has.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn save(self: &Arc<Self>, path: &Path, label: &str) -> Result<u64, SnapshotError> {
        self.wait_until_whole()?;
        let unlike = || SnapshotError::Unsound("a table entry is not as its mapping".into());
        let (space, mapped) = self.space.save(&self.memory).ok_or_else(unlike)?;
        let linux = self.linux.save(self.frozen, &mapped)?;
        let touched = touched(self);
        let (mut first, mut rest) = (Vec::new(), Vec::new());
        for frame in space.frames().iter() {
            let is_zero = self.memory.is_zero(frame * PAGE);
            if !is_zero.map_err(SnapshotError::host)? {
                let runs = if touched.contains(&frame) {
                    &mut first
                } else {
                    &mut rest
                };
                add(runs, frame);
            }
        }
        let touched = first.iter().map(|run| run.count).sum();
        let frames = [first, rest].concat();
        let memory_len = frames.iter().map(|run| run.count * PAGE).sum();
        let chunks = hashes(&self.memory, &frames).map_err(SnapshotError::host)?;
        let state = State {
            label: label.to_owned(),
            terms: self.terms.clone(),
            linux,
            space,
            listener: self.listener,
            stack: self.stack.clone(),
            frames,
            touched,
        };
        let bytes = postcard::to_stdvec(&state).map_err(SnapshotError::host)?;
        let by = (BUILD.to_owned(), HostKind::of(self.kvm));
        let write = |to: &mut io::BufWriter<&std::fs::File>| {
            format::write(to, by, &bytes, memory_len, chunks)?;
            each_page(&self.memory, &state.frames, |page| to.write_all(page))
        };
        write_whole(path, write).map_err(|error| SnapshotError::NotWritten(path.into(), error))
    }
}

/// Adds a frame behind those of some runs.
fn add(runs: &mut Vec<Frames>, frame: u64) {
    match runs.last_mut() {
        Some(run) if run.first + run.count == frame => run.count += 1,
        _ => runs.push(Frames {
            first: frame,
            count: 1,
        }),
    }
}

/// The hash of each chunk.
fn hashes(memory: &Mapping, frames: &[Frames]) -> io::Result<Vec<Hash>> {
    let (mut hashes, mut hash, mut len) = (Vec::new(), Sha256::new(), 0);
    each_page(memory, frames, |page| {
        hash.update(page);
        len += page.len();
        if len == CHUNK {
            hashes.push(hash.finalize_reset().into());
            len = 0;
        }
        Ok(())
    })?;
    if len > 0 {
        hashes.push(hash.finalize().into());
    }
    Ok(hashes)
}

fn each_page(
    memory: &Mapping,
    frames: &[Frames],
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut page = [0; PAGE as usize];
    for run in frames {
        for frame in run.first..run.first + run.count {
            memory
                .read(frame * PAGE, &mut page)
                .map_err(io::Error::other)?;
            each(&page)?;
        }
    }
    Ok(())
}
