//! Files that are made up when they are opened, and say how the program is doing: `/proc/self/maps` and the like.

use std::ops::Range;
use std::sync::Arc;

use crate::linux::abi::{Guest, PAGE};
use crate::linux::files::known::Report;
use crate::linux::files::proc;
use crate::linux::memory::heap::{Heap, Window};
use crate::linux::process::Process;
use crate::linux::tasks::task::Tasks;
use crate::linux::time::Clocks;
use crate::memory::space::vmas::{Backing, Vmas};
use crate::memory::user::Protection;

/// Most mappings in `/proc/self/maps`, and most bytes from which on no more are added: every open one holds its text in
/// the host, and names can be long.
const MAX_MAPS: usize = 4096;
const MAX_MAPS_LEN: usize = 512 << 10;

/// What reports are about.
pub struct Seen<'a> {
    /// The process.
    pub process: &'a Process,
    /// The heap.
    pub heap: &'a Heap,
    /// Its tasks.
    pub tasks: &'a Tasks,
    /// Its clocks.
    pub clocks: &'a Clocks,
}

/// What a report says now.
pub fn text(report: Report, seen: &Seen<'_>, guest: &mut Guest<'_>) -> Arc<[u8]> {
    let heap = seen.heap;
    let memory = guest
        .memory
        .space()
        .map(|space| space.memory())
        .map(|(used, all)| (all / 1024, (all - used) / 1024));
    let kib = |pages: u64| pages.saturating_mul(PAGE) / 1024;
    let text = match report {
        Report::Fixed(text) => text.to_owned(),
        Report::CpuInfo if memory.is_some() => proc::CPU_INFO.to_owned(),
        Report::CpuInfo => {
            "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu cores\t: 1\nsiblings\t: 1\n\n"
                .to_owned()
        }
        Report::MemInfo => {
            let (total, free) =
                memory.unwrap_or_else(|| (kib(heap.pages()), kib(heap.free_pages())));
            format!(
                "MemTotal: {total:>15} kB\nMemFree: {free:>16} kB\nMemAvailable: {free:>11} kB\n"
            )
        }
        Report::Maps => match guest.memory.space() {
            Some(space) => space_maps(space.vmas()),
            None => maps(seen),
        },
        Report::CommandLine => return Arc::clone(&seen.process.texts[0]),
        Report::Environment => return Arc::clone(&seen.process.texts[1]),
        report => {
            let mapped = guest.memory.space().map_or(0, |space| {
                let vmas = space.vmas().iter();
                vmas.map(|vma| vma.end - vma.start).sum()
            });
            let (all, free) = memory.unwrap_or_default();
            proc::text(
                report,
                &proc::Numbers {
                    name: String::from_utf8_lossy(seen.process.name()).into_owned(),
                    pid: seen.tasks.pid(),
                    parent: seen.tasks.parent(),
                    ids: seen.tasks.ids(),
                    umask: seen.process.umask(),
                    threads: seen.tasks.len(),
                    mapped: mapped / 1024,
                    resident: all.saturating_sub(free),
                    running: seen.clocks.running(),
                    stack: seen.process.stack.clone(),
                    number: u128::from(guest.random.number()) << 64
                        | u128::from(guest.random.number()),
                },
            )
        }
    };
    text.into_bytes().into()
}

/// A line of `/proc/self/maps` (proc_pid_maps(5)).
fn map_line(
    addresses: Range<u64>,
    protection: Protection,
    shared: bool,
    offset: u64,
    (device, inode): (u64, u64),
    name: &[u8],
) -> String {
    let letter = |on: bool, letter: char| if on { letter } else { '-' };
    let (r, w, x) = (
        letter(protection.read, 'r'),
        letter(protection.write, 'w'),
        letter(protection.execute, 'x'),
    );
    let s = if shared { 's' } else { 'p' };
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let text = format!(
        "{:08x}-{:08x} {r}{w}{x}{s} {offset:08x} {major:02x}:{minor:02x} {inode}",
        addresses.start, addresses.end
    );
    // The kernel aligns names at column 73.
    if name.is_empty() {
        format!("{text} \n")
    } else {
        format!("{text:<73}{}\n", String::from_utf8_lossy(name))
    }
}

/// `/proc/self/maps` of a program with an address space.
fn space_maps(vmas: &Vmas) -> String {
    let mut text = String::new();
    for vma in vmas.iter().take(MAX_MAPS) {
        let (offset, identity, name): (_, _, &[u8]) = match &vma.backing {
            Backing::Anonymous(name) => (0, (0, 0), name.unwrap_or_default().as_bytes()),
            Backing::File(file, offset) => (*offset, file.identity(), file.path()),
        };
        text += &map_line(
            vma.range(),
            vma.protection,
            vma.shared,
            offset,
            identity,
            name,
        );
        if text.len() >= MAX_MAPS_LEN {
            break;
        }
    }
    text
}

/// `/proc/self/maps` (proc_pid_maps(5)) as far as it is known here: the heap, the mappings and the stack, which
/// glibc's pthread_getattr_np(3) looks for. The program's own segments are missing.
fn maps(seen: &Seen<'_>) -> String {
    let heap = seen.heap;
    let line = |addresses: Range<u64>, protection: Protection, name: &str| {
        map_line(addresses, protection, false, 0, (0, 0), name.as_bytes())
    };
    let read_write = Protection {
        read: true,
        write: true,
        execute: false,
    };
    let mut lines = Vec::new();
    if heap.brk_pages() > 0 {
        let brk = heap.address(Window::Brk, 0)..heap.address(Window::Brk, heap.brk_pages());
        lines.push((brk.start, line(brk, read_write, "[heap]")));
    }
    for (pages, mapping) in heap.mappings().iter().take(MAX_MAPS) {
        let addresses =
            heap.address(Window::Mmap, pages.start)..heap.address(Window::Mmap, pages.end);
        lines.push((addresses.start, line(addresses, mapping.protection, "")));
    }
    let stack = seen.process.stack.clone();
    lines.push((stack.start, line(stack, read_write, "[stack]")));
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}

#[cfg(test)]
mod tests {
    use crate::linux::testing::{MMAP, Machine, SCRATCH};
    use syscalls::Sysno;

    #[test]
    fn the_map_shows_heap_and_stack() {
        let mut machine = Machine::new(Vec::new());
        machine.call(Sysno::brk, &[0x60_1000]);
        machine.call(Sysno::mmap, &[0, 4096, 1, 0x22, u64::MAX, 0]);
        let path = machine.put_str(10, "/proc/self/maps");
        let fd = machine.call(Sysno::open, &[path, 0]) as u64;
        let len = machine.call(Sysno::read, &[fd, SCRATCH, 4096]);
        let text = String::from_utf8(machine.get(SCRATCH, len as usize)).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].starts_with("00600000-00601000 rw-p 00000000 00:00 0 "),
            "{text}"
        );
        assert!(lines[0].ends_with(" [heap]"));
        let mapping = MMAP + 63 * 4096;
        assert!(
            lines[1].starts_with(&format!("{mapping:x}-{:x} r--p", mapping + 4096)),
            "{text}"
        );
        assert!(
            lines[2].starts_with("7ffe00000000-7ffe00100000 rw-p"),
            "{text}"
        );
        assert_eq!(lines[2].find("[stack]"), Some(73));
        assert_eq!(lines.len(), 3);
    }
}
