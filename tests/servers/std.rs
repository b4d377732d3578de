//! Rust's standard library alone: counts what it is asked, and the bytes of a body.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

fn answer(stream: TcpStream, count: u64) -> std::io::Result<()> {
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
    let listener = TcpListener::bind("127.0.0.1:8000")?;
    let mut count = 0;
    for stream in listener.incoming() {
        count += 1;
        // A client that leaves is no reason to end.
        let _ = answer(stream?, count);
    }
    Ok(())
}
