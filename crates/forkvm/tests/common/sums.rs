//! The guests' body pattern and checksums.

/// Bytes of `/size/N`, `/frozen/N` and of request bodies.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i.wrapping_mul(31).wrapping_add(i >> 8)) as u8)
        .collect()
}

/// CRC-32 as in zlib.
pub fn crc32(data: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256u32)
        .map(|i| {
            (0..8).fold(i, |c, _| {
                if c & 1 == 1 {
                    c >> 1 ^ 0xedb8_8320
                } else {
                    c >> 1
                }
            })
        })
        .collect();
    !data.iter().fold(!0, |crc, &byte| {
        crc >> 8 ^ table[usize::from(crc as u8 ^ byte)]
    })
}

/// FNV-1a of 64 bits.
pub fn fnv1a(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// What echo's `/sum` says of a body.
pub fn sum_line(body: &[u8]) -> String {
    format!(
        "len {} crc32 {:08x} fnv1a {:016x}\n",
        body.len(),
        crc32(body),
        fnv1a(body)
    )
}
