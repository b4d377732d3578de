//! The flat list of figures.

use std::collections::BTreeMap;

use super::Report;
use crate::rows::sites::{Site, Way};
use crate::rows::throughput::{Throughput, find};
use crate::stand;

/// All figures that the rows give.
pub fn of(report: &Report) -> BTreeMap<String, f64> {
    let mut figures = Figures(BTreeMap::new());
    if let Some(call) = &report.call {
        figures.put("roundtrip_us", call.roundtrip_us);
        figures.put("roundtrip_p99_us", call.roundtrip_p99_us);
        figures.put("call_us", call.call_us);
        figures.put("call_p99_us", call.call_p99_us);
        figures.put("call_over_roundtrip", call.call_over_roundtrip);
    }
    if let Some(reset) = &report.reset {
        figures.put("reset_us_fixed", reset.fixed_us);
        figures.put("reset_us_per_page", reset.per_page_us);
        figures.put("reset_us_per_page_to_1000", reset.per_page_us_to_1000);
    }
    if let Some(syscalls) = &report.syscalls {
        figures.put("syscalls_per_request", syscalls.per_request);
        figures.put(
            "syscalls_per_request_all_threads",
            syscalls.per_request_all_threads,
        );
    }
    if let Some(memory) = &report.memory {
        figures.put("idle_fork_kib", memory.idle_fork_kib);
        // A fork that is idle has run, so it is compared with a bare VM that has.
        if let Some(kib) = memory.run_vm_kib {
            figures.put("empty_vm_kib", kib);
            figures.put("idle_fork_over_empty_vm", memory.idle_fork_kib / kib);
        }
        figures.put("unrun_vm_kib", memory.unrun_vm_kib);
        figures.put(
            "idle_fork_over_unrun_vm",
            memory.idle_fork_kib / memory.unrun_vm_kib,
        );
        figures.put("idle_forks_200_mib", memory.forks_mib);
        figures.put("fork_us", memory.fork_us);
        figures.put("first_response_us", memory.first_response_us);
        figures.put("warm_fork_us", memory.warm.fork_us);
        figures.put("warm_fork_kib", memory.warm.fork_kib);
        let later = memory.warm.later_request_us;
        figures.put(
            "cold_first_request_over_later",
            memory.first_request_us / later,
        );
        figures.put(
            "warm_first_request_over_later",
            memory.warm.first_request_us / later,
        );
    }
    for row in &report.servers {
        let mut put =
            |what: &str, value| figures.put(&format!("server_{}_{what}", row.name), value);
        put("exits", row.exits_per_request);
        put("pages", row.pages_per_request);
        put("us", row.fork_us);
        put("over_native", row.fork_over_native);
        let predicted = row.predicted_us(report.round_trip_us());
        put("over_predicted", row.fork_us / predicted);
        if let Some(forking) = row.native_forking_us {
            put("over_native_fork", row.fork_us / forking);
        }
        put("boot_over_native", row.boot_ms / row.native_boot_ms);
        if let Some(load) = row.snapshot_load_ms {
            put("snapshot_load_ms", load);
            put("boot_over_snapshot_load", row.boot_ms / load);
        }
    }
    if let Some(idle) = &report.idle {
        figures.put("idle_server_master_kib", idle.master_kib);
        figures.put("idle_server_beside_kib", idle.beside_kib);
        figures.put("idle_connection_kib", idle.connection_kib);
    }
    for site in &report.sites {
        sites(&mut figures, site, report.round_trip_us());
    }
    for row in &report.compute {
        figures.put(&format!("{}_over_native", row.program), row.vm_over_native);
        if let Some(ratio) = row.wasm_over_native {
            figures.put(&format!("{}_wasm_over_native", row.program), ratio);
        }
    }
    if !report.compute.is_empty() {
        // The worst of the programs, for both.
        let worst = |ratios: &mut dyn Iterator<Item = f64>| ratios.fold(f64::NAN, f64::max);
        figures.put(
            "compute_over_native",
            worst(&mut report.compute.iter().map(|row| row.vm_over_native)),
        );
        let mut wasm = report.compute.iter().filter_map(|row| row.wasm_over_native);
        figures.put("wasm_over_native", worst(&mut wasm));
    }
    if let Some(fetch) = &report.fetch {
        figures.put("fetch_none_us", fetch.call_us);
        figures.put("fetch_warm_us", fetch.warm_us);
        figures.put("fetch_warm_p99_us", fetch.warm_p99_us);
        figures.put("fetch_cold_us", fetch.cold_us);
        figures.put("fetch_cold_p99_us", fetch.cold_p99_us);
        figures.put("fetch_socket_warm_us", fetch.socket_warm_us);
        figures.put("fetch_socket_cold_us", fetch.socket_cold_us);
        figures.put("fetch_cold_over_warm", fetch.cold_over_warm);
    }
    for row in &report.throughput {
        let name = |what: &str| format!("{}_{}_{what}", row.way.name(), row.connections);
        figures.put(&name("rps"), row.requests_per_second);
        figures.put(&name("p50_us"), row.p50_us);
        figures.put(&name("p99_us"), row.p99_us);
        figures.put(&name("p999_us"), row.p999_us);
    }
    through_varnish(&mut figures, &report.throughput, report.round_trip_us());
    if let Some(storage) = &report.storage {
        figures.put("storage_call_us", storage.call_us);
        figures.put("storage_call_over_roundtrip", storage.call_over_roundtrip);
        figures.put("storage_call_exits", storage.exits);
        for (name, rates) in [
            ("storage", &storage.rates),
            ("shared", &storage.shared_rates),
        ] {
            for rate in rates {
                let name = format!("{name}_rps_{}", rate.threads);
                figures.put(&name, rate.requests_per_second);
            }
        }
    }
    for row in &report.synth {
        let name = |what: &str| format!("synth_{what}_{}", row.connections);
        figures.put(&name("rps"), row.synth);
        figures.put(&name("fetch_rps"), row.fetch);
        figures.put(&name("varnish_rps"), row.synthetic);
        figures.put(&name("over_fetch"), row.over_fetch);
        figures.put(&name("p50_us"), row.synth_p50_us);
        figures.put(&name("fetch_p50_us"), row.fetch_p50_us);
        figures.put(&name("varnish_p50_us"), row.synthetic_p50_us);
        if row.connections == 1 {
            let predicted = 1.0 / (1.0 / row.synthetic + report.round_trip_us() * 1e-6);
            figures.put("synth_over_predicted", row.synth / predicted);
        }
    }
    if let Some(tail) = &report.tail {
        figures.put("tail_rate", tail.rate);
        figures.put("tail_p999_over_native", tail.p999_over_native);
    }
    if let Some(update) = &report.update {
        figures.put("update_to_first_answer_us", update.to_first_answer_us);
        figures.put("p99_without_updates_us", update.p99_without_us);
        figures.put("p99_during_updates_us", update.p99_during_us);
        figures.put(
            "p99_during_updates_over_without",
            update.p99_during_over_without,
        );
    }
    figures.0
}

