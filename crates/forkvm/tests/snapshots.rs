//! Snapshots of servers: what comes out of a file is what was put in, and what was not put in does not come out.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/server.rs"]
mod server;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Folder, kvm_or_skip};
use forkvm::{Cause, Closed, Server, ServerFork, ServerLimits, Snapshot, SnapshotError};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRng, TestRunner};
use server::{Client, ask, boot_in, limits, sandbox};

const PROGRAM: &str = "linux/server";
const MEMORY: u64 = 64 << 20;

fn file(folder: &Folder) -> PathBuf {
    folder.0.join("snapshot")
}

fn load(path: &Path) -> Result<Arc<Server>, SnapshotError> {
    let server = load_some(path)?;
    server.wait_until_whole()?;
    Ok(server)
}

/// As much of it as has to be there at first.
fn load_some(path: &Path) -> Result<Arc<Server>, SnapshotError> {
    Snapshot::open(path)?.load(&sandbox(MEMORY, PROGRAM), limits())
}

/// Has a file be read from the disk, as after a restart.
fn drop_cached(path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

#[test]
fn a_server_of_a_file_is_as_the_one_that_was_booted() {
    kvm_or_skip!();
    let folder = Folder::new("as-booted");
    let booted = boot_in(MEMORY, PROGRAM, limits());
    booted.save(&file(&folder), "").unwrap();
    drop_cached(&file(&folder));
    let loaded = load(&file(&folder)).unwrap();
    assert_eq!(loaded.address(), booted.address());
    let mut forks = [booted, loaded].map(|server| ServerFork::new(server).unwrap());
    for round in 0..30 {
        let path = ["/", "/sleep", "/fill"][round % 3];
        let answers = forks.each_mut().map(|fork| {
            let (result, answer) = ask(fork, Client::get(path));
            assert_eq!(result, Ok(Closed::ByServer), "{path}");
            fork.reset().unwrap();
            assert_eq!(fork.differing_pages(), 0, "{round} {path}");
            assert_eq!(fork.differing_entries(), 0, "{round} {path}");
            answer
        });
        assert!(answers[0].ends_with("count 1\n"), "{}", answers[0]);
        assert_eq!(answers[0], answers[1]);
    }
}

/// Forks that begin while memory still comes wait for what they touch, and are as others after their first reset since.
#[test]
fn forks_do_not_wait_for_all_of_it() {
    kvm_or_skip!();
    let folder = Folder::new("early");
    let path = file(&folder);
    boot_in(MEMORY, PROGRAM, limits()).save(&path, "").unwrap();
    for _ in 0..20 {
        drop_cached(&path);
        let loaded = load_some(&path).unwrap();
        let mut fork = ServerFork::new(loaded.clone()).unwrap();
        for path in ["/", "/fill", "/threads"] {
            let (result, answer) = ask(&mut fork, Client::get(path));
            // Threads that spin are none that a connection ends with.
            if path != "/threads" {
                assert_eq!(result, Ok(Closed::ByServer), "{path}");
                assert!(answer.ends_with("count 1\n"), "{answer}");
                fork.reset().unwrap();
            }
        }
        let mut fork = ServerFork::new(loaded.clone()).unwrap();
        assert!(ask(&mut fork, Client::get("/")).1.ends_with("count 1\n"));
        loaded.wait_until_whole().unwrap();
        fork.reset().unwrap();
        assert_eq!((fork.differing_pages(), fork.differing_entries()), (0, 0));
        // One that is not used any more is not brought to its end.
        drop(load_some(&path).unwrap());
    }
}

#[test]
fn what_requests_touch_comes_first() {
    kvm_or_skip!();
    let folder = Folder::new("touched");
    let warm = ServerLimits {
        warm_up: vec![b"GET / HTTP/1.1\r\n\r\n".to_vec()],
        ..limits()
    };
    let booted = boot_in(MEMORY, PROGRAM, warm);
    booted.save(&file(&folder), "").unwrap();
    let exits = [booted, load_some(&file(&folder)).unwrap()].map(|server| {
        let mut fork = ServerFork::new(server).unwrap();
        let (result, answer) = ask(&mut fork, Client::get("/"));
        assert_eq!(result, Ok(Closed::ByServer));
        assert!(answer.ends_with("count 2\n"), "{answer}");
        fork.spent().exits
    });
    // Pages that it had not touched: a look at the clock, and such.
    assert!(exits[1] <= exits[0] + 4, "{exits:?}");
}

#[test]
fn damage_that_is_found_late_fails_all_forks() {
    kvm_or_skip!();
    let folder = Folder::new("late");
    let path = file(&folder);
    boot_in(MEMORY, PROGRAM, limits()).save(&path, "").unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let mut began = 0;
    for _ in 0..50 {
        let Ok(loaded) = load_some(&path) else {
            continue;
        };
        if let Ok(mut fork) = ServerFork::new(loaded.clone()) {
            began += 1;
            let (result, answer) = ask(&mut fork, Client::get("/"));
            match result {
                Ok(Closed::ByServer) => assert!(answer.ends_with("count 1\n"), "{answer}"),
                result => assert_eq!(result, Err(Cause::Lost)),
            }
            let why = loaded.wait_until_whole().unwrap_err().to_string();
            assert!(why.contains("damaged"), "{why}");
            // Nor does it serve another one.
            let _ = fork.reset();
            assert_eq!(ask(&mut fork, Client::get("/")).0, Err(Cause::Lost));
        }
        assert!(loaded.wait_until_whole().is_err());
        let why = ServerFork::new(loaded).unwrap_err().to_string();
        assert!(why.contains("damaged"), "{why}");
    }
    println!("{began} forks began before it was found");
}

/// What is taken of one that was loaded is the same as what it was loaded from.
#[test]
fn a_snapshot_of_a_snapshot_serves() {
    kvm_or_skip!();
    let folder = Folder::new("again");
    let booted = boot_in(MEMORY, PROGRAM, limits());
    let len = booted.save(&file(&folder), "").unwrap();
    drop(booted);
    let loaded = load(&file(&folder)).unwrap();
    let again = folder.0.join("again");
    // What differs in length is times.
    assert!(loaded.save(&again, "x").unwrap().abs_diff(len) < 100);
    drop(loaded);
    let mut fork = ServerFork::new(load(&again).unwrap()).unwrap();
    assert!(ask(&mut fork, Client::get("/")).1.ends_with("count 1\n"));
}

#[test]
fn what_is_no_snapshot_of_ones_own_is_refused() {
    kvm_or_skip!();
    let folder = Folder::new("refused");
    let path = file(&folder);
    boot_in(MEMORY, PROGRAM, limits()).save(&path, "").unwrap();
    let good = std::fs::read(&path).unwrap();
    let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    for bad in [0o620, 0o602, 0o666] {
        mode(bad);
        assert!(matches!(load(&path), Err(SnapshotError::Writable(_))));
    }
    mode(0o644);
    assert!(load(&path).is_ok());
    assert!(matches!(load(&folder.0), Err(SnapshotError::NoFile)));
    assert!(matches!(
        load(Path::new("/dev/null")),
        Err(SnapshotError::NoFile)
    ));
    let none = folder.0.join("none");
    assert!(matches!(load(&none), Err(SnapshotError::NotOpened(..))));
    let with = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        load(&path).map(|_| ())
    };
    for short in [0, 10, 23] {
        assert!(matches!(
            with(&good[..short]),
            Err(SnapshotError::NoSnapshot)
        ));
    }
    for short in [24, 100, 10_000, good.len() - 1] {
        assert!(matches!(
            with(&good[..short]),
            Err(SnapshotError::Truncated)
        ));
    }
    let longer = [&good[..], b"x"].concat();
    assert!(matches!(with(&longer), Err(SnapshotError::Damaged(_))));
    let mut other = good.clone();
    other[12] += 1;
    assert!(matches!(with(&other), Err(SnapshotError::OtherVersion(3))));
    assert!(matches!(
        with(b"#!/bin/sh\nexec something or other\n"),
        Err(SnapshotError::NoSnapshot)
    ));
    with(&good).unwrap();
}

