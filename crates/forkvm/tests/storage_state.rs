//! The file that storage keeps its state in: whoever has the program has it, all of it or what was there before.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io;
use std::sync::Arc;

use common::{ENOUGH, Tenant, eventually, guest, kvm_or_skip};
use forkvm::{Owner, Quiet, StorageKind, StorageOwner};
use parking_lot::Mutex;

/// The file, in memory.
#[derive(Default)]
struct Disk {
    content: Mutex<Option<Vec<u8>>>,
    full: Mutex<bool>,
}

struct Owned(Arc<Disk>);

impl StorageOwner for Owned {
    fn load_state(&self, _: u64) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.content.lock().clone())
    }

    fn save_state(&self, content: &[u8]) -> io::Result<()> {
        if *self.0.full.lock() {
            return Err(io::Error::from_raw_os_error(28));
        }
        *self.0.content.lock() = Some(content.to_vec());
        Ok(())
    }
}

fn boot(kind: StorageKind, disk: &Arc<Disk>) -> Tenant {
    Tenant::boot_with("storage", |config| {
        config.storage = kind;
        config.limits.max_memory = 64 << 20;
        config.limits.max_storage_time = ENOUGH;
        config.limits.max_state_size = 100_000;
        config.storage_owner = Owner::new(Owned(disk.clone()));
    })
}

#[track_caller]
fn ask(tenant: &Tenant, url: &str) -> String {
    let reply = tenant.get(url);
    let text = reply.text().trim_end_matches('\n');
    text.split_once(' ')
        .map_or(text, |(_, text)| text)
        .to_owned()
}

fn content(disk: &Disk) -> String {
    String::from_utf8(disk.content.lock().clone().unwrap()).unwrap()
}

#[test]
fn what_is_saved_is_there_at_the_next_boot() {
    kvm_or_skip!();
    for kind in [StorageKind::Machine, StorageKind::Fork] {
        let disk = Arc::new(Disk::default());
        let tenant = boot(kind, &disk);
        assert_eq!(ask(&tenant, "/call/saved"), "open 2");
        ask(&tenant, "/call/add?b=41");
        let counter = ask(&tenant, "/call/add");
        assert_eq!(*disk.content.lock(), None);
        assert_eq!(ask(&tenant, "/call/save"), format!("saved {counter}"));
        assert_eq!(content(&disk), format!("{counter} "));
        assert_eq!(ask(&tenant, "/call/append"), format!("saved {counter}"));
        assert_eq!(content(&disk), format!("{counter} {counter} "));
        assert_eq!(
            ask(&tenant, "/call/saved"),
            format!("6 {counter} {counter} ")
        );
        // Requests can't.
        let state = match kind {
            StorageKind::Machine => " 13 2\n",
            _ => "/kvm-state 13 13\n",
        };
        let reply = tenant.get("/state");
        assert_eq!(reply.text(), state);
        let next = boot(kind, &disk);
        let after: u64 = ask(&next, "/call/add").parse().unwrap();
        let in_main = u64::from(kind == StorageKind::Machine);
        assert_eq!(after, counter.parse::<u64>().unwrap() + in_main + 1);
        // Nothing of the host's files is held, and nothing stays open.
        for _ in 0..100 {
            assert!(ask(&next, "/call/save").starts_with("saved"));
        }
        next.assert_pristine();
    }
}

#[test]
fn what_can_not_be_saved_leaves_what_was() {
    kvm_or_skip!();
    let disk = Arc::new(Disk::default());
    let tenant = boot(StorageKind::Machine, &disk);
    assert_eq!(ask(&tenant, "/call/save"), "saved 1");
    // A machine that ends before it has closed it.
    assert!(tenant.get("/call/save-crash").text().starts_with("-1"));
    assert_eq!(content(&disk), "1 ");
    assert_eq!(ask(&tenant, "/call/saved"), "2 1 ");
    // The disk is full: ENOSPC, by close(2) as by fsync(2).
    *disk.full.lock() = true;
    assert_eq!(ask(&tenant, "/call/save"), "close 28");
    assert_eq!(ask(&tenant, "/call/sync?b=10"), "sync 28");
    assert_eq!(content(&disk), "1 ");
    *disk.full.lock() = false;
    assert_eq!(ask(&tenant, "/call/sync?b=10"), "synced");
    assert_eq!(content(&disk), "\0".repeat(10));
    // Its limit.
    assert_eq!(ask(&tenant, "/call/sync?b=100000"), "synced");
    let refused = ask(&tenant, "/call/sync?b=100001");
    assert!(
        ["sync 27", "truncate 27", "truncate 28"].contains(&&*refused),
        "{refused}"
    );
    assert_eq!(content(&disk).len(), 100_000);
    // One that is too long already is not read.
    *disk.content.lock() = Some(vec![b'1'; 100_001]);
    assert_eq!(ask(&tenant, "/call/saved"), "open 27");
}

