//! How metrics are made: each name once.

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use super::delays::Delays;

/// Makes metrics and keeps their names.
pub struct Register {
    pub registry: Registry,
    pub names: Vec<String>,
}

impl Register {
    fn add<C: Collector + Clone + 'static>(&mut self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("names, labels and buckets are constants that are valid");
        self.names.extend(collector.desc().iter().map(|described| described.fq_name.clone()));
        self.registry.register(Box::new(collector.clone())).expect("each name is registered once");
        collector
    }

    pub fn counter(&mut self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    pub fn counters(&mut self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// A counter for each value of a closed label, in the order of the values.
    pub fn counter_each(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = &'static str>,
    ) -> Vec<IntCounter> {
        let counters = self.counters(name, help, &[label]);
        values.into_iter().map(|value| counters.with_label_values(&[value])).collect()
    }

    pub fn float_counters(&mut self, name: &str, help: &str, labels: &[&str]) -> CounterVec {
        self.add(CounterVec::new(Opts::new(name, help), labels))
    }

    pub fn gauge(&mut self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    pub fn gauges(&mut self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    pub fn float_gauge(&mut self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }

    pub fn float_gauges(&mut self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(GaugeVec::new(Opts::new(name, help), labels))
    }

    pub fn histogram(&mut self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    /// A histogram that takes many values at once.
    pub fn delays(&mut self, name: &str, help: &str, buckets: &'static [f64]) -> Delays {
        self.add(Delays::new(name, help, buckets))
    }

    pub fn histograms(&mut self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }

    pub fn build_info(&mut self) {
        let info = self.gauges("credit_meter_build_info", "Always 1; its label tells the version.", &["version"]);
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    }

    /// CPU, memory and open files: `process_*`, which the crate knows on Linux only.
    pub fn process(&mut self) {
        #[cfg(target_os = "linux")]
        {
            let collector = prometheus::process_collector::ProcessCollector::for_self();
            self.registry.register(Box::new(collector)).expect("each name is registered once");
        }
    }
}
