//! Names that come out of files: each is one name in one folder, and can be nothing else.
//!
//! A manifest, a snapshot or an index is a file that anybody may have written. What it names is read, and even deleted, so
//! a name that leads elsewhere (`../x`, `/x`, the empty one) is refused where it is read, and not where it is used.

use std::fmt;
use std::ops::Deref;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// All checkpoint folders begin with this, as Ray's do.
pub const CHECKPOINT_PREFIX: &str = "checkpoint_";

/// Longest name of a file, in bytes, on the usual file systems.
const MAX_BYTES: usize = 255;

/// A name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not {what}'s name: it {problem}")]
pub struct NameError {
    name: String,
    what: &'static str,
    problem: &'static str,
}

/// The name of something directly in a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileName(String);

/// The name of a checkpoint's folder, directly in its run's folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CheckpointName(String);

fn problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("is empty")
    } else if name == "." || name == ".." {
        Some("means a folder")
    } else if name.contains(['/', '\\']) {
        Some("leads to another folder")
    } else if name.chars().any(char::is_control) {
        Some("contains a control character")
    } else if name.len() > MAX_BYTES {
        Some("is longer than 255 bytes")
    } else {
        None
    }
}

impl FileName {
    /// The name `name`.
    ///
    /// # Errors
    /// It is not the name of one file in a folder.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        match problem(&name) {
            None => Ok(Self(name)),
            Some(problem) => Err(NameError {
                name,
                what: "a file",
                problem,
            }),
        }
    }
}

impl FileName {
    /// `prefix`, five digits or more, `suffix`, which are constants of this crate.
    pub(crate) fn numbered(prefix: &'static str, number: usize, suffix: &'static str) -> Self {
        Self(format!("{prefix}{number:05}{suffix}"))
    }

    /// A constant of this crate.
    pub(crate) fn fixed(name: &'static str) -> Self {
        Self(name.to_owned())
    }
}

impl CheckpointName {
    /// The name `name`.
    ///
    /// # Errors
    /// It is not the name of one folder, or does not begin with [`CHECKPOINT_PREFIX`].
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        let prefix =
            || (!name.starts_with(CHECKPOINT_PREFIX)).then_some("does not begin with checkpoint_");
        match problem(&name).or_else(prefix) {
            None => Ok(Self(name)),
            Some(problem) => Err(NameError {
                name,
                what: "a checkpoint",
                problem,
            }),
        }
    }
}

macro_rules! text {
    ($name:ident) => {
        impl $name {
            /// As text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<Path> for $name {
            fn as_ref(&self) -> &Path {
                Path::new(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                self.0 == *other
            }
        }

        impl PartialEq<String> for $name {
            fn eq(&self, other: &String) -> bool {
                self.0 == *other
            }
        }
    };
}

text!(FileName);
text!(CheckpointName);

#[cfg(test)]
mod tests {
    use super::*;

    const ELSEWHERE: [&str; 9] = [
        "",
        ".",
        "..",
        "../victim",
        "/etc",
        "a/b",
        "a/",
        "a\\b",
        "a\0b",
    ];

    #[test]
    fn a_name_leads_nowhere_else() {
        for name in ELSEWHERE {
            FileName::new(name).expect_err(name);
            CheckpointName::new(name).expect_err(name);
            CheckpointName::new(format!("checkpoint_/{name}")).expect_err(name);
            let json = serde_json::to_string(name).unwrap();
            serde_json::from_str::<FileName>(&json).expect_err(name);
            serde_json::from_str::<CheckpointName>(&json).expect_err(name);
        }
        FileName::new("x".repeat(256)).unwrap_err();
        assert_eq!(FileName::new("model").unwrap(), "model");
        assert_eq!(CheckpointName::new("checkpoint_1").unwrap(), "checkpoint_1");
        let error = CheckpointName::new("model").unwrap_err().to_string();
        assert!(error.contains("checkpoint_"), "{error}");
    }
}
