//! The Varnish VMOD `kvm`.

mod ffi;