#[test]
fn it_goes_on_only_with_what_it_was_taken_with() {
    kvm_or_skip!();
    let folder = Folder::new("settings");
    boot_in(MEMORY, PROGRAM, limits())
        .save(&file(&folder), "")
        .unwrap();
    let refused = |change: &dyn Fn(&mut forkvm::Sandbox)| {
        let mut other = sandbox(MEMORY, PROGRAM);
        change(&mut other);
        let snapshot = Snapshot::open(&file(&folder)).unwrap();
        matches!(
            snapshot.load(&other, limits()),
            Err(SnapshotError::OtherSettings(_))
        )
    };
    assert!(!refused(&|_| {}));
    assert!(refused(&|other| other.max_memory += 1 << 20));
    assert!(refused(&|other| other.allowed_paths.push("/etc".into())));
    assert!(refused(&|other| drop(other.allowed_paths.pop())));
    assert!(refused(&|other| other.writable_paths.push("/x".into())));
    assert!(refused(&|other| other.allowed_listen = Some(Vec::new())));
    // What it may reach is for who loads it to say.
    assert!(!refused(
        &|other| other.allowed_net = vec!["*".parse().unwrap()]
    ));
    let command = Snapshot::open(&file(&folder)).unwrap().command().clone();
    assert!(command.path.ends_with(b"/server"));
}

