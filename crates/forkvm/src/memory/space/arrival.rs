//! Frames whose contents come later: those of a snapshot, which is read while forks run already. Until a frame is there, no entry of
//! a page table that leads to it is present, so that the program faults at it, and whoever wants the frame waits for it here.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::arch::layout::PAGE;
use crate::arch::paging;
use crate::memory::access::USER_END;
use crate::memory::mapping::{Mapping, OutOfRange};

/// A frame will never be there: what it comes from was found to be damaged, or can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a part of the snapshot did not come")]
pub struct Lost;

/// Neighbouring frames and where their contents come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Guest-physical address of the first.
    pub frame: u64,
    /// Bytes of them.
    pub len: u64,
    /// Where among all that comes the first one lies.
    pub at: u64,
}

/// Whoever waits for a frame is a request, or makes forks for all: if nothing has come for so long, nothing more does.
const LONGEST: Duration = Duration::from_secs(30);

const COMING: u8 = 0;
const WHOLE: u8 = 1;
const LOST: u8 = 2;

/// What comes, in chunks of one length.
#[derive(Debug)]
pub struct Arrival {
    /// By their frames.
    parts: Vec<Part>,
    chunk: u64,
    state: Mutex<State>,
    changed: Condvar,
    /// What the state comes to: whole, lost or neither.
    ended: AtomicU8,
}

#[derive(Debug)]
struct State {
    chunks: Vec<Chunk>,
    /// All before have been taken.
    next: usize,
    /// Those that somebody waits for.
    wanted: Vec<usize>,
    /// How many are not there.
    left: usize,
    /// Page tables stand, and nobody else writes to the memory.
    settled: bool,
    /// Why nothing more comes.
    lost: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    NotTaken,
    Taken,
    There,
}

impl Arrival {
    /// Of frames whose contents are so many bytes, in chunks of `chunk` bytes, whole pages.
    pub fn new(mut parts: Vec<Part>, len: u64, chunk: u64) -> Self {
        parts.sort_unstable_by_key(|part| part.frame);
        let count = len.div_ceil(chunk) as usize;
        Self {
            parts,
            chunk,
            state: Mutex::new(State {
                chunks: vec![Chunk::NotTaken; count],
                next: 0,
                wanted: Vec::new(),
                left: count,
                settled: false,
                lost: None,
            }),
            changed: Condvar::new(),
            ended: AtomicU8::new(COMING),
        }
    }

    /// The chunk that a frame is in. `None` if it does not come, since it is zero or the engine's.
    pub fn chunk_of(&self, frame: u64) -> Option<usize> {
        let after = self.parts.partition_point(|part| part.frame <= frame);
        let part = self.parts.get(after.checked_sub(1)?)?;
        let offset = frame - part.frame;
        (offset < part.len).then(|| ((part.at + offset) / self.chunk) as usize)
    }

    /// The chunk to bring next, which is the caller's from now on: one that is waited for, or the first of the others. `None` if there
    /// is none left, or no sense in it.
    pub fn take(&self) -> Option<usize> {
        let mut state = self.state.lock();
        if state.lost.is_some() {
            return None;
        }
        while let Some(wanted) = state.wanted.pop() {
            if state.chunks.get(wanted) == Some(&Chunk::NotTaken) {
                return state.taken(wanted);
            }
        }
        while state
            .chunks
            .get(state.next)
            .is_some_and(|&chunk| chunk != Chunk::NotTaken)
        {
            state.next += 1;
        }
        let next = state.next;
        state.taken(next)
    }

    /// A chunk is in memory, all of it.
    pub fn came(&self, chunk: usize) {
        let mut state = self.state.lock();
        if let Some(known) = state.chunks.get_mut(chunk)
            && *known != Chunk::There
        {
            *known = Chunk::There;
            state.left -= 1;
            self.changed.notify_all();
        }
    }

    /// No more comes: why. The first reason counts; what is whole already stays so.
    pub fn lose(&self, why: String) {
        let mut state = self.state.lock();
        if self.is_whole() || state.lost.is_some() {
            return;
        }
        state.lost = Some(why);
        self.ended.store(LOST, Ordering::Release);
        self.changed.notify_all();
    }

