//! Shortening the newest stack of a work tree in the background, after a spawn.
//!
//! ```text
//!  fold.lock of the repository        nobody else folds; nobody waits for it
//!    │  weigh, plan
//!    │  copy into tmp/fold-<layer>/   no other lock is held: spawns and `gc` go on
//!    │  sync
//!    └─ lock of the repository        only for renames; the stack must still be the newest
//!         layers/<new>  snapshots/<new>.json  latest/…
//! ```
//!
//! Sandboxes keep the stack that they were spawned with: folding is for new spawns only. A fold that is
//! killed leaves `tmp/fold-…`, which `gc` sweeps; one that comes too late is thrown away, and the next
//! spawn starts another.

use crate::gitdir::Remembered;
use crate::id::{LayerId, RepoId, SnapshotId};
use crate::prepare::{Latest, latest_file};
use crate::record::Snapshot;
use crate::store::{RepoDir, Store, StoreError, make_dir, read_json, write_json};
use sandbox_capture::{CaptureError, FoldPlan, FoldRequest, StackWeight};
use sandbox_sys::lock::FileLock;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Folded {
    /// Somebody else folds, or there is no snapshot.
    No,
    /// The stack is short and light.
    NotNeeded(StackWeight),
    /// A spawn made another snapshot meanwhile.
    TooLate,
    /// New spawns stand on this snapshot.
    Done(SnapshotId),
}

/// Why there is no new stack. Nothing that exists was changed.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The layers.
    #[error("cannot fold the layers")]
    Layers(#[from] CaptureError),
    /// A lock or a rename.
    #[error("cannot {action} '{path}'", path = path.display())]
    Io {
        /// `lock`, `move into place`, …
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FoldError {
    let path = path.to_owned();
    move |source| FoldError::Io { action, path, source }
}

/// The name of what a fold makes in the store's `tmp`.
pub(crate) const TMP: &str = "fold-";

/// How often a fold that came too late is begun again.
const ATTEMPTS: usize = 3;

/// Folds the newest stack of a work tree if that pays.
pub fn fold(store: &Store, repo: &RepoId, worktree: &Path) -> Result<Folded, FoldError> {
    let repo = store.repo(repo);
    let lock = repo.fold_lock();
    let Some(_lock) = FileLock::try_exclusive(&lock).map_err(failed("lock", &lock))? else { return Ok(Folded::No) };
    for _ in 1..ATTEMPTS {
        match attempt(store, &repo, worktree)? {
            Folded::TooLate => {}
            done => return Ok(done),
        }
    }
    attempt(store, &repo, worktree)
}

fn attempt(store: &Store, repo: &RepoDir, worktree: &Path) -> Result<Folded, FoldError> {
    let Some(before) = newest(repo, worktree)? else { return Ok(Folded::No) };
    if before.layers.len() < 2 {
        return Ok(Folded::NotNeeded(StackWeight { layers: before.layers.len(), ..StackWeight::default() }));
    }
    let stack: Vec<String> = before.layers.iter().map(ToString::to_string).collect();
    let Some(weight) = sandbox_capture::weigh(&repo.layers(), &stack, crate::work::disk_of) else {
        return Ok(Folded::No);
    };
    let plan = sandbox_capture::plan_fold(&weight, free(&repo.layers()));
    if plan == FoldPlan::Nothing {
        return Ok(Folded::NotNeeded(weight));
    }
    let id = LayerId::random();
    let out = OutDir(store.tmp().join(format!("{TMP}{id}")));
    make_dir(&out.0)?;
    let owner = owner(repo, &before)?;
    let layers = sandbox_capture::fold(&FoldRequest {
        stack: &stack,
        layers_dir: &repo.layers(),
        out_dir: &out.0,
        new_layer_id: id.as_str(),
        owner,
        everything: plan == FoldPlan::Everything,
    })?;
    // `gc` may take the old layers away as soon as the new one has their place.
    sandbox_capture::sync(&out.0)?;

    let lock = repo.lock_file();
    let _lock = FileLock::exclusive(&lock).map_err(failed("lock", &lock))?;
    if newest(repo, worktree)?.is_none_or(|now| now.id != before.id) {
        return Ok(Folded::TooLate);
    }
    fs::rename(out.0.join(&id), repo.layer(&id)).map_err(failed("move into place", &out.0))?;
    let layers = layers.iter().filter_map(|id| LayerId::parse(id)).collect();
    let snapshot = Snapshot { id: SnapshotId::random(), layers, ..before };
    write_json(&repo.snapshot(&snapshot.id), &snapshot, false)?;
    let latest = Latest { worktree: worktree.to_owned(), snapshot: snapshot.id.clone() };
    write_json(&latest_file(repo, worktree), &latest, false)?;
    // Copies that were folded have other inodes than the index inside says.
    Remembered::forget(repo, worktree);
    Ok(Folded::Done(snapshot.id))
}

/// The last snapshot of a work tree.
fn newest(repo: &RepoDir, worktree: &Path) -> Result<Option<Snapshot>, StoreError> {
    let latest: Option<Latest> = read_json(&latest_file(repo, worktree))?;
    match latest.filter(|latest| latest.worktree == worktree) {
        Some(latest) => read_json(&repo.snapshot(&latest.snapshot)),
        None => Ok(None),
    }
}

/// Who owns the layers, when we are root.
fn owner(repo: &RepoDir, snapshot: &Snapshot) -> Result<Option<(u32, u32)>, FoldError> {
    let Some(base) = snapshot.layers.last().filter(|_| rustix::process::geteuid().is_root()) else { return Ok(None) };
    let dir = repo.layer(base);
    let meta = fs::metadata(&dir).map_err(failed("look at", &dir))?;
    Ok(Some((meta.uid(), meta.gid())))
}

/// Bytes that can still be written; all there are when the file system does not say.
fn free(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A directory that is deleted with the value.
struct OutDir(PathBuf);

impl Drop for OutDir {
    fn drop(&mut self) {
        let _ = sandbox_capture::remove_tree(&self.0);
    }
}
