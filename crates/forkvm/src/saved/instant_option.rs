//! Moments that need not be.

use std::time::Instant;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::instant::{Offset, moment, offset};

/// See the module.
pub fn serialize<S: Serializer>(of: &Option<Instant>, to: S) -> Result<S::Ok, S::Error> {
    of.and_then(offset).serialize(to)
}

/// See the module.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Instant>, D::Error> {
    let Some(found) = Option::<Offset>::deserialize(from)? else {
        return Ok(None);
    };
    let found = moment(found);
    found
        .map(Some)
        .ok_or_else(|| D::Error::custom("a time that never is"))
}
