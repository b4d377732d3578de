//! A snapshot's memory on its way from the file into the machine's, chunk by chunk, while forks run already. Each chunk is found to be
//! whole before any of it is used; whoever wants a page before its chunk is there waits for it ([`Arrival`]).

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::error::SnapshotError;
use super::format::{CHUNK, Hash, hash};
use super::state::State;
use crate::arch::layout::PAGE;
use crate::master::freeze;
use crate::memory::mapping::Mapping;
use crate::memory::space::arrival::{Arrival, Part, lead_everywhere};

/// How long the kernel may keep the memory from being sealed.
const SEALING: Duration = Duration::from_secs(60);
/// Most threads that read one.
const MOST_THREADS: usize = 8;

/// Memory that comes. Once this is dropped no more is read than what is being read.
#[derive(Debug)]
pub struct Coming {
    arrival: Arc<Arrival>,
}

impl Coming {
    /// Has it come, by threads of its own.
    pub fn start(source: Source) -> Result<Self, SnapshotError> {
        let arrival = Arc::clone(&source.arrival);
        let thread = thread::Builder::new().name("snapshot".into());
        thread
            .spawn(move || source.bring_all())
            .map_err(|error| SnapshotError::host(format_args!("a thread to read it: {error}")))?;
        Ok(Self { arrival })
    }

    /// What is there, and what is not.
    pub fn arrival(&self) -> &Arc<Arrival> {
        &self.arrival
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        // Nobody waits for its thread, which may hang in a read and has all that it uses for itself.
        self.arrival.lose("its server is gone".into());
    }
}

/// Where memory comes from, and where it goes.
pub struct Source {
    /// The snapshot, and where its memory begins.
    pub file: File,
    pub at: u64,
    /// How much it is, and the hash of each chunk of it.
    pub len: u64,
    pub hashes: Vec<Hash>,
    pub places: Places,
    /// What it goes to, of which this is the only mapping to write to.
    pub memfd: Arc<File>,
    pub memory: Mapping,
    /// The engine's own part of the virtual addresses.
    pub monitor: Range<u64>,
    pub arrival: Arc<Arrival>,
}

/// Has nobody wait for a thread that has panicked.
struct Ends<'a>(&'a Arrival);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.lose("who reads it has panicked".into());
        }
    }
}

impl Source {
    fn bring_all(self) {
        let arrival = Arc::clone(&self.arrival);
        let _ends = Ends(&arrival);
        // One processor is for those who serve from it meanwhile.
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let others = processors.saturating_sub(2).min(MOST_THREADS - 1);
        thread::scope(|scope| {
            for _ in 0..others {
                // Where there is no thread to be had, this one does more.
                let _ = thread::Builder::new().spawn_scoped(scope, || {
                    let _ends = Ends(&arrival);
                    self.work();
                });
            }
            self.work();
        });
        if arrival.wait_until_settled().is_ok()
            && let Err(error) = self.finish(SEALING)
        {
            arrival.lose(error.to_string());
        }
    }

    fn work(&self) {
        let mut bytes = vec![0; CHUNK];
        while let Some(number) = self.arrival.take() {
            match self.bring(number, &mut bytes) {
                Ok(()) => self.arrival.came(number),
                Err(error) => self.arrival.lose(error.to_string()),
            }
        }
    }

    fn bring(&self, number: usize, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        let start = (number * CHUNK) as u64;
        let len = self.len.saturating_sub(start).min(CHUNK as u64);
        let chunk = &mut bytes[..len as usize];
        read_exact_at(&self.file, chunk, self.at + start)?;
        match self.hashes.get(number) {
            Some(expected) if hash(chunk) == *expected => {
                self.places.fill(&self.memory, chunk, start)
            }
            _ => Err(SnapshotError::Damaged("its memory")),
        }
    }

    /// Has all entries lead to their frames, which are there, and nobody write to any of it from now on. Where the kernel holds one
    /// of its pages for so long, the seal is left out: nobody has it mapped for writing any more, or can: the first seal is there.
    fn finish(self, sealing: Duration) -> Result<(), SnapshotError> {
        lead_everywhere(&self.memory, &self.monitor).map_err(SnapshotError::host)?;
        drop(self.memory);
        match freeze::seal(&self.memfd, Instant::now() + sealing) {
            Err(error) if error.kind() != ErrorKind::ResourceBusy => {
                return Err(SnapshotError::host(error));
            }
            _ => {}
        }
        self.arrival.finish();
        Ok(())
    }
}

