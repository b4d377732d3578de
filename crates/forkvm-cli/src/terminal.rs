//! Lines for people, and the status line below them where standard error is a terminal.

use std::fmt::Arguments;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::tcgetwinsize;

/// The status line is there, and the cursor at its end.
static SHOWN: AtomicBool = AtomicBool::new(false);
/// What was printed last ended with a line.
static AT_LINE_START: AtomicBool = AtomicBool::new(true);

/// There will be no other one.
static ENDED: AtomicBool = AtomicBool::new(false);

/// To the line's first column, and what is there is cleared.
const CLEAR: &str = "\r\x1b[K";

/// Whoever reads a line may have left ("| head"): that ends no work, and is no reason to panic as `println!` does.
pub fn print(mut to: impl Write, line: Arguments<'_>) {
    hide_status();
    let _ = writeln!(to, "{line}");
    AT_LINE_START.store(true, Ordering::Relaxed);
}

/// Prints bytes of a program's.
pub fn print_bytes(mut to: impl Write, bytes: &[u8]) {
    hide_status();
    // A reader that has left is the program's business, which goes on here.
    let _ = to.write_all(bytes).and_then(|()| to.flush());
    AT_LINE_START.store(bytes.ends_with(b"\n"), Ordering::Relaxed);
}

/// Whether there may be a status line.
pub fn has_status() -> bool {
    io::stderr().is_terminal()
}

/// Puts this into the status line. It gives way to whatever is printed.
pub fn show_status(line: &str) {
    if !AT_LINE_START.load(Ordering::Relaxed) {
        return;
    }
    let mut stderr = io::stderr().lock();
    if ENDED.load(Ordering::Relaxed) {
        return;
    }
    // A line that is too long would become two, of which one stays.
    let columns = match tcgetwinsize(&stderr) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
        _ => 80,
    };
    let line: String = line.chars().take(columns - 1).collect();
    let _ = write!(stderr, "{CLEAR}{line}").and_then(|()| stderr.flush());
    SHOWN.store(true, Ordering::Relaxed);
}

/// Takes the status line away for good.
pub fn end_status() {
    ENDED.store(true, Ordering::Relaxed);
    hide_status();
}

/// Takes the status line away until the next one.
pub fn hide_status() {
    if SHOWN.swap(false, Ordering::Relaxed) {
        let _ = io::stderr().lock().write_all(CLEAR.as_bytes());
    }
}
