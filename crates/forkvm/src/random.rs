//! Every random number that a program sees: `kvm_request.prng`, `getrandom`, `/dev/urandom`.

use std::time::Instant;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// One machine's generator, a stream cipher with a key from the host's getrandom(2), so that no request pays for a system
/// call. It is no part of what a reset puts back, nor of what forks take over from their master: no two machines have one
/// key, and no number comes twice.
#[derive(Debug)]
pub struct Random {
    numbers: ChaCha20Rng,
    last_read: Option<Instant>,
}

impl Random {
    /// A generator with a key of its own. Fails where the host's generator has not been seeded yet.
    pub fn new() -> Result<Self, Errno> {
        let mut key = [0u8; 32];
        let mut rest = &mut key[..];
        // So short a read is never cut, says getrandom(2); a zero in a key would be no error that anybody sees.
        while !rest.is_empty() {
            let got = getrandom(&mut *rest, GetRandomFlags::NONBLOCK)?;
            rest = rest.get_mut(got..).unwrap_or_default();
        }
        Ok(Self {
            numbers: ChaCha20Rng::from_seed(key),
            last_read: None,
        })
    }

    /// Fills with random bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.numbers.fill_bytes(bytes);
    }

    /// Notes that a program reads them of a device.
    pub fn note_read(&mut self) {
        self.last_read = Some(Instant::now());
    }

    /// When one last did so.
    pub fn last_read(&self) -> Option<Instant> {
        self.last_read
    }

    /// A random number.
    pub fn number(&mut self) -> u64 {
        self.numbers.next_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_number_comes_twice_from_one_or_from_two() {
        let mut seen = HashSet::new();
        for _ in 0..100 {
            let mut random = Random::new().unwrap();
            for _ in 0..100 {
                assert!(seen.insert(random.number()));
                let mut bytes = [0; 8];
                random.fill(&mut bytes);
                assert!(seen.insert(u64::from_le_bytes(bytes)));
            }
        }
    }
}
