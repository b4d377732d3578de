//! Damaged programs, for the tests of the ELF loader: here, and through Varnish.

use proptest::prelude::*;

/// The numbers that make trouble.
pub fn trouble() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64, -2i64..3).prop_map(|(bit, off)| (1u64 << bit).wrapping_add_signed(off)),
        (0u64..0x60_0000),
        Just(0),
        Just(u64::MAX),
        Just(0x7fff_ffff_f000),
        Just(0xffff_8000_0000_0000),
    ]
}

/// A change of the file: where, how many bytes, what.
pub type Change = (usize, usize, u64);

/// A change of a file of `len` bytes.
pub fn change(len: usize) -> impl Strategy<Value = Change> {
    // ELF header and program headers; the first code; anywhere.
    let place = prop_oneof![6 => 4..64usize, 12 => 64..700usize, 1 => 4096..8192usize, 1 => 0..len];
    (
        place,
        prop_oneof![Just(1usize), Just(2), Just(4), Just(8)],
        trouble(),
    )
}

/// The file with these changes.
pub fn changed(elf: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut elf = elf.to_vec();
    for &(place, len, value) in changes {
        // Fields are aligned.
        let place = (place / len * len).min(elf.len() - len);
        elf[place..place + len].copy_from_slice(&value.to_le_bytes()[..len]);
    }
    elf
}
