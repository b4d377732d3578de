//! Random programs: what no sequence of calls may do.

use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use syscalls::Sysno;

use crate::linux::abi::PAGE;
use crate::linux::testing::{
    BRK, HEAP_LEN, MMAP, Machine, NoMemory, Recorder, SCRATCH, TestFolder, linux, setup,
};
use crate::linux::{AllowedPath, Call, Linux, Outcome};
use crate::memory::user::UserMemory;
use crate::random::Random;

const PAGES: u64 = HEAP_LEN / PAGE;

/// One step of a program that uses memory.
#[derive(Debug, Clone)]
enum Step {
    Brk(u64),
    Map {
        pages: u64,
        prot: u64,
    },
    MapFixed {
        page: u64,
        pages: u64,
        how: u64,
    },
    Unmap {
        page: u64,
        pages: u64,
    },
    Remap {
        page: u64,
        old: u64,
        new: u64,
        how: u64,
    },
    Protect {
        page: u64,
        pages: u64,
        prot: u64,
    },
    Forget {
        page: u64,
        pages: u64,
    },
    Freeze,
}

fn step() -> impl Strategy<Value = Step> {
    let page = || 0..PAGES;
    let few = || 1..PAGES / 4;
    prop_oneof![
        2 => (0..HEAP_LEN).prop_map(Step::Brk),
        4 => (few(), 0u64..4).prop_map(|(pages, prot)| Step::Map { pages, prot }),
        2 => (page(), few(), prop_oneof![Just(0x10), Just(0x10_0000)])
            .prop_map(|(page, pages, how)| Step::MapFixed { page, pages, how }),
        3 => (page(), few()).prop_map(|(page, pages)| Step::Unmap { page, pages }),
        2 => (page(), few(), few(), 0u64..2).prop_map(|(page, old, new, how)| Step::Remap { page, old, new, how }),
        2 => (page(), few(), 0u64..8).prop_map(|(page, pages, prot)| Step::Protect { page, pages, prot }),
        1 => (page(), few()).prop_map(|(page, pages)| Step::Forget { page, pages }),
        1 => Just(Step::Freeze),
    ]
}

/// What a simple-minded program believes about its memory: the tag it wrote to each page that it has.
struct Model {
    machine: Machine,
    brk: u64,
    tags: Vec<Option<u8>>,
    next_tag: u8,
}

impl Model {
    fn new() -> Self {
        Self {
            machine: Machine::new(Vec::new()),
            brk: 0,
            tags: vec![None; PAGES as usize],
            next_tag: 1,
        }
    }

    fn tag(&mut self) -> u8 {
        self.next_tag = self.next_tag % 250 + 1;
        self.next_tag
    }

    /// Fresh pages are zero. From then on each carries a tag of its own, where it may be written.
    fn fresh(&mut self, base: u64, page: u64) -> Result<(), TestCaseError> {
        let address = base + page * PAGE;
        prop_assert!(
            self.machine
                .get(address, 4096)
                .iter()
                .all(|&byte| byte == 0),
            "page {page} is not zero"
        );
        let tag = self.tag();
        self.machine.memory.write(address, &[tag; 4096]).unwrap();
        Ok(())
    }

    fn fresh_mapping(&mut self, page: u64, pages: u64) -> Result<(), TestCaseError> {
        prop_assert!(page + pages <= PAGES);
        prop_assert!(page >= self.brk.div_ceil(PAGE), "mapping below the break");
        for page in page..page + pages {
            if self.machine.memory.protection(MMAP + page * PAGE).write {
                self.fresh(MMAP, page)?;
            }
            self.tags[page as usize] = Some(self.first_byte(page));
        }
        Ok(())
    }

    fn first_byte(&mut self, page: u64) -> u8 {
        let heap = [BRK, MMAP].into_iter().find_map(|base| {
            let mut byte = [0];
            self.machine
                .memory
                .read(base + page * PAGE, &mut byte)
                .ok()
                .map(|()| byte[0])
        });
        heap.unwrap_or(0)
    }

