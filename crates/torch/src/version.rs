//! Releases of libtorch: which can be used, and how a folder or a loaded library says which it is.

use std::fmt;
use std::fs;
use std::path::Path;

/// The oldest release that has every C function that is needed: lists for the dispatcher came with it.
pub const OLDEST: Version = Version::new(2, 10, 0);

/// The newest release that the tests have run with. A newer one that has all functions is used too.
pub const NEWEST_TESTED: Version = Version::new(2, 15, 0);

/// A release, such as 2.13.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u16,
    minor: u16,
    patch: u16,
}

impl Version {
    /// `major.minor.patch`
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    /// Reads the number in front of `2.13.0+cu130` or `2.16.0a0+git1234`.
    pub fn parse(text: &str) -> Option<Self> {
        let number = |part: Option<&str>| -> Option<u16> {
            let part = part?;
            let digits = part.find(|c: char| !c.is_ascii_digit());
            part[..digits.unwrap_or(part.len())].parse().ok()
        };
        let mut parts = text.trim().splitn(3, '.');
        Some(Self::new(
            number(parts.next())?,
            number(parts.next())?,
            number(parts.next()).unwrap_or(0),
        ))
    }

    /// What `aoti_torch_abi_version` returns: a byte each, the major version in the highest.
    pub(crate) fn from_abi(number: u64) -> Self {
        let byte = |shift: u32| (number >> shift & 0xff) as u16;
        Self::new(byte(56), byte(48), byte(40))
    }

    /// What the libtorch in `folder` (a torch package, or an unpacked libtorch) says of itself in a file; nothing is loaded.
    pub fn of_folder(folder: &Path) -> Option<Self> {
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
        // Archives of libtorch have `build-version`, Python packages `version.py`.
        if let Some(text) = read("build-version") {
            return Self::parse(&text);
        }
        let text = read("version.py")?;
        let line = text.lines().find(|line| line.starts_with("__version__"))?;
        Self::parse(line.split(['\'', '"']).nth(1)?)
    }

    /// Whether the tests have not run with a release as new as this one.
    pub fn is_untested(self) -> bool {
        (self.major, self.minor) > (NEWEST_TESTED.major, NEWEST_TESTED.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_texts_and_numbers() {
        for (text, version) in [
            ("2.13.0", (2, 13, 0)),
            ("2.13.1+cu130\n", (2, 13, 1)),
            ("2.16.0a0+git12ab", (2, 16, 0)),
            ("2.10", (2, 10, 0)),
        ] {
            let (major, minor, patch) = version;
            assert_eq!(
                Version::parse(text),
                Some(Version::new(major, minor, patch)),
                "{text}"
            );
        }
        for text in ["", "torch", "2", "x.y.z", "99999999.1.0"] {
            assert_eq!(Version::parse(text), None, "{text:?}");
        }
        assert_eq!(
            Version::from_abi(2 << 56 | 11 << 48 | 1 << 40),
            Version::new(2, 11, 1)
        );
        assert!(Version::new(2, 9, 1) < OLDEST);
        assert!(Version::new(2, 16, 0).is_untested() && !Version::new(2, 15, 9).is_untested());
    }

    #[test]
    fn a_folder_says_which_release_it_is() {
        let folder = tempfile::tempdir().expect("temporary directory");
        assert_eq!(Version::of_folder(folder.path()), None);
        let text = "from typing import Optional\n__version__ = '2.14.1+cpu'\n";
        fs::write(folder.path().join("version.py"), text).expect("write");
        assert_eq!(
            Version::of_folder(folder.path()),
            Some(Version::new(2, 14, 1))
        );
        fs::write(folder.path().join("build-version"), "2.12.0\n").expect("write");
        assert_eq!(
            Version::of_folder(folder.path()),
            Some(Version::new(2, 12, 0))
        );
    }
}
