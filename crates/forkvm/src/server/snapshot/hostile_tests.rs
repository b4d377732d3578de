//! Snapshots whose hashes are right and whose state is anything: they are refused, or what comes of them fails as a program does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::fs::SealFlags;

use super::format::{self, BUILD, CHUNK};
use super::host::HostKind;
use super::load::Snapshot;
use crate::exec::Sandbox;
use crate::image::exec::Command;
use crate::machine::probe;
use crate::request::{Quiet, Request};
use crate::server::fork::ServerFork;
use crate::server::http_client::{HttpClient, Upload};
use crate::server::limits::ServerLimits;
use crate::server::master::Server;

pub(super) fn program() -> PathBuf {
    let dir = std::env::var_os("GUESTS_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests"),
        PathBuf::from,
    );
    dir.join("test/linux/server")
}

pub(super) fn sandbox() -> Sandbox {
    let system = ["/lib", "/lib64", "/usr/lib", "/etc/ld.so.cache"];
    let system = system.map(PathBuf::from).into_iter();
    Sandbox {
        allowed_paths: system
            .filter(|path| path.exists())
            .chain([program().parent().unwrap().to_owned()])
            .map(Into::into)
            .collect(),
        max_memory: 64 << 20,
        ..Default::default()
    }
}

fn limits() -> ServerLimits {
    ServerLimits {
        max_request_time: Duration::from_millis(200),
        ..Default::default()
    }
}

/// Changes of some bytes: where, to what.
fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    let byte = prop_oneof![any::<u8>(), Just(0), Just(1), Just(0x7f), Just(0xff)];
    prop::collection::vec((any::<prop::sample::Index>(), byte), 1..4)
}

#[test]
fn a_state_that_is_not_one_harms_nobody() {
    let Ok(kvm) = probe::host() else {
        assert!(std::env::var_os("CI").is_none());
        return;
    };
    let folder = std::env::temp_dir().join(format!("forkvm-hostile-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("snapshot");
    let command = Command {
        path: program().to_str().unwrap().into(),
        arguments: vec!["server".into()],
        environment: Vec::new(),
    };
    let booted = Server::boot(command, &sandbox(), limits(), &mut Quiet).unwrap();
    booted.save(&path, "").unwrap();
    // As long as nothing is wrong with it nobody writes to what forks are made of.
    let snapshot = Snapshot::open(&path).unwrap();
    let loaded = snapshot.load(&sandbox(), limits()).unwrap();
    let seals = || rustix::fs::fcntl_get_seals(&*loaded.file).unwrap();
    assert!(seals().contains(SealFlags::FUTURE_WRITE | SealFlags::SHRINK));
    loaded.wait_until_whole().unwrap();
    assert!(seals().contains(SealFlags::WRITE | SealFlags::SEAL));
    drop(loaded);
    let file = std::fs::read(&path).unwrap();
    let mut from = &file[..];
    let head = format::read_head(&mut from, file.len() as u64).unwrap();
    let state = format::state_bytes(&mut from, &head).unwrap();
    let memory = from.to_vec();
    let hashes: Vec<_> = memory.chunks(CHUNK).map(format::hash).collect();
    let served = std::cell::Cell::new(0);
    let config = ProptestConfig {
        cases: 1500,
        failure_persistence: None,
        ..Default::default()
    };
    proptest!(config, |(changes in changes())| {
        let mut state = state.clone();
        for (place, byte) in changes {
            let place = place.index(state.len());
            state[place] = byte;
        }
        let mut bytes = Vec::new();
        let by = (BUILD.to_owned(), HostKind::of(kvm));
        format::write(&mut bytes, by, &state, memory.len() as u64, hashes.clone()).unwrap();
        bytes.extend(&memory);
        std::fs::write(&path, bytes).unwrap();
        let server = Snapshot::open(&path).and_then(|snapshot| snapshot.load(&sandbox(), limits()));
        if let Ok(server) = server {
            served.set(served.get() + 1);
            let mut fork = ServerFork::new(Arc::clone(&server)).unwrap();
            let request = Request { url: b"/", ..Default::default() };
            let deadline = Instant::now() + Duration::from_millis(200);
            let mut client = HttpClient::new(&request, Upload::Whole, deadline, 1 << 20).unwrap();
            if fork.serve(&mut client, &mut Quiet).is_ok() {
                let _ = fork.reset();
            }
        }
    });
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(served.get() > 100, "{}", served.get());
}
