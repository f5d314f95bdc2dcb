//! Which new paths a cone-mode sparse checkout has in the working tree.

use crate::error::MergeError;
use crate::path::RepoPath;
use crate::repo::Repo;
use std::collections::HashSet;
use std::fs;
use std::io;

/// The directories of a cone-mode sparse checkout.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Cone {
    /// With all that is below them.
    whole: HashSet<Vec<u8>>,
    /// With their own files only.
    shallow: HashSet<Vec<u8>>,
}

impl Cone {
    /// Reads `info/sparse-checkout`; `None` if it is not of the form that cone mode writes.
    pub fn read(repo: &Repo) -> Result<Option<Self>, MergeError> {
        let file = repo.gitdir().join("info/sparse-checkout");
        match fs::read(&file) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(MergeError::io("read", file)(source)),
        }
    }

    /// ```text
    ///   /*            files at the top
    ///   !/*/          but no directories
    ///   /a/           everything below a …
    ///   !/a/*/        … no: only its own files
    ///   /a/b/         and everything below a/b
    /// ```
    fn parse(text: &[u8]) -> Option<Self> {
        let mut cone = Self::default();
        for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty() && line[0] != b'#') {
            if line == b"/*" || line == b"!/*/" {
                continue;
            }
            let inner = |line: &[u8], end: &[u8]| {
                let name = line.strip_prefix(b"/")?.strip_suffix(end)?;
                let plain = !name.iter().any(|b| b"*?[]".contains(b));
                plain.then(|| unescape(name))
            };
            if let Some(not) = line.strip_prefix(b"!") {
                let dir = inner(not, b"/*/")?;
                cone.whole.remove(&dir);
                cone.shallow.insert(dir);
            } else {
                cone.whole.insert(inner(line, b"/")?);
            }
        }
        Some(cone)
    }

    /// Whether the working tree has this path.
    pub fn has(&self, path: &RepoPath) -> bool {
        match path.parent() {
            None => true,
            Some(parent) => {
                self.shallow.contains(parent.as_bytes())
                    || path.ancestors().any(|dir| self.whole.contains(dir.as_bytes()))
            }
        }
    }
}

fn unescape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        out.extend(if *byte == b'\\' { bytes.next() } else { Some(byte) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cone_has_its_directories_and_the_files_on_the_way() {
        let cone = Cone::parse(b"/*\n!/*/\n/a/\n!/a/*/\n/a/b/\n/c/\n").unwrap();
        let has = |path: &str| cone.has(&RepoPath::parse(path.as_bytes()).unwrap());
        for yes in ["top", "a/x", "a/b/x", "a/b/c/x", "c/x"] {
            assert!(has(yes), "{yes}");
        }
        for no in ["d/x", "a/z/x", "ab/x"] {
            assert!(!has(no), "{no}");
        }
        assert_eq!(Cone::parse(b"*.c\n"), None);
    }
}
