//! Open files and the like that need not be.

use std::any::Any;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::listed::one;
use super::scope::{Shared, number};

/// See the module.
pub fn serialize<T: Any + Send + Sync, S: Serializer>(
    of: &Option<Arc<T>>,
    to: S,
) -> Result<S::Ok, S::Error> {
    let shared = of.clone().map(|of| of as Shared);
    shared.as_ref().and_then(number).serialize(to)
}

/// See the module.
pub fn deserialize<'de, T: Any + Send + Sync, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Arc<T>>, D::Error> {
    let Some(number) = Option::<u32>::deserialize(from)? else {
        return Ok(None);
    };
    let found = one(number);
    found
        .map(Some)
        .ok_or_else(|| D::Error::custom("a file that is not listed"))
}
