//! Four-level page tables (Intel SDM Vol. 3A, 4.5): building them before a machine first runs, editing
//! permissions before the freeze, and walking them for the host's own accesses.
//!
//! Accessed and dirty bits are preset, so that no table page is ever written by the processor and enters the
//! dirty ring. After the freeze nobody writes the tables any more.

use std::collections::BTreeSet;
use std::ops::Range;

use super::layout::{PAGE, PAGE_TABLES};
use crate::memory::access::Protection;
use crate::memory::mapping::{Mapping, OutOfRange};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51:12 of an entry: the physical address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Entries of a table.
const ENTRIES: u64 = 512;
/// First address after the lower canonical half.
pub const LOWER_HALF_END: u64 = 1 << 47;

/// Who may use a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Ring 0 only: our tables and stubs.
    Kernel,
    /// Ring 3.
    User,
}

/// A run of pages to be mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapRange {
    /// First virtual address.
    pub address: u64,
    /// First guest-physical address.
    pub physical: u64,
    /// Length in bytes.
    pub len: u64,
    /// Who may use the pages.
    pub owner: Owner,
    /// For what.
    pub protection: Protection,
}

impl MapRange {
    /// The virtual addresses.
    pub fn virtual_range(&self) -> Range<u64> {
        self.address..self.address + self.len
    }
}

/// The index of `address` in the table of `level` (4 is the PML4, 1 the last).
fn index(address: u64, level: u32) -> u64 {
    address >> (12 + 9 * (level - 1)) & (ENTRIES - 1)
}

/// Bytes of page tables needed to map these virtual ranges.
pub fn tables_len(ranges: impl Iterator<Item = Range<u64>>) -> u64 {
    let mut tables = BTreeSet::new();
    for range in ranges.filter(|range| !range.is_empty()) {
        for level in 1..=3 {
            let covered = 12 + 9 * level;
            for table in range.start >> covered..=(range.end - 1) >> covered {
                tables.insert((level, table));
            }
        }
    }
    (1 + tables.len() as u64) * PAGE
}

/// The flags of an entry for a page with this permission.
pub fn leaf_bits(owner: Owner, protection: Protection) -> u64 {
    // A page nobody may use stays not present; write and execute without read do not exist here.
    if !(protection.read || protection.write || protection.execute) {
        return 0;
    }
    let mut bits = PRESENT | ACCESSED | DIRTY;
    if owner == Owner::User {
        bits |= USER;
    }
    if protection.write {
        bits |= WRITABLE;
    }
    if !protection.execute {
        bits |= NO_EXECUTE;
    }
    bits
}

/// Builds page tables in guest memory, taking table pages from a given range.
#[derive(Debug, Clone)]
pub struct TablePages {
    next: u64,
    end: u64,
}

impl TablePages {
    /// Starts with an empty PML4 in the first page of `tables` (zeroed memory).
    pub fn new(tables: Range<u64>) -> Self {
        Self {
            next: tables.start + PAGE,
            end: tables.end,
        }
    }

    /// Maps a range. A page mapped twice gets the later mapping.
    pub fn map(&mut self, memory: &Mapping, range: &MapRange) -> Result<(), OutOfRange> {
        let bits = leaf_bits(range.owner, range.protection);
        for offset in (0..range.len).step_by(PAGE as usize) {
            let entry = self.leaf_entry(memory, range.address + offset)?;
            let value = (range.physical + offset) | bits;
            // The physical address stays in the entry of an inaccessible page, so that `protect` can bring it back.
            memory.write_u64(entry, value)?;
        }
        Ok(())
    }

    /// Guest-physical address of the last-level entry for `address`, making tables on the way.
    pub fn leaf_entry(&mut self, memory: &Mapping, address: u64) -> Result<u64, OutOfRange> {
        let mut table = PAGE_TABLES;
        for level in (2..=4).rev() {
            let at = table + index(address, level) * 8;
            let entry = memory.read_u64(at)?;
            table = if entry & PRESENT != 0 {
                entry & ADDRESS
            } else {
                let fresh = self.next;
                if fresh >= self.end {
                    return Err(OutOfRange {
                        address: fresh,
                        len: PAGE,
                    });
                }
                self.next += PAGE;
                memory.write_u64(at, fresh | PRESENT | WRITABLE | USER | ACCESSED)?;
                fresh
            };
        }
        Ok(table + index(address, 1) * 8)
    }

    /// True while at least half of the pages that `of` had left are left.
    pub fn has_room(&self, of: &Self) -> bool {
        (self.end - self.next) * 2 >= of.end - of.next
    }
}

/// A page that has a last-level entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Its virtual address.
    pub address: u64,
    /// Guest-physical address of the entry.
    pub entry: u64,
    /// What is in it.
    pub value: u64,
}

