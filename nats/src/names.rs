//! Validated names: hosts, and measurements, tags and fields.

use std::{borrow::Borrow, fmt, ops::Deref, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longest host id in bytes.
pub const MAX_HOST_BYTES: usize = 64;
/// Longest measurement, tag or field name in bytes.
pub const MAX_NAME_BYTES: usize = 63;

/// A name that breaks the contract's rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a host id.
    #[error("`{value}` is not a host id: expected 1 to 64 of the characters A-Z a-z 0-9 _ -")]
    Host {
        /// The offending text, shortened for display.
        value: String,
    },
    /// Not a measurement, tag or field name.
    #[error("`{value}` is not a name: expected a lower-case letter and then up to 62 of a-z 0-9 _")]
    Name {
        /// The offending text, shortened for display.
        value: String,
    },
}

/// Id of a host: `[A-Za-z0-9_-]{1,64}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(Arc<str>);

impl HostId {
    /// Checks and wraps a host id; fails when a character or the length is not allowed.
    pub fn parse(value: &str) -> Result<Self, NameError> {
        Self::check(value).map(|()| Self(value.into()))
    }

    /// Checks a host id; fails when a character or the length is not allowed.
    pub fn check(value: &str) -> Result<(), NameError> {
        let valid = (1..=MAX_HOST_BYTES).contains(&value.len()) && value.bytes().all(is_host_byte);
        if valid { Ok(()) } else { Err(NameError::Host { value: excerpt(value) }) }
    }

    /// Makes a host id of a host name: other characters become `-`, and the result is cut at 64 bytes.
    #[must_use]
    pub fn from_host_name(name: &str) -> Self {
        let id: String = name
            .chars()
            .take(MAX_HOST_BYTES)
            .map(|c| if c.is_ascii() && is_host_byte(c as u8) { c } else { '-' })
            .collect();
        Self(if id.is_empty() { "unknown".into() } else { id.into() })
    }
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// Name of a measurement, tag or field: `[a-z][a-z0-9_]{0,62}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks and wraps a name; fails when a character or the length is not allowed.
    pub fn parse(value: &str) -> Result<Self, NameError> {
        Self::check(value).map(|()| Self(value.into()))
    }

    /// Checks a name; fails when a character or the length is not allowed.
    pub fn check(value: &str) -> Result<(), NameError> {
        let valid = value.len() <= MAX_NAME_BYTES
            && value.as_bytes().first().is_some_and(u8::is_ascii_lowercase)
            && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if valid { Ok(()) } else { Err(NameError::Name { value: excerpt(value) }) }
    }
}

/// The start of a hostile or overlong text, fit for an error message.
pub(crate) fn excerpt(value: &str) -> String {
    const SHOWN: usize = 80;
    let shown: String = value.chars().take(SHOWN).flat_map(char::escape_default).collect();
    if value.chars().nth(SHOWN).is_some() { format!("{shown}…") } else { shown }
}

macro_rules! string_newtype {
    ($type:ident) => {
        impl Deref for $type {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
        impl FromStr for $type {
            type Err = NameError;
            fn from_str(value: &str) -> Result<Self, NameError> {
                Self::parse(value)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct TextVisitor;
                impl de::Visitor<'_> for TextVisitor {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a name")
                    }
                    fn visit_str<E: de::Error>(self, value: &str) -> Result<$type, E> {
                        $type::parse(value).map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(TextVisitor)
            }
        }
    };
}

string_newtype!(HostId);
string_newtype!(Name);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_becomes_a_host_id() {
        assert_eq!(&*HostId::from_host_name("web-1.example.org"), "web-1-example-org");
        assert_eq!(&*HostId::from_host_name("größe"), "gr--e");
        assert_eq!(&*HostId::from_host_name(""), "unknown");
        assert_eq!(HostId::from_host_name(&"x".repeat(80)).len(), MAX_HOST_BYTES);
    }

    #[test]
    fn hostile_names_are_refused_and_shown_shortened() {
        for bad in ["", "1cpu", "Cpu", "x; DROP TABLE", "_x", "a-b", "a.b", "ä"] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
        for bad in ["", "a.b", "a b", "a*", ">"] {
            assert!(HostId::parse(bad).is_err(), "{bad}");
        }
        assert!(Name::parse(&"a".repeat(63)).is_ok());
        let error = Name::parse(&"a".repeat(100_000)).expect_err("too long");
        assert!(error.to_string().len() < 300);
    }
}
