//! Where a call's bytes are in the program, and what readv(2), writev(2) and their relatives say beside.

use rustix::io::Errno;

use crate::linux::abi::{Guest, USER_END, field_u64, flags, length};

/// `IOV_MAX` (linux/uio.h).
const MAX_PIECES: u64 = 1024;
/// `MAX_RW_COUNT` (linux/fs.h).
const MOST_TOTAL: u64 = 0x7fff_f000;

/// Where a call's bytes are in the program: one buffer, or a vector of them.
#[derive(Debug)]
pub struct Pieces(Vec<(u64, u64)>);

impl Pieces {
    /// One buffer.
    pub fn one(address: u64, len: u64) -> Self {
        Self(vec![(address, len)])
    }

    /// An array of `struct iovec`: base, length.
    pub fn vector(guest: &Guest<'_>, address: u64, number: u64) -> Result<Self, Errno> {
        if number > MAX_PIECES {
            return Err(Errno::INVAL);
        }
        let pieces = (0..number).map(|i| {
            let at = address
                .checked_add(i.saturating_mul(16))
                .ok_or(Errno::FAULT)?;
            let bytes: [u8; 16] = guest.read(at)?;
            let (base, len) = (field_u64(&bytes, 0), field_u64(&bytes, 8));
            i64::try_from(len).map_err(|_| Errno::INVAL)?;
            Ok((base, len))
        });
        let pieces: Vec<_> = pieces.collect::<Result<_, Errno>>()?;
        // What can't be an address is found out before anything is moved.
        let reaches =
            |&(base, len): &(u64, u64)| base.checked_add(len).is_some_and(|end| end <= USER_END);
        if !pieces.iter().all(reaches) {
            return Err(Errno::FAULT);
        }
        Ok(Self(pieces))
    }
}

impl Pieces {
    /// Address and length of each.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().copied()
    }

    /// Their length together.
    pub fn total(&self) -> u64 {
        let lengths = self.0.iter().map(|(_, len)| *len);
        lengths.fold(0, u64::saturating_add).min(MOST_TOTAL)
    }

    /// The part of them that `len` bytes after the first `skip` are, piece by piece.
    fn part(&self, mut skip: u64, mut len: u64) -> impl Iterator<Item = Result<(u64, u64), Errno>> {
        self.0.iter().filter_map(move |&(base, size)| {
            let before = skip.min(size);
            skip -= before;
            let part = (size - before).min(len);
            len -= part;
            let at = base.checked_add(before).ok_or(Errno::FAULT);
            (part > 0).then(|| at.map(|at| (at, part)))
        })
    }

    /// Copies `len` bytes after the first `skip` from the program. `len` is to be one that the host can hold.
    pub fn gather(&self, guest: &Guest<'_>, skip: u64, len: u64) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::new();
        for part in self.part(skip, len) {
            let (at, len) = part?;
            let start = bytes.len();
            let end = start.saturating_add(usize::try_from(len).map_err(|_| Errno::NOMEM)?);
            bytes.resize(end, 0);
            guest
                .memory
                .read(at, bytes.get_mut(start..).unwrap_or_default())?;
        }
        Ok(bytes)
    }

    /// Copies bytes to the program, after the first `skip`.
    pub fn scatter(&self, guest: &mut Guest<'_>, skip: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut rest = bytes;
        for part in self.part(skip, length(bytes.len())) {
            let (at, len) = part?;
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let Some((now, later)) = rest.split_at_checked(len) else {
                break;
            };
            guest.write(at, now)?;
            rest = later;
        }
        Ok(())
    }
}

/// A wish that makes no difference.
const RWF_HIPRI: u32 = 1;
/// `RWF_DSYNC` and `RWF_SYNC`.
const RWF_SYNCS: u32 = 2 | 4;
const RWF_NOWAIT: u32 = 8;
const RWF_APPEND: u32 = 16;

/// What preadv2(2) and pwritev2(2) say beside their older forms.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wishes {
    /// Where, unless it is the file's position: an offset of -1.
    pub offset: Option<u64>,
    /// A write goes to the end, and leaves the position alone.
    pub append: bool,
    /// EAGAIN instead of a wait.
    pub now: bool,
    /// What is written is to be on the disk then.
    pub syncs: bool,
}

impl Wishes {
    /// The offset and `RWF_*`.
    pub fn read(offset: u64, how: u64) -> Result<Self, Errno> {
        let how = flags(how);
        if how & !(RWF_HIPRI | RWF_SYNCS | RWF_NOWAIT | RWF_APPEND) != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(Self {
            offset: (offset != u64::MAX).then_some(offset),
            append: how & RWF_APPEND != 0,
            now: how & RWF_NOWAIT != 0,
            syncs: how & RWF_SYNCS != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{Machine, NoMemory, Recorder, SCRATCH};
    use crate::random::Random;
    use syscalls::Sysno;

    #[test]
    fn what_a_write_has_sent_that_may_not_wait_it_says() {
        let mut machine = Machine::with_sockets();
        let pair = [1, 1, 0, SCRATCH];
        assert_eq!(machine.call(Sysno::socketpair, &pair), 0);
        // More than a socket takes.
        let piece = [SCRATCH.to_le_bytes(), (64u64 << 12).to_le_bytes()].concat();
        let vector = machine.put(1, &piece.repeat(64));
        let now = [3, vector, 64, u64::MAX, 0, RWF_NOWAIT.into()];
        let sent = machine.call(Sysno::pwritev2, &now);
        assert!(0 < sent && sent < 64 << 18, "{sent}");
        assert_eq!(machine.call(Sysno::pwritev2, &now), -11);
        let mut received = 0;
        while received < sent {
            received += machine.call(Sysno::read, &[4, SCRATCH + 8192, 32 << 12]);
        }
        assert_eq!(received, sent);
        machine.wait(Sysno::read, &[4, SCRATCH + 8192, 1]);
    }

    #[test]
    fn vectors_must_make_sense() {
        let guest = Guest {
            memory: &mut NoMemory,
            host: &mut Recorder::default(),
            random: &mut Random::new().unwrap(),
        };
        assert_eq!(Pieces::vector(&guest, 0, 1).unwrap_err(), Errno::FAULT);
        assert!(Pieces::vector(&guest, 0, 0).unwrap().0.is_empty());
        let mut machine = Machine::new(Vec::new());
        let huge = machine.put(0, &[0xff; 32]);
        assert_eq!(machine.call(Sysno::writev, &[1, huge, 2]), -22);
    }
}
