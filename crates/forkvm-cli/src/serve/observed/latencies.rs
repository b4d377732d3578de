//! How long what is over took.

use std::time::Duration;

use hdrhistogram::Histogram;

/// What is longer counts as this, in microseconds.
const LONGEST: u64 = 3_600_000_000;

/// How long those took that are over.
#[derive(Debug)]
pub struct Latencies(Option<Histogram<u64>>);

impl Default for Latencies {
    fn default() -> Self {
        // Two digits. The bounds are valid.
        Self(Histogram::new_with_bounds(1, LONGEST, 2).ok())
    }
}

impl Latencies {
    /// One more.
    pub fn add(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(micros.min(LONGEST));
        }
    }

    /// So many, the median and the 99th percentile. Begins anew.
    pub fn take(&mut self) -> (u64, Duration, Duration) {
        let Some(histogram) = &mut self.0 else {
            return Default::default();
        };
        let at = |quantile| Duration::from_micros(histogram.value_at_quantile(quantile));
        let taken = (histogram.len(), at(0.5), at(0.99));
        histogram.reset();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_added_since() {
        let mut latencies = Latencies::default();
        for micros in 1..=1000 {
            latencies.add(Duration::from_micros(micros * 10));
        }
        latencies.add(Duration::MAX);
        let (count, median, slow) = latencies.take();
        assert_eq!(count, 1001);
        assert!((4_900..5_100).contains(&median.as_micros()), "{median:?}");
        assert!((9_800..10_100).contains(&slow.as_micros()), "{slow:?}");
        assert_eq!(latencies.take(), (0, Duration::ZERO, Duration::ZERO));
    }
}
