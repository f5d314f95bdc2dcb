//! The gits of this machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One git of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Git {
    /// The executable, as found (not resolved: its directory goes on `PATH`).
    pub path: PathBuf,
    /// `(2, 39, 5)`.
    pub version: (u32, u32, u32),
}

impl Git {
    /// Asks the executable for its version; `None` when it is not a git.
    pub fn probe(path: &Path) -> Option<Self> {
        let output = Command::new(path).arg("version").env_clear().output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let mut numbers = text.strip_prefix("git version ")?.split(['.', ' ', '\n']).map(|part| part.parse().ok());
        let version = (numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0));
        Some(Self { path: path.to_owned(), version })
    }
}

impl std::fmt::Display for Git {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor, patch) = self.version;
        write!(f, "git {major}.{minor}.{patch} ({})", self.path.display())
    }
}

/// Returns every git of this machine: those on `PATH`, and the two standard places. Links to
/// the same executable count once.
pub fn gits() -> Vec<Git> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/local/bin", "/usr/bin"].map(PathBuf::from));
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for file in dirs.map(|dir| dir.join("git")) {
        let Ok(real) = file.canonicalize() else { continue };
        if seen.insert(real) {
            found.extend(Git::probe(&file));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_at_least_one_git_and_its_version() {
        let found = gits();
        assert!(!found.is_empty(), "the tests need a git");
        for git in found {
            assert!(git.version.0 >= 2, "{git}");
        }
    }

    #[test]
    fn what_is_not_git_is_not_probed_as_one() {
        assert_eq!(Git::probe(Path::new("/bin/true")), None);
        assert_eq!(Git::probe(Path::new("/nonexistent")), None);
    }
}