    fn apply(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Freeze => self.machine.memory.frozen = true,
            Step::Brk(wanted) => {
                let got = self.machine.call(Sysno::brk, &[BRK + wanted]) as u64 - BRK;
                let (old, new) = (self.brk.div_ceil(PAGE), got.div_ceil(PAGE));
                prop_assert!(got == wanted || got == self.brk);
                self.brk = got;
                for page in old..new {
                    prop_assert!(self.tags[page as usize].is_none(), "break over a mapping");
                    self.fresh(BRK, page)?;
                }
            }
            Step::Map { pages, prot } => {
                let got = self
                    .machine
                    .call(Sysno::mmap, &[0, pages * PAGE, prot, 0x22, u64::MAX, 0]);
                if got >= 0 {
                    let page = (got as u64 - MMAP) / PAGE;
                    let taken = &self.tags[page as usize..(page + pages) as usize];
                    prop_assert!(taken.iter().all(Option::is_none), "mappings overlap");
                    self.fresh_mapping(page, pages)?;
                }
            }
            Step::MapFixed { page, pages, how } => {
                let address = MMAP + page * PAGE;
                let got = self.machine.call(
                    Sysno::mmap,
                    &[address, pages * PAGE, 3, 0x22 | how, u64::MAX, 0],
                );
                if got >= 0 {
                    prop_assert_eq!(got as u64, address);
                    if how != 0x10 {
                        let taken = &self.tags[page as usize..(page + pages) as usize];
                        prop_assert!(taken.iter().all(Option::is_none), "replaced a mapping");
                    }
                    self.fresh_mapping(page, pages)?;
                }
            }
            Step::Unmap { page, pages } => {
                let got = self
                    .machine
                    .call(Sysno::munmap, &[MMAP + page * PAGE, pages * PAGE]);
                prop_assert_eq!(got, 0);
                self.tags[page as usize..(page + pages).min(PAGES) as usize].fill(None);
            }
            Step::Remap {
                page,
                old,
                new,
                how,
            } => {
                let at = MMAP + page * PAGE;
                let got = self
                    .machine
                    .call(Sysno::mremap, &[at, old * PAGE, new * PAGE, how, 0]);
                if got >= 0 {
                    let to = (got as u64 - MMAP) / PAGE;
                    let before: Vec<_> = self.tags[page as usize..(page + old) as usize].to_vec();
                    prop_assert!(before.iter().all(Option::is_some));
                    self.tags[page as usize..(page + old) as usize].fill(None);
                    let taken = &self.tags[to as usize..(to + new) as usize];
                    prop_assert!(taken.iter().all(Option::is_none), "moved over a mapping");
                    let kept = old.min(new);
                    self.tags[to as usize..(to + kept) as usize]
                        .copy_from_slice(&before[..kept as usize]);
                    if new > old {
                        self.fresh_mapping(to + kept, new - kept)?;
                    }
                }
            }
            Step::Protect { page, pages, prot } => {
                let all_mapped = self
                    .tags
                    .get(page as usize..(page + pages) as usize)
                    .is_some_and(|tags| tags.iter().all(Option::is_some));
                let got = self
                    .machine
                    .call(Sysno::mprotect, &[MMAP + page * PAGE, pages * PAGE, prot]);
                prop_assert!(all_mapped || got < 0);
                if self.machine.memory.frozen && prot & 4 != 0 && got == 0 {
                    for page in page..page + pages {
                        prop_assert!(self.machine.memory.protection(MMAP + page * PAGE).execute);
                    }
                }
            }
            Step::Forget { page, pages } => {
                let got = self
                    .machine
                    .call(Sysno::madvise, &[MMAP + page * PAGE, pages * PAGE, 4]);
                if got == 0 {
                    for page in page..page + pages {
                        prop_assert!(self.tags[page as usize].is_some());
                        self.tags[page as usize] = Some(0);
                    }
                }
            }
        }
        self.check()
    }

    /// What the program wrote is still there.
    fn check(&mut self) -> Result<(), TestCaseError> {
        for page in 0..PAGES {
            if let Some(tag) = self.tags[page as usize]
                && self.machine.memory.protection(MMAP + page * PAGE).read
            {
                prop_assert_eq!(
                    self.machine.get(MMAP + page * PAGE, 1),
                    vec![tag],
                    "page {} changed",
                    page
                );
            }
        }
        Ok(())
    }
}

fn any_argument() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0u64..12,
        4 => (0u64..8).prop_map(|slot| SCRATCH + slot * PAGE),
        2 => SCRATCH..SCRATCH + 64 * PAGE,
        2 => (0..PAGES).prop_map(|page| MMAP + page * PAGE),
        1 => (0..PAGES).prop_map(|page| BRK + page * PAGE),
        1 => (0..64u32).prop_map(|bit| 1 << bit),
        1 => (0..64u32).prop_map(|bit| (1u64 << bit).wrapping_sub(1)),
        1 => Just(PAGE),
        1 => Just(u64::MAX),
        1 => Just(libc::AT_FDCWD as u64),
        1 => any::<u64>(),
    ]
}