/// A damage of a file.
#[derive(Debug, Clone)]
enum Damage {
    Flip(usize, u8),
    Cut(usize),
    /// From there on what comes so much later.
    LeaveOut(usize, usize),
    /// A piece of it somewhere else.
    Splice(usize, usize, usize),
    Fill(usize, usize, u8),
    Add(usize),
}

fn damage(len: usize) -> impl Strategy<Value = Damage> {
    // Most of it in what is not memory.
    let place = || prop_oneof![2 => 0..200usize, 2 => 0..len.min(60_000), 1 => 0..len];
    prop_oneof![
        4 => (place(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, 1 << bit)),
        1 => place().prop_map(Damage::Cut),
        1 => (place(), 1..5000usize).prop_map(|(at, n)| Damage::LeaveOut(at, n)),
        1 => (place(), place(), 1..5000usize).prop_map(|(to, from, n)| Damage::Splice(to, from, n)),
        1 => (place(), 1..100usize, any::<u8>()).prop_map(|(at, n, byte)| Damage::Fill(at, n, byte)),
        1 => (1..5000usize).prop_map(Damage::Add),
    ]
}

fn damaged(good: &[u8], damage: &Damage) -> Vec<u8> {
    let mut bytes = good.to_vec();
    let end = |at: usize, n: usize| (at + n).min(good.len());
    match *damage {
        Damage::Flip(at, mask) => bytes[at] ^= mask,
        Damage::Cut(at) => bytes.truncate(at),
        Damage::LeaveOut(at, n) => drop(bytes.drain(at..end(at, n))),
        Damage::Splice(to, from, n) => {
            let piece = good[from..end(from, n)].to_vec();
            let to_end = end(to, piece.len());
            bytes[to..to_end].copy_from_slice(&piece[..to_end - to]);
        }
        Damage::Fill(at, n, byte) => bytes[at..end(at, n)].fill(byte),
        Damage::Add(n) => bytes.extend(&good[..n.min(good.len())]),
    }
    bytes
}

#[test]
fn ten_thousand_damaged_files_never_load() {
    kvm_or_skip!();
    let folder = Folder::new("damaged");
    let path = file(&folder);
    boot_in(MEMORY, PROGRAM, limits()).save(&path, "").unwrap();
    let good = std::fs::read(&path).unwrap();
    let seed: [u8; 32] = std::array::from_fn(|place| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        (now >> (place % 8 * 8)) as u8
    });
    println!("seed {seed:?}");
    let config = Config {
        cases: 10_000,
        failure_persistence: None,
        ..Default::default()
    };
    let rng = TestRng::from_seed(config.rng_algorithm, &seed);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let done = runner.run(&damage(good.len()), |damage| {
        let bytes = damaged(&good, &damage);
        if bytes != good {
            std::fs::write(&path, &bytes).unwrap();
            prop_assert!(load(&path).is_err());
        }
        Ok(())
    });
    done.unwrap();
}
