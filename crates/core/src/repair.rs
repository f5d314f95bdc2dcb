//! What is not as it should be in a state directory and in the host's repositories: found as values,
//! then mended one by one. Operations that were cut are of [`crate::journal::recover`].
//!
//! Nothing that could be the last copy of anything is removed: it is told of, with the next step.

mod packs;
mod records;

pub use packs::DamagedPack;

use crate::host_repo::HostRepo;
use crate::id::{Name, RepoId, SandboxId};
use crate::landing::delete_refs;
use crate::names::Names;
use crate::orphan;
use crate::record::{RepoRecord, SandboxRecord};
use crate::removal::{is_of_merge, old};
use crate::sandbox::{Sandbox, SandboxError};
use crate::store::{Store, StoreError, read_json};
use sandbox_git::refs::RefStore;
use sandbox_git::{Git, Oid, RefName, printable};
use sandbox_sys::lock::FileLock;
use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

type Failure = Box<dyn Error + Send + Sync>;

/// One thing that is not as it should be.
#[derive(Clone, Debug)]
pub struct Finding {
    /// A short stable name.
    pub kind: &'static str,
    /// In words, not escaped.
    pub what: String,
    /// What is done about it.
    pub fix: Fix,
}

/// What is done.
#[derive(Clone, Debug)]
pub enum Fix {
    /// Removes a sandbox that was never made to the end.
    HalfMade(SandboxId),
    /// Gives a name free.
    Name(RepoId, Name, SandboxId),
    /// Deletes what was on its way out.
    Dropped(PathBuf),
    /// Removes a file of ours from the host's object store.
    TempPack(PathBuf),
    /// Removes refs of a sandbox of ours that is gone, whose commits are elsewhere.
    Refs {
        /// The repository.
        repo: RepoId,
        /// Its git directory.
        git_dir: PathBuf,
        /// The sandbox.
        id: SandboxId,
        /// The refs.
        refs: Vec<(RefName, Oid)>,
    },
    /// Removes an empty control group.
    Cgroup(PathBuf),
    /// Puts the copy of a record in the place of a damaged one.
    FromCopy(PathBuf),
    /// Moves a damaged record aside.
    Aside(PathBuf),
    /// Removes a damaged record that only saves work.
    Forget(PathBuf),
    /// Gives a copied state directory an id of its own.
    NewId,
    /// Makes a damaged pack anew of what the host has.
    Pack(DamagedPack),
    /// Nothing: what the user can do.
    Told(String),
}

/// Looks at everything. Changes nothing. `cgroups` is where the control groups are mounted.
pub fn find(git: &Git, store: &Store, cgroups: &Path) -> Result<Vec<Finding>, StoreError> {
    let mut found = Vec::new();
    if let Err(error @ StoreError::Copied { .. }) = store.id() {
        found.push(Finding { kind: "copy", what: error.to_string(), fix: Fix::NewId });
    }
    records::find(store, &mut found)?;
    half_made(store, &mut found)?;
    for id in store.repo_ids()? {
        names(store, &id, &mut found);
        // A damaged one is among the records.
        let record = read_json::<RepoRecord>(&store.repo(&id).record()).ok().flatten();
        if let Some(record) = record.filter(|record| !record.directory) {
            repository(git, store, &record, &mut found);
            packs::find(store, &record, &mut found);
        }
    }
    for path in entries(&store.tmp()) {
        let lock = path.join("lock");
        if FileLock::is_held(&lock) {
            continue;
        }
        let of_merge = is_of_merge(&file_name(&path)) && lock.exists();
        if of_merge || file_name(&path).strip_prefix("dropped-").and_then(SandboxId::parse).is_some() {
            let what = match of_merge {
                true => format!("'{}' is what a killed command tried a merge in", path.display()),
                false => format!("'{}' was to be deleted", path.display()),
            };
            found.push(Finding { kind: "dropped", what, fix: Fix::Dropped(path) });
        }
    }
    // The name of a group tells whose it is: those of other stores, and of other pid namespaces, are not ours.
    let ids = ["sandboxes", "trash"].map(|dir| entries(&store.root().join(dir)));
    let ours: BTreeSet<String> =
        ids.iter().flatten().filter_map(|path| Some(file_name(path).get(..8)?.to_owned())).collect();
    groups(cgroups, 0, &ours, &mut found);
    Ok(found)
}

