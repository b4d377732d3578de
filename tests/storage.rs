//! Storage in a real varnishd: counted exactly whatever happens to the program meanwhile, and kept where the program keeps it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use common::client::{Body, Client};
use common::varnishd::Varnishd;
use common::{eventually, guests};

const KEY: (&str, &str) = ("X-LiveUpdate", "k");
const THREADS: [&str; 4] = ["-p", "thread_pool_max=200", "-p", "thread_pool_min=100"];

fn tenant(settings: &str) -> String {
    let comma = if settings.is_empty() { "" } else { "," };
    format!(
        r#"kvm.tenant("t", "GUESTS/test/storage", storage = true, update_key = "k", max_memory = 64MB, max_wait = ENOUGH,
            max_request_time = ENOUGH, max_queue = 1000{comma} {settings});"#
    )
}

#[track_caller]
fn ask(client: &mut Client, url: &str) -> String {
    let response = client.get("t", url);
    assert_eq!(response.status, 200, "{url}: {response:?}");
    response.text().trim_end_matches('\n').to_owned()
}

/// What the storage has counted.
fn count(varnish: &Varnishd) -> u64 {
    let text = ask(&mut varnish.client(), "/call/add?b=0");
    text.split_once(' ').unwrap().1.parse().unwrap()
}

#[test]
fn sixty_four_connections_are_counted_exactly() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start_with(&tenant("concurrency = 8"), &THREADS);
    let before = count(&varnish);
    thread::scope(|scope| {
        for _ in 0..64 {
            let mut client = varnish.client();
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_ne!(ask(&mut client, "/call/add"), "-1 ");
                }
            });
        }
    });
    assert_eq!(count(&varnish), before + 64 * 20);
}

#[test]
fn shared_memory_counts_sixty_four_connections_exactly() {
    if !common::have_kvm() {
        return;
    }
    const FORKS: usize = 8;
    let varnish = Varnishd::start_with(
        &format!(
            r#"kvm.tenant("t", "GUESTS/test/shared", shared_memory = 2MB, storage = true, concurrency = {FORKS}, max_memory = 64MB,
                max_wait = ENOUGH, max_request_time = ENOUGH, max_queue = 1000);"#
        ),
        &THREADS,
    );
    // Both main() have counted 100.
    assert_eq!(ask(&mut varnish.client(), "/get"), "200 0 mains 2");
    thread::scope(|scope| {
        for nth in 0..64 {
            let mut client = varnish.client();
            scope.spawn(move || {
                for _ in 0..20 {
                    // Most in forks, some in the storage.
                    match nth % 8 {
                        0 => assert_ne!(ask(&mut client, "/call/add"), "-1 0"),
                        _ => assert!(ask(&mut client, "/add").ends_with(" 1")),
                    }
                }
            });
        }
    });
    let expected = 200 + 64 * 20;
    assert_eq!(
        ask(&mut varnish.client(), "/get"),
        format!("{expected} 0 mains 2")
    );
}

#[test]
fn updates_lose_no_count() {
    if !common::have_kvm() {
        return;
    }
    let folder = common::Folder::new("storage-updates");
    let settings = format!(
        r#"concurrency = 4, state_dir = "{}""#,
        folder.path().display()
    );
    let varnish = Varnishd::start_with(&tenant(&settings), &THREADS);
    let before = count(&varnish);
    let (over, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..16 {
            let mut client = varnish.client();
            let (over, answered) = (&over, &answered);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    assert_ne!(ask(&mut client, "/call/add"), "-1 ");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for name in ["storage-two", "storage-three", "storage-two"] {
            let elf = fs::read(guests().join("test").join(name)).unwrap();
            let mut client = varnish.client();
            let response = client.send("POST", "t", "/", &[KEY], Body::Length(&elf));
            assert_eq!(response.status, 201, "{}", response.text());
            let so_far = answered.load(Ordering::Relaxed);
            eventually("requests go on", || {
                answered.load(Ordering::Relaxed) > so_far + 50
            });
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(count(&varnish), before + answered.load(Ordering::Relaxed));
    let history = ask(&mut varnish.client(), "/call/get");
    assert!(history.ends_with("storage>two>three>two"), "{history}");
}

#[test]
fn tasks_end_with_their_vcl() {
    if !common::have_kvm() {
        return;
    }
    let varnish = Varnishd::start(&tenant(""));
    ask(&mut varnish.client(), "/task/tick?start=3600000");
    ask(&mut varnish.client(), "/task/tick-endless?start=1");
    eventually("they have a thread", || {
        varnish.child().has_thread("forkvm-tasks")
    });
    varnish.reload("");
    varnish.admin(&["vcl.discard", "boot"]);
    eventually("it has ended", || {
        !varnish.child().has_thread("forkvm-tasks")
    });
}

#[test]
fn what_is_saved_outlives_varnishd() {
    if !common::have_kvm() {
        return;
    }
    let folder = common::Folder::new("storage-state");
    let settings = format!(r#"state_dir = "{}""#, folder.path().display());
    let mut varnish = Varnishd::start(&tenant(&settings));
    ask(&mut varnish.client(), "/call/add?b=41");
    let saved = count(&varnish);
    assert_eq!(
        ask(&mut varnish.client(), "/call/save"),
        format!("8 saved {saved}")
    );
    ask(&mut varnish.client(), "/call/add?b=1000");
    let file = folder.path().join("t.versions/state");
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{saved} "));
    // The child is killed.
    varnish.kill_child();
    varnish.start_child();
    // main() of what answers requests has counted one.
    assert_eq!(count(&varnish), saved + 1);
    // Another varnishd; and where the file can't be written, what was there stays.
    drop(varnish);
    let varnish = Varnishd::start(&tenant(&settings));
    assert_eq!(count(&varnish), saved + 1);
    fs::create_dir(folder.path().join("t.versions/state.aside")).unwrap();
    let refused = ask(&mut varnish.client(), "/call/save");
    assert!(refused.contains("close "), "{refused}");
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{saved} "));
    assert_eq!(
        varnish.log("kvm: tenant t: state of its storage: ").len(),
        1
    );
}

/// With other settings it is another tenant, with the same file.
#[test]
fn the_latest_tenant_has_the_file() {
    if !common::have_kvm() {
        return;
    }
    let folder = common::Folder::new("storage-writers");
    let settings = format!(r#"state_dir = "{}""#, folder.path().display());
    let varnish = Varnishd::start(&tenant(&settings));
    let save = || ask(&mut varnish.client(), "/call/save");
    assert_eq!(save(), "7 saved 1");
    let new = varnish.reload(&tenant(&format!("{settings}, concurrency = 3")));
    ask(&mut varnish.client(), "/call/add?b=40");
    assert_eq!(save(), "8 saved 42");
    let file = folder.path().join("t.versions/state");
    varnish.admin(&["vcl.use", "boot"]);
    for _ in 0..2 {
        // ESTALE
        assert_eq!(save(), "9 close 116");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "42 ");
    let said =
        "kvm: tenant t: state of its storage: is not saved: the file is that of a later program";
    assert_eq!(varnish.log(said).len(), 1);
    varnish.admin(&["vcl.discard", &new]);
    eventually("the file is its own again", || save() == "7 saved 1");
    assert_eq!(fs::read_to_string(&file).unwrap(), "1 ");
}
