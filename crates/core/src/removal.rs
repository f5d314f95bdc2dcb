//! Removing a sandbox whose work is saved, and sweeping what half-made commands left.

use crate::commit_back::{self, CommitBackError};
use crate::journal::{End, Ids, Journal, Plan, Verb};
use crate::kept;
use crate::names::Names;
use crate::record::SandboxRecord;
use crate::sandbox::Sandbox;
use crate::store::{SandboxDir, Store, StoreError, read_json};
use crate::work;
use sandbox_git::Git;
use sandbox_sys::fault;
use sandbox_sys::lock::FileLock;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Removes a sandbox whose lock is held and whose work is saved.
///
/// ```text
/// away     one rename: from here on it is gone, and the next command does what is left
/// refs     those that it has in the host's repositories
/// kept     what the vault has of it: the host has all of that
/// name     is free again, and with it the names of the vault's refs
/// delete
/// ```
pub fn drop_saved(git: &Git, store: &Store, sandbox: &Sandbox, lock: FileLock) -> Result<(), CommitBackError> {
    let id = &sandbox.record.id;
    let mut op = Journal::of_sandbox(store, id).start(Plan::new(Verb::Drop).of(sandbox.name()).makes_room())?;
    let gone = store.dropped(id);
    let stop = |name| fault::point(name).map_err(StoreError::io("move away", sandbox.dir.path()));
    stop("drop.away")?;
    // With nothing of it anywhere else there is nothing that a power cut could leave behind: it is there as it was,
    // or it is swept with what else lies in `tmp`.
    if work::may_have_any_refs(store, sandbox)
        || kept::all_of(store, &sandbox.record).map_or(true, |all| !all.is_empty())
    {
        op.begin_durably("away", Ids::new())?;
    } else {
        op.begin("away", Ids::new())?;
    }
    stop("drop.rename")?;
    fs::rename(sandbox.dir.path(), &gone).map_err(StoreError::io("move away", sandbox.dir.path()))?;
    let there = Sandbox::new(SandboxDir::at(gone.clone()), sandbox.record.clone());
    if let Err(error) =
        stop("drop.refs").map_err(Into::into).and_then(|()| commit_back::remove_refs(git, store, &there))
    {
        // A foreign lock, a repository that is gone: it stays whole, and so do its refs.
        fs::rename(&gone, sandbox.dir.path()).map_err(StoreError::io("move back", &gone))?;
        give_names_again(store, &sandbox.record);
        op.end(End::Failed);
        return Err(error);
    }
    // From here on it is not taken back: what fails is done by the next command.
    stop("drop.kept")?;
    kept::forget(store, &sandbox.record)?;
    stop("drop.name")?;
    take_names_back(store, &sandbox.record);
    drop(lock);
    stop("drop.delete")?;
    // On FUSE and NFS a file that is open keeps its directory, and the journal is until the end.
    let kept = match sandbox_capture::remove_tree(&gone) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => true,
        other => other.map(|()| false).map_err(StoreError::io("delete", &gone))?,
    };
    stop("drop.end")?;
    op.end(End::Done);
    if kept {
        sandbox_capture::remove_tree(&gone).map_err(StoreError::io("delete", &gone))?;
    }
    Ok(())
}

/// Removes a sandbox that nothing was ever done in: one rename makes it vanish, then it is deleted.
pub(crate) fn remove_unused(store: &Store, sandbox: &Sandbox, lock: FileLock) -> Result<(), StoreError> {
    let gone = store.dropped(&sandbox.record.id);
    fs::rename(sandbox.dir.path(), &gone).map_err(StoreError::io("move away", sandbox.dir.path()))?;
    take_names_back(store, &sandbox.record);
    drop(lock);
    sandbox_capture::remove_tree(&gone).map_err(StoreError::io("delete", &gone))
}

/// Gives its name free in all its repositories, if it is still its own.
pub(crate) fn take_names_back(store: &Store, record: &SandboxRecord) {
    for mount in &record.repos {
        Names::of(&store.repo(&mount.repo)).take_back(&record.name, &record.id);
    }
}