/// The first page in a range whose entry is not 0. Costs no time for what no table was ever made for.
pub fn next_entry(memory: &Mapping, range: Range<u64>) -> Option<Page> {
    let mut at = range.start;
    'pages: while at < range.end {
        let mut table = PAGE_TABLES;
        for level in (2..=4).rev() {
            let entry = memory.read_u64(table + index(at, level) * 8).ok()?;
            if entry & PRESENT == 0 {
                let covered = PAGE << (9 * (level - 1));
                at = (at & !(covered - 1)).checked_add(covered)?;
                continue 'pages;
            }
            table = entry & ADDRESS;
        }
        // The rest of this table.
        while at < range.end {
            let entry = table + index(at, 1) * 8;
            let value = memory.read_u64(entry).ok()?;
            if value != 0 {
                return Some(Page {
                    address: at,
                    entry,
                    value,
                });
            }
            at += PAGE;
            if index(at, 1) == 0 {
                break;
            }
        }
    }
    None
}

/// The frame that an entry names.
pub fn frame_of(entry: u64) -> u64 {
    entry & ADDRESS
}

/// True if the processor uses the entry.
pub fn is_present(entry: u64) -> bool {
    entry & PRESENT != 0
}

/// An entry for a page whose frame's contents are awaited: not present, but for that what it will be. One bit of one byte is the
/// difference, so that who reads it meanwhile finds the one or the other.
pub fn awaited(entry: u64) -> u64 {
    entry & !PRESENT
}

/// The same once they are there.
pub fn arrived(entry: u64) -> u64 {
    entry | PRESENT
}

/// Whether an entry is of this kind. One that is not present because nobody may use its page has no bits at all.
pub fn is_awaited(entry: u64) -> bool {
    entry & (PRESENT | USER) == USER
}

/// True if the processor may go on using the old entry unless it is told that there is a new one: everything but a page
/// that was not there, or was read-only and has the same frame.
pub fn needs_invalidation(old: u64, new: u64) -> bool {
    let lost = old & !new & (PRESENT | WRITABLE | USER) != 0;
    old & PRESENT != 0 && (lost || (old ^ new) & (ADDRESS | NO_EXECUTE) != 0)
}

/// Finds the last-level entry of a virtual address: where it lies and its value.
fn walk(memory: &Mapping, address: u64) -> Option<(u64, u64)> {
    if address >= LOWER_HALF_END {
        return None;
    }
    let mut table = PAGE_TABLES;
    for level in (2..=4).rev() {
        let entry = memory.read_u64(table + index(address, level) * 8).ok()?;
        if entry & PRESENT == 0 {
            return None;
        }
        table = entry & ADDRESS;
    }
    let at = table + index(address, 1) * 8;
    Some((at, memory.read_u64(at).ok()?))
}

/// What the host wants to do at a user address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read what the program can read.
    Read,
    /// Write what the program can write.
    Write,
    /// Fill a page of the program whatever its permission.
    Any,
}

/// The guest-physical address behind a user address, if the program itself may access it so.
pub fn translate(memory: &Mapping, address: u64, access: Access) -> Option<u64> {
    let (_, entry) = walk(memory, address)?;
    let may = match access {
        Access::Read => entry & (PRESENT | USER) == PRESENT | USER,
        Access::Write => entry & (PRESENT | USER | WRITABLE) == PRESENT | USER | WRITABLE,
        Access::Any => is_users(entry) && !is_awaited(entry),
    };
    (may && entry & ADDRESS != 0).then_some((entry & ADDRESS) | (address & (PAGE - 1)))
}

/// True for a page of the program, also one that it may not use at present.
fn is_users(entry: u64) -> bool {
    entry & PRESENT == 0 || entry & USER != 0
}

