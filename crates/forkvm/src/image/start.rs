//! Finding `main()`, so that its return can be caught before exit handlers and destructors run: by its symbol, or in a
//! stripped program by how the C library's `_start` passes it on.

use crate::image::elf::Image;

/// How far from the entry point `_start` is searched.
const START_LEN: usize = 96;

/// The address of `main()`.
pub fn find_main(image: &Image, file: &[u8]) -> Option<u64> {
    image
        .symbols
        .find("main")
        .or_else(|| main_in_start(image, file))
        .filter(|&main| image.is_code(main))
}

fn code_at<'a>(image: &Image, file: &'a [u8], address: u64) -> &'a [u8] {
    image
        .segments
        .iter()
        .filter_map(|segment| {
            let offset = usize::try_from(address.checked_sub(segment.address)?).ok()?;
            file.get(segment.file.clone())?.get(offset..)
        })
        .next()
        .map_or(&[], |code| &code[..code.len().min(START_LEN)])
}

/// The C libraries' `_start` loads main's address into RDI, its first argument for `__libc_start_main`; musl's does so
/// one jump or call further, in `_start_c`.
fn main_in_start(image: &Image, file: &[u8]) -> Option<u64> {
    let start = code_at(image, file, image.entry);
    loaded_into_rdi(start, image.entry)
        .filter(|&address| image.is_code(address))
        .or_else(|| {
            let next = first_branch(start, image.entry)?;
            loaded_into_rdi(code_at(image, file, next), next)
        })
}

fn relative(code: &[u8], at: usize, address: u64) -> Option<u64> {
    let offset = i32::from_le_bytes(code.get(at..at + 4)?.try_into().ok()?);
    Some(
        address
            .wrapping_add(at as u64 + 4)
            .wrapping_add_signed(offset.into()),
    )
}

/// The operand of the last `mov $imm32,%rdi` or `lea rel32(%rip),%rdi` before the first call or jump.
fn loaded_into_rdi(code: &[u8], address: u64) -> Option<u64> {
    let mut found = None;
    for at in 0..code.len().saturating_sub(7) {
        match code[at..] {
            // mov $imm32,%rdi (Intel SDM Vol. 2B, MOV: REX.W C7 /0)
            [0x48, 0xc7, 0xc7, a, b, c, d, ..] => {
                found = Some(u64::from(u32::from_le_bytes([a, b, c, d])))
            }
            // lea rel32(%rip),%rdi (LEA: REX.W 8D /r, RIP-relative)
            [0x48, 0x8d, 0x3d, ..] => found = relative(code, at + 3, address),
            // call rel32, call *rel32(%rip) (with or without a prefix), jmp rel32
            [0xe8 | 0xe9, ..] | [0xff, 0x15, ..] | [0x67, 0xe8, ..] if found.is_some() => {
                return found;
            }
            _ => {}
        }
    }
    None
}

/// The target of the first `call rel32` or `jmp rel32`.
fn first_branch(code: &[u8], address: u64) -> Option<u64> {
    let at = code.iter().position(|&byte| matches!(byte, 0xe8 | 0xe9))?;
    relative(code, at + 1, address)
}
