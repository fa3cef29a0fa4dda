//! Who uses most, in bounded memory and of late: space-saving counters that fade.

use std::sync::Arc;

use rustc_hash::FxHashMap;

/// What is left of a count after a second with new records: half of it after 7 s, a twentieth after half a minute.
const FADES_TO: f64 = 0.9;

/// Counts the heaviest of many names. Of one that comes when all counters are taken, the smallest counter goes, and
/// the new name starts with its count: who is really heavy is never missing, a light one may be shown too large.
#[derive(Clone, Debug)]
pub struct Hottest {
    counts: FxHashMap<Arc<str>, f64>,
    max: usize,
    /// All that was counted, faded too.
    all: f64,
}

impl Hottest {
    pub fn new(max: usize) -> Hottest {
        Hottest { counts: FxHashMap::default(), max, all: 0.0 }
    }

    /// Takes what came in a while: what was before counts less.
    pub fn take(&mut self, came: impl IntoIterator<Item = (Arc<str>, f64)>, seconds: f64) {
        let mut sums: FxHashMap<Arc<str>, f64> = FxHashMap::default();
        for (name, weight) in came {
            *sums.entry(name).or_default() += weight;
        }
        // While nothing comes, who was heaviest stays so.
        if sums.is_empty() {
            return;
        }
        let left = FADES_TO.powf(seconds);
        self.all *= left;
        self.counts.values_mut().for_each(|count| *count *= left);
        for (name, weight) in sums {
            self.add(name, weight);
        }
    }

    fn add(&mut self, name: Arc<str>, weight: f64) {
        self.all += weight;
        if let Some(count) = self.counts.get_mut(&name) {
            *count += weight;
            return;
        }
        let mut inherited = 0.0;
        if self.counts.len() >= self.max {
            let smallest = self.counts.iter().min_by(|a, b| a.1.total_cmp(b.1));
            let (oldest, count) = smallest.map(|(name, count)| (name.clone(), *count)).expect("there are some");
            self.counts.remove(&oldest);
            inherited = count;
        }
        self.counts.insert(name, inherited + weight);
    }

    /// The heaviest, and each one's share of all.
    pub fn top(&self, most: usize) -> Vec<(Arc<str>, f64)> {
        let mut sorted: Vec<_> = self.counts.iter().map(|(name, count)| (name.clone(), count / self.all)).collect();
        sorted.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        sorted.truncate(most);
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn came(text: &str) -> Vec<(Arc<str>, f64)> {
        let one = |text: &str| text.split_once(':').map(|(name, weight)| (name.into(), weight.parse().unwrap()));
        text.split(' ').filter_map(one).collect()
    }

    fn names(hottest: &Hottest, most: usize) -> Vec<String> {
        hottest.top(most).iter().map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn the_heaviest_are_found_among_many_in_bounded_memory() {
        let mut hottest = Hottest::new(100);
        for round in 0..50 {
            let light = (0..1_000).map(|number| (format!("light-{round}-{number}").into(), 1.0));
            let heavy = (0..5).map(|number| (format!("heavy-{number}").into(), f64::from(1_000 - number * 100)));
            hottest.take(light.chain(heavy), 1.0);
        }
        assert_eq!(hottest.counts.len(), 100);
        assert_eq!(names(&hottest, 5), ["heavy-0", "heavy-1", "heavy-2", "heavy-3", "heavy-4"]);
        // 1,000 of 5,000: its counter was never given away, so that it is exact.
        let share = hottest.top(1)[0].1;
        assert!((share - 0.2).abs() < 0.001, "{share}");
    }

    #[test]
    fn what_was_fades_and_nothing_new_changes_nothing() {
        let mut hottest = Hottest::new(10);
        hottest.take(came("old:1000"), 1.0);
        for _ in 0..100 {
            hottest.take(came(""), 1.0);
        }
        assert_eq!(hottest.top(9), [("old".into(), 1.0)]);
        for _ in 0..40 {
            hottest.take(came("new:10"), 1.0);
        }
        assert_eq!(names(&hottest, 9), ["new", "old"]);
    }

    #[test]
    fn nobody_is_hot_at_first() {
        assert!(Hottest::new(10).top(3).is_empty());
    }
}
