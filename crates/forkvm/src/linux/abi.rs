//! Crossing the border to the program: checked copies, and structures field by field in little-endian.

use rustix::io::Errno;

use crate::linux::call::Outcome;
pub use crate::memory::user::USER_END;
use crate::memory::user::{BadAddress, UserMemory};
use crate::random::Random;
use crate::request::{Host, Stream};

/// Size of a page.
pub const PAGE: u64 = 4096;

/// Longest path including its NUL (`PATH_MAX`, linux/limits.h).
pub const PATH_MAX: usize = 4096;

/// `AT_FDCWD` as an argument register, for calls without a descriptor to start from.
pub const HERE: u64 = libc::AT_FDCWD as u64;

/// Most bytes that one call moves, all its buffers together, so that it is over soon after the request's deadline: a
/// vector may name the same buffer a thousand times. The program is told how much it was and calls again.
pub const MOST_BYTES: u64 = 16 << 20;

/// Host memory used to carry bytes between the program and the host, per call.
pub const CHUNK: usize = 16 << 10;

impl From<BadAddress> for Errno {
    fn from(_: BadAddress) -> Self {
        Errno::FAULT
    }
}

/// What most calls give: a value for RAX, or the error whose negative goes there.
pub type Value = Result<i64, Errno>;

/// What calls give that may also end or suspend the program.
pub type Reply = Result<Outcome, Errno>;

/// RAX for an error.
pub fn failed(errno: Errno) -> Outcome {
    Outcome::Return(-i64::from(errno.raw_os_error()))
}

impl From<Value> for Outcome {
    fn from(value: Value) -> Self {
        value.map_or_else(failed, Outcome::Return)
    }
}

impl From<Reply> for Outcome {
    fn from(reply: Reply) -> Self {
        reply.unwrap_or_else(failed)
    }
}

/// A count of bytes or things as a return value.
pub fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A host length as a guest length; the two have the same width on the only machine there is.
pub fn length(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// The machine that makes a call.
pub struct Guest<'a> {
    /// The program's memory.
    pub memory: &'a mut dyn UserMemory,
    /// Where output goes.
    pub host: &'a mut dyn Host,
    /// Its random numbers.
    pub random: &'a mut Random,
}

impl Guest<'_> {
    /// Copies `N` bytes from the program.
    pub fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Errno> {
        let mut bytes = [0; N];
        self.memory.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// An `int` of the program.
    pub fn read_u32(&self, address: u64) -> Result<u32, Errno> {
        self.read(address).map(u32::from_le_bytes)
    }

    /// A `long` of the program.
    pub fn read_u64(&self, address: u64) -> Result<u64, Errno> {
        self.read(address).map(u64::from_le_bytes)
    }

    /// Copies bytes to the program.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        Ok(self.memory.write(address, bytes)?)
    }

    /// Copies bytes to the program unless the pointer is null, as most optional results have it.
    pub fn write_unless_null(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        if address == 0 {
            Ok(())
        } else {
            self.write(address, bytes)
        }
    }

    /// A NUL-terminated string of at most `most` bytes with its NUL; without it, `too_long`.
    pub fn read_string(
        &self,
        address: u64,
        most: usize,
        too_long: Errno,
    ) -> Result<Vec<u8>, Errno> {
        // The string may end just before unmapped memory, so no piece may reach into the next page.
        let mut text = Vec::new();
        let mut at = address;
        while text.len() < most {
            let to_page_end = usize::try_from(PAGE - at % PAGE).unwrap_or(1);
            let piece = to_page_end.min(256).min(most - text.len());
            let mut bytes = [0; 256];
            let bytes = bytes.get_mut(..piece).ok_or(Errno::FAULT)?;
            self.memory.read(at, bytes)?;
            if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
                text.extend_from_slice(bytes.get(..end).unwrap_or_default());
                return Ok(text);
            }
            text.extend_from_slice(bytes);
            at = at.checked_add(length(piece)).ok_or(Errno::FAULT)?;
        }
        Err(too_long)
    }

    /// A path name.
    pub fn read_path(&self, address: u64) -> Result<Vec<u8>, Errno> {
        self.read_string(address, PATH_MAX, Errno::NAMETOOLONG)
    }

    /// A line for whoever reads the program's standard error, about something the program can't know itself.
    pub fn note(&mut self, text: &str) {
        self.host.output(Stream::Stderr, text.as_bytes());
        self.host.output(Stream::Stderr, b"\n");
    }
}

