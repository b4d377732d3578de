//! Libraries with random generators of their own that look at getpid(2) to find out whether they are in a child, and seed them
//! anew there. In a fork they are told so; nobody else is, since there are programs that a change of it under their feet breaks
//! (asyncio's loops are those of the process that began them).

use std::collections::BTreeMap;
use std::ops::Range;

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::header::{Header, SELFMAG};
use goblin::elf::section_header::{SHT_DYNSYM, SHT_SYMTAB, SectionHeader};

use crate::memory::space::vmas::{Backing, PageSource, Vmas};

/// What such libraries define: OpenSSL (crypto/threads_pthread.c, `openssl_get_fork_id`), SQLite (src/os_unix.c, `randomnessPid`).
const NAMES: [&[u8]; 2] = [b"RAND_bytes", b"sqlite3_randomness"];

/// Most bytes that are read of a file for this, and most of its sections.
const MOST: u64 = 64 << 20;
const MOST_SECTIONS: u64 = 4096;
/// Elf64_Ehdr, Elf64_Shdr, Elf64_Sym.
const HEADER: u64 = 64;
const SECTION: u64 = 64;
const SYMBOL: usize = 24;

/// The code of the libraries that are mapped.
pub fn code(vmas: &Vmas) -> Vec<Range<u64>> {
    let mut known = BTreeMap::new();
    let mut is_library = |file: &dyn PageSource| {
        let found = known.entry(file.identity());
        *found.or_insert_with(|| defines(file).unwrap_or(false))
    };
    let executable = vmas.iter().filter(|vma| vma.protection.execute);
    executable
        .filter(|vma| match &vma.backing {
            Backing::File(file, _) => is_library(&**file),
            Backing::Anonymous(_) => false,
        })
        .map(|vma| vma.range())
        .collect()
}

/// Whether a file defines one of the names. `None` where it is no ELF file, or a damaged one.
fn defines(file: &dyn PageSource) -> Option<bool> {
    let head = read(file, 0, HEADER)?;
    if !head.starts_with(&goblin::elf::header::ELFMAG[..SELFMAG]) {
        return None;
    }
    let header: Header = goblin::elf::Elf::parse_header(&head).ok()?;
    let count = u64::from(header.e_shnum).min(MOST_SECTIONS);
    let bytes = read(file, header.e_shoff, count * SECTION)?;
    let context = Ctx::new(Container::Big, Endian::Little);
    let sections = SectionHeader::parse_from(&bytes, 0, count as usize, context).ok()?;
    // Those of a program without dynamic symbols are all in the other table.
    let of_kind = |kind| sections.iter().find(|section| section.sh_type == kind);
    let table = of_kind(SHT_DYNSYM).or_else(|| of_kind(SHT_SYMTAB))?;
    let names = sections.get(table.sh_link as usize)?;
    let names = read(file, names.sh_offset, names.sh_size)?;
    let wanted: Vec<usize> = NAMES.iter().flat_map(|name| places(&names, name)).collect();
    if wanted.is_empty() {
        return Some(false);
    }
    let symbols = read(file, table.sh_offset, table.sh_size)?;
    Some(symbols.chunks_exact(SYMBOL).any(|symbol| {
        let (name, section) = (field::<4>(symbol, 0), field::<2>(symbol, 6));
        section != [0; 2] && wanted.contains(&(u32::from_le_bytes(name) as usize))
    }))
}

/// Where a name begins, of which another one may be the end.
fn places(names: &[u8], name: &[u8]) -> Vec<usize> {
    let found = names.split(|&byte| byte == 0).scan(0, |at, text| {
        let start = *at;
        *at += text.len() + 1;
        let whole = text.ends_with(name);
        Some(whole.then(|| start + text.len() - name.len()))
    });
    found.flatten().collect()
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let rest = bytes.get(at..).and_then(|rest| rest.first_chunk());
    rest.copied().unwrap_or([0; N])
}

/// A part of a file, all of it.
fn read(file: &dyn PageSource, offset: u64, len: u64) -> Option<Vec<u8>> {
    if len > MOST {
        return None;
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len as usize).ok()?;
    bytes.resize(len as usize, 0);
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(offset.checked_add(done as u64)?, &mut bytes[done..]) {
            Ok(0) => return None,
            Ok(n) => done += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Bytes(Vec<u8>);

    impl PageSource for Bytes {
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
            let rest = self.0.get(offset as usize..).unwrap_or_default();
            let len = rest.len().min(buf.len());
            buf[..len].copy_from_slice(&rest[..len]);
            Ok(len)
        }

        fn path(&self) -> &[u8] {
            b"/library"
        }

        fn identity(&self) -> (u64, u64) {
            (0, 1)
        }
    }

    /// A library with one symbol, which is defined in this section.
    fn library(names: &[u8], name: u32, section: u16) -> Bytes {
        let mut header = [0; 64];
        header[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
        header[16..20].copy_from_slice(&[3, 0, 62, 0]);
        header[40] = 64;
        header[58..60].copy_from_slice(&64u16.to_le_bytes());
        header[60] = 2;
        let mut file = header.to_vec();
        let symbols = 64 + 2 * 64;
        for (kind, offset, size, link) in [
            (3u32, symbols + 24u64, names.len() as u64, 0u32),
            (SHT_DYNSYM, symbols, 24, 0),
        ] {
            file.extend([[0; 4], kind.to_le_bytes()].concat());
            file.extend([0; 16]);
            file.extend([offset.to_le_bytes(), size.to_le_bytes()].concat());
            file.extend([link.to_le_bytes(), [0; 4]].concat());
            file.extend([0; 16]);
        }
        file.extend(name.to_le_bytes());
        file.extend([0x12, 0]);
        file.extend(section.to_le_bytes());
        file.extend([0; 16]);
        file.extend(names);
        Bytes(file)
    }

    #[test]
    fn a_library_is_known_by_what_it_defines() {
        let names = b"\0MY_RAND_bytes\0RAND_bytes_ex\0";
        assert_eq!(defines(&library(names, 4, 1)), Some(true));
        for (name, section) in [(4, 0), (1, 1), (15, 1), (1 << 30, 1)] {
            assert_eq!(defines(&library(names, name, section)), Some(false));
        }
        assert_eq!(defines(&Bytes(b"#!/bin/sh".to_vec())), None);
    }

    #[test]
    fn damage_is_no_library() {
        let whole = library(b"\0RAND_bytes\0", 1, 1).0;
        for len in 0..whole.len() {
            assert_ne!(defines(&Bytes(whole[..len].to_vec())), Some(true));
        }
        for at in 0..whole.len() {
            for byte in [0, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                let _ = defines(&Bytes(damaged));
            }
        }
    }
}
