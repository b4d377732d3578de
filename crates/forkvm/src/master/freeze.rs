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
    seal(memfd, deadline)?;
    let memory = Mapping::frozen(memfd, len, &unused).map_err(std::io::Error::other)?;
    Ok((memory, unused))
}

/// Has nobody write to a memfd from now on but through the mappings there are, and leaves it as long as it is.
pub fn seal_for_others(memfd: &File) -> std::io::Result<()> {
    let seals = SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW;
    Ok(rustix::fs::fcntl_add_seals(memfd, seals)?)
}

/// Makes the memfd unwritable for good.
///
/// The kernel refuses while somebody holds one of its pages for writing (F_ADD_SEALS in fcntl(2)), which its own reclaim
/// and migration of pages may do for a moment: that is waited out.
pub fn seal(memfd: &File, deadline: Instant) -> std::io::Result<()> {
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
    fn only_who_has_it_mapped_already_writes_to_it_before_the_end() {
        let (file, mapping) = memory();
        seal_for_others(&file).unwrap();
        mapping.write(0, &[1]).unwrap();
        use std::os::unix::fs::FileExt;
        assert!(file.write_at(&[2], 0).is_err());
        assert!(file.set_len(0).is_err() && file.set_len(1 << 20).is_err());
        assert!(Mapping::shared(&file, 8192).is_err());
        let (fork, frozen) = (
            Mapping::fork(&file, 8192, &[]).unwrap(),
            Mapping::frozen(&file, 8192, &[]).unwrap(),
        );
        fork.write(0, &[3]).unwrap();
        mapping.write(4096, &[4]).unwrap();
        let bytes = |of: &Mapping| {
            [0, 4096].map(|at| {
                let mut byte = [0];
                of.read(at, &mut byte).unwrap();
                byte[0]
            })
        };
        assert_eq!((bytes(&fork), bytes(&frozen)), ([3, 4], [1, 4]));
        drop(mapping);
        seal(&file, Instant::now() + Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn who_holds_it_on_is_not() {
        let (file, _mapping) = memory();
        let error = seal(&file, Instant::now()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);
    }
}