/// What came back has its name, whoever gave it free meanwhile; one that another has been given stays with that.
fn give_names_again(store: &Store, record: &SandboxRecord) {
    for mount in &record.repos {
        // Without it, it is still found by its id.
        let _ = Names::of(&store.repo(&mount.repo)).give_again(&record.name, &record.id);
    }
}

/// Deletes what a killed command left: sandboxes without a record, dropped directories that
/// were not deleted to the end, temporary files. What somebody still works on is locked; a capture that
/// is under way is waited for with some patience, and what it may be making is then left alone.
/// Returns how many things were deleted.
pub fn sweep(store: &Store, patience: Duration) -> Result<usize, StoreError> {
    let mut swept = 0;
    for id in store.sandbox_ids()? {
        let dir = store.sandbox(&id);
        if read_json::<SandboxRecord>(&dir.record()).is_ok_and(|record| record.is_none())
            && let Ok(Some(_lock)) = FileLock::try_exclusive(&dir.lock_file())
            // Its maker may have come to the end between the first look and the lock.
            && read_json::<SandboxRecord>(&dir.record()).is_ok_and(|record| record.is_none())
        {
            sandbox_capture::remove_tree(dir.path()).map_err(StoreError::io("delete", dir.path()))?;
            swept += 1;
        }
    }
    let tmp = store.tmp();
    let entries: Vec<fs::DirEntry> = fs::read_dir(&tmp).map_err(StoreError::io("list", &tmp))?.flatten().collect();
    // A capture holds its repository's lock from before it makes anything until all is in its
    // place: what was here before each lock could be had once belongs to none. They are given back
    // at once, so that nobody waits for us while we wait for somebody else.
    let until = Instant::now() + patience;
    let mut capturing = false;
    for id in store.repo_ids()? {
        match lock_until(&store.repo(&id).lock_file(), until) {
            Some(_lock) => Names::of(&store.repo(&id)).free_unused(store),
            None => capturing = true,
        }
    }
    // A fold holds its own lock as long, and nobody waits for it.
    let ids = store.repo_ids()?;
    let folding = ids.iter().any(|id| FileLock::is_held(&store.repo(id).fold_lock()));
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let lock = entry.path().join("lock");
        let held = FileLock::is_held(&lock);
        let abandoned = !capturing && is_of_capture(&name) || !folding && is_of_fold(&name);
        // Locked as long as somebody works on it; what is deleted has lost its lock file before its end.
        let free = !held && (is_dropped(&name) || is_of_merge(&name) && lock.exists());
        // A clock that jumps makes everything old: what somebody may be at work on has no age.
        let worked_on = held || capturing && is_of_capture(&name) || folding && is_of_fold(&name);
        if abandoned || free || !worked_on && old(&entry.path()) {
            sandbox_capture::remove_tree(&entry.path()).map_err(StoreError::io("delete", entry.path()))?;
            swept += 1;
        }
    }
    Ok(swept)
}

fn lock_until(path: &Path, until: Instant) -> Option<FileLock> {
    loop {
        match FileLock::try_exclusive(path) {
            Ok(Some(lock)) => return Some(lock),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            _ => return None,
        }
    }
}

/// Whether [`sweep`] would take a temporary thing of this name, if nobody works on it.
pub fn is_swept(name: &str) -> bool {
    is_of_capture(name) || is_of_fold(name) || is_dropped(name) || is_of_merge(name)
}

fn is_of_fold(name: &str) -> bool {
    name.starts_with(crate::fold::TMP)
}

fn is_of_capture(name: &str) -> bool {
    name.starts_with("git-") || name.starts_with("rev-") || is_id(name)
}

/// Where a merge is tried out: locked as long as that lasts.
pub(crate) fn is_of_merge(name: &str) -> bool {
    name.starts_with("integrate.")
}

fn is_dropped(name: &str) -> bool {
    name.starts_with("dropped-")
}

/// A layer that is being made has its future name.
fn is_id(name: &str) -> bool {
    crate::id::LayerId::parse(name).is_some()
}

/// Nothing works on one temporary thing for a day.
pub(crate) fn old(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .and_then(|meta| meta.modified())
        .is_ok_and(|at| at.elapsed().is_ok_and(|age| age.as_secs() > 86_400))
}
