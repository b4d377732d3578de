//! A file that is put in another one's place whole, or not at all.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Writes a file aside, for its owner alone, has it be on the disk, and gives it its name. Whenever this is interrupted, the old
/// file or the new one has that name. Gives how long the file is.
pub fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> io::Result<u64> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let aside = aside(path)?;
    let file = open_alone(&aside)?;
    let written = fill(&file, write).and_then(|len| {
        std::fs::rename(&aside, path)?;
        Ok(len)
    });
    match written {
        Ok(len) => File::open(folder)?.sync_all().map(|()| len),
        Err(error) => {
            // What is left of it is written over the next time.
            let _ = std::fs::remove_file(&aside);
            Err(error)
        }
    }
}

fn fill(
    file: &File,
    write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> io::Result<u64> {
    // One that a killed writer has left may be anything.
    file.set_len(0)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    let mut to = BufWriter::with_capacity(1 << 20, file);
    write(&mut to)?;
    to.flush()?;
    drop(to);
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

fn aside(path: &Path) -> io::Result<PathBuf> {
    let none = || io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
    let mut name = OsString::from(".");
    name.push(path.file_name().ok_or_else(none)?);
    name.push(".part");
    Ok(path.with_file_name(name))
}

/// Opens what is written aside, which nobody else writes to meanwhile.
fn open_alone(aside: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(aside)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            rustix::io::Errno::WOULDBLOCK => {
                io::Error::other("another process is writing it just now")
            }
            errno => errno.into(),
        })?;
        // Who has put it there could read what is written, or have another file written over.
        let found = file.metadata()?;
        if found.uid() != rustix::process::geteuid().as_raw() || found.nlink() > 1 {
            let what = format!(
                "{} is another user's, or has another name: remove it, and keep snapshots where only you can write",
                aside.display()
            );
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
        }
        // Whoever had it locked may have given it its name meanwhile.
        let same = |found: &std::fs::Metadata| {
            let mine = file.metadata()?;
            Ok::<_, io::Error>((mine.dev(), mine.ino()) == (found.dev(), found.ino()))
        };
        match std::fs::symlink_metadata(aside) {
            Ok(found) if same(&found)? => return Ok(file),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_else_has_put_there_is_not_written_to() {
        let folder = std::env::temp_dir().join(format!("forkvm-put-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let (aside, other) = (folder.join(".file.part"), folder.join("other"));
        let put = || write_whole(&folder.join("file"), |to| to.write_all(b"a secret"));
        std::fs::write(&other, "other").unwrap();
        std::fs::hard_link(&other, &aside).unwrap();
        assert!(put().unwrap_err().to_string().contains("has another name"));
        assert_eq!(std::fs::read(&other).unwrap(), b"other");
        std::fs::remove_file(&aside).unwrap();
        // Only root can have it be another's.
        std::fs::write(&aside, "").unwrap();
        if std::os::unix::fs::chown(&aside, Some(12345), None).is_ok() {
            assert!(put().is_err());
            assert!(std::fs::read(&aside).unwrap().is_empty());
            std::fs::remove_file(&aside).unwrap();
        }
        assert_eq!(put().unwrap(), 8);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_old_one_stays_until_the_new_one_is_whole() {
        let folder = std::env::temp_dir().join(format!("forkvm-written-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("file");
        let put = |bytes: &'static [u8]| write_whole(&path, move |to| to.write_all(bytes));
        assert_eq!(put(b"old one").unwrap(), 7);
        let failed = write_whole(&path, |to| {
            to.write_all(&[0; 3 << 20])?;
            // Nobody else writes it meanwhile.
            assert!(put(b"other").is_err());
            Err(io::Error::other("no"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old one");
        // What a writer left that was killed is in nobody's way.
        std::fs::write(folder.join(".file.part"), [7; 100]).unwrap();
        put(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let names: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
        assert_eq!(names.len(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
