//! Reading the program: its segments, and in `symbols` its symbols. The file is hostile input: every number is checked before it is
//! used, and what is kept is bounded by the file's own length and `max_memory`, whatever numbers it names.

use goblin::elf::dynamic;
use goblin::elf::header::{
    EI_CLASS, EI_VERSION, ELFCLASS32, ELFCLASS64, EM_X86_64, ET_DYN, ET_EXEC, EV_CURRENT, Header,
};
use goblin::elf::program_header::{
    PF_R, PF_W, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD, ProgramHeader,
};

use crate::arch::layout::{LOWEST_SEGMENT, PAGE, PIE_BASE, PROGRAM_END, page_down, page_up};
use crate::image::stack::Placed;
use crate::image::symbols::{self, CONTEXT, Symbols};
use crate::image::toolchain;
use crate::memory::user::Protection;

/// Most program headers a file may have.
const MOST_SEGMENTS: u16 = 128;

/// Why a file can't be run. The messages speak to the one who built it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Not an ELF file at all.
    #[error("not an ELF program")]
    NotElf,
    /// A 32-bit ELF.
    #[error("a 32-bit program; programs have to be 64-bit x86-64")]
    Not64Bit,
    /// A version of the format that does not exist yet.
    #[error("an ELF file of version {0}; only version 1 is known")]
    OtherVersion(u8),
    /// Another processor's.
    #[error("a program for another machine (e_machine {0}); programs have to be x86-64")]
    OtherMachine(u16),
    /// A relocatable object, a core file.
    #[error("not an executable (e_type {0}); link it with `gcc -static`")]
    NotExecutable(u16),
    /// Needs a dynamic linker.
    #[error("dynamically linked; link it with `-static` (or `-static-pie`)")]
    Dynamic,
    /// The same, of Rust.
    #[error(
        "dynamically linked; build it with RUSTFLAGS=\"-C target-feature=+crt-static\" and --target x86_64-unknown-linux-gnu"
    )]
    DynamicRust,
    /// The file ends before what its headers name.
    #[error("truncated or damaged: {0}")]
    Truncated(&'static str),
    /// A segment lies where none may.
    #[error(
        "segment at {address:#x} with {len:#x} bytes lies outside the addresses a program may have"
    )]
    BadSegment {
        /// Its virtual address.
        address: u64,
        /// Its length in memory.
        len: u64,
    },
    /// A page is both writable and executable.
    #[error(
        "memory at {0:#x} is both writable and executable; link without `-z execstack`, `-N` or `-z rwx`"
    )]
    WritableCode(u64),
    /// More memory than the limit.
    #[error(
        "needs {needed} bytes of memory for its segments, more than max_memory ({limit}) allows"
    )]
    TooBig {
        /// Bytes its segments take.
        needed: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// It has more symbols than the host has memory for.
    #[error("the host has no memory for its symbols; link it with -s, or run `strip`")]
    NoMemory,
    /// The entry point is not in executable memory.
    #[error("entry point {0:#x} is not inside an executable segment")]
    BadEntry(u64),
}

/// A piece of the file to be copied into memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Where it goes.
    pub address: u64,
    /// Offset and length in the file.
    pub file: std::ops::Range<usize>,
}

/// Pages with the same permissions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRun {
    /// Their addresses.
    pub addresses: std::ops::Range<u64>,
    /// What the program may do there.
    pub protection: Protection,
}

impl PageRun {
    /// Their bytes.
    pub fn len(&self) -> u64 {
        self.addresses.end - self.addresses.start
    }
}

/// A checked program.
#[derive(Debug, Clone)]
pub struct Image {
    /// Entry point.
    pub entry: u64,
    /// Virtual address of the program headers, 0 if they are not in memory.
    pub program_headers: u64,
    /// How many there are.
    pub program_header_count: u16,
    /// What to copy where.
    pub segments: Vec<Segment>,
    /// The pages of the program with their permissions, in order of their addresses. As few runs as there are segments,
    /// or twice as many, however long these are.
    pub pages: Vec<PageRun>,
    /// The functions' names.
    pub symbols: Symbols,
}