/// Of a page the ratios and counts; its table is on the report's page.
fn sites(figures: &mut Figures, site: &Site, roundtrip_us: f64) {
    let mut put = |what: &str, value: Option<f64>| {
        if let Some(value) = value {
            figures.put(&format!("site_{}_{what}", site.name), value);
        }
    };
    put("exits", Some(site.exits));
    put("pages", Some(site.pages));
    put("fork_kib", Some(site.fork_kib));
    put("first_request_us", Some(site.first_request_us));
    for way in [
        Way::Native,
        Way::Reset,
        Way::ResetAfter,
        Way::Varnish,
        Way::Vmod,
    ] {
        let p50 = site.find(way, 1).map(|measured| measured.p50_us);
        put(&format!("{}_1_p50_us", way.name()), p50);
    }
    let allowed = |way, other| site.over_allowed(way, other, roundtrip_us);
    put(
        "reset_after_over_allowed",
        allowed(Way::ResetAfter, Way::Native),
    );
    put("vmod_over_allowed", allowed(Way::Vmod, Way::Varnish));
    for other in [Way::Varnish, Way::Fork, Way::Worker, Way::Isolate, Way::Cgi] {
        let ratio = site.rate_over(Way::Vmod, other);
        put(&format!("vmod_over_{}_8", other.name()), ratio);
    }
    let by_clock = |way| site.by_clock.iter().find(|row| row.way == way);
    if let (Some(vmod), Some(native)) = (by_clock(Way::Vmod), by_clock(Way::Varnish)) {
        let ratio = vmod.measured.p99_us / native.measured.p99_us;
        put("by_clock_p99_over_varnish", Some(ratio));
    }
}

/// What follows from the rows through Varnish.
fn through_varnish(figures: &mut Figures, rows: &[Throughput], roundtrip_us: f64) {
    let rps = |way, connections| find(rows, way, connections).map(|row| row.requests_per_second);
    // With more connections than cores, round trips run on both cores at once.
    for (name, connections, at_once) in [
        ("vmod_over_predicted", 1, 1.0),
        ("vmod_over_predicted_8", 8, 2.0),
    ] {
        if let (Some(kvm), Some(native)) = (
            rps(stand::Way::Kvm, connections),
            rps(stand::Way::Native, connections),
        ) {
            let predicted = 1.0 / (1.0 / native + roundtrip_us * 1e-6 / at_once);
            figures.put(name, kvm / predicted);
        }
    }
    for (name, connections) in [("_1", 1), ("_8", 8), ("_64", 64)] {
        let kvm = rps(stand::Way::Kvm, connections);
        for (title, way) in [
            ("fastcgi", stand::Way::Fastcgi),
            ("cgi", stand::Way::Cgi),
            ("wasm", stand::Way::Wasm),
            ("native", stand::Way::Native),
            ("spin", stand::Way::Spin),
        ] {
            if let (Some(kvm), Some(other)) = (kvm, rps(way, connections)) {
                figures.put(&format!("vmod_over_{title}{name}"), kvm / other);
            }
        }
    }
}

struct Figures(BTreeMap<String, f64>);

impl Figures {
    /// JSON has no NaN.
    fn put(&mut self, name: &str, value: f64) {
        if value.is_finite() {
            self.0.insert(name.to_owned(), value);
        }
    }
}
