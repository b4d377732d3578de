//! The Varnish VMOD `kvm`: answers backend fetches by running tenants' programs in KVM guests.
//!
//! The way of a fetch: `kvm.backend()` in VCL leaves a [`fetch::Target`] with the task and returns the VCL's one
//! director; varnishd calls it ([`vdi`]), it finds the tenant ([`director`]), takes the request from Varnish
//! ([`request`]), has the tenant's program ([`tenant`]) answer it, and hands status and headers back; the body is
//! read from the fork as Varnish asks for it ([`response`]).
//!
//! What is called by C, and the only `unsafe` code: [`ffi`] (the VCL functions), [`vdi`] (the director's
//! callbacks) and [`fetch`] (what varnishd's structures hold).

mod answer;
mod boot;
mod caching;
mod counters;
mod debug;
mod director;
mod document;
mod fetch;
mod ffi;
mod keys;
mod logging;
mod name;
mod panics;
mod plain;
mod queue;
mod refresh;
mod refusal;
mod registry;
mod report;
mod request;
mod response;
mod settings;
mod store;
mod tenant;
mod update;
mod upload;
mod vdi;
mod version;
mod watch;
mod words;