/// Mends one; `Ok(false)`: there was nothing to do, or it is for the user.
pub fn mend(git: &Git, store: &Store, finding: &Finding) -> Result<bool, Failure> {
    match &finding.fix {
        Fix::HalfMade(id) => {
            let dir = store.sandbox(id);
            let Some(_lock) = FileLock::try_exclusive(&dir.lock_file())? else { return Ok(false) };
            // Its maker may have come to the end meanwhile.
            if dir.record().exists() {
                return Ok(false);
            }
            sandbox_capture::remove_tree(dir.path())?;
        }
        Fix::Name(repo, name, id) => {
            // Names are given under this lock.
            let lock = FileLock::exclusive_within(&store.repo(repo).lock_file(), Duration::from_secs(10))?;
            let names = Names::of(&store.repo(repo));
            if lock.is_none() || names.holder(store, name).is_some() {
                return Ok(false);
            }
            names.take_back(name, id);
        }
        Fix::Dropped(path) => sandbox_capture::remove_tree(path)?,
        Fix::TempPack(path) => fs::remove_file(path)?,
        Fix::Refs { repo, git_dir, id, refs } => {
            // Restored meanwhile: that is done under this lock.
            let lock = FileLock::exclusive_within(&store.repo(repo).lock_file(), Duration::from_secs(10))?;
            if lock.is_none() || store.sandbox(id).path().exists() {
                return Ok(false);
            }
            delete_refs(git, &HostRepo::from_git_dir(git_dir)?, refs)?;
        }
        Fix::Cgroup(path) => fs::remove_dir(path)?,
        Fix::NewId => drop(store.become_another()?),
        Fix::FromCopy(path) => return records::from_copy(path),
        Fix::Aside(path) => return records::aside(path),
        Fix::Forget(path) => fs::remove_file(path)?,
        Fix::Pack(pack) => return pack.mend(git, store),
        Fix::Told(_) => return Ok(false),
    }
    Ok(true)
}

fn half_made(store: &Store, found: &mut Vec<Finding>) -> Result<(), StoreError> {
    for id in store.sandbox_ids()? {
        let dir = store.sandbox(&id);
        let record = match read_json::<SandboxRecord>(&dir.record()) {
            Ok(Some(record)) => record,
            Ok(None) if FileLock::is_held(&dir.lock_file()) => continue,
            Ok(None) => {
                let what = format!("the sandbox {id} was not made to the end");
                found.push(Finding { kind: "half-made", what, fix: Fix::HalfMade(id) });
                continue;
            }
            // It is among the records.
            Err(_) => continue,
        };
        let sandbox = Sandbox::new(dir, record);
        for sandbox in sandbox.trees() {
            let repo = store.repo(&sandbox.mount().repo);
            let missing = match sandbox.snapshot(store) {
                Ok(snapshot) => {
                    let layers = snapshot.layers.iter().chain([&snapshot.git_layer]).map(|id| repo.layer_tree(id));
                    layers.into_iter().find(|path| !path.is_dir())
                }
                Err(SandboxError::Vanished { path, .. }) => Some(path),
                Err(_) => None,
            };
            if let Some(path) = missing {
                let what = format!("the sandbox '{}' stands on '{}', which is gone", sandbox.name(), path.display());
                let hint = format!("what it changed is still in '{}'", sandbox.upper().display());
                found.push(Finding { kind: "missing", what, fix: Fix::Told(hint) });
            }
        }
    }
    Ok(())
}

fn names(store: &Store, repo: &RepoId, found: &mut Vec<Finding>) {
    for path in entries(&store.repo(repo).path().join("names")) {
        let Ok(name) = Name::parse(&file_name(&path)) else { continue };
        let id = fs::read_to_string(&path).ok().and_then(|text| SandboxId::parse(text.trim()));
        if let Some(id) = id.filter(|id| !crate::names::holds(store, id)) {
            let what = format!("the name '{name}' belongs to no sandbox");
            found.push(Finding { kind: "name", what, fix: Fix::Name(repo.clone(), name, id) });
        }
    }
}

