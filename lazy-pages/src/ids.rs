//! Names of the things in a store: applications, checkpoints, packs.

use std::{fmt, str::FromStr, time::SystemTime};

use ulid::Ulid;

/// An identifier that is not well formed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what} `{value}` is not valid: {why}")]
pub struct InvalidId {
    /// What was being read.
    pub what: &'static str,
    /// The offending text.
    pub value: String,
    /// The rule it breaks.
    pub why: &'static str,
}

/// Identity of an application: `cluster/namespace/app`. Two applications never share a prefix of the store.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppId(String);

impl AppId {
    /// The identity as a path of three segments, which is also its prefix in the store.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment, the name a user gave.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl FromStr for AppId {
    type Err = InvalidId;

    /// Reads `app`, `namespace/app` or `cluster/namespace/app`; what is left out is `default` and `local`.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = |why| InvalidId { what: "application name", value: text.to_owned(), why };
        let segments: Vec<&str> = text.split('/').collect();
        segments.iter().try_for_each(|part| segment(part)).map_err(invalid)?;
        match segments[..] {
            [app] => Ok(Self(format!("local/default/{app}"))),
            [namespace, app] => Ok(Self(format!("local/{namespace}/{app}"))),
            [_, _, _] => Ok(Self(text.to_owned())),
            _ => Err(invalid("at most three parts: cluster/namespace/app")),
        }
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a pin: one segment of a key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PinName(String);

impl FromStr for PinName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match segment(text) {
            Ok(()) => Ok(Self(text.to_owned())),
            Err(why) => Err(InvalidId { what: "pin", value: text.to_owned(), why }),
        }
    }
}

impl fmt::Display for PinName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PinName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Refuses what cannot be one segment of a key that people choose.
fn segment(text: &str) -> Result<(), &'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 128 {
        Err("each part has 1 to 128 characters")
    } else if !text.chars().all(allowed) || text.starts_with('.') {
        Err("parts hold letters, digits, `-`, `_`, `.`, and do not start with a dot")
    } else {
        Ok(())
    }
}

macro_rules! ulid_newtype {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Ulid);

        impl $name {
            /// A new identifier, later than every one made before it on this machine's clock.
            #[allow(clippy::new_without_default)]
            pub fn new() -> Self {
                Self(Ulid::new())
            }

            /// When it was made, by the maker's clock, to the millisecond.
            pub fn created(&self) -> SystemTime {
                self.0.datetime()
            }

            /// The 16 bytes stored in manifests.
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.to_bytes()
            }

            /// The one with these 16 bytes.
            pub(crate) fn of_bytes(bytes: [u8; 16]) -> Self {
                Self(Ulid::from_bytes(bytes))
            }

            /// The inverse of [`Self::to_bytes`].
            ///
            /// # Errors
            /// When `bytes` is not 16 bytes long.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidId> {
                let bytes = <[u8; 16]>::try_from(bytes).map_err(|_| InvalidId {
                    what: $what,
                    value: format!("{} bytes", bytes.len()),
                    why: "16 bytes expected",
                })?;
                Ok(Self::of_bytes(bytes))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let ulid = Ulid::from_string(text).map_err(|_| InvalidId {
                    what: $what,
                    value: text.to_owned(),
                    why: "26 characters of a ULID expected",
                })?;
                Ok(Self(ulid))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

ulid_newtype!(
    /// A checkpoint of one application. Sorts by time of creation.
    CheckpointId,
    "checkpoint id"
);
ulid_newtype!(
    /// An object that holds frames.
    PackId,
    "pack id"
);
ulid_newtype!(
    /// A claim on a checkpoint's data by somebody who is reading it.
    LeaseId,
    "lease id"
);
