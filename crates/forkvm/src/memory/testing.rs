//! Memory with an empty address space, for unit tests without KVM.

use std::fs::File;
use std::sync::Arc;

use crate::arch::layout::SpaceLayout;
use crate::arch::monitor;
use crate::arch::paging::TablePages;
use crate::memory::guest::GuestMemory;
use crate::memory::mapping::Mapping;
use crate::memory::space::Space;

/// A small machine's.
pub fn with_space() -> GuestMemory {
    let layout = SpaceLayout::plan(16 << 20).unwrap();
    let memfd = rustix::fs::memfd_create("forkvm-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let memfd = Arc::new(File::from(memfd));
    memfd.set_len(layout.frames.end).unwrap();
    let mapping = Mapping::shared(&memfd, layout.frames.end).unwrap();
    let mut tables = TablePages::new(layout.tables.clone());
    for range in monitor::ranges_with_tables(&layout) {
        tables.map(&mapping, &range).unwrap();
    }
    GuestMemory::booting(mapping).with_space(Space::new(layout, tables))
}
