//! What is not as it should be in a state directory and in the host's repositories: found as values,
//! then mended one by one. Operations that were cut are of [`crate::journal::recover`].
//!
//! Nothing that could be the last copy of anything is removed: it is told of, with the next step.

use crate::commit_back::own_refs;
use crate::host_repo::HostRepo;
use crate::id::{Name, RepoId, SandboxId};
use crate::landing::{delete_refs, owner_blob};
use crate::names::Names;
use crate::record::{RepoRecord, SandboxRecord};
use crate::sandbox::Sandbox;
use crate::store::{Store, StoreError, read_json};
use sandbox_git::refs::RefStore;
use sandbox_git::{Git, Oid, RefName, printable};
use sandbox_sys::lock::FileLock;
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
    /// Removes refs of ours whose commits other refs have.
    Refs(PathBuf, Vec<(RefName, Oid)>),
    /// Removes an empty control group.
    Cgroup(PathBuf),
    /// Nothing: what the user can do.
    Told(String),
}

/// Looks at everything. Changes nothing. `cgroups` is where the control groups are mounted.
pub fn find(git: &Git, store: &Store, cgroups: &Path) -> Result<Vec<Finding>, StoreError> {
    let mut found = Vec::new();
    half_made(store, &mut found)?;
    for id in store.repo_ids()? {
        names(store, &id, &mut found);
        let record = read_json::<RepoRecord>(&store.repo(&id).record())?;
        if let Some(record) = record.filter(|record| !record.directory) {
            repository(git, store, &record, &mut found);
        }
    }
    for path in entries(&store.tmp()) {
        let id = file_name(&path).strip_prefix("dropped-").and_then(SandboxId::parse);
        if id.is_some() && !FileLock::is_held(&path.join("lock")) {
            let what = format!("'{}' was to be deleted", path.display());
            found.push(Finding { kind: "dropped", what, fix: Fix::Dropped(path) });
        }
    }
    groups(cgroups, 0, &mut found);
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
        Fix::Refs(git_dir, refs) => delete_refs(git, &HostRepo::from_git_dir(git_dir)?, refs)?,
        Fix::Cgroup(path) => fs::remove_dir(path)?,
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
            Err(error) => {
                let hint = format!(
                    "a copy of it from a backup makes the sandbox whole; its files are in '{}'",
                    dir.path().display()
                );
                found.push(Finding { kind: "damaged", what: error.to_string(), fix: Fix::Told(hint) });
                continue;
            }
        };
        let sandbox = Sandbox::new(dir, record);
        for sandbox in sandbox.trees() {
            let repo = store.repo(&sandbox.mount().repo);
            let missing = match sandbox.snapshot(store) {
                Ok(snapshot) => {
                    let layers = snapshot.layers.iter().chain([&snapshot.git_layer]).map(|id| repo.layer_tree(id));
                    layers.into_iter().find(|path| !path.is_dir())
                }
                Err(_) => Some(repo.snapshot(&sandbox.mount().snapshot)),
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
        let open = rest.split('_').next().is_some_and(|op| store.open_operations().join(op).exists());
        if !open {
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
        orphan(git, store, record, host, &all, name, found);
    }
}

fn units(sandboxes: usize) -> &'static str {
    if sandboxes == 1 { "sandbox" } else { "sandboxes" }
}

/// Refs that say that they are of a sandbox of this repository, which is nowhere.
fn orphan(
    git: &Git,
    store: &Store,
    record: &RepoRecord,
    host: &HostRepo,
    all: &RefStore,
    name: &str,
    found: &mut Vec<Finding>,
) {
    let own = own_refs(all, name);
    let owner = own.iter().find(|(known, _)| known.as_bytes().ends_with(b"/owner")).map(|(_, oid)| *oid);
    let text = owner.and_then(|oid| host.read(git).args(["cat-file", "blob", &oid.to_string()]).output().ok());
    let text = text.map(|out| out.stdout).unwrap_or_default();
    let id = String::from_utf8_lossy(&text).lines().find_map(|line| SandboxId::parse(line.strip_prefix("sandbox ")?));
    // Only what is surely ours.
    let Some(id) = id.filter(|id| owner_blob(&record.id, id) == text && !store.sandbox(id).path().exists()) else {
        return;
    };
    let tips = own.iter().filter(|(_, oid)| Some(**oid) != owner);
    let input: String = tips.map(|(_, oid)| format!("{oid}\n")).collect();
    let count = host
        .read(git)
        .args(["rev-list", "--count", "--stdin", "--not", "--branches", "--tags", "--remotes"])
        .stdin(input)
        .line();
    let trashed = store.trash(&id).path().exists();
    let elsewhere = trashed || count.is_ok_and(|count| count == "0");
    let name = printable(name.as_bytes());
    let what =
        format!("refs/sandbox/{name} is of a sandbox that {}", if trashed { "is in the trash" } else { "is gone" });
    let fix = if elsewhere {
        Fix::Refs(host.git_dir().to_owned(), own.into_iter().collect())
    } else {
        Fix::Told(format!(
            "no branch or tag has its commits: `git branch NAME refs/sandbox/{name}` keeps them, then `git sandbox repair` takes the refs away"
        ))
    };
    found.push(Finding { kind: "refs", what, fix });
}

/// Control groups of supervisors that are dead, which nothing is in.
fn groups(dir: &Path, depth: usize, found: &mut Vec<Finding>) {
    for path in entries(dir) {
        let name = file_name(&path);
        if !path.is_dir() || path.is_symlink() {
            continue;
        }
        let pid = name.strip_prefix("git-sandbox-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        match pid {
            Some(pid) => {
                let empty = fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|text| text.is_empty());
                if empty && !Path::new("/proc").join(pid.to_string()).exists() {
                    let what = format!("the control group '{}' is of a supervisor that is dead", path.display());
                    found.push(Finding { kind: "cgroup", what, fix: Fix::Cgroup(path) });
                }
            }
            None if depth < 6 => groups(&path, depth + 1, found),
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