impl Image {
    /// Reads and checks an ELF file. `limit` is the most memory in bytes that its segments may take.
    pub fn parse(file: &[u8], limit: u64) -> Result<Self, ElfError> {
        let header = check_header(file)?;
        let bias = bias(&header);
        let headers = program_headers(file, &header)?;
        let loads: Vec<_> = headers
            .iter()
            .filter(|ph| ph.p_type == PT_LOAD && ph.p_memsz > 0)
            .collect();
        if loads.is_empty() {
            return Err(ElfError::Truncated("it has no loadable segment"));
        }
        let segments = loads
            .iter()
            .map(|load| check_segment(file, load, bias))
            .collect::<Result<_, _>>()?;
        let pages = page_runs(&loads, bias)?;
        let needed = pages.iter().map(PageRun::len).sum();
        if needed > limit {
            return Err(ElfError::TooBig { needed, limit });
        }
        if let Some(run) = pages
            .iter()
            .find(|run| run.protection.write && run.protection.execute)
        {
            return Err(ElfError::WritableCode(run.addresses.start));
        }
        let entry = header.e_entry.wrapping_add(bias);
        let program_headers = loads
            .iter()
            .find(|load| {
                (load.p_offset..load.p_offset.saturating_add(load.p_filesz))
                    .contains(&header.e_phoff)
            })
            .map_or(0, |load| {
                load.p_vaddr + bias + (header.e_phoff - load.p_offset)
            });
        let image = Self {
            entry,
            program_headers,
            program_header_count: header.e_phnum,
            segments,
            pages,
            symbols: symbols::read(file, &header, bias).map_err(|_| ElfError::NoMemory)?,
        };
        if image.is_code(entry) {
            Ok(image)
        } else {
            Err(ElfError::BadEntry(entry))
        }
    }

    /// Where it lies, for the auxiliary vector.
    pub fn placed(&self) -> Placed {
        Placed {
            entry: self.entry,
            base: 0,
            program_headers: self.program_headers,
            program_header_count: self.program_header_count,
        }
    }

    /// True if an address lies in the program's executable memory.
    pub fn is_code(&self, address: u64) -> bool {
        self.pages
            .iter()
            .any(|run| run.protection.execute && run.addresses.contains(&address))
    }

    /// First address after the program's last page.
    pub fn end(&self) -> u64 {
        self.pages.last().map_or(0, |run| run.addresses.end)
    }

    /// Bytes of all pages.
    pub fn memory_len(&self) -> u64 {
        self.pages.iter().map(PageRun::len).sum()
    }

    /// Where an address of the program is in the bytes of all pages.
    pub fn offset(&self, address: u64) -> u64 {
        self.pages
            .iter()
            .map(|run| {
                let end = address.min(run.addresses.end);
                end.saturating_sub(run.addresses.start)
            })
            .sum()
    }
}

/// Checks what can be told without running it: a whole static executable for this processor. Costs no memory.
pub fn check(file: &[u8]) -> Result<(), ElfError> {
    let header = check_header(file)?;
    for ph in program_headers(file, &header)? {
        if ph.p_type == PT_LOAD && ph.p_memsz > 0 {
            check_segment(file, &ph, bias(&header))?;
        }
    }
    Ok(())
}

/// What is added to a program's addresses.
fn bias(header: &Header) -> u64 {
    if header.e_type == ET_DYN { PIE_BASE } else { 0 }
}

fn check_header(file: &[u8]) -> Result<Header, ElfError> {
    if file.get(..4) != Some(goblin::elf::header::ELFMAG.as_slice()) {
        return Err(ElfError::NotElf);
    }
    match file.get(EI_CLASS) {
        Some(&ELFCLASS64) => {}
        Some(&ELFCLASS32) => return Err(ElfError::Not64Bit),
        _ => return Err(ElfError::Truncated("its header")),
    }
    let header =
        goblin::elf::Elf::parse_header(file).map_err(|_| ElfError::Truncated("its header"))?;
    if header.e_ident[EI_VERSION] != EV_CURRENT {
        return Err(ElfError::OtherVersion(header.e_ident[EI_VERSION]));
    }
    if header.e_machine != EM_X86_64 {
        return Err(ElfError::OtherMachine(header.e_machine));
    }
    if !matches!(header.e_type, ET_EXEC | ET_DYN) {
        return Err(ElfError::NotExecutable(header.e_type));
    }
    Ok(header)
}

fn program_headers(file: &[u8], header: &Header) -> Result<Vec<ProgramHeader>, ElfError> {
    const ERROR: ElfError = ElfError::Truncated("its program headers");
    // Elf64_Phdr is 56 bytes, whatever the header says.
    if header.e_phnum > MOST_SEGMENTS || header.e_phentsize != 56 {
        return Err(ERROR);
    }
    let offset = usize::try_from(header.e_phoff).map_err(|_| ERROR)?;
    let headers =
        ProgramHeader::parse(file, offset, header.e_phnum.into(), CONTEXT).map_err(|_| ERROR)?;
    if headers.iter().any(|ph| ph.p_type == PT_INTERP) || needs_libraries(file, &headers) {
        return Err(if toolchain::is_rust(file) {
            ElfError::DynamicRust
        } else {
            ElfError::Dynamic
        });
    }
    Ok(headers)
}

