//! Tests of forks that need more than one request to set up.

mod bounded;
mod broken;
#[allow(unsafe_code)]
mod dead;
mod poisoned;
pub(crate) mod testing;
mod warm;
