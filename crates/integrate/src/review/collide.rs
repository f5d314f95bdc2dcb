//! What a path is only beside others: names that some file systems take for the same, and repositories
//! that git would take for one.

use super::{Finding, Review};
use crate::path::RepoPath;
use std::collections::BTreeSet;
use unicode_normalization::UnicodeNormalization;

pub(super) fn look(review: &Review<'_>, all: &mut Vec<Finding>) {
    let added: Vec<&RepoPath> =
        review.changes.iter().filter(|c| c.new.is_some() && c.old.is_none()).map(|c| &c.path).collect();
    let mut told = BTreeSet::new();
    for path in added {
        // The path and each directory on the way to it, as a name in its directory.
        let mut at = Some(path.clone());
        while let Some(here) = at {
            let above = here.parent();
            let dir = above.as_ref().map(|dir| dir.as_bytes().to_vec()).unwrap_or_default();
            let names = review.directories.get(&dir);
            if let Some(names) = names {
                let folded = fold(here.name());
                let other = names.iter().find(|(name, _)| name != here.name() && fold(name) == folded);
                if let Some((other, _)) = other
                    && told.insert(here.clone())
                {
                    let other = sandbox_git::printable(other);
                    let why = format!("has a name that is '{other}' on file systems without case or accents");
                    all.push(Finding::amber(&here, why));
                }
                let has = |name: &[u8], dir: bool| names.iter().any(|(n, d)| n == name && *d == dir);
                if !dir.is_empty()
                    && has(b"HEAD", false)
                    && has(b"objects", true)
                    && has(b"refs", true)
                    && let Some(dir) = &above
                    && told.insert(dir.clone())
                {
                    let why = "is a repository within the tree: git run in it reads its configuration";
                    all.push(Finding::red(dir, why).when("at the next git command in that directory"));
                }
            }
            at = above;
        }
    }
}

/// What a name is to a file system that keeps neither case nor the form of accents.
fn fold(name: &[u8]) -> String {
    String::from_utf8_lossy(name).nfd().flat_map(char::to_lowercase).collect()
}