/// True if a dynamic section names libraries. A static-PIE has the section too, but needs none.
fn needs_libraries(file: &[u8], headers: &[ProgramHeader]) -> bool {
    headers
        .iter()
        .filter(|ph| ph.p_type == PT_DYNAMIC)
        .any(|ph| {
            let entries = usize::try_from(ph.p_offset).ok().and_then(|start| {
                file.get(start..start.checked_add(usize::try_from(ph.p_filesz).ok()?)?)
            });
            // Elf64_Dyn: tag and value, 8 bytes each.
            entries
                .unwrap_or_default()
                .chunks_exact(16)
                .any(|entry| entry[..8] == dynamic::DT_NEEDED.to_le_bytes())
        })
}

fn check_segment(file: &[u8], load: &ProgramHeader, bias: u64) -> Result<Segment, ElfError> {
    let bad = || ElfError::BadSegment {
        address: load.p_vaddr,
        len: load.p_memsz,
    };
    let address = load.p_vaddr.checked_add(bias).ok_or_else(bad)?;
    let end = address.checked_add(load.p_memsz).ok_or_else(bad)?;
    if address < LOWEST_SEGMENT || end > PROGRAM_END || load.p_filesz > load.p_memsz {
        return Err(bad());
    }
    // As when a file is mapped (ELF specification, "Program Loading"): pages of the file are pages of memory.
    if load.p_filesz > 0 && load.p_offset % PAGE != load.p_vaddr % PAGE {
        return Err(ElfError::Truncated(
            "a segment's address does not fit its place in the file",
        ));
    }
    let range = usize::try_from(load.p_offset)
        .ok()
        .and_then(|start| Some(start..start.checked_add(usize::try_from(load.p_filesz).ok()?)?))
        .filter(|range| range.end <= file.len())
        .ok_or(ElfError::Truncated("the file ends inside a segment"))?;
    Ok(Segment {
        address,
        file: range,
    })
}

/// The pages of all segments. Two segments may share some: those then need what both need.
fn page_runs(loads: &[&ProgramHeader], bias: u64) -> Result<Vec<PageRun>, ElfError> {
    let mut ranges = Vec::new();
    let mut borders = Vec::new();
    for load in loads {
        let start = page_down(load.p_vaddr + bias);
        let end = page_up(load.p_vaddr + bias + load.p_memsz).ok_or(ElfError::BadSegment {
            address: load.p_vaddr,
            len: load.p_memsz,
        })?;
        ranges.push((start..end, load.p_flags));
        borders.extend([start, end]);
    }
    borders.sort_unstable();
    borders.dedup();
    let mut runs: Vec<PageRun> = Vec::new();
    for pair in borders.windows(2) {
        let (start, end) = (pair[0], pair[1]);
        let flags = ranges
            .iter()
            .filter(|(range, _)| range.contains(&start))
            .map(|(_, flags)| *flags)
            .reduce(|all, flags| all | flags);
        let Some(flags) = flags else {
            continue;
        };
        let protection = Protection {
            read: flags & PF_R != 0,
            write: flags & PF_W != 0,
            execute: flags & PF_X != 0,
        };
        match runs.last_mut() {
            Some(last) if last.addresses.end == start && last.protection == protection => {
                last.addresses.end = end;
            }
            _ => runs.push(PageRun {
                addresses: start..end,
                protection,
            }),
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_segments_share_need_what_all_of_them_need() {
        let load = |start: u64, len: u64, p_flags| ProgramHeader {
            p_vaddr: start,
            p_memsz: len,
            p_flags,
            ..ProgramHeader::default()
        };
        let loads = [
            load(0x1_0000, 0x1800, PF_R | PF_X),
            load(0x1_1800, 0x2000, PF_R),
            load(0x1_4000, 0x1000, PF_R),
            load(0x2_0000, 1 << 40, PF_R | PF_W),
        ];
        let runs = page_runs(&loads.each_ref(), 0).unwrap();
        let found: Vec<_> = runs
            .iter()
            .map(|run| {
                (
                    run.addresses.clone(),
                    run.protection.write,
                    run.protection.execute,
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                (0x1_0000..0x1_2000, false, true),
                (0x1_2000..0x1_5000, false, false),
                (0x2_0000..0x2_0000 + (1 << 40), true, false),
            ]
        );
    }
}
