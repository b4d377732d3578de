//! An ELF file, a program or its dynamic linker, as it is mapped into an address space.

use std::ops::Range;
use std::sync::Arc;

use goblin::elf::header::{EM_X86_64, ET_DYN, ET_EXEC, Header};
use goblin::elf::program_header::{PF_R, PF_W, PF_X, PT_INTERP, PT_LOAD, ProgramHeader};
use rustix::io::Errno;

use crate::arch::layout::{LOWEST_SEGMENT, PAGE, SERVER_MMAP_TOP, page_down, page_up};
use crate::image::symbols::CONTEXT;
use crate::memory::access::Protection;
use crate::memory::guest::GuestMemory;
use crate::memory::space::SpaceError;
use crate::memory::space::vmas::{Backing, PageSource, Vma};

/// Why a program can't be run: an errno for execve(2), and words for whoever started the machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {what}")]
pub struct ExecError {
    /// What execve(2) gives.
    pub errno: Errno,
    /// The program before is gone already.
    pub too_late: bool,
    pub(super) path: String,
    pub(super) what: String,
}

impl ExecError {
    pub(super) fn new(path: &[u8], errno: Errno, what: impl std::fmt::Display) -> Self {
        Self {
            errno,
            too_late: false,
            path: String::from_utf8_lossy(path).into_owned(),
            what: what.to_string(),
        }
    }
}

/// A file's ELF headers, checked.
pub struct Object {
    pub file: Arc<dyn PageSource>,
    pub header: Header,
    loads: Vec<ProgramHeader>,
    pub interpreter: Option<Vec<u8>>,
}

impl Object {
    pub fn read(path: &[u8], file: Arc<dyn PageSource>, head: &[u8]) -> Result<Self, ExecError> {
        let bad = |what: &str| ExecError::new(path, Errno::NOEXEC, what);
        if head.get(..4) != Some(goblin::elf::header::ELFMAG.as_slice()) {
            return Err(bad(
                "not an ELF program, nor a script that names its interpreter by `#!`",
            ));
        }
        let header =
            goblin::elf::Elf::parse_header(head).map_err(|_| bad("its header is damaged"))?;
        if header.e_machine != EM_X86_64 || !matches!(header.e_type, ET_EXEC | ET_DYN) {
            return Err(bad("not an executable for x86-64"));
        }
        // Elf64_Phdr is 56 bytes.
        if header.e_phentsize != 56 {
            return Err(bad("its program headers are damaged"));
        }
        let headers = usize::try_from(header.e_phoff)
            .ok()
            .and_then(|at| ProgramHeader::parse(head, at, header.e_phnum.into(), CONTEXT).ok())
            .ok_or_else(|| bad("its program headers are damaged"))?;
        let loads: Vec<_> = headers
            .iter()
            .filter(|ph| ph.p_type == PT_LOAD && ph.p_memsz > 0)
            .cloned()
            .collect();
        for load in &loads {
            let fits = load.p_filesz <= load.p_memsz
                && (load.p_filesz == 0 || load.p_offset % PAGE == load.p_vaddr % PAGE)
                && load.p_offset.checked_add(load.p_filesz).is_some()
                && load
                    .p_vaddr
                    .checked_add(load.p_memsz)
                    .is_some_and(|end| end <= SERVER_MMAP_TOP);
            if !fits {
                return Err(bad("a segment is damaged"));
            }
        }
        if loads.is_empty()
            || loads
                .windows(2)
                .any(|pair| pair[0].p_vaddr > pair[1].p_vaddr)
        {
            return Err(bad("it has no loadable segments in order"));
        }
        let interpreter = headers
            .iter()
            .find(|ph| ph.p_type == PT_INTERP)
            .map(|ph| {
                let start = usize::try_from(ph.p_offset).ok()?;
                let len = usize::try_from(ph.p_filesz).ok()?;
                let text = head.get(start..start.checked_add(len)?)?;
                Some(text.split(|&byte| byte == 0).next()?.to_vec())
            })
            .map(|text| text.ok_or_else(|| bad("the name of its dynamic linker is damaged")))
            .transpose()?;
        Ok(Self {
            file,
            header,
            loads,
            interpreter,
        })
    }

