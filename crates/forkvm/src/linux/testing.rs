//! What the personality's tests run against: memory in a `Vec` and a host that keeps what it is told.

use std::path::PathBuf;

use crate::linux::call::Wait;
use crate::linux::{AllowedPath, Call, HeapLayout, Linux, Outcome, Setup};
use crate::memory::user::{BadAddress, Protection, UserMemory};
use crate::random::Random;
use crate::request::{Host, Stream};

/// Start of the brk window in [`linux`].
pub const BRK: u64 = 0x60_0000;
/// Start of the mmap window in [`linux`].
pub const MMAP: u64 = 0x7000_0000_0000;
/// Length of both windows in [`linux`].
pub const HEAP_LEN: u64 = 64 * 4096;
/// Where tests put arguments: a piece of memory beside the heap.
pub const SCRATCH: u64 = 0x10_0000;
/// Its length.
pub const SCRATCH_LEN: u64 = 64 * 4096;

/// User memory with optional heap windows, both onto the same bytes.
pub struct TestMemory {
    scratch: (u64, Vec<u8>),
    heap: Vec<u8>,
    protections: Vec<(u64, Protection)>,
    /// True after the freeze.
    pub frozen: bool,
    /// Pages that `clear` was asked to clear.
    pub cleared: u64,
}

impl TestMemory {
    /// One piece of read-write memory.
    pub fn new(start: u64, len: usize) -> Self {
        Self {
            scratch: (start, vec![0; len]),
            heap: Vec::new(),
            protections: Vec::new(),
            frozen: false,
            cleared: 0,
        }
    }

    /// The scratch area and the heap of [`linux`].
    pub fn with_heap() -> Self {
        let mut memory = Self::new(SCRATCH, SCRATCH_LEN as usize);
        memory.heap = vec![0; HEAP_LEN as usize];
        memory
    }

    fn place(&self, address: u64, len: usize) -> Result<(bool, usize), BadAddress> {
        let fits = |start: u64, size: usize| {
            let offset = usize::try_from(address.checked_sub(start)?).ok()?;
            (offset.checked_add(len)? <= size).then_some(offset)
        };
        let scratch = fits(self.scratch.0, self.scratch.1.len()).map(|offset| (true, offset));
        let brk = || fits(BRK, self.heap.len()).map(|offset| (false, offset));
        let mmap = || fits(MMAP, self.heap.len()).map(|offset| (false, offset));
        scratch
            .or_else(brk)
            .or_else(mmap)
            .ok_or(BadAddress(address))
    }

    fn bytes(&self, address: u64, len: usize) -> Result<&[u8], BadAddress> {
        let (scratch, offset) = self.place(address, len)?;
        let bytes = if scratch { &self.scratch.1 } else { &self.heap };
        Ok(&bytes[offset..offset + len])
    }

    fn bytes_mut(&mut self, address: u64, len: usize) -> Result<&mut [u8], BadAddress> {
        let (scratch, offset) = self.place(address, len)?;
        let bytes = if scratch {
            &mut self.scratch.1
        } else {
            &mut self.heap
        };
        Ok(&mut bytes[offset..offset + len])
    }

    /// What the page tables say about an address.
    pub fn protection(&self, address: u64) -> Protection {
        let page = address & !4095;
        let changed = self.protections.iter().rev().find(|(at, _)| *at == page);
        changed.map_or(
            Protection {
                read: true,
                write: true,
                execute: false,
            },
            |(_, protection)| *protection,
        )
    }

    fn check(
        &self,
        address: u64,
        len: usize,
        allowed: fn(Protection) -> bool,
    ) -> Result<(), BadAddress> {
        let pages = (address & !4095..address.saturating_add(len as u64)).step_by(4096);
        for page in pages {
            if !allowed(self.protection(page)) {
                return Err(BadAddress(page));
            }
        }
        Ok(())
    }
}

