//! Moments, as what they differ from the freeze.

use std::time::{Duration, Instant};

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::scope::scope;

/// Before the freeze or after it, by so much.
#[derive(Serialize, Deserialize)]
pub struct Offset(bool, Duration);

/// Longest that a moment may be from the freeze: a thousand years, which can be added to any time.
const MOST: Duration = Duration::from_secs(1000 * 365 * 86_400);

/// By how much a moment differs from the freeze.
pub fn offset(of: Instant) -> Option<Offset> {
    scope(|scope| {
        Some(match of.checked_duration_since(scope.frozen) {
            Some(after) => Offset(true, after.min(MOST)),
            None => Offset(false, scope.frozen.duration_since(of).min(MOST)),
        })
    })
}

/// The moment that differs so.
pub fn moment(Offset(after, by): Offset) -> Option<Instant> {
    let by = Some(by).filter(|by| *by <= MOST)?;
    scope(|scope| match after {
        true => scope.frozen.checked_add(by),
        false => scope.frozen.checked_sub(by),
    })
}

/// See the module.
pub fn serialize<S: Serializer>(of: &Instant, to: S) -> Result<S::Ok, S::Error> {
    offset(*of)
        .ok_or_else(|| S::Error::custom("no freeze"))?
        .serialize(to)
}

/// See the module.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Instant, D::Error> {
    moment(Offset::deserialize(from)?).ok_or_else(|| D::Error::custom("a time that never is"))
}
