use std::fs::{self, File};
use std::io::{Cursor, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tar::{Builder, EntryType, Header};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

const LIMITS: Limits = Limits {
    bytes: 1 << 20,
    files: 100,
};

/// A folder that nobody else has, within one in which nothing else may appear.
struct Target {
    around: PathBuf,
    folder: PathBuf,
}

impl Target {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let around =
            std::env::temp_dir().join(format!("kvm-archive.{}.{number}", std::process::id()));
        let folder = around.join("folder");
        fs::create_dir_all(&folder).unwrap();
        Self { around, folder }
    }

    fn unpack_within(&self, archive: &[u8], limits: Limits) -> Result<(), NotUnpacked> {
        let folder = File::open(&self.folder).unwrap();
        let unpacked = unpack(archive, folder.into(), limits, &mut || {
            ControlFlow::Continue(())
        });
        let all: Vec<_> = fs::read_dir(&self.around).unwrap().collect();
        assert_eq!(all.len(), 1, "something got out of the folder");
        unpacked
    }

    fn unpack(&self, archive: &[u8]) -> Result<(), NotUnpacked> {
        self.unpack_within(archive, LIMITS)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.folder.join(path)).unwrap()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.around);
    }
}

/// What a test's tar has: type, name, where a link leads or what a file has.
type Item<'a> = (EntryType, &'a str, &'a str);

const FILE: EntryType = EntryType::Regular;
const FOLDER: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

