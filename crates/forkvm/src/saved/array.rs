//! Arrays of more elements than serde has.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// See the module.
pub fn serialize<T: Serialize, S: Serializer, const N: usize>(
    of: &[T; N],
    to: S,
) -> Result<S::Ok, S::Error> {
    of.as_slice().serialize(to)
}

/// See the module.
pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>, const N: usize>(
    from: D,
) -> Result<[T; N], D::Error> {
    let found = Vec::deserialize(from)?;
    let len = found.len();
    found
        .try_into()
        .map_err(|_| D::Error::invalid_length(len, &"as many as there are"))
}
