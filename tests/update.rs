//! Live updates in a real varnishd with what is no program, or a bad one: the old one goes on.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "../crates/forkvm/tests/common/damage.rs"]
mod damage;

use std::fs;
use std::thread;
use std::time::Duration;

use common::client::Body;
use common::updates::{KEY, answer, guest, start, upload};
use common::{Folder, eventually, guests};
use damage::{Change, change, changed};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[test]
fn an_upload_that_trickles_in_keeps_nobody_from_a_rollback() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("trickle");
    let varnish = start(state.path(), "max_body_time = ENOUGH");
    let good = guest("version-b");
    assert_eq!(upload(&mut varnish.client(), &good).status, 201);
    assert_eq!(answer(&varnish.client().get("t", "/")), b'B');

    let headers = [KEY, ("Content-Length", "1000000")];
    let begin = || {
        let mut slow = varnish.client();
        slow.begin("POST", "t", "/", &headers, Body::None).unwrap();
        slow
    };
    let mut slow = begin();
    eventually("the upload has begun", || {
        let has_begun = upload(&mut varnish.client(), b"").status == 409;
        if !has_begun {
            // It may have been refused itself, if the one before this was still going on.
            slow = begin();
        }
        has_begun
    });
    let key = [("X-LiveRollback", KEY.1)];
    let back = varnish.client().send("POST", "t", "/", &key, Body::None);
    assert_eq!(back.status, 201, "{}", back.text());
    assert_eq!(answer(&varnish.client().get("t", "/")), b'A');
    // Still at it.
    assert_eq!(upload(&mut varnish.client(), b"").status, 409);
}

/// However long the update had to wait before its boot.
#[test]
fn the_new_program_has_as_many_forks_as_the_old_one() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("forks");
    let settings = "max_boot_time = 0.6s, concurrency = 2, max_request_time = ENOUGH";
    let varnish = start(state.path(), settings);
    assert_eq!(upload(&mut varnish.client(), &guest("echo")).status, 201);
    let forks = |forks: &str| {
        let list = varnish.admin(&["backend.list", "-p"]);
        list.contains("t: ready") && list.contains(&format!("forks={forks} "))
    };
    eventually("two requests at once have had two forks made", || {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| varnish.client().get("t", "/sleep-loop/200"));
            }
        });
        forks("2")
    });

    // As another VCL's tenant does that boots from the store.
    let lock = fs::File::open(state.path().join("t.versions/lock")).unwrap();
    lock.lock().unwrap();
    thread::scope(|scope| {
        let updated = scope.spawn(|| upload(&mut varnish.client(), &guest("version-b")));
        thread::sleep(Duration::from_millis(800));
        drop(lock);
        let updated = updated.join().unwrap();
        assert_eq!(updated.status, 201, "{}", updated.text());
    });
    assert!(forks("2"), "{}", varnish.admin(&["backend.list", "-p"]));
}

#[test]
fn no_broken_program_takes_the_place_of_a_good_one() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("broken");
    let varnish = start(state.path(), "max_boot_time = 1s, max_memory = 64MB");
    let mut broken: Vec<(String, Vec<u8>)> = fs::read_dir(guests().join("test"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("bad-") && !name.ends_with(".tmp"))
        // This one is ready, and each of its requests fails.
        .filter(|name| name != "bad-no-handler-waits")
        .map(|name| (name.clone(), guest(&name)))
        .collect();
    assert!(broken.len() > 40);
    broken.sort();
    let good = guest("version-b");
    for len in [
        1,
        63,
        64,
        1000,
        good.len() / 4,
        good.len() / 2,
        good.len() * 3 / 4,
    ] {
        broken.push((format!("{len} bytes of a program"), good[..len].to_vec()));
    }
    let files_before = fs::read_dir(state.path().join("t.versions")).map_or(0, Iterator::count);
    for (name, elf) in &broken {
        let mut client = varnish.client();
        let response = upload(&mut client, elf);
        assert_eq!(response.status, 422, "{name}: {}", response.text());
        assert!(
            response.text().contains("\"error\": \""),
            "{name}: {}",
            response.text()
        );
        assert_eq!(answer(&client.get("t", "/")), b'A', "after {name}");
    }
    assert_eq!(varnish.counter("update_failures"), broken.len() as u64);

    // Too large: the connection may be closed before the client has sent all of it.
    let large = vec![0; 51 << 20];
    for body in [Body::Length(&large), Body::Chunked(&large, 1 << 20)] {
        let refused = varnish.client().try_send("POST", "t", "/", &[KEY], body);
        assert!(refused.map_or(true, |response| response.status == 413));
    }
    // A client that goes away in the middle does not keep the tenant's turn.
    let length = good.len().to_string();
    let headers = [KEY, ("Content-Length", &length)];
    let mut client = varnish.client();
    client
        .begin("POST", "t", "/", &headers, Body::None)
        .unwrap();
    drop(client);
    eventually("the turn is free again", || {
        upload(&mut varnish.client(), b"").status == 422
    });
    assert_eq!(answer(&varnish.client().get("t", "/")), b'A');
    // No descriptors for another machine.
    let mut client = varnish.client();
    assert_eq!(answer(&client.get("t", "/")), b'A');
    let restore = varnish.child().leave_descriptors(3);
    let response = upload(&mut client, &good);
    varnish.child().limit_descriptors(restore);
    assert_eq!(response.status, 503, "{}", response.text());
    assert_eq!(answer(&varnish.client().get("t", "/")), b'A');
    let files = fs::read_dir(state.path().join("t.versions"))
        .unwrap()
        .count();
    assert!(files <= files_before.max(1), "something broken was stored");
    assert_eq!(varnish.counter("updates"), 0);
    assert_eq!(upload(&mut varnish.client(), &good).status, 201);
    assert_eq!(answer(&varnish.client().get("t", "/")), b'B');
}

/// How a program is damaged.
fn damage(len: usize) -> impl Strategy<Value = (Vec<Change>, usize)> {
    prop_oneof![
        8 => (proptest::collection::vec(change(len), 1..4), Just(len)),
        1 => (Just(Vec::new()), 0..len),
    ]
}

#[test]
fn a_damaged_program_is_refused_or_runs_and_harms_nobody() {
    if !common::have_kvm() {
        return;
    }
    let state = Folder::new("damaged");
    let varnish = start(
        state.path(),
        "max_boot_time = 2s, max_request_time = 2s, max_memory = 16MB",
    );
    let good = guest("version-a");
    for (name, cases) in [("version-b", 150), ("hello-static-pie", 100)] {
        let elf = guest(name);
        let mut runner = TestRunner::new(Config {
            cases,
            failure_persistence: None,
            max_shrink_iters: 50,
            ..Config::default()
        });
        let damaged = damage(elf.len());
        let result = runner.run(&damaged, |(changes, len)| {
            let mut client = varnish.client();
            let response = upload(&mut client, &changed(&elf, &changes)[..len]);
            if response.status == 201 {
                // The damage does not matter, or not to main(). What requests get is the program's business.
                let answer = client.get("t", "/");
                prop_assert!(matches!(answer.status, 200 | 500), "{}", answer.status);
                let response = upload(&mut client, &good);
                prop_assert_eq!(response.status, 201, "{}", response.text());
            } else {
                prop_assert_eq!(response.status, 422, "{}", response.text());
            }
            prop_assert_eq!(answer(&client.get("t", "/")), b'A');
            Ok(())
        });
        result.unwrap();
    }
    let refused = varnish.counter("update_failures");
    println!("{refused} of 250 damaged programs refused");
    assert!(refused > 0);
}
