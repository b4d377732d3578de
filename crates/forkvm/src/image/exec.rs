//! Loads an unmodified program into an address space as execve(2) does: `#!` scripts, the program's segments, its
//! dynamic linker, the stack. Libraries are the dynamic linker's own business.

use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::arch::layout::{PAGE, PIE_BASE, SERVER_MMAP_TOP, SERVER_STACK_TOP, page_down};
use crate::arch::vdso;
pub use crate::image::object::ExecError;
use crate::image::object::{Object, map};
use crate::image::stack::{InitialStack, Placed};
use crate::memory::access::{Protection, USER_END};
use crate::memory::guest::GuestMemory;
use crate::memory::space::vmas::{Backing, PageSource, Vma};

/// Bytes of a file's start in which its headers have to be.
const HEADERS_LEN: usize = 64 << 10;
/// Longest first line of a script, `#!` included (Linux: BINPRM_BUF_SIZE).
const SCRIPT_LINE_LEN: usize = 256;
/// How often an interpreter may be a script itself (execve(2): "Interpreter scripts").
const MOST_INTERPRETERS: usize = 4;
/// Longest argv and envp together (execve(2): a quarter of the stack limit).
const MOST_ARGUMENT_BYTES: usize = 2 << 20;
/// Length of the stack in bytes (`RLIMIT_STACK`'s usual value).
const STACK_LEN: u64 = 8 << 20;
/// Bits of randomness that Linux gives on x86-64: mmap_rnd_bits pages for programs and mappings; 22 bits of 16 bytes for
/// the stack; 13 bits of pages for brk.
const MMAP_RANDOM_PAGES: u64 = 1 << 28;
const BRK_RANDOM_PAGES: u64 = 1 << 13;
const STACK_RANDOM_PAGES: u64 = 1 << 14;
/// Pages among which the vDSO's is chosen: fewer than there are beyond the stack.
const VDSO_RANDOM_PAGES: u64 = 1 << 11;

/// Finds the files of a program by their path.
pub trait Files {
    /// Opens a file to run or map.
    fn open_executable(&mut self, path: &[u8]) -> Result<Arc<dyn PageSource>, Errno>;
}

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The program's path.
    pub path: Vec<u8>,
    /// argv.
    pub arguments: Vec<Vec<u8>>,
    /// envp.
    pub environment: Vec<Vec<u8>>,
}

/// What the processor and the personality have to know of a program just loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// First instruction: the dynamic linker's, or the program's own.
    pub entry: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Where brk(2) starts.
    pub brk: u64,
    /// The stack's addresses.
    pub stack: Range<u64>,
    /// Where AT_RANDOM points to.
    pub at_random: u64,
    /// The file that runs, after scripts have been resolved, as the program sees it.
    pub executable: Vec<u8>,
}

/// What programs may use of the processor.
#[derive(Debug, Clone, Copy, Default)]
pub struct Features {
    /// `rdfsbase` works.
    pub fsgsbase: bool,
    /// The processor's counter tells the time: there is a vDSO.
    pub counter_is_a_clock: bool,
}

/// How addresses are chosen.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    /// Random numbers for ASLR; `None` without it.
    pub random: Option<[u64; 5]>,
    /// The bytes of AT_RANDOM.
    pub at_random: [u8; 16],
    /// AT_UID, AT_EUID, AT_GID, AT_EGID.
    pub ids: [u32; 4],
    /// What there is of the processor.
    pub features: Features,
    /// Bytes of an XSAVE image.
    pub xsave_len: u64,
}

impl Placement {
    /// A random number below `most`, or 0.
    fn random_below(&self, nth: usize, most: u64) -> u64 {
        self.random.map_or(0, |random| random[nth] % most)
    }
}

/// A program found and checked, with its dynamic linker.
pub struct Program {
    command: Command,
    elf: Object,
    interpreter: Option<Object>,
}