/// Where frames of a file belong that lie there one after the other: for each run of neighbours, where it begins in the file's memory
/// and in the machine's.
pub struct Places(Vec<Part>);

impl Places {
    /// Fails unless each frame is one that a page has, and is there once.
    pub fn of(state: &State, memory_len: u64) -> Result<Self, SnapshotError> {
        let nobodys = || SnapshotError::Unsound("a page of memory that is nobody's".into());
        let mut free = state.space.frames();
        let (mut parts, mut at) = (Vec::new(), 0u64);
        for run in &state.frames {
            let end = run.first.checked_add(run.count).ok_or_else(nobodys)?;
            if run.count == 0 || !free.take(run.first..end) {
                return Err(nobodys());
            }
            parts.push(Part {
                frame: run.first * PAGE,
                len: run.count * PAGE,
                at,
            });
            at += run.count * PAGE;
        }
        match at == memory_len {
            true => Ok(Self(parts)),
            false => Err(SnapshotError::Unsound("how much memory it has".into())),
        }
    }

    /// In the file's order.
    pub fn parts(&self) -> &[Part] {
        &self.0
    }

    /// Puts bytes where they belong that lie there in the file's memory.
    fn fill(&self, memory: &Mapping, mut bytes: &[u8], mut at: u64) -> Result<(), SnapshotError> {
        let first = self.0.partition_point(|part| part.at + part.len <= at);
        for part in self.0.iter().skip(first) {
            if bytes.is_empty() {
                break;
            }
            let offset = at - part.at;
            let len = (part.len - offset).min(bytes.len() as u64);
            let (piece, rest) = bytes.split_at(len as usize);
            let place = part.frame + offset;
            // All at once, and with an error where the host has no memory, where a fault would be SIGBUS.
            match memory.populate(place..place + len) {
                // Linux before 5.14.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                result => result.map_err(SnapshotError::host)?,
            }
            memory.write(place, piece).map_err(SnapshotError::host)?;
            (bytes, at) = (rest, at + len);
        }
        match bytes.is_empty() {
            true => Ok(()),
            false => Err(SnapshotError::Unsound("more memory than there is".into())),
        }
    }
}

/// Reads so many bytes that are to be there.
fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> Result<(), SnapshotError> {
    file.read_exact_at(bytes, at)
        .map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => SnapshotError::Truncated,
            _ => SnapshotError::NotRead(error),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_does_not_let_seal_is_there_all_the_same() {
        const LEN: u64 = 4 << 20;
        let memfd = freeze::memfd("forkvm-test", LEN).unwrap();
        let map = || Mapping::shared(&memfd, LEN).unwrap();
        let (memory, held) = (map(), map());
        freeze::seal_for_others(&memfd).unwrap();
        let bytes = vec![7; CHUNK];
        let file = tempfile(&bytes);
        let part = Part {
            frame: LEN - CHUNK as u64,
            len: CHUNK as u64,
            at: 0,
        };
        let arrival = Arc::new(Arrival::new(vec![part], CHUNK as u64, CHUNK as u64));
        let source = Source {
            at: 0,
            file,
            len: CHUNK as u64,
            hashes: vec![hash(&bytes)],
            places: Places(vec![part]),
            memfd: Arc::clone(&memfd),
            memory,
            monitor: 0..0,
            arrival: Arc::clone(&arrival),
        };
        source.work();
        source.finish(Duration::ZERO).unwrap();
        assert!(arrival.is_whole());
        let mut came = [0];
        held.read(LEN - 1, &mut came).unwrap();
        assert_eq!(came, [7]);
        // Nobody who has not got it already can write to it.
        assert!(Mapping::shared(&memfd, LEN).is_err());
    }

    /// A file of these bytes that is nowhere.
    fn tempfile(bytes: &[u8]) -> File {
        use std::io::Write;
        let memfd = rustix::fs::memfd_create("forkvm-test", rustix::fs::MemfdFlags::CLOEXEC);
        let mut file = File::from(memfd.unwrap());
        file.write_all(bytes).unwrap();
        file
    }
}