fn repository(git: &Git, store: &Store, record: &RepoRecord, found: &mut Vec<Finding>) {
    let there = HostRepo::from_git_dir(&record.common_dir).ok();
    let Some(host) = there.as_ref().filter(|host| host.is_of(record).unwrap_or(true)) else {
        let used = Sandbox::all(store, Some(&record.id)).map_or(0, |all| all.len());
        if used > 0 {
            let of = format!("'{}' of {used} {}", record.common_dir.display(), units(used));
            let what = match there {
                Some(_) => format!("the repository {of} is gone, and another one is in its place"),
                None => format!("the repository {of} is gone"),
            };
            let hint = "if it was moved: any `git sandbox` command in its new place finds its sandboxes again, or `git sandbox repair --repo NEW`, also for one from a backup".to_owned();
            found.push(Finding { kind: "repository", what, fix: Fix::Told(hint) });
        }
        return;
    };
    for path in entries(&host.common_dir().join("objects/pack")) {
        let name = file_name(&path);
        let Some(rest) = name.strip_prefix("tmp_sandbox_") else { continue };
        let owner = rest.split('_').next().unwrap_or_default();
        // The import may be one of another state directory.
        let gone = owner.parse::<u32>().is_ok_and(|pid| !Path::new("/proc").join(pid.to_string()).exists());
        if !store.open_operations().join(owner).exists() && (gone || old(&path)) {
            let what = format!("'{}' was not copied to the end", path.display());
            found.push(Finding { kind: "temp-pack", what, fix: Fix::TempPack(path) });
        }
    }
    let Ok(all) = RefStore::read(git, host.git_dir(), host.common_dir()) else { return };
    for name in all.refs.keys() {
        let Some(name) = name.to_str().and_then(|name| name.strip_prefix("refs/sandbox-meta/")?.strip_suffix("/owner"))
        else {
            continue;
        };
        refs_of_nobody(git, store, record, host, &all, name, found);
    }
}

fn units(sandboxes: usize) -> &'static str {
    if sandboxes == 1 { "sandbox" } else { "sandboxes" }
}

/// Refs that say that they are of a sandbox of this repository, which is nowhere.
fn refs_of_nobody(
    git: &Git,
    store: &Store,
    record: &RepoRecord,
    host: &HostRepo,
    all: &RefStore,
    name: &str,
    found: &mut Vec<Finding>,
) {
    let Ok(Some(orphan)) = orphan::of_name(git, store, &record.id, host, all, name) else { return };
    let name = printable(name.as_bytes());
    let of = match (orphan.ours, orphan.trashed) {
        (false, _) => format!("the sandbox {}, which is not in this state directory", orphan.id),
        (true, true) => "a sandbox that is in the trash".to_owned(),
        (true, false) => "a sandbox that is gone".to_owned(),
    };
    let what = format!("refs/sandbox/{name} is of {of}");
    let fix = match (orphan.ours, orphan.saved) {
        (true, true) => {
            Fix::Refs { repo: record.id.clone(), git_dir: host.git_dir().to_owned(), id: orphan.id, refs: orphan.refs }
        }
        (true, false) => Fix::Told(format!(
            "no branch or tag has its commits: `git branch NAME refs/sandbox/{name}` keeps them, then `git sandbox repair` takes the refs away"
        )),
        (false, _) => Fix::Told(format!(
            "left alone: it may be alive in another one, of another user or another `GIT_SANDBOX_STATE`; if it is gone: `git for-each-ref --format='delete %(refname)' refs/sandbox/{name} refs/sandbox-meta/{name} | git update-ref --stdin`"
        )),
    };
    found.push(Finding { kind: "refs", what, fix });
}

/// Control groups of supervisors that are dead, which nothing is in.
fn groups(dir: &Path, depth: usize, ours: &BTreeSet<String>, found: &mut Vec<Finding>) {
    for path in entries(dir) {
        let name = file_name(&path);
        if !path.is_dir() || path.is_symlink() {
            continue;
        }
        // `git-sandbox-<pid>-<id>`, as the namespace driver makes them.
        let of = name.strip_prefix("git-sandbox-").and_then(|rest| rest.split_once('-'));
        match of.and_then(|(pid, id)| Some((pid.parse::<u32>().ok()?, id))) {
            Some((_, id)) if !ours.contains(id) => {}
            Some((pid, _)) => {
                let empty = fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|text| text.is_empty());
                if empty && !Path::new("/proc").join(pid.to_string()).exists() {
                    let what = format!("the control group '{}' is of a supervisor that is dead", path.display());
                    found.push(Finding { kind: "cgroup", what, fix: Fix::Cgroup(path) });
                }
            }
            None if depth < 6 => groups(&path, depth + 1, ours, found),
            None => {}
        }
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    all.sort();
    all
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
