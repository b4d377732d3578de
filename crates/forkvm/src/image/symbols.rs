//! The functions' names, by which `main()` and handlers are found and failures are explained. Like the rest of the file
//! they are hostile: what is kept is no longer than the file, and what is shown is harmless on a terminal.

use std::collections::TryReserveError;

use goblin::container::{Container, Ctx};
use goblin::elf::Symtab;
use goblin::elf::header::Header;
use goblin::elf::section_header::{SHT_SYMTAB, SectionHeader};
use goblin::elf::sym::{STT_FUNC, STT_NOTYPE};

use crate::arch::layout::PAGE;

/// 64-bit and little-endian: x86-64.
pub const CONTEXT: Ctx = Ctx {
    container: Container::Big,
    le: goblin::container::Endian::Little,
};

/// Most symbols that are kept for messages.
const MOST_SYMBOLS: usize = 1 << 20;
/// How much of a symbol's name is looked at and shown, in bytes.
const MOST_NAME: usize = 256;

/// A function's place, and that of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Symbol {
    address: u64,
    size: u64,
    name: u32,
    /// Its place in the file's table.
    nth: u32,
}

/// The program's symbols, if it has not been stripped. Their names may overlap, so they are kept as the file has them:
/// a million names of a megabyte each may be a part of one.
#[derive(Debug, Clone, Default)]
pub struct Symbols {
    by_address: Vec<Symbol>,
    names: Vec<u8>,
}

impl Symbols {
    /// The address of a function.
    pub fn find(&self, name: &str) -> Option<u64> {
        self.by_address
            .iter()
            .find(|symbol| name_at(&self.names, symbol.name) == Some(name.as_bytes()))
            .map(|symbol| symbol.address)
    }

    /// The name of a function that is called so in C++ or Rust source, and in the file by its type or place too: `_Z` is how
    /// C++'s names (Itanium C++ ABI, 5.1) and Rust's older ones begin, `_R` Rust's.
    pub fn find_mangled(&self, name: &str) -> Option<String> {
        let part = format!("{}{name}", name.len());
        self.by_address
            .iter()
            .filter_map(|symbol| name_at(&self.names, symbol.name))
            .filter(|mangled| mangled.starts_with(b"_Z") || mangled.starts_with(b"_R"))
            .find(|mangled| {
                mangled
                    .windows(part.len())
                    .any(|window| window == part.as_bytes())
            })
            .map(|mangled| mangled.escape_ascii().to_string())
    }

    /// True if the program has been stripped of its symbols.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// Names an address as `symbol+0xoffset`, or as the bare number if no symbol covers it.
    pub fn describe(&self, address: u64) -> String {
        let after = self
            .by_address
            .partition_point(|symbol| symbol.address <= address);
        match after
            .checked_sub(1)
            .and_then(|index| self.by_address.get(index))
        {
            Some(symbol) if address - symbol.address < symbol.size.max(PAGE) => {
                // The text is shown on terminals.
                let name = name_at(&self.names, symbol.name).unwrap_or_default();
                let name = name.escape_ascii();
                format!("{address:#x} ({name}+{:#x})", address - symbol.address)
            }
            _ => format!("{address:#x}"),
        }
    }
}

/// The name that starts here, up to its NUL or to [`MOST_NAME`], if it is one.
fn name_at(names: &[u8], start: u32) -> Option<&[u8]> {
    let rest = names.get(usize::try_from(start).ok()?..)?;
    let name = rest.get(..MOST_NAME).unwrap_or(rest);
    name.split(|&byte| byte == 0)
        .next()
        .filter(|name| !name.is_empty())
}

/// The functions in the symbol table; none if there is no table or it is damaged (the program runs all the same).
///
/// # Errors
/// The host has no memory for so many.
pub fn read(file: &[u8], header: &Header, bias: u64) -> Result<Symbols, TryReserveError> {
    let Some((table, names)) = find_table(file, header) else {
        return Ok(Symbols::default());
    };
    let mut by_address = Vec::new();
    for (symbol, nth) in table.iter().zip(0..) {
        let is_function = symbol.st_value != 0 && matches!(symbol.st_type(), STT_FUNC | STT_NOTYPE);
        let name = u32::try_from(symbol.st_name).unwrap_or(u32::MAX);
        if !is_function || symbol.st_shndx == 0 || name_at(names, name).is_none() {
            continue;
        }
        by_address.try_reserve(1)?;
        by_address.push(Symbol {
            address: symbol.st_value.wrapping_add(bias),
            size: symbol.st_size,
            name,
            nth,
        });
    }
    // In place: a stable sort would need memory.
    by_address.sort_unstable_by_key(|symbol| (symbol.address, symbol.nth));
    let mut copy = Vec::new();
    copy.try_reserve_exact(names.len())?;
    copy.extend_from_slice(names);
    Ok(Symbols {
        by_address,
        names: copy,
    })
}

