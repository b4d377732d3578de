//! Where a body goes in a guest: to a buffer of the program's, to memory that is mapped for it as it comes, or nowhere.

use crate::call::fetch::asked::PIECE;
use crate::call::fetch::failed::Failed;
use crate::machine::Machine;
use crate::memory::user::UserMemory;

/// Bytes that are mapped for a body whose length is not known.
const FIRST: u64 = 64 << 10;

/// A body on its way into a guest.
pub struct Kept {
    place: Place,
    /// Where it is.
    pub address: u64,
    /// For how many bytes there is room.
    pub room: u64,
    /// How many there are.
    pub len: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Of the program's.
    Buffer,
    /// Mapped for it.
    Mapped,
    /// It is not kept.
    Nowhere,
}

impl Kept {
    /// In a buffer of the program's.
    pub fn in_buffer(address: u64, room: u64) -> Self {
        Self {
            place: Place::Buffer,
            address,
            room,
            len: 0,
        }
    }

    /// Nowhere: it is only read.
    pub fn nowhere() -> Self {
        Self {
            place: Place::Nowhere,
            address: 0,
            room: 0,
            len: 0,
        }
    }

    /// In memory that is mapped for it, with a NUL behind it; `len` if that is known.
    pub fn mapped(machine: &mut Machine, len: Option<u64>) -> Result<Self, Failed> {
        let room = len.unwrap_or(FIRST);
        Ok(Self {
            place: Place::Mapped,
            address: map(machine, room)?,
            room,
            len: 0,
        })
    }

    /// Takes more of it.
    pub fn put(&mut self, machine: &mut Machine, bytes: &[u8]) -> Result<(), Failed> {
        if self.place == Place::Nowhere {
            return Ok(());
        }
        let len = self.len.saturating_add(bytes.len() as u64);
        if len > self.room {
            match self.place {
                Place::Mapped => self.grow(machine, len)?,
                _ => return Err(Failed::Buffer(self.room)),
            }
        }
        machine.memory.write(self.address + self.len, bytes)?;
        self.len = len;
        Ok(())
    }

    /// Moves it to where there is room for at least `len` bytes.
    fn grow(&mut self, machine: &mut Machine, len: u64) -> Result<(), Failed> {
        let room = self.room.saturating_mul(2).max(len);
        let address = map(machine, room)?;
        let mut at = 0;
        let mut piece = vec![0; PIECE];
        while at < self.len {
            let n = piece.len().min((self.len - at) as usize);
            let moved = machine
                .memory
                .read(self.address + at, &mut piece[..n])
                .and_then(|()| machine.memory.write(address + at, &piece[..n]));
            if let Err(bad) = moved {
                unmap(machine, address, room);
                return Err(bad.into());
            }
            at += n as u64;
        }
        unmap(machine, self.address, self.room);
        (self.address, self.room) = (address, room);
        Ok(())
    }

    /// It is not wanted after all.
    pub fn discard(self, machine: &mut Machine) {
        if self.place == Place::Mapped {
            unmap(machine, self.address, self.room);
        }
    }
}

/// Maps so many bytes and one for a NUL.
fn map(machine: &mut Machine, room: u64) -> Result<u64, Failed> {
    let len = room.saturating_add(1);
    machine
        .linux
        .map_for_engine(len, &mut machine.memory)
        .ok_or(Failed::NoMemory(room))
}

fn unmap(machine: &mut Machine, address: u64, room: u64) {
    let len = room.saturating_add(1);
    machine
        .linux
        .unmap_for_engine(address, len, &mut machine.memory);
}