/// Finds a program's files. Nothing is changed yet.
pub fn find(files: &mut dyn Files, mut command: Command) -> Result<Program, ExecError> {
    let elf = resolve(files, &mut command)?;
    let interpreter = match &elf.interpreter {
        Some(path) => Some(open_interpreter(files, path)?),
        None => None,
    };
    Ok(Program {
        command,
        elf,
        interpreter,
    })
}

impl Program {
    /// Its arguments and environment: of a script, its interpreter's.
    pub fn command(&self) -> &Command {
        &self.command
    }

    /// Loads it into an empty address space.
    pub fn load(
        self,
        memory: &mut GuestMemory,
        placement: &Placement,
    ) -> Result<Loaded, ExecError> {
        load(memory, &self, placement).map_err(|error| ExecError {
            too_late: true,
            ..error
        })
    }
}

fn load(
    memory: &mut GuestMemory,
    program: &Program,
    placement: &Placement,
) -> Result<Loaded, ExecError> {
    let Program {
        elf, interpreter, ..
    } = program;
    let path = elf.file.path().to_vec();
    let random = |nth, pages| placement.random_below(nth, pages) * PAGE;
    let bias = if elf.is_relocatable() {
        (PIE_BASE + random(0, MMAP_RANDOM_PAGES)).wrapping_sub(elf.span().start)
    } else {
        0
    };
    let end = elf.map(&path, memory, bias)?.end;
    let entry = elf.header.e_entry.wrapping_add(bias);

    let (start, base) = match interpreter {
        None => (entry, 0),
        Some(interpreter) => load_interpreter(memory, interpreter, random(1, MMAP_RANDOM_PAGES))?,
    };
    if start >= USER_END {
        let what = "it starts where no program may have code";
        return Err(ExecError::new(&path, Errno::NOEXEC, what));
    }

    let top = SERVER_STACK_TOP - random(2, STACK_RANDOM_PAGES);
    let placed = Placed {
        entry,
        base,
        program_headers: elf.program_headers(bias),
        program_header_count: elf.header.e_phnum,
    };
    let (rsp, at_random) = put_stack(memory, program, placement, placed, top)?;
    Ok(Loaded {
        entry: start,
        rsp,
        at_random,
        brk: end + PAGE + random(3, BRK_RANDOM_PAGES),
        stack: top - STACK_LEN..top,
        executable: path,
    })
}

/// Maps the stack that ends at `top`, with what is on it at the start. Gives RSP, and where AT_RANDOM points to.
fn put_stack(
    memory: &mut GuestMemory,
    program: &Program,
    placement: &Placement,
    placed: Placed,
    top: u64,
) -> Result<(u64, u64), ExecError> {
    let (command, path) = (&program.command, program.elf.file.path());
    let vdso = if placement.features.counter_is_a_clock {
        put_vdso(memory, path, placement)?
    } else {
        0
    };
    let stack = Vma {
        start: top - STACK_LEN,
        end: top,
        protection: Protection {
            read: true,
            write: true,
            execute: false,
        },
        shared: false,
        wiped: false,
        backing: Backing::Anonymous(Some("[stack]")),
    };
    map(memory, path, stack)?;
    let (bytes, at_random) = InitialStack {
        arguments: &command.arguments,
        environment: &command.environment,
        executable: &command.path,
        placed,
        random: placement.at_random,
        ids: placement.ids,
        vdso,
        fsgsbase: placement.features.fsgsbase,
        xsave_len: placement.xsave_len,
    }
    .build(top);
    let rsp = top - bytes.len() as u64;
    memory
        .load(rsp, &bytes)
        .map_err(|error| ExecError::new(path, Errno::NOMEM, error))?;
    Ok((rsp, at_random))
}

