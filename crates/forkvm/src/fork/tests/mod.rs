//! Tests of forks that need more than one request to set up.

mod bounded;
mod broken;
#[allow(unsafe_code)]
mod dead;
#[path = "../../../fuzz/hypercalls.rs"]
mod fuzz;
mod poisoned;
pub(crate) mod testing;
mod warm;
