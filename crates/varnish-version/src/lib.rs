//! Nothing but a build script, which refuses a Varnish that the VMOD can't be built against.
//!
//! It is a crate of its own so that it comes first: it is built and run long before the crate `varnish` is, whose errors
//! say nothing of versions.

/// The build script, for the test that calls it with other Varnishes.
pub const BUILD_SCRIPT: &str = env!("BUILD_SCRIPT");
