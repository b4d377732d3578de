//! What the reset costs for each page a request dirtied: the host's part, that is, dropping the answer.

use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::measure::{Line, clock_cost, fit, median, us};
use crate::rows::{answer, boot};
use crate::settings::Options;

const PAGES: [u32; 14] = [0, 1, 2, 5, 10, 20, 50, 100, 150, 200, 300, 500, 700, 1000];
/// The first goal's end, and the first line's.
const FEW: u32 = 200;

#[derive(Debug, Serialize, Deserialize)]
pub struct Reset {
    pub points: Vec<Point>,
    /// The line through the points up to 200 pages.
    pub fixed_us: f64,
    pub per_page_us: f64,
    /// The line through all.
    pub fixed_us_to_1000: f64,
    pub per_page_us_to_1000: f64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Point {
    pub pages: u32,
    pub reset_us: f64,
    /// The request without its reset.
    pub call_us: f64,
}

pub fn run(options: &Options) -> Result<Reset> {
    // A program each: a fork's list keeps every page it ever dirtied.
    let programs = PAGES
        .map(|pages| Ok((pages, format!("/{pages}"), boot(options, "dirty", |_| {})?)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let mut times = vec![(Vec::new(), Vec::new()); PAGES.len()];
    let clock = us(clock_cost());
    for round in 0..options.amount(60, 12) {
        for ((pages, url, program), (resets, calls)) in programs.iter().zip(&mut times) {
            // The first request of a turn finds the caches full of others' pages: it is not counted.
            for request in 0..21 {
                let start = Instant::now();
                let answer =
                    answer(program, url.as_bytes()).with_context(|| format!("{pages} pages"))?;
                let answered = Instant::now();
                drop(answer);
                let reset = us(answered.elapsed());
                if round > 0 && request > 0 {
                    resets.push(reset - clock);
                    calls.push(us(answered - start) - clock);
                }
            }
        }
    }
    let points: Vec<Point> = PAGES
        .iter()
        .zip(&times)
        .map(|(&pages, (resets, calls))| Point {
            pages,
            reset_us: median(resets),
            call_us: median(calls),
        })
        .collect();
    let few = line(&points, FEW);
    let all = line(&points, u32::MAX);
    Ok(Reset {
        points,
        fixed_us: few.intercept,
        per_page_us: few.slope,
        fixed_us_to_1000: all.intercept,
        per_page_us_to_1000: all.slope,
    })
}

fn line(points: &[Point], most: u32) -> Line {
    let points: Vec<(f64, f64)> = points
        .iter()
        .filter(|point| point.pages <= most)
        .map(|point| (f64::from(point.pages), point.reset_us))
        .collect();
    fit(&points)
}
