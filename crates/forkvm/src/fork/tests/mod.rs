//! Tests of forks that need more than one request to set up.

mod bounded;
mod broken;
#[allow(unsafe_code)]
mod dead;
pub(crate) mod testing;
