use super::address_space::AddressSpace;
use super::*;
use crate::arch::paging::Page;
use crate::memory::access::Touch;
use crate::memory::guest::GuestMemory;
use crate::memory::testing::with_space;

const RW: Protection = Protection {
    read: true,
    write: true,
    execute: false,
};

fn anonymous(range: Range<u64>) -> Vma {
    Vma {
        start: range.start,
        end: range.end,
        protection: RW,
        shared: false,
        wiped: false,
        backing: Backing::Anonymous(None),
    }
}

/// Entries of the monitor's pages.
fn monitors(space: &AddressSpace<'_>) -> Vec<Page> {
    let ours = space.monitor();
    std::iter::successors(paging::next_entry(space.mapping, ours.clone()), |page| {
        paging::next_entry(space.mapping, page.address + PAGE..ours.end)
    })
    .collect()
}

#[test]
fn what_is_no_programs_is_refused_and_stays() {
    let mut memory = with_space();
    let mut space = memory.address_space().unwrap();
    let ours = space.monitor();
    let before = monitors(&space);
    let at = 16 * PAGE;
    space.map(anonymous(at..at + 2 * PAGE)).unwrap();
    for range in [
        ours.clone(),
        ours.start - PAGE..ours.start + PAGE,
        ours.end - PAGE..ours.end + PAGE,
        ours.start - PAGE..ours.end + PAGE,
        USER_END - PAGE..USER_END + PAGE,
        1 << 63..(1 << 63) + 2 * PAGE,
        1..PAGE,
    ] {
        let refused = Err(SpaceError::NotForPrograms {
            start: range.start,
            end: range.end,
        });
        assert_eq!(space.map(anonymous(range.clone())), refused);
        assert_eq!(space.unmap(range.clone()), refused);
        assert_eq!(space.protect_range(range.clone(), RW), refused);
        assert_eq!(space.move_range(range, at), refused);
    }
    for to in [
        ours.start - PAGE,
        ours.end - PAGE,
        USER_END - PAGE,
        0u64.wrapping_sub(PAGE),
    ] {
        space.move_range(at..at + 2 * PAGE, to).unwrap_err();
    }
    assert_eq!(monitors(&space), before);
    assert!(space.vmas().covers(at..at + 2 * PAGE));
    space.map(anonymous(ours.end..ours.end + PAGE)).unwrap();
    space.map(anonymous(ours.start - PAGE..ours.start)).unwrap();
    space.map(anonymous(USER_END - PAGE..USER_END)).unwrap();
    space.clear();
    assert_eq!(space.vmas().iter().count(), 0);
    assert_eq!(monitors(&space), before);
}

/// An entry that one request added stays, with its frame. If the next one takes it away, and another entry gets the frame,
/// after the reset it is the first one's again, and only that.
#[test]
fn what_stays_after_a_reset_has_its_frame_alone() {
    let mut memory = with_space();
    let (one, other) = (16 * PAGE, 64 * PAGE);
    let mut space = memory.address_space().unwrap();
    for at in [one, other] {
        space.map(anonymous(at..at + PAGE)).unwrap();
    }
    let end = space.space.layout().frames.end;
    let master = space.space.fork(end);
    let mut memory = memory.with_space(master.fork(end));
    memory.fault(one, Touch::Write).unwrap();
    assert!(memory.restore_space(&master).unwrap());
    let frame = |memory: &GuestMemory, at| {
        let entry = paging::next_entry(memory.mapping(), at..at + PAGE)?;
        Some(paging::frame_of(entry.value))
    };
    let kept = frame(&memory, one);
    assert!(kept.is_some());
    let mut space = memory.address_space().unwrap();
    space.unmap(one..one + PAGE).unwrap();
    memory.fault(other, Touch::Write).unwrap();
    assert_eq!(frame(&memory, other), kept);
    assert!(memory.restore_space(&master).unwrap());
    assert_eq!((frame(&memory, one), frame(&memory, other)), (kept, None));
}