impl UserMemory for TestMemory {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), BadAddress> {
        let bytes = self.bytes(address, buf.len())?;
        self.check(address, buf.len(), |protection| protection.read)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), BadAddress> {
        self.bytes(address, bytes.len())?;
        self.check(address, bytes.len(), |protection| protection.write)?;
        self.bytes_mut(address, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn clear(&mut self, address: u64, len: u64) -> Result<(), BadAddress> {
        assert_eq!((address % 4096, len % 4096), (0, 0));
        self.bytes_mut(address, len as usize)?.fill(0);
        self.cleared += len / 4096;
        Ok(())
    }

    fn can_write(&self, address: u64) -> bool {
        self.bytes(address, 1).is_ok() && self.protection(address).write
    }

    fn can_protect(&self) -> bool {
        !self.frozen
    }

    fn protect(
        &mut self,
        address: u64,
        len: u64,
        protection: Protection,
    ) -> Result<(), BadAddress> {
        assert_eq!((address % 4096, len % 4096), (0, 0));
        if self.frozen {
            return Err(BadAddress(address));
        }
        self.place(address, len as usize)?;
        for page in (address..address + len).step_by(4096) {
            self.protections.retain(|(at, _)| *at != page);
            self.protections.push((page, protection));
        }
        Ok(())
    }
}

/// Memory that fails every access.
pub struct NoMemory;

impl UserMemory for NoMemory {
    fn read(&self, address: u64, _: &mut [u8]) -> Result<(), BadAddress> {
        Err(BadAddress(address))
    }
    fn write(&mut self, address: u64, _: &[u8]) -> Result<(), BadAddress> {
        Err(BadAddress(address))
    }
    fn clear(&mut self, address: u64, _: u64) -> Result<(), BadAddress> {
        Err(BadAddress(address))
    }
    fn can_write(&self, _: u64) -> bool {
        false
    }
    fn can_protect(&self) -> bool {
        false
    }
    fn protect(&mut self, address: u64, _: u64, _: Protection) -> Result<(), BadAddress> {
        Err(BadAddress(address))
    }
}

/// Keeps all output.
#[derive(Debug, Default)]
pub struct Recorder {
    /// Everything written to standard output.
    pub stdout: Vec<u8>,
    /// Everything written to standard error.
    pub stderr: Vec<u8>,
}

impl Host for Recorder {
    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        match stream {
            Stream::Stdout => self.stdout.extend_from_slice(bytes),
            _ => self.stderr.extend_from_slice(bytes),
        }
    }
}

/// A personality with the heap of this module and these allowed paths.
pub fn linux(allowed_paths: Vec<PathBuf>) -> Linux {
    linux_with(allowed_paths.into_iter().map(Into::into).collect())
}

/// The same with allowed paths that are more than a path.
pub fn linux_with(allowed_paths: Vec<AllowedPath>) -> Linux {
    Linux::new(setup(allowed_paths))
}

/// What that is made from.
pub fn setup(allowed_paths: Vec<AllowedPath>) -> Setup {
    Setup {
        heap: HeapLayout {
            brk_window: BRK,
            mmap_window: MMAP,
            len: HEAP_LEN,
            executable: false,
        },
        stack: 0x7ffe_0000_0000..0x7ffe_0010_0000,
        executable: "/program".into(),
        whole_system: false,
        random_addresses: false,
        allowed_paths,
        writable_paths: Vec::new(),
        overlay_bytes: 0,
        volume_bytes: 0,
        current_working_directory: "/".into(),
        allowed_net: Vec::new(),
        state: None,
        allowed_listen: None,
    }
}

/// A program to make calls from.
pub struct Machine {
    /// The personality.
    pub linux: Linux,
    /// Its memory.
    pub memory: TestMemory,
    /// Its host.
    pub host: Recorder,
    /// Its random numbers.
    pub random: Random,
}

impl Machine {
    /// A machine that may read these paths.
    pub fn new(allowed_paths: Vec<PathBuf>) -> Self {
        Self {
            linux: linux(allowed_paths),
            memory: TestMemory::with_heap(),
            host: Recorder::default(),
            random: Random::new().unwrap(),
        }
    }

    /// A machine whose program may have sockets, as one with an address space may.
    pub fn with_sockets() -> Self {
        let mut machine = Self::new(Vec::new());
        machine.linux.of_unmodified();
        machine
    }

    /// Makes a call; arguments not given are zero.
    pub fn outcome(&mut self, number: syscalls::Sysno, args: &[u64]) -> Outcome {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let call = Call {
            number: number.id() as u64,
            args: all,
            rsp: 0,
        };
        self.linux
            .call(call, &mut self.memory, &mut self.host, &mut self.random)
    }

    /// Makes a call that must return, and gives RAX.
    pub fn call(&mut self, number: syscalls::Sysno, args: &[u64]) -> i64 {
        match self.outcome(number, args) {
            Outcome::Return(value) => value,
            other => panic!("{number:?} gave {other:?}"),
        }
    }

    /// Makes a call that must wait.
    pub fn wait(&mut self, number: syscalls::Sysno, args: &[u64]) -> Wait {
        match self.outcome(number, args) {
            Outcome::Block(wait) => wait,
            other => panic!("{number:?} gave {other:?}"),
        }
    }

    /// Puts bytes somewhere in the scratch area and gives their address.
    pub fn put(&mut self, slot: u64, bytes: &[u8]) -> u64 {
        let address = SCRATCH + slot * 4096;
        self.memory.write(address, bytes).unwrap();
        address
    }

    /// Puts a NUL-terminated string.
    pub fn put_str(&mut self, slot: u64, text: &str) -> u64 {
        self.put(slot, format!("{text}\0").as_bytes())
    }

    /// Copies bytes from the program.
    pub fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(address, &mut bytes).unwrap();
        bytes
    }
}

/// A folder for a test, gone afterwards.
pub struct TestFolder(pub PathBuf);

impl TestFolder {
    /// An empty folder.
    pub fn new() -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("forkvm-test-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// A path in it, as text.
    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.0.display())
    }

    /// Makes a file in it.
    pub fn file(&self, name: &str, contents: &[u8]) {
        std::fs::write(self.0.join(name), contents).unwrap();
    }
}

impl Drop for TestFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
