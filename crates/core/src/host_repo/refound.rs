//! A repository that its id does not find again: it was moved and nobody ran a command in it, or it came back
//! from a backup or a clone without the file `sandbox-id`. The user names the place, and it is compared.
//!
//! ```text
//!   it has the id of a record  → that one, unless the record's own place still has the same id (a copy)
//!   it has another id          → refused
//!   it has none                → the one missing repository whose sandboxes' owner records are in it, else
//!                                whose sandboxes' base commits all are
//! ```

use super::{HostRepo, HostRepoError, failed};
use crate::commit_back::own_refs;
use crate::id::RepoId;
use crate::landing::Owner;
use crate::record::RepoRecord;
use crate::sandbox::{Sandbox, SandboxError};
use crate::store::{self, Store, StoreError};
use sandbox_git::refs::{RefStore, RefsError};
use sandbox_git::{Git, GitError, Oid};
use sandbox_sys::lock::FileLock;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Why a repository cannot take the place of a missing one.
#[derive(Debug, thiserror::Error)]
pub enum RefoundError {
    /// It has the id of one that is still where it was.
    #[error("'{path}' is a copy of '{original}', which has the sandboxes", path = path.display(), original = original.display())]
    Copy {
        /// What was named.
        path: PathBuf,
        /// The git directory of the other.
        original: PathBuf,
    },
    /// It has sandboxes of its own, or had them in another state directory.
    #[error("'{path}' has an id of its own, {id}", path = path.display())]
    OtherId {
        /// What was named.
        path: PathBuf,
        /// Its id.
        id: RepoId,
    },
    /// No repository with sandboxes is away.
    #[error("no repository of a sandbox is missing")]
    NoneMissing,
    /// It does not have what the sandboxes of a missing one were made from.
    #[error("'{path}' has not got commit {commit}, from which '{sandbox}' of '{missing}' was made", path = path.display(), missing = missing.display())]
    Another {
        /// What was named.
        path: PathBuf,
        /// The git directory of the missing one.
        missing: PathBuf,
        /// A sandbox of that.
        sandbox: String,
        /// Its base.
        commit: String,
    },
    /// The sandboxes of a missing one were made before its first commit: nothing can be compared.
    #[error("nothing tells whether '{path}' is '{missing}': its sandboxes were made before the first commit", path = path.display(), missing = missing.display())]
    NothingToCompare {
        /// What was named.
        path: PathBuf,
        /// The git directory of the missing one.
        missing: PathBuf,
    },
    /// More than one is missing, and it could be any of them.
    #[error("'{path}' may be '{one}' with the id {one_id} or '{other}' with the id {other_id}", path = path.display(), one = one.display(), other = other.display())]
    Ambiguous {
        /// What was named.
        path: PathBuf,
        /// The git directory of a missing one.
        one: PathBuf,
        /// Its id.
        one_id: RepoId,
        /// The git directory of another.
        other: PathBuf,
        /// Its id.
        other_id: RepoId,
    },
    /// The repository.
    #[error(transparent)]
    Host(#[from] HostRepoError),
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Its refs.
    #[error("cannot read the refs of the repository")]
    Refs(#[from] RefsError),
    /// Git.
    #[error("cannot ask git about the repository")]
    Git(#[from] GitError),
}

type Result<T> = std::result::Result<T, RefoundError>;

/// Which repository it is.
#[derive(Clone, Debug)]
pub struct Refound {
    /// What is known of it, with its former place.
    pub record: RepoRecord,
    /// How many sandboxes it has.
    pub sandboxes: usize,
    /// The record has this place already.
    pub known: bool,
    host: HostRepo,
}

impl fmt::Display for Refound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (now, was) = (self.host.top_or_gitdir().display(), self.record.common_dir.display());
        let sandboxes = if self.sandboxes == 1 { "sandbox" } else { "sandboxes" };
        write!(f, "the repository '{was}' of {} {sandboxes} is '{now}' now", self.sandboxes)
    }
}

/// Finds out which repository this is. Changes nothing.
pub fn compare(git: &Git, store: &Store, host: &HostRepo) -> Result<Refound> {
    let path = host.top_or_gitdir().to_owned();
    let identity = host.identity()?;
    if let Some(id) = host.read_id()? {
        let Some(record) = store::read_json::<RepoRecord>(&store.repo(&id).record())?.filter(|one| !one.directory)
        else {
            return Err(RefoundError::OtherId { path, id });
        };
        let known = (record.dev, record.ino) == identity && record.common_dir == host.common_dir();
        let original = HostRepo::from_git_dir(&record.common_dir).ok();
        if let Some(original) = original
            && original.identity()? != identity
            && original.read_id()? == Some(id)
        {
            return Err(RefoundError::Copy { path, original: record.common_dir });
        }
        let sandboxes = Sandbox::all(store, Some(&record.id))?.len();
        return Ok(Refound { record, sandboxes, known, host: host.clone() });
    }
    let missing = missing(store)?;
    if missing.is_empty() {
        return Err(RefoundError::NoneMissing);
    }
    let mut fits: Vec<Refound> = Vec::new();
    let mut refusal = None;
    let all = RefStore::read(git, host.git_dir(), host.common_dir())?;
    for (record, sandboxes) in missing {
        let fit = Refound { sandboxes: sandboxes.len(), record, known: false, host: host.clone() };
        if owns(git, host, &all, &fit.record.id, &sandboxes) {
            return Ok(fit);
        }
        match lacks(git, store, host, &path, &fit.record.common_dir, &sandboxes)? {
            None => fits.push(fit),
            Some(why) => refusal = refusal.or(Some(why)),
        }
    }
    match (fits.pop(), fits.pop(), refusal) {
        (Some(fit), None, _) => Ok(fit),
        (Some(other), Some(one), _) => Err(RefoundError::Ambiguous {
            path,
            one: one.record.common_dir,
            one_id: one.record.id,
            other: other.record.common_dir,
            other_id: other.record.id,
        }),
        (None, _, refusal) => Err(refusal.unwrap_or(RefoundError::NoneMissing)),
    }
}

/// Notes the place, and writes the id into the repository if it has none. Cut after that, any command in it does
/// the rest.
pub fn place(store: &Store, found: &Refound) -> Result<()> {
    let lock_file = store.lock_file();
    let _lock = FileLock::exclusive(&lock_file).map_err(failed("lock", &lock_file))?;
    if found.host.read_id()?.is_none() {
        found.host.write_id(&found.record.id)?;
    }
    let path = store.repo(&found.record.id).record();
    // What was asked and answered meanwhile stays.
    let mut record = store::read_json::<RepoRecord>(&path)?.unwrap_or_else(|| found.record.clone());
    record.common_dir = found.host.common_dir().to_owned();
    (record.dev, record.ino) = found.host.identity()?;
    Ok(store::write_twice(&path, &record, true)?)
}

/// Repositories that have sandboxes and are not where they were.
fn missing(store: &Store) -> Result<Vec<(RepoRecord, Vec<Sandbox>)>> {
    let mut missing = Vec::new();
    for id in store.repo_ids()? {
        let Ok(Some(record)) = store::read_json::<RepoRecord>(&store.repo(&id).record()) else { continue };
        let there = HostRepo::from_git_dir(&record.common_dir).is_ok_and(|host| host.is_of(&record).unwrap_or(true));
        if record.directory || there {
            continue;
        }
        let sandboxes = Sandbox::all(store, Some(&id))?;
        if !sandboxes.is_empty() {
            missing.push((record, sandboxes));
        }
    }
    Ok(missing)
}

/// The owner record of one of the sandboxes is in it.
fn owns(git: &Git, host: &HostRepo, all: &RefStore, id: &RepoId, sandboxes: &[Sandbox]) -> bool {
    sandboxes.iter().any(|sandbox| {
        let own = own_refs(all, sandbox.name());
        let owner = own.iter().find(|(name, _)| name.as_bytes().ends_with(b"/owner")).map(|(_, oid)| *oid);
        let blob = owner.and_then(|oid| host.read(git).args(["cat-file", "blob", &oid.to_string()]).output().ok());
        let owner = blob.and_then(|blob| Owner::parse(&blob.stdout));
        owner.is_some_and(|owner| owner.repo == *id && owner.sandbox == sandbox.record.id)
    })
}

/// Says which base commit it has not got, or that there is none to look for.
fn lacks(
    git: &Git,
    store: &Store,
    host: &HostRepo,
    path: &Path,
    missing: &Path,
    sandboxes: &[Sandbox],
) -> Result<Option<RefoundError>> {
    let mut bases: BTreeMap<Oid, String> = BTreeMap::new();
    for sandbox in sandboxes {
        // The last copy of what it stands on may be gone as well: `repair` tells of that.
        let Ok(snapshot) = sandbox.snapshot(store) else { continue };
        if let Some(base) = snapshot.git.base.as_deref().and_then(Oid::parse) {
            bases.insert(base, sandbox.name().to_owned());
        }
    }
    let (path, missing) = (path.to_owned(), missing.to_owned());
    if bases.is_empty() {
        return Ok(Some(RefoundError::NothingToCompare { path, missing }));
    }
    let input: String = bases.keys().map(|oid| format!("{oid}\n")).collect();
    let out = host.read(git).args(["cat-file", "--batch-check=%(objecttype)"]).stdin(input).output()?;
    let absent = out.stdout.split(|b| *b == b'\n').zip(bases).find(|(line, _)| *line != b"commit");
    Ok(absent.map(|(_, (oid, sandbox))| RefoundError::Another { path, missing, sandbox, commit: oid.to_string() }))
}
