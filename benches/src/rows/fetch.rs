//! What a fetch costs a request: over a warm connection, over one that is made for it, and beside the same exchange without a guest.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use forkvm::{Fetcher, Host, Program, Reach, Request, Stream};
use forkvm_fetch::{Client, Settings};
use serde::{Deserialize, Serialize};

use crate::measure::{median, quantile, us};
use crate::rows::boot;
use crate::settings::Options;

/// Requests of each kind in a batch.
const BATCH: usize = 20;
/// Bytes of what is fetched.
const BODY: usize = 1024;

#[derive(Debug, Serialize, Deserialize)]
pub struct Fetch {
    /// A request that fetches nothing, from the call to the end of its reset.
    pub call_us: f64,
    /// One that fetches over a connection that is there.
    pub warm_us: f64,
    pub warm_p99_us: f64,
    /// One that fetches over a new one.
    pub cold_us: f64,
    pub cold_p99_us: f64,
    /// The same exchanges by a socket of this process, without a guest or a client.
    pub socket_warm_us: f64,
    pub socket_cold_us: f64,
    /// Median of the batches' ratios.
    pub cold_over_warm: f64,
}

pub fn run(options: &Options) -> Result<Fetch> {
    let upstream = upstream()?;
    let program = boot(options, "fetch", |_| {})?;
    let reach = Reach::new(vec![upstream.to_string().parse()?]);
    let client = Client::new(Settings {
        reach,
        ..Settings::default()
    });
    let mut host = Fetching(Arc::new(client.map_err(|what| anyhow!(what))?));
    let url = |path| format!("http://{upstream}/{path}");
    let (keep, close) = (url("keep"), url("close"));
    let mut socket = TcpStream::connect(upstream)?;
    let (mut call, mut warm, mut cold) = (Vec::new(), Vec::new(), Vec::new());
    let (mut socket_warm, mut socket_cold, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for batch in 0..options.amount(200, 30) {
        let mut of = |arg: &str| -> Result<Vec<f64>> {
            (0..BATCH).map(|_| ask(&program, arg, &mut host)).collect()
        };
        let (nothing, keeping, closing) = (of("")?, of(&keep)?, of(&close)?);
        let (mut own_warm, mut own_cold) = (Vec::new(), Vec::new());
        for _ in 0..BATCH {
            own_warm.push(exchange(&mut socket, "keep")?);
            let start = Instant::now();
            let mut new = TcpStream::connect(upstream)?;
            exchange(&mut new, "close")?;
            drop(new);
            own_cold.push(us(start.elapsed()));
        }
        // The first ones warm everything up.
        if batch < 2 {
            continue;
        }
        ratios.push(median(&closing) / median(&keeping));
        call.extend(nothing);
        warm.extend(keeping);
        cold.extend(closing);
        socket_warm.extend(own_warm);
        socket_cold.extend(own_cold);
    }
    Ok(Fetch {
        call_us: median(&call),
        warm_us: median(&warm),
        warm_p99_us: quantile(&warm, 0.99),
        cold_us: median(&cold),
        cold_p99_us: quantile(&cold, 0.99),
        socket_warm_us: median(&socket_warm),
        socket_cold_us: median(&socket_cold),
        cold_over_warm: median(&ratios),
    })
}

/// Fetches for the program.
struct Fetching(Arc<Client>);

impl Host for Fetching {
    fn output(&mut self, _: Stream, bytes: &[u8]) {
        eprintln!("bench: {}", bytes.escape_ascii());
    }

    fn fetcher(&self) -> Option<Arc<dyn Fetcher>> {
        Some(self.0.clone())
    }
}

/// How long a request takes, to the end of its reset.
fn ask(program: &Arc<Program>, arg: &str, host: &mut Fetching) -> Result<f64> {
    let request = Request {
        url: b"/",
        arg: arg.as_bytes(),
        ..Default::default()
    };
    let start = Instant::now();
    let answer = program.answer(&request, start + Duration::from_secs(10), host)?;
    let expected = if arg.is_empty() { 0 } else { BODY as u64 };
    ensure!(
        answer.status() == 200 && answer.body_len() == expected,
        "status {}",
        answer.status()
    );
    drop(answer);
    Ok(us(start.elapsed()))
}

/// How long an exchange takes by a socket.
fn exchange(stream: &mut TcpStream, path: &str) -> Result<f64> {
    let start = Instant::now();
    stream.write_all(format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())?;
    let mut have = 0;
    let mut piece = [0; 4096];
    let whole = response(path == "close").len();
    while have < whole {
        match stream.read(&mut piece)? {
            0 => return Err(anyhow!("the upstream has gone")),
            n => have += n,
        }
    }
    Ok(us(start.elapsed()))
}

fn response(closes: bool) -> Vec<u8> {
    let close = if closes { "Connection: close\r\n" } else { "" };
    let head = format!("HTTP/1.1 200 OK\r\n{close}Content-Length: {BODY}\r\n\r\n");
    [head.as_bytes(), &[b'x'; BODY]].concat()
}

/// A server on loopback that answers at once, a thread for each connection.
fn upstream() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("an upstream on loopback")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    Ok(address)
}

fn serve(stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (kept, closing) = (response(false), response(true));
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let closes = line.starts_with("GET /close");
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line)?;
        }
        if closes {
            return stream.get_mut().write_all(&closing);
        }
        stream.get_mut().write_all(&kept)?;
    }
}
