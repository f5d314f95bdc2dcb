//! Records that cannot be read. A copy that is whole takes their place; else it is told what they were for.

use super::{Failure, Finding, Fix, entries, file_name};
use crate::id::{RepoId, SandboxId, SnapshotId};
use crate::kept::{self, Kept};
use crate::ops::{Log, Operation};
use crate::prepare::{Latest, latest_dir};
use crate::record::{RepoRecord, SandboxRecord, Snapshot};
use crate::store::{Store, StoreError, copy_of, read_json, write_whole};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Looks at all records.
pub(super) fn find(store: &Store, found: &mut Vec<Finding>) -> Result<(), StoreError> {
    for place in ["sandboxes", "trash"] {
        for dir in entries(&store.root().join(place)) {
            let hint = format!(
                "there is no copy of it: its files are in '{0}'; one from a backup makes it whole, `chmod -R u+rwX '{0}'; rm -r '{0}'` gives it up; until then `gc` removes no layer and no pack",
                dir.display()
            );
            check::<SandboxRecord>(&dir.join("sandbox.json"), found, || Fix::Told(hint));
        }
    }
    for id in store.repo_ids()? {
        of_repo(store, &id, found);
    }
    Ok(())
}

fn of_repo(store: &Store, id: &RepoId, found: &mut Vec<Finding>) {
    let repo = store.repo(id);
    check::<RepoRecord>(&repo.record(), found, || {
        Fix::Told("there is no copy of it: one from a backup makes its sandboxes usable again".into())
    });
    for path in entries(&repo.path().join("kept")) {
        let Some(id) = file_name(&path).strip_suffix(".json").and_then(SandboxId::parse) else { continue };
        check::<Kept>(&path, found, || {
            if !kept::has_directory(store, &id) {
                let vault = repo.vault();
                return Fix::Told(format!(
                    "there is no copy of it, and the directory of its sandbox is gone: `git --git-dir='{0}' for-each-ref` shows what it kept, `git fetch '{0}' REF` takes it out; until `rm '{1}'` `gc` removes no layer and no pack",
                    vault.display(),
                    path.display()
                ));
            }
            // The sandbox itself has all of it; only what earlier rescues had goes.
            Fix::Aside(path.clone())
        });
    }
    for path in entries(&repo.snapshots()) {
        if path.file_stem().and_then(|stem| SnapshotId::parse(stem.to_str()?)).is_some() {
            check::<Snapshot>(&path, found, || {
                Fix::Told("there is no copy of it: `git sandbox rescue NAME --to DIR` copies what is only in a sandbox that stands on it".into())
            });
        }
    }
    for view in entries(&repo.views()) {
        check::<Value>(&view.join("view.json"), found, || {
            Fix::Told("there is no copy of it: `git sandbox bundle NAME FILE` takes commits out of a sandbox that borrows from it".into())
        });
    }
    for path in entries(&repo.path().join("ops")) {
        if Log::number_of(&path).is_some() {
            check::<Operation>(&path, found, || {
                Fix::Told("there is no copy of it: what it did, and what was done before it, is not undone; `gc` forgets it after its time".into())
            });
        }
    }
    for path in entries(&latest_dir(&repo)) {
        // Without it the next spawn captures everything.
        check::<Latest>(&path, found, || Fix::Forget(path.clone()));
    }
}

fn check<T: DeserializeOwned>(path: &Path, found: &mut Vec<Finding>, alone: impl FnOnce() -> Fix) {
    let Err(error) = read_json::<T>(path) else { return };
    let fix = match read_json::<T>(&copy_of(path)) {
        Ok(Some(_)) => Fix::FromCopy(path.to_owned()),
        _ => alone(),
    };
    found.push(Finding { kind: "damaged", what: error.to_string(), fix });
}

/// Whether it is whole by now: somebody wrote it again.
fn is_whole(path: &Path) -> bool {
    read_json::<Value>(path).is_ok_and(|record| record.is_some_and(|record| record.get("sum").is_some()))
}

/// Puts the copy in its place.
pub(super) fn from_copy(path: &Path) -> Result<bool, Failure> {
    if is_whole(path) {
        return Ok(false);
    }
    let bytes = fs::read(copy_of(path))?;
    write_whole(path, &bytes, true)?;
    Ok(true)
}

/// Moves it out of the way, where nobody reads it.
pub(super) fn aside(path: &Path) -> Result<bool, Failure> {
    if is_whole(path) {
        return Ok(false);
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    fs::rename(path, name)?;
    Ok(true)
}