fn any_call() -> impl Strategy<Value = Call> {
    let number = prop_oneof![20 => 0u64..463, 1 => any::<u64>()];
    (number, prop::array::uniform6(any_argument())).prop_map(|(number, args)| Call {
        number,
        args,
        rsp: 0,
    })
}

/// Memory with paths, vectors and small numbers, so that calls get past their first pointer.
fn furnished(folder: &TestFolder) -> Machine {
    let mut machine = Machine::new(vec![folder.0.clone()]);
    machine.put_str(0, &folder.path("a"));
    machine.put_str(1, "/proc/self/maps");
    machine.put_str(2, "/dev/zero");
    machine.put_str(3, &folder.path(""));
    let vector: Vec<u8> = [SCRATCH + 5 * PAGE, 100, MMAP, 1 << 20]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    machine.put(4, &vector);
    machine.put(5, &[1; 256]);
    machine.put(6, &[0xff; 256]);
    machine
}

/// The calls about files.
fn file_call() -> impl Strategy<Value = Call> {
    let numbers = (0..463usize).filter_map(Sysno::new).filter(|number| {
        let name = number.name();
        let of_files = [
            "open",
            "creat",
            "close",
            "read",
            "write",
            "seek",
            "stat",
            "dir",
            "link",
            "rename",
            "chmod",
            "chown",
            "mknod",
            "time",
            "trunc",
            "falloc",
            "access",
            "dup",
            "fcntl",
            "getdents",
            "memfd",
            "sendfile",
            "copy_file",
            "inotify",
            "xattr",
            "mmap",
            "sync",
            "cwd",
        ];
        of_files.iter().any(|part| name.contains(part))
    });
    let argument = prop_oneof![
        6 => (10u64..18).prop_map(|slot| SCRATCH + slot * PAGE),
        4 => 0u64..12,
        2 => prop::sample::select(vec![0x42u64, 0x241, 0x442, 0o20200002, 0o200000, 0x200, 3, 0o10644]),
        2 => any_argument(),
    ];
    let numbers: Vec<u64> = numbers.map(|number| number.id() as u64).collect();
    (
        prop::sample::select(numbers),
        prop::array::uniform6(argument),
    )
        .prop_map(|(number, args)| Call {
            number,
            args,
            rsp: 0,
        })
}

/// The same with an overlay.
fn with_overlay(folder: &TestFolder) -> Machine {
    let mut machine = furnished(folder);
    let mut setup = setup(vec![folder.0.clone().into()]);
    setup.writable_paths = vec![folder.0.clone(), "/tmp".into()];
    setup.overlay_bytes = 1 << 20;
    machine.linux = Linux::new(setup);
    for (slot, name) in (10..).zip(["a", "b", "d", "d/e", "d/e/f", "link", "", "d/../a"]) {
        machine.put_str(slot, &folder.path(name));
    }
    machine
}

/// The same with a folder of the host that may be changed, whose links lead out of it.
fn with_volume(folder: &TestFolder) -> Machine {
    let mut machine = furnished(folder);
    let data = folder.0.join("data");
    std::fs::create_dir_all(data.join("d/e")).unwrap();
    std::fs::write(data.join("a"), [3; 10_000]).unwrap();
    std::os::unix::fs::symlink(&folder.0, data.join("link")).unwrap();
    std::os::unix::fs::symlink("..", data.join("up")).unwrap();
    let mut setup = setup(vec![AllowedPath {
        writes: true,
        ..AllowedPath::from(&data)
    }]);
    setup.writable_paths = vec!["/tmp".into()];
    (setup.overlay_bytes, setup.volume_bytes) = (1 << 20, 1 << 20);
    machine.linux = Linux::new(setup);
    let names = [
        "a",
        "b",
        "d",
        "d/e",
        "link/secret",
        "link",
        "up/secret",
        "up",
    ];
    for (slot, name) in (10..).zip(names) {
        machine.put_str(slot, data.join(name).to_str().unwrap());
    }
    machine
}

/// What the host has in a folder.
fn in_host(folder: &TestFolder) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let entries = std::fs::read_dir(&folder.0).unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name(), std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