    /// Waits for a frame, for as long as anything comes at all.
    pub fn wait_for(&self, frame: u64) -> Result<(), Lost> {
        if self.is_whole() {
            return Ok(());
        }
        let chunk = self.chunk_of(frame);
        chunk.map_or(Ok(()), |chunk| self.wait_for_chunk(chunk))
    }

    /// Waits for the first chunks.
    pub fn wait_for_first(&self, count: usize) -> Result<(), Lost> {
        (0..count).try_for_each(|chunk| self.wait_for_chunk(chunk))
    }

    fn wait_for_chunk(&self, chunk: usize) -> Result<(), Lost> {
        let mut state = self.state.lock();
        loop {
            if state.lost.is_some() {
                return Err(Lost);
            }
            match state.chunks.get(chunk) {
                Some(Chunk::NotTaken) if !state.wanted.contains(&chunk) => state.wanted.push(chunk),
                Some(Chunk::There) | None => return Ok(()),
                _ => {}
            }
            let silent = self.changed.wait_for(&mut state, LONGEST).timed_out();
            if silent && state.chunks.get(chunk) != Some(&Chunk::There) {
                drop(state);
                self.lose(format!("nothing has come for {LONGEST:?}"));
                return Err(Lost);
            }
        }
    }

    /// Whether a frame is there.
    pub fn is_there(&self, frame: u64) -> bool {
        let Some(chunk) = self.chunk_of(frame) else {
            return true;
        };
        self.is_whole() || self.state.lock().chunks.get(chunk) == Some(&Chunk::There)
    }

    /// The page tables stand, and from now on only who brings the rest writes to the memory.
    pub fn settle(&self) {
        self.state.lock().settled = true;
        self.changed.notify_all();
    }

    /// Waits until all chunks are there and [`Arrival::settle`] was called.
    pub fn wait_until_settled(&self) -> Result<(), Lost> {
        let mut state = self.state.lock();
        loop {
            match &*state {
                State { lost: Some(_), .. } => return Err(Lost),
                State {
                    left: 0,
                    settled: true,
                    ..
                } => return Ok(()),
                _ => self.changed.wait(&mut state),
            }
        }
    }

    /// All is there, all entries are present, and nobody can write to the memory any more.
    pub fn finish(&self) {
        let state = self.state.lock();
        if state.lost.is_none() {
            self.ended.store(WHOLE, Ordering::Release);
        }
        self.changed.notify_all();
    }

    /// Waits until [`Arrival::finish`]. Fails with the reason of [`Arrival::lose`].
    pub fn wait_until_whole(&self) -> Result<(), String> {
        let mut state = self.state.lock();
        loop {
            if let Some(why) = &state.lost {
                return Err(why.clone());
            }
            if self.is_whole() {
                return Ok(());
            }
            self.changed.wait(&mut state);
        }
    }

    /// Whether [`Arrival::finish`] was called.
    pub fn is_whole(&self) -> bool {
        self.ended.load(Ordering::Acquire) == WHOLE
    }

    /// Whether [`Arrival::lose`] was called before that.
    pub fn is_lost(&self) -> bool {
        self.ended.load(Ordering::Acquire) == LOST
    }
}

impl State {
    fn taken(&mut self, chunk: usize) -> Option<usize> {
        *self.chunks.get_mut(chunk)? = Chunk::Taken;
        Some(chunk)
    }
}

/// The numbers of frames that were wanted, in order, some more than once.
pub type Wanted = Arc<Mutex<Vec<u64>>>;

/// Frames that a page table does not lead to yet.
#[derive(Debug, Clone)]
pub enum Awaited {
    /// They come.
    Coming(Arc<Arrival>),
    /// All are there; who is led to them is noted, in order.
    Noted(Wanted),
}

impl Awaited {
    /// Waits until a page's frame is there.
    pub fn wait_for(&self, frame: u64) -> Result<(), Lost> {
        match self {
            Self::Coming(arrival) => arrival.wait_for(frame),
            Self::Noted(frames) => {
                frames.lock().push(frame / PAGE);
                Ok(())
            }
        }
    }

    /// Whether an entry may lead there though nobody asks for it.
    pub fn is_there(&self, frame: u64) -> bool {
        matches!(self, Self::Coming(arrival) if arrival.is_there(frame))
    }

