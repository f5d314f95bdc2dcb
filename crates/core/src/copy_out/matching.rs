//! Which paths of a sandbox a pattern names: `target/*.xml`, `reports/**/*.html`.
//!
//! The view is walked as [`super::copy_out`] does, by descriptors and without following a link. What matches is
//! not entered: a directory that matches is one path.

use super::{CopyOutError, Found, MAX_DEPTH, Merged};
use crate::sandbox::Sandbox;
use crate::store::Store;
use globset::{GlobBuilder, GlobMatcher};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// More paths than this are no list of results.
const MOST: usize = 10_000;
/// How many entries are looked at: what is inside decides how many there are.
const MOST_LOOKED_AT: usize = 1_000_000;

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum MatchError {
    /// It cannot be read.
    #[error("'{pattern}' is not a pattern")]
    Pattern {
        /// As it was given.
        pattern: String,
        /// What is wrong.
        source: globset::Error,
    },
    /// The tree is too large to be looked through, or too much matches.
    #[error("'{pattern}' names too many files")]
    TooMany {
        /// As it was given.
        pattern: String,
    },
    /// The tree.
    #[error(transparent)]
    Tree(#[from] CopyOutError),
}

/// Returns whether something is a pattern, and not a plain path.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

/// Returns the paths of the sandbox's tree that `pattern` names, sorted. `*` and `?` stop at a slash, `**` does not.
pub fn matching(store: &Store, sandbox: &Sandbox, pattern: &str) -> Result<Vec<PathBuf>, MatchError> {
    let matcher = compile(pattern)?;
    let depth = if pattern.contains("**") { MAX_DEPTH } else { pattern.split('/').count() };
    let top = Merged::roots(store, sandbox)?;
    search(top, &matcher, depth, (MOST, MOST_LOOKED_AT)).map_err(|failure| match failure {
        Failure::TooMany => MatchError::TooMany { pattern: pattern.to_owned() },
        Failure::Io(path, source) => CopyOutError::Io { path, source }.into(),
    })
}

fn compile(pattern: &str) -> Result<GlobMatcher, MatchError> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).backslash_escape(true).build();
    let glob = glob.map_err(|source| MatchError::Pattern { pattern: pattern.to_owned(), source })?;
    Ok(glob.compile_matcher())
}

enum Failure {
    TooMany,
    Io(PathBuf, std::io::Error),
}

fn search(
    top: Merged,
    matcher: &GlobMatcher,
    depth: usize,
    (most, mut looks): (usize, usize),
) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |error| Failure::Io(path, error)
    };
    let names = top.names().map_err(fail(Path::new("")))?;
    let mut stack = vec![(top, names, PathBuf::new())];
    while let Some((dir, names, at)) = stack.last_mut() {
        let Some(name) = names.pop_first() else {
            stack.pop();
            continue;
        };
        looks = looks.checked_sub(1).ok_or(Failure::TooMany)?;
        let name = OsStr::from_bytes(name.to_bytes());
        // Never copied, so never named.
        if name.eq_ignore_ascii_case(".git") {
            continue;
        }
        let path = at.join(name);
        let here = dir.look(name).map_err(fail(&path))?;
        if matches!(here, Found::Nothing) {
            continue;
        }
        if matcher.is_match(&path) {
            if found.len() == most {
                return Err(Failure::TooMany);
            }
            found.push(path);
        } else if let Found::Directory(sub) = here
            && stack.len() < depth
        {
            let names = sub.names().map_err(fail(&path))?;
            stack.push((sub, names, path));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::DIRECTORY;
    use super::*;
    use rustix::fs::Mode;

    fn found(dir: &Path, pattern: &str, bounds: (usize, usize)) -> Option<Vec<String>> {
        let open = |name: &str| rustix::fs::open(dir.join(name), DIRECTORY, Mode::empty()).unwrap();
        let top = Merged(vec![open("upper"), open("lower")]);
        let depth = if pattern.contains("**") { MAX_DEPTH } else { pattern.split('/').count() };
        let paths = search(top, &compile(pattern).unwrap(), depth, bounds).ok()?;
        Some(paths.iter().map(|path| path.display().to_string()).collect())
    }

    #[test]
    fn patterns_are_looked_up_through_the_layers_and_never_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["upper/out", "lower/out/deep/er", "lower/.git/out", "lower/other"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let files = ["upper/out/a.xml", "lower/out/b.xml", "lower/out/deep/er/c.xml", "lower/.git/out/d.xml"];
        for path in files.into_iter().chain(["lower/out/gone.xml", "lower/other/e.xml", "lower/top.xml"]) {
            std::fs::write(dir.path().join(path), "").unwrap();
        }
        // A whiteout, which anybody may make, and a link to where more is.
        let (kind, mode) = (rustix::fs::FileType::CharacterDevice, Mode::empty());
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("upper/out/gone.xml"), kind, mode, 0).unwrap();
        std::os::unix::fs::symlink("../lower/other", dir.path().join("upper/link")).unwrap();
        let all = |pattern: &str| found(dir.path(), pattern, (10, 100)).unwrap();
        assert_eq!(all("out/*.xml"), ["out/a.xml", "out/b.xml"]);
        assert_eq!(all("**/*.xml"), ["other/e.xml", "out/a.xml", "out/b.xml", "out/deep/er/c.xml", "top.xml"]);
        assert_eq!(all("o*"), ["other", "out"]);
        assert_eq!(all("{other,link}/*"), ["other/e.xml"]);
        assert_eq!(all("*.[xy]ml"), ["top.xml"]);
        assert!(all("nothing*").is_empty() && all(".git/**").is_empty());
        assert_eq!(found(dir.path(), "**/*.xml", (2, 100)), None, "too many match");
        assert_eq!(found(dir.path(), "**/*.xml", (10, 3)), None, "too many to look at");
        assert!(matches!(compile("a[").unwrap_err(), MatchError::Pattern { .. }));
    }
}