fn state(linux: &Linux) -> String {
    // Stamps count changes; everything else is state.
    let text = format!("{linux:?}");
    let parts = text.split("stamp: ").enumerate();
    parts
        .map(|(i, part)| {
            if i == 0 {
                part
            } else {
                part.trim_start_matches(|c: char| c.is_ascii_digit())
            }
        })
        .collect()
}

/// Makes calls, with memory and without: none panics, and a reset undoes them all.
fn all_is_undone(machine: &mut Machine, after: Vec<Call>) -> Result<(), TestCaseError> {
    let master = machine.linux.clone();
    let frozen = state(&master);
    let mut faulty = master.clone();
    for call in after {
        let outcome = machine.linux.call(
            call,
            &mut machine.memory,
            &mut machine.host,
            &mut machine.random,
        );
        if let Outcome::Return(value) = outcome {
            prop_assert!(value >= -4095, "{call:?} gave {value}");
        }
        faulty.call(
            call,
            &mut NoMemory,
            &mut Recorder::default(),
            &mut Random::new().unwrap(),
        );
    }
    machine.linux.restore_from(&master);
    prop_assert_eq!(state(&machine.linux), frozen.clone());
    faulty.restore_from(&master);
    prop_assert_eq!(state(&faulty), frozen);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn memory_is_given_out_once_and_zero(steps in prop::collection::vec(step(), 0..60)) {
        let mut model = Model::new();
        for step in steps {
            model.apply(step)?;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn no_call_panics_and_every_reset_is_complete(
        sockets in any::<bool>(),
        before in prop::collection::vec(any_call(), 0..20),
        after in prop::collection::vec(any_call(), 0..100),
    ) {
        let folder = TestFolder::new();
        folder.file("a", &[3; 10_000]);
        let mut machine = furnished(&folder);
        if sockets {
            machine.linux.of_unmodified();
        }
        for call in before {
            machine.linux.call(call, &mut machine.memory, &mut machine.host, &mut machine.random);
        }
        machine.memory.frozen = true;
        all_is_undone(&mut machine, after)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn no_change_of_files_panics_stays_or_reaches_the_host(
        before in prop::collection::vec(file_call(), 0..50),
        after in prop::collection::vec(file_call(), 0..300),
    ) {
        let folder = TestFolder::new();
        folder.file("a", &[3; 10_000]);
        let there = in_host(&folder);
        let mut machine = with_overlay(&folder);
        for call in before {
            machine.linux.call(call, &mut machine.memory, &mut machine.host, &mut machine.random);
        }
        all_is_undone(&mut machine, after)?;
        prop_assert_eq!(in_host(&folder), there);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn no_change_of_a_volume_panics_or_leads_out(
        calls in prop::collection::vec(file_call(), 0..300),
    ) {
        let folder = TestFolder::new();
        folder.file("secret", b"secret");
        let mut machine = with_volume(&folder);
        // Those wait for the host's disk.
        let syncs = |call: &Call| {
            let number = usize::try_from(call.number).ok().and_then(Sysno::new);
            number.is_some_and(|number| number.name().contains("sync"))
        };
        let calls = calls.into_iter().filter(|call| !syncs(call)).collect();
        all_is_undone(&mut machine, calls)?;
        let names = |path: &std::path::Path| {
            let names = std::fs::read_dir(path).unwrap();
            names.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
        };
        prop_assert_eq!(names(&folder.0).len(), 2);
        let secret = folder.0.join("secret");
        prop_assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
        let mode = std::fs::metadata(&secret).unwrap().permissions().mode();
        prop_assert_eq!(mode & 0o777, 0o644);
        for name in names(&folder.0.join("data")) {
            let kind = std::fs::symlink_metadata(folder.0.join("data").join(name)).unwrap().file_type();
            prop_assert!(kind.is_file() || kind.is_dir() || kind.is_symlink());
        }
    }
}

#[test]
fn the_state_can_move_between_threads() {
    fn check<T: Send + Sync + Clone>(_: &T) {}
    check(&linux(Vec::new()));
}

#[test]
fn calls_have_names() {
    assert_eq!(crate::linux::trace::name(0), Some("read"));
    assert_eq!(crate::linux::trace::name(231), Some("exit_group"));
    assert_eq!(crate::linux::trace::name(0x10000), None);
    assert_eq!(crate::linux::trace::name(u64::MAX), None);
}