/// A header with a name that the crate itself would not write.
fn header(kind: EntryType, name: &str, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    let field = &mut header.as_old_mut().name;
    field[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(1_000_000_000);
    header.set_cksum();
    header
}

fn tar(items: &[Item<'_>]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for &(kind, name, content) in items {
        let is_link = [LINK, HARD].contains(&kind);
        let content = if is_link {
            ("", content)
        } else {
            (content, "")
        };
        let mut header = header(kind, name, content.0.len() as u64, 0o644);
        if is_link {
            header.set_link_name_literal(content.1).unwrap();
            header.set_cksum();
        }
        tar.append(&header, content.0.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn zip(write: impl FnOnce(&mut ZipWriter<Cursor<Vec<u8>>>)) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    write(&mut zip);
    zip.finish().unwrap().into_inner()
}

#[test]
fn all_formats_give_the_same_folder() {
    let items = [
        (FOLDER, "./", ""),
        (FOLDER, "static/", ""),
        (FILE, "./static/app.js", "js"),
        (FILE, "deep/in/folders/file", "file"),
        (LINK, "deep/link", "../static/app.js"),
    ];
    let as_tar = tar(&items);
    let as_zip = zip(|zip| {
        let options = SimpleFileOptions::default();
        zip.add_directory("static/", options).unwrap();
        zip.start_file("static/app.js", options).unwrap();
        zip.write_all(b"js").unwrap();
        zip.start_file("deep/in/folders/file", options).unwrap();
        zip.write_all(b"file").unwrap();
        zip.add_symlink("deep/link", "../static/app.js", options)
            .unwrap();
    });
    for archive in [as_tar.clone(), gzip(&as_tar), as_zip] {
        assert!(is_archive(&archive[..HEAD.min(archive.len())]));
        let target = Target::new();
        target.unpack(&archive).unwrap();
        assert_eq!(target.read("static/app.js"), "js");
        assert_eq!(target.read("deep/in/folders/file"), "file");
        assert_eq!(target.read("deep/link"), "js");
    }
}

#[test]
fn what_tar_itself_writes_is_understood() {
    let source = Target::new();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    fs::create_dir(source.folder.join("d".repeat(120))).unwrap();
    fs::write(source.folder.join(&long), "long").unwrap();
    fs::write(source.folder.join("run"), "#!").unwrap();
    fs::set_permissions(source.folder.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::hard_link(source.folder.join("run"), source.folder.join("same")).unwrap();
    std::os::unix::fs::symlink(&long, source.folder.join("link")).unwrap();
    for format in ["gnu", "pax", "posix"] {
        let tar = std::process::Command::new("tar")
            .args([&format!("--format={format}"), "-cz", "-C"])
            .arg(&source.folder)
            .arg(".")
            .output()
            .unwrap();
        let target = Target::new();
        target.unpack(&tar.stdout).unwrap();
        assert_eq!(target.read(&long), "long");
        assert_eq!(target.read("link"), "long");
        assert_eq!(target.read("same"), "#!");
        let mode = |name| fs::metadata(target.folder.join(name)).unwrap().mode() & 0o7777;
        assert_eq!(mode("run"), 0o755);
        assert_eq!(mode(&long), 0o644);
        let time = |of: &Target| of.folder.join(&long).metadata().unwrap().mtime();
        assert_eq!(time(&target), time(&source));
    }
}

#[test]
fn nothing_runs_as_somebody_else() {
    let mut tar = Builder::new(Vec::new());
    tar.append(&header(FILE, "file", 0, 0o6777), &b""[..])
        .unwrap();
    tar.append(&header(FOLDER, "folder", 0, 0o7777), &b""[..])
        .unwrap();
    let target = Target::new();
    target.unpack(&tar.into_inner().unwrap()).unwrap();
    for name in ["file", "folder"] {
        let mode = fs::metadata(target.folder.join(name)).unwrap().mode();
        assert_eq!(mode & 0o7022, 0, "{name}: {mode:o}");
    }
}

#[test]
fn what_could_get_out_is_refused() {
    let deep = "d/".repeat(65) + "f";
    let long = "n".repeat(99);
    let hostile: &[(&[Item<'_>], &str)] = &[
        (&[(FILE, "/etc/x", "")], "absolute"),
        (&[(FILE, "../x", "")], "leads up"),
        (&[(FILE, "a/../../x", "")], "leads up"),
        (&[(FOLDER, "..", "")], "leads up"),
        (&[(FILE, "", "x")], "names the folder itself"),
        (&[(LINK, "a", "/etc/passwd")], "absolute path"),
        (&[(LINK, "a", "..")], "leaves the folder"),
        (&[(LINK, "d/a", "../../x")], "leaves the folder"),
        (&[(LINK, "d/a", "b/../../x")], "elsewhere than at its start"),
        (&[(LINK, "a", "")], "is a link of 0"),
        (
            &[(LINK, "a", "."), (FILE, "a/x", "")],
            "beneath what is no folder",
        ),
        (&[(LINK, "a", "b"), (FILE, "a", "")], "is there twice"),
        (&[(FILE, "a", ""), (FILE, "./a", "")], "is there twice"),
        (&[(LINK, "a", "."), (FOLDER, "a", "")], "is there twice"),
        (
            &[(FILE, "a", ""), (FILE, "a/b", "")],
            "beneath what is no folder",
        ),
        (&[(HARD, "a", "/etc/passwd")], "absolute path"),
        (&[(HARD, "a", "../../x")], "leads up"),
        (&[(HARD, "a", "none")], "no file before it"),
        (&[(FOLDER, "d", ""), (HARD, "a", "d")], "no file before it"),
        (&[(LINK, "l", "x"), (HARD, "a", "l")], "no file before it"),
        (&[(EntryType::Char, "a", "")], "a device"),
        (&[(EntryType::Block, "a", "")], "a device"),
        (&[(EntryType::Fifo, "a", "")], "a FIFO"),
        (&[(EntryType::new(b'V'), "a", "")], "neither a file"),
        (&[(FOLDER, "./", "")], "the archive is empty"),
        (&[], "the archive is"),
    ];
    for (items, why) in hostile {
        let target = Target::new();
        let archive = gzip(&tar(items));
        let refused = target.unpack(&archive).unwrap_err().to_string();
        assert!(refused.contains(why), "{items:?}: {refused}");
    }
    let mut by_long_names = Builder::new(Vec::new());
    by_long_names
        .append_data(&mut header(FILE, "", 0, 0o644), &deep, &b""[..])
        .unwrap();
    let refused = Target::new().unpack(&by_long_names.into_inner().unwrap());
    assert!(refused.unwrap_err().to_string().contains("folders deep"));
    for (name, why) in [
        (long.repeat(3), "a name of more than 255 bytes"),
        (format!("{long}/").repeat(11), "longer than 1024 bytes"),
    ] {
        let mut tar = Builder::new(Vec::new());
        tar.append_data(&mut header(FILE, "", 0, 0o644), &name, &b""[..])
            .unwrap();
        let refused = Target::new().unpack(&tar.into_inner().unwrap());
        assert!(refused.unwrap_err().to_string().contains(why));
    }
    let zips = [
        ("../x", "leads up"),
        ("/x", "absolute"),
        ("a/../../x", "leads up"),
    ];
    for (name, why) in zips {
        let archive = zip(|zip| {
            zip.start_file_from_path("placeholder-of-a-name", SimpleFileOptions::default())
                .unwrap();
        });
        let padded = format!(
            "{name}{}",
            "x".repeat("placeholder-of-a-name".len() - name.len())
        );
        let hostile = replaced(&archive, b"placeholder-of-a-name", padded.as_bytes());
        let refused = Target::new().unpack(&hostile).unwrap_err().to_string();
        assert!(refused.contains(why), "{name}: {refused}");
    }
    let twice = zip(|zip| {
        for name in ["name-1", "name-2"] {
            zip.start_file(name, SimpleFileOptions::default()).unwrap();
        }
    });
    let refused = Target::new().unpack(&replaced(&twice, b"name-2", b"name-1"));
    assert!(refused.unwrap_err().to_string().contains("is there twice"));
    let link = zip(|zip| {
        zip.add_symlink("a", "/etc/passwd", SimpleFileOptions::default())
            .unwrap();
    });
    let refused = Target::new().unpack(&link).unwrap_err().to_string();
    assert!(refused.contains("absolute path"), "{refused}");
}

fn replaced(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let mut bytes = bytes.to_vec();
    for at in 0..=bytes.len() - old.len() {
        if bytes[at..].starts_with(old) {
            bytes[at..at + new.len()].copy_from_slice(new);
        }
    }
    bytes
}

#[test]
fn what_grows_beyond_its_limits_is_ended() {
    let limits = Limits {
        bytes: 1000,
        files: 3,
    };
    let unpacks = |archive: &[u8]| Target::new().unpack_within(archive, limits);
    let content = "x".repeat(1000);
    unpacks(&tar(&[(FILE, "a", &content)])).unwrap();
    let too_many_bytes = [
        tar(&[(FILE, "a", &content), (FILE, "b", "x")]),
        zip(|zip| {
            zip.start_file("bomb", SimpleFileOptions::default())
                .unwrap();
            zip.write_all(&vec![0; 1 << 20]).unwrap();
        }),
        // Only said, and not there.
        header(FILE, "a", u64::MAX / 2, 0o644).as_bytes().to_vec(),
    ];
    for archive in too_many_bytes {
        let refused = unpacks(&archive).unwrap_err().to_string();
        assert!(refused.contains("max_folder_size"), "{refused}");
    }
    let files = |names: &[&str]| {
        let items: Vec<Item<'_>> = names.iter().map(|&name| (FILE, name, "")).collect();
        unpacks(&tar(&items))
    };
    files(&["a", "b", "c"]).unwrap();
    files(&["a/b/c"]).unwrap();
    let many = zip(|zip| {
        for name in ["a", "b", "c", "d"] {
            zip.start_file(name, SimpleFileOptions::default()).unwrap();
        }
    });
    for refused in [
        files(&["a", "b", "c", "d"]),
        files(&["a/b/c/d"]),
        unpacks(&many),
    ] {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("max_folder_files"), "{refused}");
    }
}

/// What brings no file is counted all the same, since it takes time, and whoever wants it can stop it.
#[test]
fn what_is_no_file_counts() {
    let global = header(EntryType::XGlobalHeader, "pax_global_header", 0, 0o644);
    let folder = header(FOLDER, "./", 0, 0o755);
    for entry in [global, folder] {
        let archive = gzip(&entry.as_bytes().repeat(LIMITS.files as usize + 1));
        let refused = Target::new().unpack(&archive).unwrap_err().to_string();
        assert!(refused.contains("max_folder_files"), "{refused}");
        let target = Target::new();
        let folder = File::open(&target.folder).unwrap();
        let mut stop = || ControlFlow::Break(());
        let stopped = unpack(&archive, folder.into(), LIMITS, &mut stop);
        assert!(matches!(stopped, Err(NotUnpacked::Stopped)));
    }
}

/// Bytes in the place of a file's, by properties that say so: a reader that does not know them takes them for the file's.
#[test]
fn sparse_files_are_refused_however_a_tar_has_them() {
    let source = Target::new();
    let file = File::create(source.folder.join("sparse")).unwrap();
    file.set_len(LIMITS.bytes / 2).unwrap();
    (&file).write_all(b"begins").unwrap();
    let formats = [
        "--format=gnu",
        "--sparse-version=0.0",
        "--sparse-version=0.1",
        "--sparse-version=1.0",
    ];
    for format in formats {
        let mut tar = std::process::Command::new("tar");
        if format != "--format=gnu" {
            tar.arg("--format=pax");
        }
        let tar = tar
            .args([format, "--sparse", "-c", "-C"])
            .arg(&source.folder)
            .arg("sparse")
            .output()
            .unwrap();
        assert!(tar.status.success() && (tar.stdout.len() as u64) < LIMITS.bytes / 4);
        let refused = Target::new().unpack(&tar.stdout).unwrap_err().to_string();
        assert!(refused.contains("is a sparse file"), "{format}: {refused}");
    }
}

/// A zip that says that it has too many files is refused before they are looked at, which would take memory for each; so are
/// two that say so. Nor is it looked for the parts of a zip where it does not say that they are.
#[test]
fn a_zip_is_not_held_in_memory() {
    let three = zip(|zip| {
        for name in ["a", "b", "c"] {
            zip.start_file(name, SimpleFileOptions::default()).unwrap();
        }
    });
    Target::new().unpack(&three).unwrap();
    // The end of the central directory (APPNOTE 4.3.16): how many there are on this disk, and in all.
    let end = three.len() - 22;
    let mut many = three.clone();
    for at in [end + 8, end + 10] {
        many[at..at + 2].copy_from_slice(&u16::try_from(LIMITS.files + 1).unwrap().to_le_bytes());
    }
    // There is room for so many by what it says of itself.
    many[end + 12..end + 16].copy_from_slice(&(46 * (LIMITS.files + 1)).to_le_bytes());
    many.splice(end..end, vec![0; 46 * 2 * LIMITS.files as usize]);
    let refused = Target::new().unpack(&many).unwrap_err().to_string();
    assert!(refused.contains("max_folder_files"), "{refused}");
    let mut moved = three;
    moved.splice(0..0, *b"PK\x03\x04");
    let refused = Target::new().unpack(&moved).unwrap_err();
    assert!(matches!(refused, NotUnpacked::Damaged(_)), "{refused}");
}

/// A header that says much is not held in memory.
#[test]
fn names_without_end_are_not_read() {
    for kind in [EntryType::GNULongName, EntryType::XHeader] {
        let mut tar = GzEncoder::new(Vec::new(), Compression::fast());
        let size = 1 << 30;
        tar.write_all(header(kind, "././@LongLink", size, 0o644).as_bytes())
            .unwrap();
        std::io::copy(&mut std::io::repeat(b'n').take(size >> 5), &mut tar).unwrap();
        let limits = Limits {
            bytes: 1 << 40,
            files: 100,
        };
        let refused = Target::new().unpack_within(&tar.finish().unwrap(), limits);
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("bytes before a file"), "{refused}");
    }
}

#[test]
fn whoever_wants_it_can_stop_it() {
    let target = Target::new();
    let folder = File::open(&target.folder).unwrap();
    let archive = tar(&[(FILE, "a", "x")]);
    let mut stop = || ControlFlow::Break(());
    let stopped = unpack(&archive, folder.into(), LIMITS, &mut stop);
    assert!(matches!(stopped, Err(NotUnpacked::Stopped)));
}

#[test]
fn programs_are_no_archives() {
    for program in [&b"\x7fELF"[..], b"#!/bin/sh\n", b"", b"text"] {
        assert!(!is_archive(program));
    }
    // Whatever the name of a tar's first file.
    assert!(!is_archive(&tar(&[(FILE, "#!name", "")])));
    assert!(is_archive(&tar(&[(FILE, "name", "")])));
}

proptest! {
    /// Damage of any kind is an error or another folder, and nothing else.
    #[test]
    fn damaged_archives_are_survived(at in 0usize..4096, byte: u8, cut in 0usize..4096, which in 0..3) {
        let items = [(FOLDER, "d", ""), (FILE, "d/a", "content"), (LINK, "d/l", "a"), (HARD, "h", "d/a")];
        let mut archive = match which {
            0 => tar(&items),
            1 => gzip(&tar(&items)),
            _ => zip(|zip| {
                let options = SimpleFileOptions::default();
                zip.add_directory("d", options).unwrap();
                zip.start_file("d/a", options).unwrap();
                zip.write_all(b"content").unwrap();
                zip.add_symlink("d/l", "a", options).unwrap();
            }),
        };
        let len = archive.len();
        archive[at % len] = byte;
        archive.truncate(len - cut % len.min(64));
        let target = Target::new();
        let _ = target.unpack(&archive);
        check_beneath(&target.folder, &target.folder);
    }
}

/// A fuzz target (crates/forkvm/fuzz/strangers.rs): whatever comes, nothing is made outside of the folder, no link leads out of it, and it
/// stays within its limits.
#[test]
fn archives() {
    bolero::check!().for_each(|archive| {
        let target = Target::new();
        let limits = Limits {
            bytes: 64 << 10,
            files: 20,
        };
        let _ = target.unpack_within(archive, limits);
        let (mut bytes, mut files) = (0, 0);
        check_beneath(&target.folder, &target.folder);
        for path in all_beneath(&target.folder) {
            files += 1;
            let metadata = fs::symlink_metadata(path).unwrap();
            bytes += if metadata.is_file() {
                metadata.len()
            } else {
                0
            };
        }
        assert!(files <= limits.files as usize && bytes <= limits.bytes);
    });
}

fn all_beneath(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            all.extend(all_beneath(&path));
        }
        all.push(path);
    }
    all
}

/// No link in there leads out.
fn check_beneath(folder: &Path, top: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_symlink() {
            if let Ok(real) = fs::canonicalize(&path) {
                assert!(real.starts_with(fs::canonicalize(top).unwrap()), "{path:?}");
            }
        } else if kind.is_dir() {
            check_beneath(&path, top);
        } else {
            assert!(kind.is_file());
        }
    }
}
