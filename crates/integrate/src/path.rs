//! Paths in a repository, and what a tree says about one.

use sandbox_git::{Oid, printable};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A path relative to the top of the working tree: bytes with `/` between names, as git stores it.
///
/// In JSON it is text; bytes that are not UTF-8 are replaced there.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoPath(Vec<u8>);

impl RepoPath {
    /// Checks and wraps a path. A tree that came from a sandbox was checked when it was imported;
    /// this is the second wall before a name reaches the file system.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let name =
            |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0) && !is_dot_git(part);
        bytes.split(|b| *b == b'/').all(name).then(|| Self(bytes.to_vec()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same for the file system.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The last name.
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|b| *b == b'/').next().unwrap_or_default()
    }

    /// The directory, or `None` at the top.
    pub fn parent(&self) -> Option<Self> {
        let slash = self.0.iter().rposition(|b| *b == b'/')?;
        Some(Self(self.0[..slash].to_vec()))
    }

    /// All directories above it, the nearest first, without the top.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(self.parent(), Self::parent)
    }

    /// Whether it is below `dir`.
    pub fn is_below(&self, dir: &Self) -> bool {
        self.0.strip_prefix(dir.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'/'))
    }
}

/// `.git` and what some file system takes for it.
fn is_dot_git(name: &[u8]) -> bool {
    let lower = name.to_ascii_lowercase();
    let trimmed = lower.trim_ascii_end();
    let trimmed = trimmed.strip_suffix(b".").unwrap_or(trimmed);
    trimmed == b".git" || trimmed == b"git~1"
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0))
    }
}

impl fmt::Debug for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{self}'")
    }
}

impl Serialize for RepoPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(&self.0))
    }
}

/// What a path is, as git's modes say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// `100644`
    File,
    /// `100755`
    Executable,
    /// `120000`
    Symlink,
    /// `160000`, a commit of a submodule.
    Gitlink,
}

impl Mode {
    /// Parses an octal mode; `None` for zero, directories and what git does not know.
    pub fn parse(text: &[u8]) -> Option<Self> {
        match text {
            b"100644" | b"100664" => Some(Self::File),
            b"100755" => Some(Self::Executable),
            b"120000" => Some(Self::Symlink),
            b"160000" => Some(Self::Gitlink),
            _ => None,
        }
    }

    /// As git writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "100644",
            Self::Executable => "100755",
            Self::Symlink => "120000",
            Self::Gitlink => "160000",
        }
    }

    /// Whether it is a file with content, executable or not.
    pub fn is_file(self) -> bool {
        matches!(self, Self::File | Self::Executable)
    }
}

/// What a tree, the index or the working tree has at one path: its mode and the id of its content in
/// the form that git stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The mode.
    pub mode: Mode,
    /// The id of the content.
    pub id: Oid,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_tree_or_are_gits_own_are_refused() {
        for good in ["a", "a/b", ".gitignore", ".gitattributes", "a/.github/x", " ", "..."] {
            assert!(RepoPath::parse(good.as_bytes()).is_some(), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "..", "a/../b", "./a", ".git", "a/.GIT/config", "git~1/x", ".git ", ".git."]
        {
            assert!(RepoPath::parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn below_is_by_names_not_by_letters() {
        let path = |text: &str| RepoPath::parse(text.as_bytes()).unwrap();
        assert!(path("a/b").is_below(&path("a")));
        assert!(!path("ab").is_below(&path("a")));
        assert_eq!(path("a/b/c").ancestors().collect::<Vec<_>>(), [path("a/b"), path("a")]);
    }
}
