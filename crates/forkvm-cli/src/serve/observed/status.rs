//! The status line on a terminal: what happened in the last second.

use std::sync::Arc;
use std::time::Duration;

use super::metrics::{Metrics, Now};
use super::observer::Observer;
use crate::terminal;

/// How often it is written.
const INTERVAL: Duration = Duration::from_secs(1);
/// Keeps the line up to date, if there is to be one. On a thread of its own: a terminal that is halted holds up nothing else.
pub fn keep(
    observer: Arc<Observer>,
    now: impl Fn() -> Now + Send + 'static,
) -> std::io::Result<()> {
    let keeps = move || {
        let Some(latencies) = &observer.latencies else {
            return;
        };
        loop {
            std::thread::sleep(INTERVAL);
            let latencies = latencies.lock().take();
            terminal::show_status(&line(&observer.metrics, latencies, now()));
        }
    };
    std::thread::Builder::new()
        .name("status".into())
        .spawn(keeps)?;
    Ok(())
}

fn line(metrics: &Metrics, (count, median, slow): (u64, Duration, Duration), now: Now) -> String {
    format!(
        "{count}/s  p50 {}  p99 {}  forks {} ({} idle)  waiting {}  served {}  resets {}  pages {}",
        short(median),
        short(slow),
        metrics.forks_live.get(),
        now.forks_idle,
        now.waiting,
        metrics.served(),
        metrics.resets.get(),
        metrics.pages_reset.get(),
    )
}

/// A time in few characters.
fn short(time: Duration) -> String {
    let micros = time.as_micros();
    match micros {
        0 => "-".into(),
        1..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let times = [0, 12, 1_240, 999_000, 61_000_000];
        let texts = times.map(|micros| short(Duration::from_micros(micros)));
        assert_eq!(texts, ["-", "12 µs", "1.2 ms", "999.0 ms", "61.0 s"]);
    }
}
