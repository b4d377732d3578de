//! What a request may cost the host: counted in the pages a fork has dirtied when the request is over.

use crate::config::Config;
use crate::fork::tests::testing::{deadline, frozen, get, text};
use crate::fork::*;
use crate::memory::guest::NotRead;
use crate::request::Quiet;

/// The request's memory in these tests, in pages.
const LIMIT: usize = 256;

/// A file longer than the limit, gone with the test.
struct BigFile(std::path::PathBuf);

impl BigFile {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("forkvm-big-{}", std::process::id()));
        std::fs::write(&path, vec![1; 4 * LIMIT * PAGE as usize]).unwrap();
        Self(path)
    }
}

impl Drop for BigFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn no_single_call_takes_more_than_the_request_may() {
    let file = BigFile::new();
    let settings = |config: &mut Config| {
        config.limits.max_memory = 64 << 20;
        config.limits.max_request_memory = LIMIT as u64 * PAGE;
        config.main_arguments = vec![file.0.display().to_string()];
        config.allowed_paths = vec![file.0.clone().into()];
    };
    let Some(master) = frozen("hostile", settings) else {
        return;
    };
    let mut fork = Fork::new(master).unwrap();
    for url in ["/read-zero", "/getrandom", "/map-file", "/move"] {
        let result = get(&mut fork, url);
        assert!(
            matches!(result, Err(Cause::MemoryLimit)),
            "{url}: {result:?}"
        );
        // Those that the program wrote itself count as well, when the ring is looked at.
        let dirtied = fork.machine.memory.request_pages();
        assert!(dirtied < LIMIT + 32, "{url} dirtied {dirtied} pages");
        assert!(fork.reset().is_ok(), "{url}");
        assert_eq!(fork.differing_pages(), 0, "{url}");
        assert!(get(&mut fork, "/main").is_ok());
        assert!(fork.reset().is_ok());
    }
}

#[test]
fn a_body_costs_no_more_than_the_request_may() {
    let settings = |config: &mut Config| {
        config.limits.max_memory = 64 << 20;
        config.limits.max_request_memory = LIMIT as u64 * PAGE;
    };
    let Some(master) = frozen("hostile", settings) else {
        return;
    };
    let mut fork = Fork::new(master).unwrap();
    let body = vec![b'x'; 4 * LIMIT * PAGE as usize];
    let request = Request {
        method: "POST",
        url: b"/main",
        body: &body,
        ..Default::default()
    };
    let result = fork.call(&request, None, deadline(), &mut Quiet, None);
    assert!(matches!(result, Err(Cause::MemoryLimit)), "{result:?}");
    assert!(fork.reset().is_ok());
    assert_eq!(fork.differing_pages(), 0);
    assert!(get(&mut fork, "/main").is_ok());
}

#[test]
fn permissions_that_are_there_already_are_not_tried_by_writing() {
    let Some(master) = frozen("hostile", |_| {}) else {
        return;
    };
    let mut fork = Fork::new(master).unwrap();
    let response = get(&mut fork, "/protect-own").unwrap();
    assert_eq!(text(&fork, &response), "mprotect done\n");
    // The program's array alone has 256.
    let dirtied = fork.machine.memory.dirty_len();
    assert!(dirtied < 100, "{dirtied} pages");
}

/// A length that only the program knows reaches no allocation before the memory has been looked at.
#[test]
fn lengths_are_checked_before_anything_is_allocated() {
    let Some(master) = frozen("dirty", |config| config.limits.max_memory = 128 << 20) else {
        return;
    };
    let fork = Fork::new(master.clone()).unwrap();
    let stack = master.wait_point.layout.stack_window();
    for (address, len) in [
        (stack.start, 1 << 46),
        (stack.start, u64::MAX),
        (stack.end - 1, 2),
        (0x1234_5678_9000, 1),
    ] {
        let read = fork.machine.memory.read_vec(address, len);
        assert!(matches!(read, Err(NotRead::BadAddress(_))), "{len:#x}");
    }
    let len = stack.end - stack.start;
    let read = fork.machine.memory.read_vec(stack.start, len);
    assert_eq!(read.unwrap().len() as u64, len);
}
