//! The Varnish VMOD `kvm`: answers backend fetches by running tenants' programs in KVM guests.
//!
//! The way of a fetch: `kvm.backend()` in VCL leaves a [`order::Target`] with the task and returns the VCL's one
//! director; varnishd calls it ([`vdi`]), and it finds the tenant's backend ([`director`]). That takes the request from Varnish
//! ([`fetch::request`]), has the tenant's program ([`tenants::tenant`]) answer it, and hands status and headers back ([`backend`]);
//! the body is read from the fork as Varnish asks for it ([`fetch::response`]).
//!
//! What is called by C, and the only `unsafe` code: [`ffi`] (the VCL functions), [`vdi`] (the director's
//! callbacks), [`varnish::fetch`] (what varnishd's structures hold) and [`varnish::synthetic`] (the body of vcl_synth).

mod backend;
mod director;
mod fetch;
mod ffi;
mod file;
mod order;
mod orders;
mod tenants;
mod varnish;
mod vdi;
