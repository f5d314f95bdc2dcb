//! Versions of git: what is required, what is safe, what an option needs.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The oldest git that works on the host (Debian 12's).
pub const MINIMUM: Version = Version::new(2, 39, 0);

/// The first releases of each line without the flaws of July 2025 (CVE-2025-48384, CVE-2025-48385).
const SAFE: [Version; 4] =
    [Version::new(2, 43, 7), Version::new(2, 45, 4), Version::new(2, 47, 3), Version::new(2, 50, 1)];

/// `major.minor.patch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(u32, u32, u32);

impl Version {
    /// Returns `major.minor.patch`.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self(major, minor, patch)
    }

    /// Parses the output of `git --version`, with any vendor's tail.
    pub fn parse(text: &str) -> Option<Self> {
        let number = text.trim().strip_prefix("git version ")?.split_ascii_whitespace().next()?;
        let mut parts = number.split(['.', '-']).map_while(|part| part.parse().ok());
        Some(Self(parts.next()?, parts.next()?, parts.next().unwrap_or(0)))
    }

    /// Whether known holes are closed: `doctor` warns otherwise. Distributions patch older numbers
    /// without changing them, so this can only be a warning.
    pub fn is_safe(self) -> bool {
        SAFE.iter().any(|safe| self.0 == safe.0 && self.1 == safe.1 && self.2 >= safe.2)
            || (self.0, self.1) > (SAFE[3].0, SAFE[3].1)
            // Lines between those named had a patch release of their own in the same batch.
            || (self.0 == 2 && matches!((self.1, self.2), (44, 4..) | (46, 4..) | (48, 2..) | (49, 1..)))
    }

    /// `GIT_NO_LAZY_FETCH`, `--show-ref-format` and reftable (2.45).
    pub fn has_reftable(self) -> bool {
        self >= Self(2, 45, 0)
    }

    /// Hooks that configuration names (2.54): `core.hooksPath` alone does not turn hooks off.
    pub fn has_config_hooks(self) -> bool {
        self >= Self(2, 54, 0)
    }

    /// `git --attr-source` and `fetch --porcelain` (2.41).
    pub fn has_attr_source(self) -> bool {
        self >= Self(2, 41, 0)
    }

    /// `merge-tree --merge-base` (2.40).
    pub fn has_merge_file_algorithm(self) -> bool {
        self >= Self(2, 44, 0)
    }

    /// Whether `git merge-tree` takes the merge base.
    pub fn has_merge_tree_base(self) -> bool {
        self >= Self(2, 40, 0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendors_tails_are_ignored() {
        let cases = [
            ("git version 2.39.5", (2, 39, 5)),
            ("git version 2.39.5 (Apple Git-154)", (2, 39, 5)),
            ("git version 2.50.0.windows.1", (2, 50, 0)),
            ("git version 2.51.0-rc1", (2, 51, 0)),
            ("git version 2.52.GIT", (2, 52, 0)),
        ];
        for (text, (a, b, c)) in cases {
            assert_eq!(Version::parse(text), Some(Version::new(a, b, c)), "{text}");
        }
        assert_eq!(Version::parse("gut version 1"), None);
    }

    #[test]
    fn the_security_floor_has_four_steps() {
        for (text, safe) in [
            ("2.39.5", false),
            ("2.43.6", false),
            ("2.43.7", true),
            ("2.47.3", true),
            ("2.50.0", false),
            ("2.51.0", true),
        ] {
            assert_eq!(Version::parse(&format!("git version {text}")).unwrap().is_safe(), safe, "{text}");
        }
    }
}
