//! The table's part for calls about memory: which function, for a program with an address space or with a heap.

use std::sync::Arc;

use rustix::io::Errno;
use syscalls::Sysno;

use crate::linux::abi::{Guest, Value, flags};
use crate::linux::files::{fds, open, shared_maps};
use crate::linux::memory::{self, MapRequest, space};
use crate::linux::state::Linux;

/// The calls about memory: of a program with an address space, or with a heap.
pub fn call(linux: &mut Linux, guest: &mut Guest<'_>, number: Sysno, args: [u64; 6]) -> Value {
    let [a, b, c, d, e, f] = args;
    // Memory is never swapped out.
    match number {
        Sysno::mlock2 if flags(c) & !1 != 0 => return Err(Errno::INVAL),
        Sysno::mlock | Sysno::mlock2 | Sysno::munlock => {
            return match guest.memory.space() {
                Some(space) => space::check_mapped(&space, a, b),
                None => Ok(0),
            };
        }
        // MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, of which the last says nothing alone.
        Sysno::mlockall if !matches!(flags(a), 1..=3 | 5..=7) => return Err(Errno::INVAL),
        Sysno::mlockall | Sysno::munlockall => return Ok(0),
        _ => {}
    }
    let request = MapRequest {
        address: a,
        len: b,
        prot: c,
        flags: d,
    };
    let mut source = if number == Sysno::mmap && flags(d) & memory::MAP_ANONYMOUS == 0 {
        open::map_source(&linux.files, e, f)?
    } else {
        None
    };
    if source.is_some() && memory::is_shared(d) {
        let file = linux.files.get(e)?;
        let writes = flags(c) & memory::PROT_WRITE != 0 && file.writable();
        if let fds::Kind::File(file) = &file.kind
            && file.changes()
        {
            let file = Arc::clone(file);
            let mirror = shared_maps::mirror(&mut linux.files, &file, writes)?;
            source = mirror.map(|mirror| (mirror, f)).or(source);
        }
    }
    let of_overlay = source.as_ref().and_then(|(source, _)| source.node());
    if of_overlay.is_some() && memory::is_shared(d) {
        linux.files.overlay.share();
    }
    let heap = &mut linux.heap;
    let Some(mut space) = guest.memory.space() else {
        return match number {
            Sysno::brk => memory::brk(heap, guest, a),
            Sysno::mmap => memory::mmap(heap, guest, request, open::as_source(&source)),
            Sysno::munmap => memory::munmap(heap, guest, a, b),
            Sysno::mremap => memory::mremap(heap, guest, args),
            Sysno::mprotect => memory::mprotect(heap, guest, a, b, c),
            Sysno::madvise => memory::madvise(heap, &linux.process.stack, guest, a, b, c),
            Sysno::msync => Ok(0),
            _ => Err(Errno::NOSYS),
        };
    };
    match number {
        Sysno::brk => space::brk(&mut space, &mut linux.program_break, a),
        Sysno::mmap => {
            let file = source.map(|(source, offset)| space::File { source, offset });
            space::mmap(&mut space, request, file)
        }
        Sysno::munmap => space::munmap(&mut space, a, b),
        Sysno::mremap => space::mremap(&mut space, args),
        Sysno::mprotect => space::mprotect(&mut space, a, b, c),
        Sysno::madvise => space::madvise(&mut space, a, b, c),
        Sysno::msync => {
            space::msync(&space, a, b, c)?;
            // What was written there is in the files already.
            match flags(c) & space::MS_SYNC {
                0 => Ok(0),
                _ => linux.files.mirrors.sync().map(|()| 0),
            }
        }
        _ => {
            let present = space::mincore(&space, a, b)?;
            guest.write(c, &present)?;
            Ok(0)
        }
    }
}
