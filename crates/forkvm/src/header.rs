//! A header line.

use std::borrow::Cow;

/// A header line: field name and value, both without line ends. Those of a request may be borrowed from whoever received
/// it; those of a response are the guest's, copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header<'a> {
    /// Field name, as sent.
    pub name: Cow<'a, str>,
    /// Field value. Bytes, since HTTP allows any but CR, LF and NUL.
    pub value: Cow<'a, [u8]>,
}

impl<'a> Header<'a> {
    /// A header with this name and value.
    pub fn new(name: impl Into<Cow<'a, str>>, value: impl Into<Cow<'a, [u8]>>) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
        }
    }
}
