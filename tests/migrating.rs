//! docs/migrating.md has a row for each function, key and call of the C++ VMOD's, which says what becomes of it here.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

const FUNCTIONS: &[&str] = &[
    // import kvm
    "load_tenants",
    "embed_tenants",
    "fetch_tenants",
    "tenant_is_ready",
    "vm_backend",
    "vm_debug_backend",
    "live_update",
    "live_update_file",
    "live_debug",
    // import tinykvm
    "library",
    "configure",
    "start",
    "main_arguments",
    "invalidate_programs",
    "stats",
    "chain",
    "program",
    "to_string",
    "synth",
    "init_self_requests",
];

const KEYS: &[&str] = &[
    "group",
    "key",
    "filename",
    "uri",
    "start",
    "max_boot_time",
    "max_request_time",
    "max_storage_time",
    "max_memory",
    "address_space",
    "max_request_memory",
    "req_mem_limit_after_reset",
    "shared_memory",
    "concurrency",
    "storage",
    "hugepages",
    "stdout",
    "allow_debug",
    "ephemeral",
    "control_ephemeral",
    "main_arguments",
    "environment",
    "allowed_paths",
    "current_working_directory",
    "warmup",
    "num_requests",
    "url",
    "method",
    "headers",
    "exact",
    "remapping",
    "executable_remapping",
    "executable_heap",
    "blackout_area",
    "server",
    "websocket_server",
    "smp",
    "download",
    "sha256",
    "md5",
    "cold_start_file",
    "limit_workmem_after_req",
    "ephemeral_keep_working_memory",
    "remote_debug_on_exception",
    "hugepage_arena_size",
    "request_hugepages",
    "request_hugepage_arena_size",
    "split_hugepages",
    "transparent_hugepages",
    "mmap_backed_files",
    "relocate_fixed_mmap",
    "verbose",
    "verbose_syscalls",
    "verbose_pagetables",
    // What an entry of allowed_paths may have, and the two names in paths.
    "real",
    "virtual",
    "prefix",
    "writable",
    "symlink",
    "$HOME",
    "$PWD",
];

const CALLS: &[&str] = &[
    "register_func",
    "wait_for_requests",
    "wait_for_requests_paused",
    "set_cacheable",
    "backend_response",
    "0xFFFF",
    "storage_return",
    "storage_noreturn",
    "begin_streaming_response",
    "http_append",
    "http_set",
    "http_find",
    "http_method",
    "regex_compile",
    "regex_free",
    "regex_match",
    "regex_subst",
    "regex_copyto",
    "sockets_write",
    "shared_memory_area",
    "make_ephemeral",
    "is_storage",
    "storage_allow",
    "storage_callv",
    "storage_task",
    "storage_task_stop",
    "0x10710",
    "0x10713",
    "get_meminfo",
    "fetch",
    "self_request",
    "log",
    "is_debug",
    "breakpoint",
    "vcpuid",
    "vcpureqid",
];

/// The rows of the table below a heading: both columns.
fn rows(text: &str, heading: &str) -> Vec<(String, String)> {
    let (_, rest) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| {
        let (first, second) = line
            .strip_prefix("| ")?
            .strip_suffix(" |")?
            .split_once(" | ")?;
        Some((first.to_owned(), second.to_owned()))
    });
    // Without the table's head.
    rows.skip(1).collect()
}

/// The names in backquotes, without what follows a parenthesis or a blank.
fn names(column: &str) -> Vec<&str> {
    let quoted = column.split('`').skip(1).step_by(2);
    quoted
        .map(|name| name.split(['(', ' ']).next().unwrap_or_default())
        .collect()
}

#[test]
fn everything_has_its_row() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/migrating.md");
    let text = fs::read_to_string(path).unwrap();
    for (heading, listed) in [
        ("VCL, function by function", FUNCTIONS),
        ("Settings in JSON, key by key", KEYS),
        ("Hypercalls, call by call", CALLS),
    ] {
        let rows = rows(&text, heading);
        let named: Vec<_> = rows.iter().flat_map(|(first, _)| names(first)).collect();
        let missing: Vec<_> = listed.iter().filter(|name| !named.contains(name)).collect();
        assert!(missing.is_empty(), "{heading}: no row for {missing:?}");
        let unknown: Vec<_> = named.iter().filter(|name| !listed.contains(name)).collect();
        assert!(unknown.is_empty(), "{heading}: nobody's: {unknown:?}");
        for (first, second) in &rows {
            assert!(!second.is_empty(), "{heading}: {first}");
            let is_missing = ["left out", "no effect", "not there"]
                .iter()
                .any(|answer| second.starts_with(answer));
            let has_reason = second.contains(": ");
            assert!(has_reason || !is_missing, "{heading}: {first}: {second}");
        }
    }
}
