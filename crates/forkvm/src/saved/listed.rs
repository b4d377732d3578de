//! Open files and the like, as numbers in the scope's list.

use std::any::Any;
use std::sync::Arc;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::scope::{Shared, number, numbered};

/// What a number stands for, if it is such a one.
pub fn one<T: Any + Send + Sync>(number: u32) -> Option<Arc<T>> {
    numbered(number)?.downcast().ok()
}

/// See the module.
pub fn serialize<T: Any + Send + Sync, S: Serializer>(
    of: &Arc<T>,
    to: S,
) -> Result<S::Ok, S::Error> {
    let shared: Shared = of.clone();
    number(&shared)
        .ok_or_else(|| S::Error::custom("no list"))?
        .serialize(to)
}

/// See the module.
pub fn deserialize<'de, T: Any + Send + Sync, D: Deserializer<'de>>(
    from: D,
) -> Result<Arc<T>, D::Error> {
    one(u32::deserialize(from)?).ok_or_else(|| D::Error::custom("a file that is not listed"))
}
