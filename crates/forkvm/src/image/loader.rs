//! Lays a program out in the memory of a machine that has not run yet: monitor, page tables, segments, stack, heap.

use crate::arch::layout::{
    Layout, MMAP_WINDOW, PAGE, PAGE_TABLES, PROGRAM_END, SHARED_WINDOW, STACK_TOP, page_down,
};
use crate::arch::monitor;
use crate::arch::paging::{MapRange, Owner, TablePages, tables_len};
use crate::image::elf::Image;
use crate::memory::mapping::{Mapping, OutOfRange};
use crate::memory::user::Protection;

/// Largest stack, as Linux gives by default.
const STACK_MOST: u64 = 8 << 20;
/// Of guest memory, the stack gets at most one part in this many.
const STACK_SHARE: u64 = 8;
/// Smallest heap a program is started with.
const HEAP_LEAST: u64 = 256 << 10;

const READ_WRITE: Protection = Protection {
    read: true,
    write: true,
    execute: false,
};

/// The program, its stack and a useful heap do not fit in its memory limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("max_memory ({limit} bytes) is too small: the program alone needs {needed} bytes")]
pub struct TooSmall {
    /// What would do.
    pub needed: u64,
    /// The limit in bytes.
    pub limit: u64,
}

/// Most guest memory there can be: the mmap window ends before the stack.
pub const MOST_MEMORY: u64 = page_down(STACK_TOP - STACK_MOST - MMAP_WINDOW);

/// Plans where a program's parts go in `limit` bytes of guest memory, and behind it so many that are shared (whole pages).
pub fn plan(image: &Image, limit: u64, shared: u64) -> Result<Layout, TooSmall> {
    let memory = page_down(limit.min(MOST_MEMORY));
    let stack = page_down(memory / STACK_SHARE).clamp(16 * PAGE, STACK_MOST);
    // Between the program and its heap stay some unmapped pages.
    let brk_window = image.end() + 16 * PAGE;
    // The tables' number depends on the heap's length, which depends on the tables: plan for the largest heap.
    let windows = [
        brk_window..(brk_window + memory).min(PROGRAM_END),
        MMAP_WINDOW..MMAP_WINDOW + memory,
        STACK_TOP - stack..STACK_TOP,
        SHARED_WINDOW.start..SHARED_WINDOW.start + shared,
    ];
    let pages = image.pages.iter().map(|run| run.addresses.clone());
    let monitor = monitor::ranges()
        .into_iter()
        .map(|range| range.virtual_range());
    let tables_end = PAGE_TABLES + tables_len(windows.into_iter().chain(pages).chain(monitor));
    let stack_start = tables_end + image.memory_len();
    let heap_start = stack_start + stack;
    let needed = heap_start + HEAP_LEAST;
    if needed > memory || brk_window + memory > PROGRAM_END {
        return Err(TooSmall { needed, limit });
    }
    Ok(Layout {
        tables: PAGE_TABLES..tables_end,
        image: tables_end,
        stack: stack_start..heap_start,
        heap: heap_start..memory,
        brk_window,
        shared: memory..memory + shared,
    })
}

/// Maps everything and copies the program in. `memory` is zeroed.
pub fn load(
    memory: &Mapping,
    layout: &Layout,
    image: &Image,
    file: &[u8],
    executable_heap: bool,
) -> Result<(), OutOfRange> {
    let mut tables = TablePages::new(layout.tables.clone());
    for range in monitor::ranges() {
        tables.map(memory, &range)?;
    }
    let heap = layout.heap.end - layout.heap.start;
    let user = |address, physical: &std::ops::Range<u64>| MapRange {
        address,
        physical: physical.start,
        len: physical.end - physical.start,
        owner: Owner::User,
        protection: READ_WRITE,
    };
    tables.map(memory, &user(layout.stack_window().start, &layout.stack))?;
    tables.map(memory, &user(layout.shared_window().start, &layout.shared))?;
    let heap = layout.heap.start..layout.heap.start + heap;
    for window in [
        user(layout.brk_window, &heap),
        user(MMAP_WINDOW, &layout.heap),
    ] {
        let protection = Protection {
            execute: executable_heap,
            ..READ_WRITE
        };
        let window = MapRange {
            protection,
            ..window
        };
        tables.map(memory, &window)?;
    }
    for run in &image.pages {
        tables.map(
            memory,
            &MapRange {
                address: run.addresses.start,
                physical: layout.image + image.offset(run.addresses.start),
                len: run.len(),
                owner: Owner::User,
                protection: run.protection,
            },
        )?;
    }
    for segment in &image.segments {
        // Its pages follow each other, so they do as well in guest-physical memory.
        let physical = layout.image + image.offset(segment.address);
        let bytes = file.get(segment.file.clone()).unwrap_or_default();
        memory.write(physical, bytes)?;
    }
    Ok(())
}
