//! Tenants' numbers as Prometheus reads them.
#![forbid(unsafe_code)]

use ::prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use ::prometheus::{Encoder, TextEncoder};

use crate::tenants::figures::{BUCKETS, upper};
use crate::tenants::measured::{Kind, Measured};
use crate::tenants::tenant::Tenant;

/// The text's media type (Prometheus, Exposition formats).
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// What is a bucket of latencies, which are a histogram here.
const LATENCY: &str = "latency_";

/// The text of these tenants.
pub fn text<'t>(tenants: impl Iterator<Item = &'t Tenant>) -> Result<Vec<u8>, String> {
    let tenants: Vec<_> = tenants
        .map(|tenant| (tenant, Measured::of(tenant).values()))
        .collect();
    let mut families = Vec::new();
    for (at, &(name, kind, help)) in Measured::ALL.iter().enumerate() {
        if name.starts_with(LATENCY) {
            continue;
        }
        let mut family = MetricFamily::default();
        family.set_help(help.into());
        family.set_field_type(match kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
        });
        family.set_name(match kind {
            Kind::Counter => format!("kvm_{name}_total"),
            Kind::Gauge => format!("kvm_{name}"),
        });
        for (tenant, values) in &tenants {
            let mut metric = of(tenant);
            // Exact up to 2^53.
            let value = values[at] as f64;
            match kind {
                Kind::Counter => {
                    let mut counter = Counter::default();
                    counter.set_value(value);
                    metric.set_counter(counter);
                }
                Kind::Gauge => {
                    let mut gauge = Gauge::default();
                    gauge.set_value(value);
                    metric.set_gauge(gauge);
                }
            }
            family.mut_metric().push(metric);
        }
        families.push(family);
    }
    families.push(latencies(&tenants));
    // Without a tenant there is nothing to say, which the encoder takes for an error.
    families.retain(|family| !family.get_metric().is_empty());
    let mut text = Vec::new();
    TextEncoder::new()
        .encode(&families, &mut text)
        .map_err(|error| error.to_string())?;
    Ok(text)
}

fn of(tenant: &Tenant) -> Metric {
    let mut label = LabelPair::default();
    label.set_name("tenant".into());
    label.set_value(tenant.name().into());
    let mut metric = Metric::default();
    metric.set_label(vec![label]);
    metric
}

fn latencies(tenants: &[(&Tenant, Vec<u64>)]) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name("kvm_latency_seconds".into());
    family.set_help("From a request to the head of its answer".into());
    family.set_field_type(MetricType::HISTOGRAM);
    for (tenant, _) in tenants {
        let counts = tenant.figures.latencies();
        let mut histogram = Histogram::default();
        let mut sum = 0;
        let mut buckets = Vec::with_capacity(BUCKETS);
        for (at, count) in counts.into_iter().enumerate() {
            sum += count;
            let Some(most) = upper(at) else { break };
            let mut bucket = Bucket::default();
            bucket.set_cumulative_count(sum);
            bucket.set_upper_bound(most as f64 / 1e6);
            buckets.push(bucket);
        }
        histogram.set_sample_count(sum);
        histogram.set_sample_sum(tenant.figures.latency().as_secs_f64());
        histogram.set_bucket(buckets);
        let mut metric = of(tenant);
        metric.set_histogram(histogram);
        family.mut_metric().push(metric);
    }
    family
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What the dashboard and the alert rules ask for is there.
    #[test]
    fn what_is_asked_for_is_given() {
        let mut given: BTreeSet<_> = Measured::ALL
            .iter()
            .map(|&(name, kind, _)| match kind {
                Kind::Counter => format!("kvm_{name}_total"),
                Kind::Gauge => format!("kvm_{name}"),
            })
            .collect();
        given.insert("kvm_latency_seconds_bucket".into());
        let asked = regex::Regex::new(r"(?-u:\b)kvm_[a-z0-9_]+").unwrap();
        for text in [
            include_str!("../../docs/monitoring/grafana.json"),
            include_str!("../../docs/monitoring/alerts.yml"),
        ] {
            let mut found = 0;
            for name in asked.find_iter(text) {
                assert!(given.contains(name.as_str()), "{}", name.as_str());
                found += 1;
            }
            assert!(found > 5);
        }
    }
}
