//! The monitor: our own pages in every guest, below the program's memory.

use super::dispatcher;
use super::layout::{
    CLOCK, FROZEN_BASES, GDT, IDT, KERNEL_STACK, KERNEL_STUBS, PAGE, REMOVALS, REQUEST_AREA,
    REQUEST_AREA_LEN, SpaceLayout, TSS, USER_STUBS, XSAVE_IMAGE, monitor,
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

/// The same for a machine with an address space: ring 0 rewrites table entries there, programs read the time, their calls are
/// dispatched, and requests do not come by the request area.
pub fn ranges_with_tables(layout: &SpaceLayout) -> Vec<MapRange> {
    let tables = &layout.tables;
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
    let code = layout.dispatcher.start;
    let data = code + dispatcher::STATE;
    for (physical, len, protection) in [
        (code, dispatcher::STATE, EXECUTE),
        (data, layout.dispatcher.end - data, WRITE),
    ] {
        ranges.push(MapRange {
            address: dispatcher::address(physical - code),
            physical,
            len,
            owner: Owner::User,
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

/// The same for a machine with an address space, and the dispatcher's code. Where calls are to arrive there, those that it does not
/// answer leave by a port, from ring 3.
pub fn install_with_dispatcher(
    memory: &Mapping,
    entry: SyscallEntry,
    dispatches: bool,
    layout: &SpaceLayout,
) -> Result<(), OutOfRange> {
    let leaves_from = match dispatches {
        true => SyscallEntry::Ring3,
        false => entry,
    };
    install(memory, leaves_from)?;
    memory.write(layout.dispatcher.start, dispatcher::code())
}