/// Maps the vDSO, beyond the highest place of the stack as Linux does. Gives its address.
fn put_vdso(
    memory: &mut GuestMemory,
    path: &[u8],
    placement: &Placement,
) -> Result<u64, ExecError> {
    let start = SERVER_STACK_TOP + PAGE * (1 + placement.random_below(4, VDSO_RANDOM_PAGES));
    let vma = Vma {
        start,
        end: start + PAGE,
        protection: Protection {
            read: true,
            write: false,
            execute: true,
        },
        shared: false,
        wiped: false,
        backing: Backing::Anonymous(Some("[vdso]")),
    };
    map(memory, path, vma)?;
    memory
        .load(start, vdso::image())
        .map_err(|error| ExecError::new(path, Errno::NOMEM, error))?;
    Ok(start)
}

/// Opens the program, going through the interpreters of scripts.
fn resolve(files: &mut dyn Files, command: &mut Command) -> Result<Object, ExecError> {
    let total: usize = command
        .arguments
        .iter()
        .chain(&command.environment)
        .map(|text| text.len() + 1 + size_of::<u64>())
        .sum();
    if total > MOST_ARGUMENT_BYTES {
        return Err(ExecError::new(
            &command.path,
            Errno::TOOBIG,
            "its arguments and environment are too long",
        ));
    }
    for _ in 0..=MOST_INTERPRETERS {
        let path = &command.path;
        let file = files
            .open_executable(path)
            .map_err(|errno| ExecError::new(path, errno, errno))?;
        let mut head = vec![0; HEADERS_LEN];
        let len =
            read_head(&*file, &mut head).map_err(|error| ExecError::new(path, Errno::IO, error))?;
        head.truncate(len);
        let Some(script) = head.strip_prefix(b"#!") else {
            return Object::read(path, file, &head);
        };
        let line = &script[..script.len().min(SCRIPT_LINE_LEN - 2)];
        let (interpreter, argument) = script_line(line).ok_or_else(|| {
            ExecError::new(path, Errno::NOEXEC, "its first line names no interpreter")
        })?;
        let mut arguments = vec![interpreter.clone()];
        arguments.extend(argument);
        arguments.push(command.path.clone());
        arguments.extend(command.arguments.drain(..).skip(1));
        command.arguments = arguments;
        command.path = interpreter;
    }
    Err(ExecError::new(
        &command.path,
        Errno::LOOP,
        "too many interpreters of interpreters",
    ))
}

/// The interpreter and its one argument in what follows `#!`.
fn script_line(line: &[u8]) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let line = line.split(|&byte| byte == b'\n').next()?.trim_ascii();
    let end = line
        .iter()
        .position(|byte| byte.is_ascii_whitespace())
        .unwrap_or(line.len());
    let (interpreter, rest) = line.split_at(end);
    let argument = rest.trim_ascii();
    (!interpreter.is_empty()).then(|| {
        (
            interpreter.to_vec(),
            (!argument.is_empty()).then(|| argument.to_vec()),
        )
    })
}

fn open_interpreter(files: &mut dyn Files, path: &[u8]) -> Result<Object, ExecError> {
    let file = files
        .open_executable(path)
        .map_err(|errno| ExecError::new(path, errno, format!("the dynamic linker: {errno}")))?;
    let mut head = vec![0; HEADERS_LEN];
    let len =
        read_head(&*file, &mut head).map_err(|error| ExecError::new(path, Errno::IO, error))?;
    head.truncate(len);
    Object::read(path, file, &head)
}

/// Loads the dynamic linker at the top of the mappings. Gives its entry point and its bias (`AT_BASE`).
fn load_interpreter(
    memory: &mut GuestMemory,
    elf: &Object,
    random: u64,
) -> Result<(u64, u64), ExecError> {
    let span = elf.span();
    let bias = if elf.is_relocatable() {
        let top = SERVER_MMAP_TOP - random % (1 << 36);
        // Below 0 is nowhere, as mapping it says.
        page_down(top.saturating_sub(span.end - span.start)).wrapping_sub(span.start)
    } else {
        0
    };
    elf.map(elf.file.path(), memory, bias)?;
    Ok((elf.header.e_entry.wrapping_add(bias), bias))
}

fn read_head(file: &dyn PageSource, head: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while done < head.len() {
        match file.read_at(done as u64, &mut head[done..])? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests;