#[test]
fn without_a_limit_there_is_no_file() {
    kvm_or_skip!();
    let tenant = Tenant::boot_with("storage", |config| {
        config.storage = StorageKind::Machine;
        config.limits.max_state_size = 0;
    });
    assert_eq!(ask(&tenant, "/call/saved"), "open 2");
    assert_eq!(ask(&tenant, "/call/save"), "open 2");
    // Nobody has one: EROFS.
    let tenant = Tenant::boot_with("storage", |config| config.storage = StorageKind::Machine);
    assert_eq!(ask(&tenant, "/call/saved"), "open 2");
    assert_eq!(ask(&tenant, "/call/save"), "close 30");
}

/// Its limit is `max_state_size`, and no other one.
#[test]
fn a_long_file_can_be_read_back() {
    kvm_or_skip!();
    const LEN: usize = 5_000_000;
    for kind in [StorageKind::Machine, StorageKind::Fork] {
        let disk = Arc::new(Disk::default());
        let boot = || {
            Tenant::boot_with("storage", |config| {
                config.storage = kind;
                config.limits.max_storage_time = ENOUGH;
                config.limits.max_state_size = LEN as u64;
                config.max_file_memory = 0;
                config.storage_owner = Owner::new(Owned(disk.clone()));
            })
        };
        let tenant = boot();
        let most = format!("/call/sync?b={LEN}");
        assert_eq!(ask(&tenant, &most), "synced");
        assert_eq!(ask(&tenant, "/call/measure"), LEN.to_string());
        // As main() has it, which finds no number there.
        let next = boot();
        assert_eq!(ask(&next, "/call/measure"), LEN.to_string());
        assert!(ask(&next, "/call/get").starts_with(match kind {
            StorageKind::Machine => "0 ",
            _ => "-1 ",
        }));
        assert_eq!(ask(&next, &most), "synced");
        assert_eq!(disk.content.lock().as_ref().unwrap().len(), LEN);
    }
}

/// What the storage may have open of its file is no memory for requests' own files.
#[test]
fn requests_have_no_room_for_it() {
    kvm_or_skip!();
    let disk = Arc::new(Disk::default());
    let tenant = Tenant::boot_with("storage", |config| {
        config.storage = StorageKind::Fork;
        config.limits.max_state_size = 16 << 20;
        config.max_file_memory = 1 << 20;
        config.writable_paths = vec!["/scratch".into()];
        config.storage_owner = Owner::new(Owned(disk.clone()));
    });
    let reply = tenant.get("/fill/10000000");
    let written: u64 = reply.text().trim_end().parse().unwrap();
    assert!((500_000..=1 << 20).contains(&written), "{written}");
    tenant.assert_pristine();
}

fn boot_saving(disk: &Arc<Disk>, how: &str) -> Tenant {
    Tenant::boot_with("storage", |config| {
        config.storage = StorageKind::Machine;
        config.limits.max_storage_time = ENOUGH;
        config.environment = vec![format!("SAVES={how}")];
        config.storage_owner = Owner::new(Owned(disk.clone()));
    })
}

/// Drops it, and waits until its owner is dropped, too: all of it is over then.
fn end(tenant: Tenant, disk: &Arc<Disk>) {
    drop(tenant);
    eventually("it is over", || Arc::strong_count(disk) == 1);
}

#[test]
fn a_storage_saves_when_it_ends() {
    kvm_or_skip!();
    let disk = Arc::new(Disk::default());
    let tenant = boot_saving(&disk, "counter");
    ask(&tenant, "/call/add?b=41");
    assert_eq!(*disk.content.lock(), None);
    // For its successor's main().
    tenant.save().unwrap();
    assert_eq!(content(&disk), "42 ");
    ask(&tenant, "/call/add");
    end(tenant, &disk);
    assert_eq!(content(&disk), "43 ");
    // Not if another one is in service in its place; nor one that never was.
    let tenant = boot_saving(&disk, "counter");
    assert_eq!(ask(&tenant, "/call/add"), "45");
    tenant.retire();
    end(tenant, &disk);
    assert_eq!(content(&disk), "43 ");
    let tenant = boot_saving(&disk, "counter");
    let next: Tenant = tenant
        .boot_successor(&guest("storage"), tenant.config().clone(), &mut Quiet)
        .unwrap()
        .into();
    drop(next);
    tenant.retire();
    end(tenant, &disk);
    assert_eq!(content(&disk), "43 ");
    // A task that runs then comes to its end before.
    let tenant = boot_saving(&disk, "counter");
    assert_eq!(ask(&tenant, "/call/add"), "45");
    ask(&tenant, "/task/tick-slow");
    eventually("it runs", || tenant.stats().storage.unwrap().tasks == 1);
    end(tenant, &disk);
    assert_eq!(content(&disk), "46 ");
    // One that fails to has lost what it had.
    let tenant = boot_saving(&disk, "crash");
    let error = tenant.save().unwrap_err().to_string();
    assert!(
        error.contains("on_storage_save of the program before: the storage failed: invalid"),
        "{error}"
    );
    assert_eq!(ask(&tenant, "/call/add"), "47");
    end(tenant, &disk);
    assert_eq!(content(&disk), "46 ");
}
