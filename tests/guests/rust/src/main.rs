//! A guest in Rust that uses the standard library: collections, formatting, time, panics, threads refused.

use std::collections::HashMap;
use std::fmt::Write;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use forkvm_guest::{on_body, on_error, serve, shared, storage, Fetch, Regex, Request, Response};

struct State {
    squares: HashMap<String, u64>,
    requests: u32,
    started: Instant,
    number: Regex,
}

/// What regular expressions give, of main() and of the request.
fn matched(number: &Regex, subject: &str) -> std::io::Result<String> {
    let own = Regex::new("([a-z])([a-z]*)")?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(format!(
        "{} {} {} {}\n{:?} {}\n",
        number.is_match(subject)?,
        text(number.replace(subject, r"<\1>")?),
        text(own.replace_all(subject, r"\2\1")?),
        Regex::new("a")?
            .replace_all("a".repeat(60), "b".repeat(1000))?
            .len(),
        Regex::new("(").map_err(|error| error.raw_os_error()).err(),
        // Those that are dropped make room.
        (0..100).all(|_| Regex::new("a").is_ok()),
    ))
}

/// What all forks count, if they have memory for that.
static COUNTER: OnceLock<&AtomicU64> = OnceLock::new();

/// What the storage remembers.
static REMEMBERED: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn remember(call: &storage::Call) -> Vec<u8> {
    let mut all = REMEMBERED
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let [url, body] = [0, 1].map(|nth| call.buffers().nth(nth).unwrap_or_default());
    all.push(format!("{} {}", String::from_utf8_lossy(url), body.len()));
    format!("{}\n", all.join(", ")).into_bytes()
}

fn panics(_: &storage::Call) -> Vec<u8> {
    panic!("a panic on purpose")
}

fn tick(data: &[u8]) {
    let mut all = REMEMBERED
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    all.push(format!("tick {}", data.len()));
}

/// Two fetches of one URL at a time.
fn fetched(url: &str) -> std::io::Result<String> {
    let mut one = Fetch::get(url).header("X-A", "b").begin()?;
    let other = Fetch::post(url, "posted").begin()?;
    let head = one.head()?;
    let kind = head.header("content-type").unwrap_or_default();
    let (status, length) = (head.status, head.length);
    Ok(format!(
        "{status} {kind} {length:?}\n{}{}",
        one.text()?,
        other.text()?
    ))
}

/// Something every request does: look up, sort, format, read the clocks.
fn overview(state: &mut State, request: &Request) -> Response {
    state.requests += 1;
    let mut words: Vec<String> = ["pear", "apple", "fig"].map(String::from).to_vec();
    words.sort();
    let square = state.squares.remove("12").unwrap_or_default();
    let mut text = String::new();
    let _ = writeln!(text, "{} {}", request.method(), request.url());
    let _ = writeln!(
        text,
        "requests {} squares {} square {square}",
        state.requests,
        state.squares.len()
    );
    let _ = writeln!(text, "words {}", words.join(" "));
    let _ = writeln!(
        text,
        "host {}",
        request.header("host").as_deref().unwrap_or("-")
    );
    let clocks = SystemTime::now().duration_since(UNIX_EPOCH).is_ok()
        && state.started.elapsed() >= Duration::ZERO;
    let _ = writeln!(text, "clocks {}", if clocks { "ok" } else { "wrong" });
    Response::text(text)
}

