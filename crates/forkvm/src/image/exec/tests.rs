//! Tests of programs as they are loaded, good ones and hand-made ones.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::arch::layout::{MONITOR_BASE, PAGE_TABLES};
use crate::memory::testing::with_space;

const PROGRAM: &[u8] = b"/program";
const LINKER: &[u8] = b"/linker";
const FIXED: u16 = 2;
const PIE: u16 = 3;

/// A segment that is loaded: where in the file and in memory, and its lengths there.
#[derive(Debug, Clone)]
struct Segment(u64, u64, u64, u64);

/// An ELF file with these segments, all of them writable.
fn elf(kind: u16, entry: u64, segments: &[Segment], linker: bool) -> Vec<u8> {
    let headers = segments.len() + usize::from(linker);
    let path = 64 + 56 * headers as u64;
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    for half in [kind, 62] {
        bytes.extend(half.to_le_bytes());
    }
    bytes.extend(1u32.to_le_bytes());
    for word in [entry, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0u32.to_le_bytes());
    for half in [64, 56, headers as u16, 64, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    let len = LINKER.len() as u64 + 1;
    let interpreter = (3u32, Segment(path, 0, len, len));
    let all = segments.iter().map(|segment| (1, segment.clone()));
    for (kind, Segment(offset, address, in_file, len)) in
        linker.then_some(interpreter).into_iter().chain(all)
    {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(7u32.to_le_bytes());
        for word in [offset, address, address, in_file, len, PAGE] {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes.extend(LINKER);
    bytes.resize(2 * PAGE as usize, 0);
    bytes
}

#[derive(Debug)]
struct Bytes(Vec<u8>);

impl PageSource for Bytes {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.0.get(at..));
        let rest = rest.unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
    fn path(&self) -> &[u8] {
        PROGRAM
    }
    fn identity(&self) -> (u64, u64) {
        (0, 1)
    }
}

impl Files for BTreeMap<&[u8], Vec<u8>> {
    fn open_executable(&mut self, path: &[u8]) -> Result<Arc<dyn PageSource>, Errno> {
        let bytes = self.get(path).ok_or(Errno::NOENT)?;
        Ok(Arc::new(Bytes(bytes.clone())))
    }
}

/// Loads a program, and its linker if there is one. The monitor's pages have to be untouched.
fn loaded(program: Vec<u8>, linker: Option<Vec<u8>>) -> Result<Loaded, ExecError> {
    let mut files = BTreeMap::from([(PROGRAM, program)]);
    files.extend(linker.map(|linker| (LINKER, linker)));
    let command = Command {
        path: PROGRAM.to_vec(),
        arguments: Vec::new(),
        environment: Vec::new(),
    };
    let placement = Placement {
        random: None,
        at_random: [0; 16],
        ids: [0; 4],
        features: Features::default(),
        xsave_len: 4096,
    };
    let mut memory = with_space();
    let monitor = |memory: &GuestMemory| {
        let tables = memory.space().unwrap().layout().monitor();
        let entries = tables
            .step_by(PAGE as usize)
            .map(|page| crate::arch::paging::next_entry(memory.mapping(), page..page + PAGE));
        entries.collect::<Vec<_>>()
    };
    let before = monitor(&memory);
    let result = find(&mut files, command)?.load(&mut memory, &placement);
    assert_eq!(monitor(&memory), before);
    result
}

fn refused(program: Vec<u8>, linker: Option<Vec<u8>>) {
    let error = loaded(program, linker).unwrap_err();
    assert_eq!(error.errno, Errno::NOEXEC, "{error}");
}

#[test]
fn segments_go_where_programs_may_have_any() {
    const PLACE: u64 = 0x40_0000;
    let tables = MONITOR_BASE + PAGE_TABLES;
    let good = Segment(0, PLACE, PAGE, PAGE);
    let with_linker = || elf(FIXED, PLACE, std::slice::from_ref(&good), true);
    let one = |kind, segment| elf(kind, PLACE, &[segment], false);
    let entry = loaded(one(FIXED, good.clone()), None).unwrap().entry;
    assert_eq!(entry, PLACE);
    // The monitor's own page tables, and what begins before them.
    for bad in [
        Segment(0, tables, PAGE, PAGE),
        Segment(0, tables, 0, PAGE),
        Segment(0, PLACE, PAGE, tables),
    ] {
        refused(one(FIXED, bad.clone()), None);
        refused(with_linker(), Some(one(FIXED, bad)));
    }
    // The first address is what matters for a program that can be moved, and its length.
    let moved = [Segment(0, tables, PAGE, PAGE)];
    loaded(elf(PIE, tables, &moved, false), None).unwrap();
    for len in [MONITOR_BASE - PIE_BASE + PAGE, SERVER_MMAP_TOP - PAGE] {
        refused(one(PIE, Segment(0, 0, PAGE, len)), None);
        refused(with_linker(), Some(one(PIE, Segment(0, 0, PAGE, len))));
    }
    let around = [
        Segment(0, PLACE, PAGE, PAGE),
        Segment(0, tables + (1 << 32), PAGE, PAGE),
    ];
    loaded(elf(FIXED, PLACE, &around, false), None).unwrap();
    // Beyond the largest file.
    let last = i64::MAX as u64 - (PAGE - 1);
    refused(one(FIXED, Segment(last, PLACE, PAGE, PAGE)), None);
    // Where the processor can't go.
    for entry in [USER_END, 1 << 47, 1 << 63, u64::MAX] {
        refused(elf(FIXED, entry, std::slice::from_ref(&good), false), None);
    }
}

fn trouble() -> impl Strategy<Value = u64> {
    let edge = prop_oneof![
        Just(0),
        Just(PIE_BASE),
        Just(MONITOR_BASE),
        Just(MONITOR_BASE + PAGE_TABLES),
        Just(SERVER_MMAP_TOP),
        Just(USER_END),
        Just(1 << 63),
        0u64..1 << 47,
    ];
    (edge, -2i64..3, 0..PAGE).prop_map(|(edge, pages, bytes)| {
        edge.wrapping_add((pages * PAGE as i64) as u64)
            .wrapping_add(bytes)
    })
}

fn segment() -> impl Strategy<Value = Segment> {
    let len = || prop_oneof![3 => 0..3 * PAGE, 1 => trouble()];
    (len(), trouble(), len(), len()).prop_map(|(offset, at, in_file, more)| {
        let offset = page_down(offset) + at % PAGE;
        Segment(offset, at, in_file, in_file.saturating_add(more))
    })
}

proptest! {
    #[test]
    fn no_headers_reach_the_monitor(
        kinds in any::<[bool; 2]>(),
        entries in [trouble(), trouble()],
        mut segments in prop::collection::vec(segment(), 1..4),
        mut linkers in prop::option::of(prop::collection::vec(segment(), 1..3)),
    ) {
        let kind = |pie| if pie { PIE } else { FIXED };
        segments.sort_by_key(|segment| segment.1);
        let linker = linkers.as_mut().map(|segments| {
            segments.sort_by_key(|segment| segment.1);
            elf(kind(kinds[1]), entries[1], segments, false)
        });
        if let Ok(loaded) =
            loaded(elf(kind(kinds[0]), entries[0], &segments, linker.is_some()), linker)
        {
            prop_assert!(loaded.entry < USER_END && loaded.brk < USER_END);
        }
    }
}

#[test]
fn first_lines_of_scripts() {
    let line = |text: &str| script_line(text.as_bytes());
    let path = |text: &str| text.as_bytes().to_vec();
    assert_eq!(line("/bin/sh\nrest"), Some((path("/bin/sh"), None)));
    assert_eq!(
        line(" /usr/bin/env  python3 -u \n"),
        Some((path("/usr/bin/env"), Some(path("python3 -u"))))
    );
    assert_eq!(line("  \n/bin/sh"), None);
}
