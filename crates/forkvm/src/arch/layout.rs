//! Where everything lies, in guest-physical and in virtual addresses.
//!
//! Guest-physical memory is one piece, in this order:
//!
//! | part | memslot | dirty-logged |
//! |---|---|---|
//! | clock, descriptor tables, ring-0 stubs, ring-0 stack | 1 | no |
//! | user stubs, frozen CPU state, request area | 0 | yes |
//! | page tables | 0 | yes (never written after the freeze) |
//! | the ELF's segments | 0 | yes |
//! | stack | 0 | yes |
//! | heap | 0 | yes |
//! | [shared memory](crate::memory::shared_area), of programs that have it | 2 | no |
//!
//! The first slot is not logged because every exception pushes to the ring-0 stack and would fill the dirty
//! ring; reset always copies that one page back instead.

use std::ops::Range;

/// Size of a page. The engine uses no large pages: KVM logs dirty memory in 4 KiB pages.
pub const PAGE: u64 = 4096;

/// Guest-physical address of the page from which the vDSO tells the time, which only machines with an address space have.
pub const CLOCK: u64 = 0;
/// Guest-physical address, on that page, of what the stub takes that clears the selectors before a connection.
pub const CLEARED_FOR: u64 = CLOCK + 0x100;
/// Guest-physical address of the GDT.
pub const GDT: u64 = 0x1000;
/// Guest-physical address of the TSS and its I/O bitmap.
pub const TSS: u64 = 0x2000;
/// Guest-physical address of the IDT.
pub const IDT: u64 = 0x3000;
/// Guest-physical address of the ring-0 code.
pub const KERNEL_STUBS: u64 = 0x4000;
/// Guest-physical address of the one page of ring-0 stack. Below it lies an unmapped page.
pub const KERNEL_STACK: u64 = 0x6000;
/// Guest-physical address of the page that tells the ring-0 stub which table entries to rewrite.
pub const REMOVALS: u64 = 0x7000;
/// End of memslot 1 (not dirty-logged), start of memslot 0. With an address space, the page tables are in memslot 1 too.
pub const UNLOGGED_END: u64 = 0x8000;

/// Guest-physical address of the stubs that run in ring 3.
pub const USER_STUBS: u64 = 0x8000;
/// Guest-physical address of the frozen vector state (an XSAVE image), read-only to the guest.
pub const XSAVE_IMAGE: u64 = 0x9000;
/// Room for the XSAVE image: 2.7 KiB with AVX-512 and PKRU, 11 KiB with AMX.
pub const XSAVE_LEN: u64 = 0x4000;
/// Guest-physical address of the frozen FS and GS base, read-only to the guest.
pub const FROZEN_BASES: u64 = XSAVE_IMAGE + XSAVE_LEN;
/// Guest-physical address of the request area: the entry block, then the request itself.
pub const REQUEST_AREA: u64 = 0xe000;
/// Length of the request area. Larger requests go to the heap.
pub const REQUEST_AREA_LEN: u64 = 0x1_0000;
/// Guest-physical address of the first page table (the PML4).
pub const PAGE_TABLES: u64 = REQUEST_AREA + REQUEST_AREA_LEN;

/// Virtual address of guest-physical 0: the monitor's own pages are seen here, in a PML4 slot that programs
/// do not use. It lies in the lower half since `kvm_pvm` can't run ring 3 in the first slots of the upper one.
pub const MONITOR_BASE: u64 = 0x7e00_0000_0000;
/// Virtual address of the dispatcher, which only machines with an address space have: behind the largest page tables, and near
/// enough to the ring-0 stubs for their jumps.
pub const DISPATCHER: u64 = MONITOR_BASE + 0x1000_0000;
/// Its length.
pub const DISPATCHER_LEN: u64 = 24 * PAGE;
/// Virtual address, on the page of its state, of the call's RCX: where `syscall` enters ring 0, the stub there keeps it.
pub const DISPATCHED_RCX: u64 = DISPATCHER + 2 * PAGE + 0x10;
/// Where a static-PIE program is loaded.
pub const PIE_BASE: u64 = 0x5555_0000_0000;
/// Lowest address a program's segment may have: nothing lies at 0 (Linux: `vm.mmap_min_addr`).
pub const LOWEST_SEGMENT: u64 = 0x1_0000;
/// First address after those that a program's segments and its brk window may have.
pub const PROGRAM_END: u64 = 0x7d00_0000_0000;
/// Virtual addresses of the memory that all machines of a program share, from the first one on.
pub const SHARED_WINDOW: Range<u64> = 0x7e80_0000_0000..MMAP_WINDOW;
/// Virtual address of the mmap window of the heap.
pub const MMAP_WINDOW: u64 = 0x7f00_0000_0000;
/// First address after the stack.
pub const STACK_TOP: u64 = 0x7ffd_0000_0000;

