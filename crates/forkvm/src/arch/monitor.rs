//! The monitor: our own pages in every guest, below the program's memory.

use std::ops::Range;

use super::layout::{
    CLOCK, FROZEN_BASES, GDT, IDT, KERNEL_STACK, KERNEL_STUBS, PAGE, REMOVALS, REQUEST_AREA,
    REQUEST_AREA_LEN, TSS, USER_STUBS, XSAVE_IMAGE, monitor,
};
use super::paging::{MapRange, Owner};
use super::stubs::{self, SyscallEntry};
use super::tables;
use crate::memory::access::Protection;
use crate::memory::mapping::{Mapping, OutOfRange};

const READ: Protection = Protection {
    read: true,
    write: false,
    execute: false,
};
const WRITE: Protection = Protection {
    read: true,
    write: true,
    execute: false,
};
const EXECUTE: Protection = Protection {
    read: true,
    write: false,
    execute: true,
};

/// The mappings of the monitor's pages.
pub fn ranges() -> Vec<MapRange> {
    let range = |physical, len, owner, protection| MapRange {
        address: monitor(physical),
        physical,
        len,
        owner,
        protection,
    };
    vec![
        range(GDT, PAGE, Owner::Kernel, WRITE), // the processor sets the TSS descriptor's busy bit
        range(TSS, PAGE, Owner::Kernel, WRITE),
        range(IDT, PAGE, Owner::Kernel, READ),
        range(KERNEL_STUBS, PAGE, Owner::Kernel, EXECUTE),
        range(KERNEL_STACK, PAGE, Owner::Kernel, WRITE),
        range(USER_STUBS, PAGE, Owner::User, EXECUTE),
        range(
            XSAVE_IMAGE,
            FROZEN_BASES + PAGE - XSAVE_IMAGE,
            Owner::User,
            READ,
        ),
        range(REQUEST_AREA, REQUEST_AREA_LEN, Owner::User, WRITE),
    ]
}

/// The same for a machine with an address space: ring 0 rewrites table entries there, programs read the time, and requests do
/// not come by the request area.
pub fn ranges_with_tables(tables: &Range<u64>) -> Vec<MapRange> {
    let mut ranges = ranges();
    ranges.retain(|range| range.physical != REQUEST_AREA);
    for (physical, len, owner, protection) in [
        (CLOCK, PAGE, Owner::User, READ),
        (REMOVALS, PAGE, Owner::Kernel, READ),
        (
            tables.start,
            tables.end - tables.start,
            Owner::Kernel,
            WRITE,
        ),
    ] {
        ranges.push(MapRange {
            address: monitor(physical),
            physical,
            len,
            owner,
            protection,
        });
    }
    ranges
}

/// Writes descriptor tables and stubs into a machine's memory.
pub fn install(memory: &Mapping, entry: SyscallEntry) -> Result<(), OutOfRange> {
    memory.write(GDT, &tables::gdt())?;
    memory.write(TSS, &tables::tss(entry))?;
    memory.write(IDT, &tables::idt())?;
    memory.write(KERNEL_STUBS, stubs::kernel())?;
    memory.write(USER_STUBS, stubs::user())
}
