use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use super::*;

/// A store of its own for a test, removed at its end.
struct Temporary {
    dir: PathBuf,
    store: Store,
}

impl Temporary {
    fn new(test: &str, keep: usize) -> Self {
        let dir = std::env::temp_dir().join(format!("kvm-store.{}.{test}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let store = Store::new(&dir, "t", keep);
        Self { dir, store }
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.store.folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn update(&self, elf: &str, base: Option<&str>, before: Option<&str>) {
        let lock = self.store.lock().unwrap();
        if let Some(before) = before {
            self.store.keep_before(&lock, &program(before)).unwrap();
        }
        let (base, before) = (base.map(version), before.map(version));
        self.store
            .commit(&lock, "t", &program(elf), base, before)
            .unwrap();
    }

    /// What runs after a restart while `path` holds `base`; "" for path's own.
    fn chosen(&self, base: Option<&str>) -> (String, usize) {
        let mut complaints = 0;
        let complain = |_| complaints += 1;
        let stored = self.store.programs(base.map(version), complain).next();
        let elf = stored.map_or_else(Vec::new, |stored| stored.elf);
        (String::from_utf8(elf).unwrap(), complaints)
    }

    fn go_back(&self, running: &str) -> Option<String> {
        let lock = self.store.lock().unwrap();
        let before = self.store.before(Some(version(running))).unwrap()?;
        self.store
            .go_back(&lock, "t", before.version, Some(version("path")))
            .unwrap();
        Some(String::from_utf8(before.elf).unwrap())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn version(elf: &str) -> Version {
    Version::of(elf.as_bytes())
}

fn program(elf: &str) -> Stored {
    Stored {
        version: version(elf),
        elf: elf.into(),
    }
}

#[test]
fn a_stored_update_wins_until_the_path_changes() {
    let t = Temporary::new("wins", 2);
    assert_eq!(t.chosen(Some("path")), (String::new(), 0));
    t.update("one", Some("path"), Some("path"));
    assert_eq!(t.chosen(Some("path")).0, "one");
    assert_eq!(t.chosen(Some("other")).0, "", "the file was replaced");
    assert_eq!(t.chosen(None).0, "one", "the file is gone");
    // A tenant without a file, which gets one.
    t.update("two", None, Some("one"));
    assert_eq!(t.chosen(None).0, "two");
    assert_eq!(t.chosen(Some("path")).0, "");
}

#[test]
fn so_many_versions_are_kept() {
    let t = Temporary::new("kept", 2);
    let mut before = "path".to_owned();
    for n in 0..5 {
        let elf = format!("v{n}");
        t.update(&elf, Some("path"), Some(&before));
        before = elf;
    }
    assert_eq!(t.files().len(), 3 + 2, "{:?}", t.files());
    assert_eq!(t.go_back("v4").as_deref(), Some("v3"));
    assert_eq!(t.chosen(Some("path")).0, "v3");
    assert_eq!(t.go_back("v3").as_deref(), Some("v2"));
    assert_eq!(t.go_back("v2"), None);
    assert_eq!(t.chosen(Some("path")).0, "v2");

    // Two that take turns are two files.
    for n in 0..6 {
        t.update(
            &format!("a{}", n % 2),
            Some("path"),
            Some(&format!("a{}", (n + 1) % 2)),
        );
    }
    assert_eq!(t.store.manifest().unwrap().unwrap().previous.len(), 2);

    let none = Temporary::new("none", 0);
    none.update("one", Some("path"), Some("path"));
    assert_eq!(none.files().len(), 1 + 2, "{:?}", none.files());
    assert_eq!(none.go_back("one"), None);
}

#[test]
fn what_is_damaged_is_never_run() {
    let t = Temporary::new("damaged", 2);
    t.update("one", Some("path"), Some("path"));
    t.update("two", Some("path"), Some("one"));
    fs::write(t.store.program(version("two")), "tw").unwrap();
    assert_eq!(t.chosen(Some("path")), ("one".into(), 1));
    fs::remove_file(t.store.program(version("one"))).unwrap();
    assert_eq!(t.chosen(Some("path")), ("path".into(), 2));
    // Uploaded again, it is repaired.
    t.update("two", Some("path"), None);
    assert_eq!(t.chosen(Some("path")), ("two".into(), 0));

    fs::write(t.store.folder.join("manifest.json"), "{\"tenant\":").unwrap();
    assert_eq!(t.chosen(Some("path")), (String::new(), 1));
    t.update("two", Some("path"), None);
    assert_eq!(t.chosen(Some("path")), ("two".into(), 0));
}

#[test]
fn what_a_crash_left_is_harmless_and_removed() {
    let t = Temporary::new("crash", 1);
    t.update("one", Some("path"), None);
    // A crash while the next one was written, and after it was, before the manifest named it.
    fs::write(t.store.program(version("two")).with_extension("tmp"), "t").unwrap();
    fs::write(t.store.program(version("three")), "three").unwrap();
    fs::write(t.store.folder.join("manifest.tmp"), "{").unwrap();
    assert_eq!(t.chosen(Some("path")), ("one".into(), 0));
    t.update("four", Some("path"), Some("one"));
    assert_eq!(t.files().len(), 2 + 2, "{:?}", t.files());
}

#[test]
fn what_did_not_boot_is_gone_back_from_and_forgotten_by_the_next_update() {
    let t = Temporary::new("unfit", 3);
    t.update("one", Some("path"), Some("path"));
    t.update("two", Some("path"), Some("one"));
    t.update("three", Some("path"), Some("two"));
    let before = |running: Option<&str>| {
        let before = t.store.before(running.map(version)).unwrap();
        before.map(|stored| String::from_utf8(stored.elf).unwrap())
    };
    assert_eq!(before(Some("three")).as_deref(), Some("two"));
    assert_eq!(before(Some("two")).as_deref(), Some("one"));
    assert_eq!(before(Some("path")), None);
    assert_eq!(before(None).as_deref(), Some("three"));
    let all = |base: &str| {
        let stored = t.store.programs(Some(version(base)), |_| unreachable!());
        let elfs = stored.map(|stored| String::from_utf8(stored.elf).unwrap());
        elfs.collect::<Vec<_>>()
    };
    assert_eq!(all("path"), ["three", "two", "one", "path"]);
    assert!(all("other").is_empty());
    t.update("four", Some("path"), Some("one"));
    assert_eq!(all("path"), ["four", "one", "path"]);
}

#[test]
fn what_others_could_write_to_is_not_used() {
    let t = Temporary::new("others", 1);
    t.update("one", Some("path"), None);
    let folder = &t.store.folder;
    let mode = |mode| fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o770);
    let error = t.store.lock().unwrap_err().to_string();
    assert!(error.contains("mode 770): chmod"), "{error}");
    assert_eq!(t.chosen(Some("path")), (String::new(), 1));
    mode(0o755);
    assert_eq!(t.chosen(Some("path")), ("one".into(), 0));

    // Links that lead out of the folder.
    let outside = t.dir.join("outside");
    fs::write(&outside, "precious").unwrap();
    fs::remove_file(folder.join("lock")).unwrap();
    symlink(&outside, folder.join("lock")).unwrap();
    let done = t.store.lock().and_then(|lock| {
        let two = program("two");
        t.store.commit(&lock, "t", &two, None, None)
    });
    assert!(matches!(done, Err(StoreError::Io { .. })), "{done:?}");
    assert_eq!(fs::read(&outside).unwrap(), b"precious");
    fs::remove_file(folder.join("lock")).unwrap();
    // The folder itself.
    let elsewhere = t.dir.join("elsewhere");
    fs::rename(folder, &elsewhere).unwrap();
    symlink(&elsewhere, folder).unwrap();
    let error = t.store.lock().unwrap_err().to_string();
    assert!(error.contains("is no folder"), "{error}");
}

#[test]
fn one_changes_it_at_a_time() {
    let t = Temporary::new("lock", 1);
    let lock = t.store.lock().unwrap();
    assert!(matches!(t.store.lock(), Err(StoreError::Busy(_))));
    drop(lock);
    t.store.lock().unwrap();
}

#[test]
fn a_folder_that_can_not_be_is_named() {
    let error = Store::new(Path::new("/proc/nowhere"), "t", 1)
        .lock()
        .unwrap_err();
    assert!(
        error.to_string().contains("/proc/nowhere/t.versions"),
        "{error}"
    );
    // A name that could leave the folder does not.
    let store = Store::new(Path::new("/state"), "..", 1);
    assert_eq!(store.folder, Path::new("/state/...versions"));
}