/// A structure being laid out for the program; everything not put is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout<const N: usize>([u8; N]);

impl<const N: usize> Layout<N> {
    /// All zeros.
    pub fn new() -> Self {
        Self([0; N])
    }

    /// Puts bytes at an offset. Offsets are constants of this program, so what would not fit is a mistake
    /// that a unit test of the structure shows; it is left out rather than panicking.
    pub fn bytes(mut self, offset: usize, value: &[u8]) -> Self {
        let place = self
            .0
            .get_mut(offset..)
            .and_then(|rest| rest.get_mut(..value.len()));
        debug_assert!(place.is_some(), "{} bytes at {offset} of {N}", value.len());
        if let Some(place) = place {
            place.copy_from_slice(value);
        }
        self
    }

    /// Puts a 16-bit field.
    pub fn u16(self, offset: usize, value: u16) -> Self {
        self.bytes(offset, &value.to_le_bytes())
    }

    /// Puts a 32-bit field.
    pub fn u32(self, offset: usize, value: u32) -> Self {
        self.bytes(offset, &value.to_le_bytes())
    }

    /// Puts a 64-bit field.
    pub fn u64(self, offset: usize, value: u64) -> Self {
        self.bytes(offset, &value.to_le_bytes())
    }

    /// Puts a signed 64-bit field.
    pub fn i64(self, offset: usize, value: i64) -> Self {
        self.bytes(offset, &value.to_le_bytes())
    }

    /// The bytes to copy.
    pub fn done(&self) -> &[u8] {
        &self.0
    }

    /// The bytes to keep.
    pub fn array(self) -> [u8; N] {
        self.0
    }
}

/// A 64-bit field of a structure copied from the program; zero beyond its end.
pub fn field_u64(bytes: &[u8], offset: usize) -> u64 {
    let field = bytes.get(offset..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u64::from_le_bytes(*field))
}

/// A 32-bit field of a structure copied from the program; zero beyond its end.
pub fn field_u32(bytes: &[u8], offset: usize) -> u32 {
    let field = bytes.get(offset..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u32::from_le_bytes(*field))
}

/// The low half of an argument register, as the kernel takes an `int` argument.
pub fn int(argument: u64) -> i32 {
    let bytes = argument.to_le_bytes();
    i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The low half of an argument register, unsigned: flags and modes.
pub fn flags(argument: u64) -> u32 {
    u32::from_le_bytes(int(argument).to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::testing::{Recorder, TestMemory};

    #[test]
    fn strings_end_at_their_nul_even_at_the_end_of_memory() {
        let mut memory = TestMemory::new(0x1000, 0x1000);
        let mut host = Recorder::default();
        memory.write(0x1ffc, b"abc\0").unwrap();
        let guest = Guest {
            memory: &mut memory,
            host: &mut host,
            random: &mut Random::new().unwrap(),
        };
        assert_eq!(guest.read_path(0x1ffc).unwrap(), b"abc");
        assert_eq!(
            guest.read_string(0x1ffc, 3, Errno::NAMETOOLONG),
            Err(Errno::NAMETOOLONG)
        );
        assert_eq!(guest.read_path(0x2000), Err(Errno::FAULT));
        assert_eq!(guest.read_path(u64::MAX), Err(Errno::FAULT));
    }

    #[test]
    fn arguments_are_cut_to_ints() {
        assert_eq!(int(u64::MAX), -1);
        assert_eq!(int(0x1_0000_0003), 3);
        assert_eq!(flags(u64::MAX), u32::MAX);
    }

    #[test]
    fn layouts_are_little_endian() {
        let laid_out = Layout::<12>::new().u32(0, 1).i64(4, -2);
        assert_eq!(
            laid_out.done(),
            [1, 0, 0, 0, 0xfe, 255, 255, 255, 255, 255, 255, 255]
        );
        assert_eq!(field_u64(laid_out.done(), 4), u64::MAX - 1);
        assert_eq!(field_u32(laid_out.done(), 10), 0);
    }
}
