//! Forks that are made before all memory of a snapshot is there.

use std::collections::BTreeSet;
use std::time::Duration;

use super::hostile_tests::{program, sandbox};
use super::load::Snapshot;
use crate::arch::layout::PAGE;
use crate::image::exec::Command;
use crate::machine::probe;
use crate::request::Quiet;
use crate::server::fork::ServerFork;
use crate::server::limits::ServerLimits;
use crate::server::master::Server;

/// Most pages that are learnt.
const LEARNT: usize = 2000;

/// It has pages of its own for what requests write. Where those are not there yet, they must not stay what they are then.
#[test]
fn a_fork_that_is_made_early_is_the_master_in_the_end_without_a_reset() {
    if probe::host().is_err() {
        assert!(std::env::var_os("CI").is_none());
        return;
    }
    let folder = std::env::temp_dir().join(format!("forkvm-early-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("snapshot");
    let command = Command {
        path: program().to_str().unwrap().into(),
        arguments: vec!["server".into()],
        environment: Vec::new(),
    };
    // 16 MiB take a while to come.
    let limits = ServerLimits {
        max_request_time: Duration::from_secs(60),
        warm_up: vec![b"GET /fill HTTP/1.1\r\n\r\n".to_vec()],
        ..Default::default()
    };
    let booted = Server::boot(command, &sandbox(), limits.clone(), &mut Quiet).unwrap();
    booted.save(&path, "").unwrap();
    drop(booted);
    let mut early = 0;
    for _ in 0..50 {
        let snapshot = Snapshot::open(&path).unwrap();
        let loaded = snapshot.load(&sandbox(), limits.clone()).unwrap();
        let arrival = loaded.coming.as_ref().unwrap().arrival().clone();
        let pages = 0..(loaded.space.layout().frames.end / PAGE) as u32;
        let is_late = |page: &u32| !arrival.is_there(u64::from(*page) * PAGE);
        let late: BTreeSet<u32> = pages.rev().filter(is_late).take(LEARNT).collect();
        loaded.learned.learn(late.iter().copied());
        let fork = ServerFork::new(loaded.clone()).unwrap();
        early += usize::from(late.iter().any(is_late));
        loaded.wait_until_whole().unwrap();
        assert_eq!(fork.differing_pages(), 0, "{} pages", late.len());
        if early == 3 {
            break;
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(early > 0, "memory came before any fork was made");
}
