//! What requests to a server write to files is memory of varnishd's, and given back, whichever of its threads they ran on.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::thread;

use common::Folder;
use common::varnishd::Varnishd;

/// Writes to files at each request: 48 MB in large pieces, or 24 MB in many small files.
const APP: &str = r#"
import os, socket
server = socket.create_server(("127.0.0.1", 8000))
piece = b"x" * (1 << 20)
while True:
    connection, _ = server.accept()
    url = connection.recv(65536).split()[1]
    if url == b"/large":
        with open("/tmp/file", "wb") as file:
            for _ in range(48):
                file.write(piece)
    else:
        for number in range(3000):
            with open("/tmp/%d" % number, "wb") as file:
                file.write(piece[:8000])
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    connection.close()
"#;

#[test]
fn what_requests_write_to_files_is_given_back() {
    if !common::have_kvm() {
        return;
    }
    const CLIENTS: usize = 16;
    let folder = Folder::new("server-files");
    let app = folder.path().join("app.py");
    fs::write(&app, APP).unwrap();
    let varnish = Varnishd::start_with(
        &format!(
            r#"kvm.server("t", "/usr/bin/python3", "{app}", allowed_paths = "{app}", concurrency = 2, max_request_memory = 128MB,
                max_queue = 100, max_boot_time = ENOUGH, max_request_time = ENOUGH, max_wait = ENOUGH);"#,
            app = app.display()
        ),
        // Many threads, each of which may have the next request.
        &["-p", "thread_pool_min=50"],
    );
    for url in ["/large", "/small"] {
        assert_eq!(varnish.client().get("t", url).text(), "ok");
        let before = varnish.child().memory();
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    assert_eq!(varnish.client().get("t", url).text(), "ok");
                });
            }
        });
        let after = varnish.child().memory();
        println!("{url}: {} MiB, then {} MiB", before >> 20, after >> 20);
        // Less than two of the requests have written.
        assert!(after < before + (64 << 20), "{url}: {before}, then {after}");
    }
}
