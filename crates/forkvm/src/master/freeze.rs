//! The freeze: memory that was written until now becomes what all forks are copies of.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use crate::memory::mapping::Mapping;
use crate::memory::unused;

/// A file in memory for a machine that is to be frozen.
pub fn memfd(name: &str, len: u64) -> std::io::Result<Arc<File>> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create(name, flags)?);
    file.set_len(len)?;
    Ok(Arc::new(file))
}

/// Gives back what the program left zero among these addresses, makes the rest unwritable for good, and maps it for
/// reading. Nobody has it mapped for writing any more.
pub fn freeze(
    memfd: &Arc<File>,
    among: Range<u64>,
    deadline: Instant,
) -> std::io::Result<(Mapping, Vec<Range<u64>>)> {
    let len = memfd.metadata()?.len();
    let memory = Mapping::frozen(memfd, len, &[]).map_err(std::io::Error::other)?;
    let unused = unused::give_back(memfd, &memory, among)?;
    Ok((seal_all(memfd, &unused, deadline)?, unused))
}

/// The same where it is known what has no memory.
pub fn seal_all(
    memfd: &Arc<File>,
    unused: &[Range<u64>],
    deadline: Instant,
) -> std::io::Result<Mapping> {
    let len = memfd.metadata()?.len();
    seal(memfd, deadline)?;
    Mapping::frozen(memfd, len, unused).map_err(std::io::Error::other)
}

/// Makes the memfd unwritable for good.
///
/// The kernel refuses while somebody holds one of its pages for writing (F_ADD_SEALS in fcntl(2)), which its own reclaim
/// and migration of pages may do for a moment: that is waited out.
fn seal(memfd: &File, deadline: Instant) -> std::io::Result<()> {
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    loop {
        match rustix::fs::fcntl_add_seals(memfd, seals) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> (Arc<File>, Mapping) {
        let file =
            rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
        let file = Arc::new(File::from(file.unwrap()));
        file.set_len(8192).unwrap();
        let mapping = Mapping::shared(&file, 8192).unwrap();
        (file, mapping)
    }

    #[test]
    fn whoever_holds_the_memory_for_a_moment_is_waited_for() {
        let (file, mapping) = memory();
        let holder = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(mapping);
        });
        seal(&file, Instant::now() + Duration::from_secs(60)).unwrap();
        holder.join().unwrap();
    }

    #[test]
    fn who_holds_it_on_is_not() {
        let (file, _mapping) = memory();
        let error = seal(&file, Instant::now()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);
    }
}