    /// The addresses its segments take before a bias is added, in whole pages.
    pub fn span(&self) -> Range<u64> {
        let start = self.loads.first().map_or(0, |load| page_down(load.p_vaddr));
        let end = self
            .loads
            .iter()
            .map(|load| load.p_vaddr + load.p_memsz)
            .max();
        start..page_up(end.unwrap_or(0)).unwrap_or(u64::MAX)
    }

    /// The same once `bias` is added, which may wrap around. Programs may have all of these addresses but the monitor's,
    /// which their mapping refuses.
    fn placed(&self, path: &[u8], bias: u64) -> Result<Range<u64>, ExecError> {
        let span = self.span();
        let start = span.start.wrapping_add(bias);
        start
            .checked_add(span.end - span.start)
            .filter(|&end| LOWEST_SEGMENT <= start && end <= SERVER_MMAP_TOP)
            .map(|end| start..end)
            .ok_or_else(|| {
                let what = "its segments lie where no program may have any";
                ExecError::new(path, Errno::NOEXEC, what)
            })
    }

    pub fn is_relocatable(&self) -> bool {
        self.header.e_type == ET_DYN
    }

    /// The address of its program headers in memory, 0 if no segment has them.
    pub fn program_headers(&self, bias: u64) -> u64 {
        let at = self.header.e_phoff;
        self.loads
            .iter()
            .find(|load| (load.p_offset..load.p_offset + load.p_filesz).contains(&at))
            .map_or(0, |load| {
                load.p_vaddr.wrapping_add(bias) + (at - load.p_offset)
            })
    }

    /// Maps its segments and gives the addresses from the first to the last.
    pub fn map(
        &self,
        path: &[u8],
        memory: &mut GuestMemory,
        bias: u64,
    ) -> Result<Range<u64>, ExecError> {
        let placed = self.placed(path, bias)?;
        let no_memory = |error: &dyn std::fmt::Display| ExecError::new(path, Errno::NOMEM, error);
        for load in &self.loads {
            let protection = Protection {
                read: load.p_flags & (PF_R | PF_W | PF_X) != 0,
                write: load.p_flags & PF_W != 0,
                execute: load.p_flags & PF_X != 0,
            };
            let start = load.p_vaddr.wrapping_add(bias);
            let (file_end, end) = (start + load.p_filesz, start + load.p_memsz);
            let first = page_down(start);
            let file_pages = if load.p_filesz > 0 {
                page_up(file_end).unwrap_or(file_end)
            } else {
                first
            };
            let last = page_up(end).unwrap_or(end);
            if file_pages > first {
                let offset = page_down(load.p_offset);
                map(
                    memory,
                    path,
                    Vma {
                        start: first,
                        end: file_pages,
                        protection,
                        shared: false,
                        wiped: false,
                        backing: Backing::File(self.file.clone(), offset),
                    },
                )?;
            }
            if last > file_pages {
                map(
                    memory,
                    path,
                    Vma {
                        start: file_pages,
                        end: last,
                        protection,
                        shared: false,
                        wiped: false,
                        backing: Backing::Anonymous(None),
                    },
                )?;
            }
            // The rest of the last page of the file is memory, not file.
            if end > file_end && file_pages > file_end && protection.write {
                let rest = vec![0; (file_pages - file_end) as usize];
                memory
                    .load(file_end, &rest)
                    .map_err(|error| no_memory(&error))?;
            }
        }
        Ok(placed)
    }
}

/// Maps a VMA for the program of this path.
pub fn map(memory: &mut GuestMemory, path: &[u8], vma: Vma) -> Result<(), ExecError> {
    let Some(mut space) = memory.address_space() else {
        return Err(ExecError::new(
            path,
            Errno::NOMEM,
            "the machine has no address space",
        ));
    };
    space.map(vma).map_err(|error| {
        let errno = match error {
            SpaceError::NotForPrograms { .. } | SpaceError::BeyondFiles => Errno::NOEXEC,
            _ => Errno::NOMEM,
        };
        ExecError::new(path, errno, error)
    })
}
