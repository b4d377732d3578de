//! Rust's standard library alone: counts what it is asked, and the bytes of a body. For the benchmark: with the argument `fork` it
//! forks for each connection; it listens at $LISTEN, a port or a path, if that is set; and run by CGI it answers and ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

fn answer(stream: impl Read + Write, count: u64) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim_end().is_empty() {
            break;
        }
        if let Some(number) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = number.trim().parse().unwrap_or(0);
        }
    }
    let bytes = std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
    let body = format!("count {count} bytes {bytes}\n");
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    reader.get_mut().write_all((head + &body).as_bytes())
}

fn main() -> std::io::Result<()> {
    if std::env::var_os("SCRIPT_FILENAME").is_some() {
        print!("Content-Type: text/plain\r\n\r\ncount 1 bytes 0\n");
        return Ok(());
    }
    match std::env::var("LISTEN") {
        Ok(path) if path.starts_with('/') => serve(UnixListener::bind(path)?.incoming()),
        Ok(port) => serve(TcpListener::bind(format!("127.0.0.1:{port}"))?.incoming()),
        Err(_) => serve(TcpListener::bind("127.0.0.1:8000")?.incoming()),
    }
}

fn serve<S: Read + Write>(
    incoming: impl Iterator<Item = std::io::Result<S>>,
) -> std::io::Result<()> {
    let forks = std::env::args()
        .nth(1)
        .is_some_and(|argument| argument == "fork");
    if forks {
        // SAFETY: no handler: children that end leave no zombies (signal(2): SIGCHLD, SIG_IGN).
        unsafe { signal(17, 1) };
    }
    let mut count = 0;
    for stream in incoming {
        let stream = stream?;
        // SAFETY: there is one thread.
        if forks && unsafe { fork() } != 0 {
            continue;
        }
        count += 1;
        // A client that leaves is no reason to end.
        let _ = answer(stream, count);
        if forks {
            std::process::exit(0);
        }
    }
    Ok(())
}

unsafe extern "C" {
    fn fork() -> i32;
    fn signal(number: i32, action: usize) -> usize;
}