/// The symbol table and the names that it points to.
fn find_table<'a>(file: &'a [u8], header: &Header) -> Option<(Symtab<'a>, &'a [u8])> {
    let sections = usize::try_from(header.e_shoff)
        .ok()
        .filter(|&offset| offset != 0)?;
    // One at a time, since there may be as many as the file has room for. Elf64_Shdr is 64 bytes.
    let section = |nth: u64| {
        let offset = usize::try_from(nth).ok()?.checked_mul(64)?;
        let offset = sections.checked_add(offset)?;
        SectionHeader::parse(file, offset, 1, CONTEXT).ok()?.pop()
    };
    // The first says how many there are where the header has no room for that.
    let count = match header.e_shnum {
        0 => section(0)?.sh_size,
        count => count.into(),
    };
    let table = (0..count)
        .map_while(section)
        .find(|section| section.sh_type == SHT_SYMTAB)?;
    let link = u64::from(table.sh_link);
    let names = (link < count).then(|| section(link)).flatten()?;
    let start = usize::try_from(names.sh_offset).ok()?;
    let end = start.checked_add(usize::try_from(names.sh_size).ok()?)?;
    let names = file.get(start..end)?;
    // Elf64_Sym is 24 bytes.
    let count = usize::try_from(table.sh_size / 24).ok()?.min(MOST_SYMBOLS);
    let offset = usize::try_from(table.sh_offset).ok()?;
    let table = Symtab::parse(file, offset, count, CONTEXT).ok()?;
    Some((table, names))
}

#[cfg(test)]
mod tests {
    use super::*;
    use goblin::container::Ctx;

    const STRINGS: usize = 64 + 24 * 3;

    /// An ELF header, three symbols with these offsets of their names, the names, and three section headers.
    fn with_symbols(names: &[u8], offsets: [u32; 3], names_len: u64) -> Symbols {
        let mut file = vec![0; 64];
        for (offset, address) in offsets.into_iter().zip([0x1000u64, 0x3000, 0x5000]) {
            file.extend(offset.to_le_bytes());
            file.extend([STT_FUNC, 0, 1, 0]);
            file.extend(address.to_le_bytes());
            file.extend(16u64.to_le_bytes());
        }
        file.extend(names);
        let mut header = Header::new(Ctx::default());
        (header.e_shoff, header.e_shnum) = (file.len() as u64, 3);
        // Elf64_Shdr: name, type, flags, address, offset, size, link, info, alignment, entry size.
        for (kind, offset, size, link) in [
            (0u32, 0u64, 0u64, 0u32),
            (SHT_SYMTAB, 64, 72, 2),
            (3, STRINGS as u64, names_len, 0),
        ] {
            file.extend([[0; 4], kind.to_le_bytes()].concat());
            file.extend([0; 16]);
            file.extend([offset.to_le_bytes(), size.to_le_bytes()].concat());
            file.extend([link.to_le_bytes(), [0; 4]].concat());
            file.extend([0; 16]);
        }
        read(&file, &header, 0).unwrap()
    }

    #[test]
    fn symbols_have_names() {
        let names = b"\0main\0my_backend\0";
        let symbols = with_symbols(names, [1, 6, 9], names.len() as u64);
        assert_eq!(symbols.find("main"), Some(0x1000));
        assert_eq!(symbols.find("my_backend"), Some(0x3000));
        assert_eq!(symbols.find("backend"), Some(0x5000));
        assert_eq!(symbols.find("my_back"), None);
        assert_eq!(symbols.find(""), None);
        assert_eq!(symbols.describe(0x3004), "0x3004 (my_backend+0x4)");
    }

    #[test]
    fn mangled_names_are_found() {
        let find = |names: &[u8]| {
            with_symbols(names, [1, 1, 1], names.len() as u64).find_mangled("my_backend")
        };
        assert_eq!(
            find(b"\0_Z10my_backendPKc\0").as_deref(),
            Some("_Z10my_backendPKc")
        );
        assert!(find(b"\0_ZN4site10my_backend17h0123456789abcdefE\0").is_some());
        assert!(find(b"\0_RNvCs1234_4site10my_backend\0").is_some());
        assert_eq!(find(b"\0my_backend\0"), None);
        assert_eq!(find(b"\0_Z11my_backend2PKc\0"), None);
    }

    /// A name may be as long as the file, and a million symbols may share it.
    #[test]
    fn long_names_are_cut() {
        let names = [b"a".repeat(100_000), vec![0]].concat();
        let symbols = with_symbols(&names, [0, 10, 99_999], names.len() as u64);
        let cut = "a".repeat(MOST_NAME);
        assert_eq!(symbols.describe(0x1000), format!("0x1000 ({cut}+0x0)"));
        assert_eq!(symbols.describe(0x3000), format!("0x3000 ({cut}+0x0)"));
        assert_eq!(symbols.describe(0x5000), "0x5000 (a+0x0)");
        // The table ends before the name does; the others have none.
        let symbols = with_symbols(b"main\0", [2, 4, u32::MAX], 4);
        assert_eq!(symbols.describe(0x1000), "0x1000 (in+0x0)");
        assert_eq!(symbols.describe(0x5000), "0x5000");
        assert!(with_symbols(b"\0main", [0, 4, u32::MAX], 1).is_empty());
        assert!(with_symbols(b"main\0", [0, 0, 0], u64::MAX).is_empty());
    }

    /// They are shown on an operator's terminal.
    #[test]
    fn names_have_no_control_characters() {
        let names = b"\x1b]0;title\x07\nmain\0";
        let symbols = with_symbols(names, [0, 0, 0], names.len() as u64);
        assert_eq!(
            symbols.describe(0x1001),
            r"0x1001 (\x1b]0;title\x07\nmain+0x1)"
        );
    }
}