/// Changes the permission of the user page at `address`. Returns true if something was taken away, `None` if no
/// page of the program lies there.
pub fn protect(memory: &Mapping, address: u64, protection: Protection) -> Option<bool> {
    let (at, entry) = walk(memory, address)?;
    if entry & ADDRESS == 0 || !is_users(entry) {
        return None;
    }
    let new = (entry & ADDRESS) | leaf_bits(Owner::User, protection);
    memory.write_u64(at, new).ok()?;
    let lost = (entry & !new) & (PRESENT | WRITABLE) | (new & !entry) & NO_EXECUTE;
    Some(lost != 0)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::arch::layout::{
        KERNEL_STACK, MMAP_WINDOW, MONITOR, PIE_BASE, REQUEST_AREA, REQUEST_AREA_LEN, STACK_TOP,
        USER_STUBS,
    };
    use crate::arch::monitor;

    /// Pages of each of a program's parts.
    const PAGES: u64 = 4;

    fn protection() -> impl Strategy<Value = Protection> {
        any::<[bool; 3]>().prop_map(|[read, write, execute]| Protection {
            read,
            write,
            execute,
        })
    }

    /// An address, mostly in a page that matters or beside one.
    fn address() -> impl Strategy<Value = u64> {
        let near = prop::sample::select(vec![
            0,
            MONITOR.start,
            MONITOR.start + KERNEL_STACK,
            MONITOR.start + USER_STUBS,
            MONITOR.end - PAGE,
            PIE_BASE,
            MMAP_WINDOW,
            STACK_TOP - PAGES * PAGE,
            LOWER_HALF_END,
            u64::MAX - PAGE,
        ]);
        prop_oneof![
            8 => (near, -2..32i64, 0..PAGE).prop_map(|(base, page, offset)| {
                base.wrapping_add_signed(page * PAGE as i64).wrapping_add(offset)
            }),
            1 => any::<u64>(),
        ]
    }

    /// A machine's tables: the monitor's pages, and a program's that the proptest chooses the permissions of. The
    /// guest-physical pages of the program come after the tables.
    fn machine(protections: [Protection; 3]) -> (Mapping, Range<u64>) {
        let windows = [PIE_BASE, MMAP_WINDOW, STACK_TOP - PAGES * PAGE];
        let lens = monitor::ranges()
            .into_iter()
            .map(|range| range.virtual_range());
        let lens = lens.chain(windows.map(|address| address..address + PAGES * PAGE));
        let tables = PAGE_TABLES..PAGE_TABLES + tables_len(lens);
        let program = tables.end..tables.end + 3 * PAGES * PAGE;
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(program.end).unwrap();
        let memory = Mapping::shared(&Arc::new(file), program.end).unwrap();
        let mut tables = TablePages::new(tables);
        for range in monitor::ranges() {
            tables.map(&memory, &range).unwrap();
        }
        for ((address, protection), nth) in windows.into_iter().zip(protections).zip(0..) {
            let range = MapRange {
                address,
                physical: program.start + nth * PAGES * PAGE,
                len: PAGES * PAGE,
                owner: Owner::User,
                protection,
            };
            tables.map(&memory, &range).unwrap();
        }
        (memory, program)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        /// Whatever a program makes of its pages' permissions: the host never reads a page of the engine's own on its
        /// behalf but those that ring 3 may read, and writes none but the request area.
        #[test]
        fn no_address_leads_to_an_engine_page(
            protections in [protection(), protection(), protection()],
            changes in prop::collection::vec((address(), protection()), 0..40),
            addresses in prop::collection::vec(address(), 1..200),
        ) {
            let (memory, program) = machine(protections);
            let request_area = REQUEST_AREA..REQUEST_AREA + REQUEST_AREA_LEN;
            let readable = USER_STUBS..request_area.end;
            for (address, protection) in changes {
                // As `GuestMemory::protect` does.
                if !MONITOR.contains(&address) {
                    protect(&memory, address, protection);
                }
            }
            for address in addresses {
                for access in [Access::Read, Access::Write, Access::Any] {
                    let Some(physical) = translate(&memory, address, access) else { continue };
                    let may = match access {
                        _ if program.contains(&physical) => !MONITOR.contains(&address),
                        Access::Write => request_area.contains(&physical),
                        Access::Read | Access::Any => readable.contains(&physical),
                    };
                    prop_assert!(may, "{address:#x} is {physical:#x} for {access:?}");
                    prop_assert_eq!(physical % PAGE, address % PAGE);
                }
            }
        }
    }

    /// Else the test above would find nothing.
    #[test]
    fn the_engines_pages_are_there_to_be_found() {
        let all = Protection {
            read: true,
            write: true,
            execute: true,
        };
        let (memory, program) = machine([all; 3]);
        let of = |address, access| translate(&memory, address, access);
        assert_eq!(of(PIE_BASE + 5, Access::Write), Some(program.start + 5));
        assert_eq!(
            of(MONITOR.start + USER_STUBS, Access::Read),
            Some(USER_STUBS)
        );
        assert_eq!(of(MONITOR.start + USER_STUBS, Access::Write), None);
        assert_eq!(
            of(MONITOR.start + REQUEST_AREA, Access::Write),
            Some(REQUEST_AREA)
        );
        for access in [Access::Read, Access::Write, Access::Any] {
            assert_eq!(of(MONITOR.start + KERNEL_STACK, access), None);
        }
        // It is mapped, for ring 0.
        let (_, entry) = walk(&memory, MONITOR.start + KERNEL_STACK).unwrap();
        assert_eq!(entry & ADDRESS, KERNEL_STACK);
    }
}
