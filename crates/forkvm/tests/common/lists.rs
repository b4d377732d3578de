//! Random lists of operations, for a while.
// Each test binary uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fmt::Debug;
use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// Tries random values for a while, and says how many that were. A failing one is made smaller, in so many steps at most, and shown.
pub fn for_a_while<S: Strategy<Value: Debug>>(
    time: Duration,
    max_shrink_iters: u32,
    values: &S,
    one: impl Fn(S::Value) -> Result<(), TestCaseError>,
) -> u32 {
    const CASES: u32 = 10;
    let end = Instant::now() + time;
    let mut count = 0;
    while Instant::now() < end {
        let config = Config {
            cases: CASES,
            failure_persistence: None,
            max_shrink_iters,
            ..Config::default()
        };
        TestRunner::new(config)
            .run(values, &one)
            .unwrap_or_else(|failure| panic!("after {count}: {failure}"));
        count += CASES;
    }
    count
}

/// How long: what the variable says, or else so many seconds.
pub fn time_of(variable: &str, otherwise: u64) -> Duration {
    let wanted = std::env::var(variable).ok();
    Duration::from_secs(wanted.map_or(otherwise, |text| text.parse().unwrap()))
}
