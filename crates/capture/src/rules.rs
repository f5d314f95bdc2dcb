//! `.sandboxignore`: gitignore syntax, at any level; the innermost file that says something decides.

use crate::paths::{READ, open_beneath, to_path};
use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

/// Name of the files.
pub(crate) const FILE: &[u8] = b".sandboxignore";

/// Longer files are cut: nobody writes a megabyte of patterns.
const MAX: u64 = 1 << 20;

/// The rules that hold in one directory: those of its own file before those of the directories above.
#[derive(Debug)]
pub(crate) struct Rules {
    above: Option<Arc<Rules>>,
    /// The directory, relative to the root.
    dir: Vec<u8>,
    /// Read at the first question: an unchanged tree asks none.
    own: OnceLock<Gitignore>,
}

impl Rules {
    /// Returns the rules of a directory that has such a file.
    pub(crate) fn new(above: Option<Arc<Rules>>, dir: Vec<u8>) -> Self {
        Self { above, dir, own: OnceLock::new() }
    }

    /// Returns the rules from above, if these are the ones of the directory `dir` itself.
    pub(crate) fn above_if_of(&self, dir: &[u8]) -> Option<Option<Arc<Rules>>> {
        (self.dir == dir).then(|| self.above.clone())
    }

    /// Returns whether the path, relative to the root, is to be left out, by itself or with a
    /// directory above it.
    pub(crate) fn leave_out(&self, root: BorrowedFd<'_>, path: &[u8], is_dir: bool) -> bool {
        let mut rules = Some(self);
        while let Some(at) = rules {
            let below = if at.dir.is_empty() { path } else { path.get(at.dir.len() + 1..).unwrap_or_default() };
            match at.own.get_or_init(|| at.read(root)).matched_path_or_any_parents(to_path(below), is_dir) {
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
                Match::None => rules = at.above.as_deref(),
            }
        }
        false
    }

    fn read(&self, root: BorrowedFd<'_>) -> Gitignore {
        let path = crate::paths::join(&self.dir, FILE);
        let mut text = Vec::new();
        if let Ok(file) = open_beneath(root, &path, READ) {
            // What cannot be read cannot leave anything out; the file itself is reported as unreadable.
            let _ = File::from(file).take(MAX).read_to_end(&mut text);
        }
        parse(&String::from_utf8_lossy(&text))
    }
}

/// Returns the matcher of a file's text; a line that is no valid pattern is skipped, as git does.
fn parse(text: &str) -> Gitignore {
    let mut builder = GitignoreBuilder::new("");
    for line in text.lines() {
        let _ = builder.add_line(None, line);
    }
    builder.build().unwrap_or_else(|_| Gitignore::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_innermost_file_decides() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join(".sandboxignore"), "*.bin\n/data/\n").unwrap();
        std::fs::write(dir.path().join("a/.sandboxignore"), "!keep.bin\n/b/x\n[\n").unwrap();
        let root = crate::paths::open_root(dir.path()).unwrap();
        let top = Arc::new(Rules::new(None, Vec::new()));
        let a = Rules::new(Some(top.clone()), b"a".to_vec());
        let out = |rules: &Rules, path: &str, is_dir| rules.leave_out(root.as_fd(), path.as_bytes(), is_dir);
        assert!(out(&top, "x.bin", false) && out(&top, "data", true) && !out(&top, "data", false));
        assert!(!out(&top, "sub/data", true));
        assert!(out(&a, "a/x.bin", false) && !out(&a, "a/keep.bin", false) && out(&a, "a/b/x", false));
        assert!(!out(&a, "a/x", false) && out(&top, "data/deep/x", false));
    }
}