/// First address after the mappings of a program with an address space: the dynamic linker comes first, below it what
/// mmap(2) gives.
pub const SERVER_MMAP_TOP: u64 = 0x7ff0_0000_0000;
/// First address after its stack.
pub const SERVER_STACK_TOP: u64 = 0x7fff_ff00_0000;

/// Virtual address of a monitor page given its guest-physical address.
pub const fn monitor(gpa: u64) -> u64 {
    MONITOR_BASE + gpa
}

/// The virtual addresses of the monitor's pages.
pub const MONITOR: Range<u64> = MONITOR_BASE..monitor(PAGE_TABLES);

/// First address after the ring-0 stack: RSP on entry of every exception.
pub const KERNEL_STACK_TOP: u64 = KERNEL_STACK + PAGE;

/// Rounds up to whole pages. `None` on overflow.
pub fn page_up(value: u64) -> Option<u64> {
    value.checked_next_multiple_of(PAGE)
}

/// Rounds down to whole pages.
pub const fn page_down(value: u64) -> u64 {
    value & !(PAGE - 1)
}

/// The parts whose place depends on the program and its settings. All are whole pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Guest-physical range of the page tables.
    pub tables: Range<u64>,
    /// Guest-physical address of the ELF's first page; its pages follow in order of their virtual address.
    pub image: u64,
    /// Guest-physical range of the stack.
    pub stack: Range<u64>,
    /// Guest-physical range of the heap.
    pub heap: Range<u64>,
    /// Virtual address of the brk window of the heap.
    pub brk_window: u64,
    /// Guest-physical range of the shared memory, which may be empty. It is not in [`Layout::memory_len`], being no
    /// machine's own.
    pub shared: Range<u64>,
}

impl Layout {
    /// Virtual range of the stack.
    pub fn stack_window(&self) -> Range<u64> {
        STACK_TOP - (self.stack.end - self.stack.start)..STACK_TOP
    }

    /// Virtual range of the shared memory.
    pub fn shared_window(&self) -> Range<u64> {
        SHARED_WINDOW.start..SHARED_WINDOW.start + (self.shared.end - self.shared.start)
    }

    /// Length of the guest-physical memory that is a machine's own.
    pub fn memory_len(&self) -> u64 {
        self.heap.end
    }
}

/// Where the parts of a machine with an address space lie. All are whole pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpaceLayout {
    /// Guest-physical range of the page tables.
    pub tables: Range<u64>,
    /// Guest-physical range of the dispatcher: its code, and what the host and it tell each other.
    pub dispatcher: Range<u64>,
    /// Guest-physical range of the frames that programs get.
    pub frames: Range<u64>,
}

impl SpaceLayout {
    /// A machine of so many bytes in all; `None` if it is too small for any program.
    pub fn plan(memory: u64) -> Option<Self> {
        /// One byte of tables for so many of memory: one entry takes 8 for 4096, and programs touch few pages of
        /// each table. What is not used costs nothing.
        const TABLES_SHARE: u64 = 64;
        const TABLES: Range<u64> = 4 << 20..64 << 20;
        let memory = page_down(memory);
        let tables = page_down(memory / TABLES_SHARE).clamp(TABLES.start, TABLES.end);
        let end = PAGE_TABLES + tables;
        let frames = end + DISPATCHER_LEN;
        (memory > frames + TABLES.start).then_some(Self {
            tables: PAGE_TABLES..end,
            dispatcher: end..frames,
            frames: frames..memory,
        })
    }

    /// The virtual addresses of the monitor's pages, which no program may map.
    pub fn monitor(&self) -> Range<u64> {
        MONITOR_BASE..DISPATCHER + DISPATCHER_LEN
    }
}
