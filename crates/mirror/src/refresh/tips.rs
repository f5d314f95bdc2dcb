//! What a mirror has, and whether it is there.

use super::trouble::Trouble;
use crate::repo::MirrorRepo;
use sandbox_git::refs::{Head, RefStore, Target};
use sandbox_git::{Git, GitError, Oid, RefName};
use std::collections::{BTreeMap, BTreeSet};

/// What a mirror has.
pub(super) struct Have {
    /// Refs that are its upstream's.
    pub(super) refs: BTreeMap<RefName, Oid>,
    /// The branch that its `HEAD` names.
    pub(super) head: Option<RefName>,
    /// What is pinned.
    pub(super) pins: Vec<Oid>,
}

impl Have {
    /// Reads it; no object is looked at.
    pub(super) fn read(git: &Git, repo: &MirrorRepo) -> Result<Self, Trouble> {
        let store = RefStore::read(git, repo.dir(), repo.dir()).map_err(|error| Trouble::Corrupt(error.to_string()))?;
        let head = match &store.head {
            Some(Head::Branch(name)) => Some(name.clone()),
            _ => None,
        };
        let mut have = Self { refs: BTreeMap::new(), head, pins: Vec::new() };
        for (name, target) in &store.refs {
            let Target::Direct { oid, .. } = target else { continue };
            if name.as_bytes().starts_with(b"refs/heads/") || name.as_bytes().starts_with(b"refs/tags/") {
                have.refs.insert(name.clone(), *oid);
            } else if name.as_bytes().starts_with(b"refs/keep/") {
                have.pins.push(*oid);
            }
        }
        Ok(have)
    }

    /// What its refs and pins name.
    pub(super) fn tips(&self) -> BTreeSet<Oid> {
        self.refs.values().chain(&self.pins).copied().collect()
    }
}

/// Which of these a repository has not.
pub(crate) fn absent(git: &Git, repo: &MirrorRepo, wanted: &BTreeSet<Oid>) -> Result<BTreeSet<Oid>, GitError> {
    if wanted.is_empty() {
        return Ok(BTreeSet::new());
    }
    let input: String = wanted.iter().map(|oid| format!("{oid}\n")).collect();
    let out = repo.git(git).stdin(input).args(["cat-file", "--batch-check=%(objectname)"]).output()?.stdout;
    let missing = |line: &[u8]| line.strip_suffix(b" missing").and_then(Oid::parse);
    Ok(out.split(|b| *b == b'\n').filter_map(missing).collect())
}

/// Whether something that it names is not there, while others may delete refs and then what these named.
pub(super) fn is_broken(git: &Git, repo: &MirrorRepo) -> bool {
    let lost = || absent(git, repo, &Have::read(git, repo).ok()?.tips()).ok();
    // What cannot be read at all is as bad.
    lost().is_none_or(|first| !first.is_empty() && lost().is_none_or(|second| first.intersection(&second).count() > 0))
}