    /// Whether none is awaited any more.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Coming(arrival) if arrival.is_whole())
    }

    /// Whether some will never come.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Coming(arrival) if arrival.is_lost())
    }
}

/// Has all entries of a program's lead to their frames, which are there. `ours` is the engine's part of the addresses.
pub fn lead_everywhere(memory: &Mapping, ours: &Range<u64>) -> Result<(), OutOfRange> {
    change_all(memory, ours, |entry| {
        if paging::is_awaited(entry) {
            paging::arrived(entry)
        } else {
            entry
        }
    })
}

/// Has none lead there.
pub fn lead_nowhere(memory: &Mapping, ours: &Range<u64>) -> Result<(), OutOfRange> {
    change_all(memory, ours, paging::awaited)
}

fn change_all(
    memory: &Mapping,
    ours: &Range<u64>,
    change: impl Fn(u64) -> u64,
) -> Result<(), OutOfRange> {
    for range in [0..ours.start, ours.end..USER_END] {
        let mut at = range.start;
        while let Some(page) = paging::next_entry(memory, at..range.end) {
            at = page.address + PAGE;
            let new = change(page.value);
            if new != page.value {
                memory.write_u64(page.entry, new)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 4 * PAGE;

    fn part(frame: u64, pages: u64, at: u64) -> Part {
        Part {
            frame: frame * PAGE,
            len: pages * PAGE,
            at: at * PAGE,
        }
    }

    /// Ten pages: the last three come first.
    fn arrival() -> Arrival {
        let parts = vec![part(20, 3, 0), part(5, 6, 3), part(12, 1, 9)];
        Arrival::new(parts, 10 * PAGE, CHUNK)
    }

    #[test]
    fn frames_are_found() {
        let arrival = arrival();
        let of = |frame: u64| arrival.chunk_of(frame * PAGE);
        assert_eq!([of(20), of(22), of(5)], [Some(0); 3]);
        assert_eq!([of(6), of(9)], [Some(1); 2]);
        assert_eq!([of(10), of(12)], [Some(2); 2]);
        assert_eq!([of(0), of(4), of(11), of(13), of(19), of(23)], [None; 6]);
    }

    #[test]
    fn what_is_waited_for_comes_first() {
        let arrival = arrival();
        assert_eq!(arrival.take(), Some(0));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| arrival.wait_for(12 * PAGE));
            while arrival.state.lock().wanted.is_empty() {
                std::thread::yield_now();
            }
            assert_eq!(arrival.take(), Some(2));
            assert!(!arrival.is_there(12 * PAGE));
            arrival.came(2);
            assert_eq!(waits.join().unwrap(), Ok(()));
        });
        assert!(arrival.is_there(12 * PAGE) && !arrival.is_there(6 * PAGE));
        assert_eq!(arrival.take(), Some(1));
        assert_eq!(arrival.take(), None);
        arrival.came(0);
        arrival.came(1);
        arrival.came(1);
        arrival.settle();
        assert_eq!(arrival.wait_until_settled(), Ok(()));
        assert!(!arrival.is_whole());
        arrival.finish();
        assert_eq!(arrival.wait_until_whole(), Ok(()));
        // Too late to be lost.
        arrival.lose("why".into());
        assert!(arrival.is_whole() && !arrival.is_lost());
    }

    #[test]
    fn nobody_waits_for_what_will_not_come() {
        let arrival = arrival();
        std::thread::scope(|scope| {
            let waits = [
                scope.spawn(|| arrival.wait_for(5 * PAGE)),
                scope.spawn(|| arrival.wait_for_first(3)),
                scope.spawn(|| arrival.wait_until_settled()),
            ];
            arrival.lose("first".into());
            arrival.lose("second".into());
            for wait in waits {
                assert_eq!(wait.join().unwrap(), Err(Lost));
            }
        });
        assert_eq!(arrival.take(), None);
        arrival.finish();
        assert_eq!(arrival.wait_until_whole(), Err("first".into()));
        assert!(arrival.is_lost());
        // What does not come is not waited for.
        assert_eq!(arrival.wait_for(100 * PAGE), Ok(()));
    }
}
