//! The last git layer of each work tree, so that an unchanged repository costs no process.

use super::{Fingerprint, Made};
use crate::id::LayerId;
use crate::record::GitFacts;
use crate::store::{self, RepoDir, StoreError};
use crate::view::{View, digest};
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// `repos/<id>/gitlayers/<digest of the work tree's path>.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    fingerprint: Fingerprint,
    /// What else the layer depends on, as the caller says: grants, the stack of layers below.
    salt: String,
    /// Files to look at besides those of the repository.
    pub hints: Vec<PathBuf>,
    /// The layer.
    pub layer: LayerId,
    /// What was known about git.
    pub facts: GitFacts,
}

impl Remembered {
    /// Returns what a layer that was just made is remembered as.
    pub fn new(made: Made, layer: LayerId, salt: &str) -> Self {
        Self { fingerprint: made.fingerprint, salt: salt.to_owned(), hints: made.hints, layer, facts: made.facts }
    }

    /// Reads the last one of this work tree, if its layer and views still exist.
    pub fn load(repo: &RepoDir, top: &Path) -> Result<Option<Self>, StoreError> {
        // It only saves work.
        let Ok(Some(found)) = store::read_json::<Self>(&file(repo, top)) else { return Ok(None) };
        let views = found.facts.views.iter().all(|view| repo.view(&view.key).join("view.json").exists());
        Ok((views && repo.layer_tree(&found.layer).is_dir()).then_some(found))
    }

    /// Writes it as the last one.
    pub fn save(&self, repo: &RepoDir, top: &Path) -> Result<(), StoreError> {
        let path = file(repo, top);
        store::make_dir(path.parent().expect("a file in a directory"))?;
        store::write_json(&path, self, false)
    }

    /// Has the next layer made anew.
    pub(crate) fn forget(repo: &RepoDir, top: &Path) {
        // Without it, files that did not change would be read once more inside: no reason to fail.
        let _ = std::fs::remove_file(file(repo, top));
    }

    /// Whether it can be used again: the repository is as it was, and so is what the caller named.
    pub fn is_for(&self, now: &Fingerprint, salt: &str) -> bool {
        self.fingerprint.still(now) && self.salt == salt
    }

    /// The views that it stands on.
    pub fn views(&self, repo: &RepoDir) -> Vec<View> {
        self.facts.views.iter().filter_map(|record| View::open(repo, &record.key).ok().flatten()).collect()
    }
}

fn file(repo: &RepoDir, top: &Path) -> PathBuf {
    repo.path().join("gitlayers").join(format!("{}.json", digest(top.as_os_str().as_bytes())))
}
