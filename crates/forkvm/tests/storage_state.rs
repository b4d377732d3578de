//! The file that storage keeps its state in: whoever has the program has it, all of it or what was there before.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io;
use std::sync::Arc;

use common::{ENOUGH, Tenant, kvm_or_skip};
use forkvm::{Owner, StorageKind, StorageOwner};
use parking_lot::Mutex;

/// The file, in memory.
#[derive(Default)]
struct Disk {
    content: Mutex<Option<Vec<u8>>>,
    full: Mutex<bool>,
}

struct Owned(Arc<Disk>);

impl StorageOwner for Owned {
    fn load_state(&self) -> io::Result<Option<Vec<u8>>> {
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
            StorageKind::Machine => "",
            _ => "/kvm-state",
        };
        let reply = tenant.get("/state");
        assert_eq!(reply.text(), format!("{state} 13\n"));
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
