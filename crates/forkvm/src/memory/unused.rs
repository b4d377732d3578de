//! What a program has never written to, or left zero, by the time it is frozen: long runs of zero pages, mostly of heap.
//!
//! A master has no memory for them, and its forks map them as anonymous memory instead of the master's file: where a file
//! has a hole, a mere read of it gives it a page for good, and that is memory of nobody's request.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::arch::layout::{PAGE, page_down, page_up};
use crate::memory::mapping::Mapping;

/// Shorter runs, in bytes, are left to the file. Each costs every fork a mapping or two of the 65,530 that Linux gives a
/// process (`vm.max_map_count`), and making a virtual machine takes longer the more there are.
const LEAST: u64 = 64 << 10;
/// At most so many, the longest.
const MOST: usize = 8;
/// When no more than so many bytes are left of the others, that is enough: they are what reads may give the file once, for
/// all requests, and making a virtual machine has KVM look at every mapping of the process, those of all forks.
const SPARE: u64 = 4 << 20;

/// Takes the memory of all runs `among` these addresses out of the master's file, and gives those, in order, that forks are
/// to map as anonymous memory. `memory` is a mapping of the file.
pub fn give_back(file: &File, memory: &Mapping, among: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let runs = zero_runs(file, memory, among)?;
    for run in &runs {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file, how, run.start, len(run))?;
    }
    Ok(longest(runs))
}

/// The same of a file that has no memory for these addresses but what lies in `used`, which is in order.
pub fn between(used: impl Iterator<Item = Range<u64>>, among: Range<u64>) -> Vec<Range<u64>> {
    let (mut runs, mut at) = (Vec::new(), among.start);
    for part in used {
        extend(&mut runs, at..part.start);
        at = part.end;
    }
    extend(&mut runs, at..among.end);
    runs.retain(|run| len(run) >= LEAST);
    longest(runs)
}

fn len(run: &Range<u64>) -> u64 {
    run.end - run.start
}

/// All runs that are long enough. Holes are not read, which would fill them.
fn zero_runs(file: &File, memory: &Mapping, among: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut at = among.start;
    while at < among.end {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(offset) => page_down(offset).clamp(at, among.end),
            // There is none up to the end.
            Err(Errno::NXIO) => among.end,
            Err(error) => return Err(error.into()),
        };
        extend(&mut runs, at..data);
        if data == among.end {
            break;
        }
        let hole = seek(file, SeekFrom::Hole(data))?;
        at = page_up(hole).unwrap_or(among.end).min(among.end);
        for page in (data..at).step_by(PAGE as usize) {
            if memory.is_zero(page).map_err(io::Error::other)? {
                extend(&mut runs, page..page + PAGE);
            }
        }
    }
    runs.retain(|run| len(run) >= LEAST);
    Ok(runs)
}

/// Adds what follows the runs so far, directly or not. A last one that stays too short makes room.
fn extend(runs: &mut Vec<Range<u64>>, next: Range<u64>) {
    match runs.last_mut() {
        _ if next.is_empty() => {}
        Some(last) if last.end == next.start => last.end = next.end,
        Some(last) if len(last) < LEAST => *last = next,
        _ => {
            // There may be as many as memory has room for.
            if runs.len() >= 2 * MOST {
                *runs = longest(std::mem::take(runs));
            }
            runs.push(next);
        }
    }
}

fn longest(mut runs: Vec<Range<u64>>) -> Vec<Range<u64>> {
    runs.sort_by_key(|run| std::cmp::Reverse(len(run)));
    let mut rest: u64 = runs.iter().map(len).sum();
    let enough = runs.iter().position(|run| {
        let enough = rest <= SPARE;
        rest -= len(run);
        enough
    });
    runs.truncate(enough.unwrap_or(MOST).min(MOST));
    runs.sort_by_key(|run| run.start);
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::sync::Arc;

    const MIB: u64 = 1 << 20;

    fn memfd(len: u64) -> (Arc<File>, Mapping) {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = Arc::new(File::from(file));
        file.set_len(len).unwrap();
        let mapping = Mapping::shared(&file, len).unwrap();
        (file, mapping)
    }

    #[test]
    fn what_was_written_stays_and_zeros_go() {
        let (file, memory) = memfd(8 * MIB);
        // Zeros, as a program leaves them that clears what it frees, or only reads.
        memory.write(4 * MIB, &vec![0; MIB as usize]).unwrap();
        memory.read(6 * MIB, &mut [0; 10_000]).unwrap();
        for address in [2 * MIB, 3 * MIB, 3 * MIB + LEAST, 7 * MIB + 5] {
            memory.write(address, &[7]).unwrap();
        }
        let unused = give_back(&file, &memory, MIB..8 * MIB).unwrap();
        let page = PAGE;
        // One page less than it takes is between the third and the fourth. What is left is little enough for the file.
        let longest = 3 * MIB + LEAST + page..7 * MIB;
        assert_eq!(unused, std::slice::from_ref(&longest));
        assert_eq!(file.metadata().unwrap().blocks() * 512, 4 * PAGE);
        for address in [2 * MIB, 3 * MIB, 3 * MIB + LEAST, 7 * MIB + 5] {
            let mut byte = [0];
            memory.read(address, &mut byte).unwrap();
            assert_eq!(byte, [7]);
        }
    }

    #[test]
    fn the_longest_are_taken_in_order() {
        let (file, memory) = memfd(128 * MIB);
        // Ever longer runs, more than are taken.
        let mut at = 0;
        let mut runs = Vec::new();
        for n in 1..=MOST as u64 + 4 {
            memory.write(at, &[1]).unwrap();
            runs.push(at + PAGE..at + PAGE + n * MIB);
            at = runs[runs.len() - 1].end;
        }
        memory.write(at, &[1]).unwrap();
        let unused = give_back(&file, &memory, 0..at + PAGE).unwrap();
        assert_eq!(unused, runs[4..]);
    }

    #[test]
    fn forks_read_holes_for_nothing() {
        let (file, memory) = memfd(16 * MIB);
        memory.write(12 * MIB, &[9; 4 << 20]).unwrap();
        let unused = give_back(&file, &memory, 0..16 * MIB).unwrap();
        drop(memory);
        let blocks = file.metadata().unwrap().blocks();
        let master = Mapping::frozen(&file, 16 * MIB, &unused).unwrap();
        let fork = Mapping::fork(&file, 16 * MIB, &unused).unwrap();
        assert_eq!(fork.differing_pages(&master), 0);
        fork.write(MIB, &[1]).unwrap();
        fork.write(12 * MIB, &[1]).unwrap();
        assert_eq!(fork.differing_pages(&master), 2);
        for address in [MIB, 12 * MIB] {
            fork.copy_page(&master, (address / PAGE) as u32).unwrap();
        }
        assert_eq!(fork.differing_pages(&master), 0);
        fork.write(MIB, &[1]).unwrap();
        fork.drop_private_pages().unwrap();
        assert_eq!(fork.differing_pages(&master), 0);
        assert_eq!(file.metadata().unwrap().blocks(), blocks);
    }
}
