//! A histogram that takes many equal values at once: a call has thousands of events that were appended together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, Metric, MetricFamily, MetricType};

#[derive(Clone)]
pub struct Delays {
    desc: Desc,
    bounds: &'static [f64],
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// Up to each bound and beyond the one before.
    counts: Vec<u64>,
    /// Also those beyond the last bound.
    count: u64,
    sum: f64,
}

impl Delays {
    /// Bounds in seconds, rising.
    pub fn new(name: &str, help: &str, bounds: &'static [f64]) -> prometheus::Result<Delays> {
        let desc = Desc::new(name.to_owned(), help.to_owned(), Vec::new(), HashMap::new())?;
        let seen = Seen { counts: vec![0; bounds.len()], ..Seen::default() };
        Ok(Delays { desc, bounds, seen: Arc::new(Mutex::new(seen)) })
    }

    pub fn observe(&self, delays: impl Iterator<Item = (Duration, u64)>) {
        let mut seen = self.seen();
        for (delay, times) in delays {
            let seconds = delay.as_secs_f64();
            if let Some(bucket) = self.bounds.iter().position(|bound| seconds <= *bound) {
                seen.counts[bucket] += times;
            }
            seen.count += times;
            seen.sum += seconds * times as f64;
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Delays {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let seen = self.seen();
        let mut below = 0;
        let bucket = |(bound, count): (&f64, &u64)| {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(below);
            bucket
        };
        let mut histogram = Histogram::default();
        histogram.set_bucket(self.bounds.iter().zip(&seen.counts).map(bucket).collect());
        histogram.set_sample_count(seen.count);
        histogram.set_sample_sum(seen.sum);
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(vec![metric]);
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Registry, TextEncoder};

    use super::*;

    #[test]
    fn many_at_once_count_as_many_one_by_one() {
        let delays = Delays::new("delays", "help", &[0.5, 2.0]).unwrap();
        let registry = Registry::new();
        registry.register(Box::new(delays.clone())).unwrap();
        let seconds = Duration::from_secs_f64;
        delays.observe([(seconds(0.5), 3), (seconds(1.0), 2), (seconds(9.0), 4)].into_iter());
        delays.observe([(seconds(0.25), 1)].into_iter());
        let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let expected = "# HELP delays help\n# TYPE delays histogram\ndelays_bucket{le=\"0.5\"} 4\n\
                        delays_bucket{le=\"2\"} 6\ndelays_bucket{le=\"+Inf\"} 10\ndelays_sum 39.75\ndelays_count 10\n";
        assert_eq!(text, expected);
    }
}