fn handle(state: &mut State, request: &Request) -> Response {
    let url = request.url();
    match url.split('?').next().unwrap_or_default() {
        "/echo" => Response::new(request.content_type(), request.body())
            .header("X-Length", &request.body().len().to_string()),
        "/print" => {
            println!("rust: to stdout");
            eprintln!("rust: to stderr");
            forkvm_guest::log("rust: to the log");
            Response::text("printed\n")
        }
        "/caught" => match catch_unwind(|| panic!("caught on purpose")) {
            Ok(()) => Response::text("no panic\n").status(500),
            Err(_) => Response::text("caught\n"),
        },
        "/storage" => {
            let told = storage::call(remember, &[url.as_bytes(), request.body()], 1000);
            Response::text(told.map_or("failed\n".into(), |told| {
                String::from_utf8_lossy(&told).into_owned()
            }))
        }
        "/storage-panics" => {
            let told = storage::call(panics, &[], 10);
            Response::text(format!("{told:?}\n"))
        }
        "/shared" => match COUNTER.get() {
            Some(counter) => {
                let counted = counter.fetch_add(1, Ordering::Relaxed) + 1;
                Response::text(format!("{counted} of {}\n", shared::len()))
            }
            None => Response::text(format!("none of {}\n", shared::len())),
        },
        "/later" => {
            let task = storage::task(tick, b"12345", Duration::ZERO, None);
            Response::text(format!("{}\n", task.is_some()))
        }
        "/fetch" => match fetched(url.split_once('?').unwrap_or_default().1) {
            Ok(text) => Response::text(text),
            Err(error) => Response::text(format!("{error}\n")).status(502),
        },
        "/regex" => match matched(&state.number, url.split_once('?').unwrap_or_default().1) {
            Ok(text) => Response::text(text),
            Err(error) => Response::text(format!("{error}\n")).status(500),
        },
        "/fork" => Response::text(format!("{}\n", forkvm_guest::fork_number())),
        "/panic" => panic!("a panic on purpose"),
        "/index" => Response::text(format!("{}\n", [1, 2, 3][url.len()])),
        "/overflow" => Response::text(format!("{}\n", deep(url.len() as u64))),
        "/alloc" => {
            let mut numbers: Vec<u64> = (0..1_000_000).collect();
            numbers.reverse();
            Response::text(format!("{}\n", numbers.iter().sum::<u64>()))
        }
        "/sleep" => {
            let before = Instant::now();
            std::thread::sleep(Duration::from_millis(20));
            Response::text(if before.elapsed().as_millis() >= 20 {
                "slept\n"
            } else {
                "woke early\n"
            })
        }
        "/thread" => match std::thread::Builder::new().spawn(|| 1) {
            Ok(thread) => Response::text(format!("joined {:?}\n", thread.join().ok())),
            Err(error) => Response::text(format!("refused: {error}\n")),
        },
        "/file" => match std::fs::read_to_string("/etc/passwd") {
            Ok(text) => Response::text(format!("{} bytes\n", text.len())),
            Err(error) => Response::text(format!("refused: {error}\n")),
        },
        "/args" => Response::text(format!("{:?}\n", std::env::args().collect::<Vec<_>>())),
        "/parts" => {
            let lines = (0..10_000).map(|n| format!("line {n}\n"));
            let day = Duration::from_secs(86_400);
            Response::text("")
                .header("X-A", "b")
                .cache(day, Duration::ZERO, Duration::ZERO)
                .send_parts(None, lines)
        }
        "/missing" => Response::empty(404),
        "/cached" => Response::text("cached\n").cache(
            Duration::from_secs(60),
            Duration::from_secs(10),
            Duration::ZERO,
        ),
        _ => overview(state, request),
    }
}

/// Uses up the stack.
#[allow(unconditional_recursion)]
fn deep(n: u64) -> u64 {
    let frame = std::hint::black_box([n; 512]);
    deep(n + 1) + frame[511]
}

fn main() {
    let squares = (0..1000u64).map(|n| (n.to_string(), n * n)).collect();
    let mut state = State {
        squares,
        requests: 0,
        started: Instant::now(),
        number: Regex::new(r"(\d+)").expect("a pattern"),
    };
    println!("rust: set up");
    if let Some(counter) = shared::alloc() {
        COUNTER.get_or_init(|| counter);
    }
    storage::allow(remember);
    storage::allow(panics);
    storage::allow_task(tick);
    on_error(|failure| {
        let why = if failure.exception.is_empty() {
            "without a text"
        } else {
            "with a text"
        };
        Response::text(format!("failed: {} {why}\n", failure.url)).status(500)
    });
    let by_segments = std::env::args().any(|argument| argument == "--segments");
    if by_segments {
        let mut seen = Vec::new();
        on_body(move |segment| {
            seen.push((segment.offset, segment.data.len()));
            segment
                .data
                .is_empty()
                .then(|| Response::text(format!("{:?} {seen:?}\n", segment.url)))
        });
    }
    serve(move |request| handle(&mut state, request))
}
