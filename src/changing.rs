//! A change of the host's working tree: by one command at a time, with a way back.
//!
//! ```text
//! repos/<id>/merge.lock        held while a working tree is changed
//! repos/<id>/undo/<random>/    the former state, until `gc` takes it after 30 days
//! repos/<id>/journal           `change` names both sides: where, and what there was
//! ```

use crate::context::Context;
use crate::error::CliError;
use crate::recovery;
use sandbox_core::id::RepoId;
use sandbox_core::journal::recover::Which;
use sandbox_core::journal::{End, Home, Journal, Op, Plan, Verb, path_id};
use sandbox_core::ops::{Deed, Log, Operation};
use sandbox_core::sandbox::SandboxError;
use sandbox_core::store::{RepoDir, Store, make_dir};
use sandbox_integrate::{MergeError, Repo};
use sandbox_sys::fault;
use sandbox_sys::lock::{FileLock, holder};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long another command's change of a working tree is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A change that has begun. Dropped before its end, the next command takes back what is there of it.
pub struct Changing {
    repo: RepoId,
    base: RepoDir,
    worktree: PathBuf,
    git_dir: PathBuf,
    undo: PathBuf,
    verb: Verb,
    op: Op,
    _lock: FileLock,
}

impl Changing {
    /// Takes the lock; a change that was cut off (a crash, a `kill -9`) is taken back first. `of` names the
    /// sandboxes whose work it is, with blanks between them.
    pub fn begin(
        context: &Context,
        store: &Store,
        id: &RepoId,
        repo: &Repo,
        verb: Verb,
        of: &str,
    ) -> Result<Self, CliError> {
        let lock = lock(context, store, id)?;
        let all = store.repo(id).path().join("undo");
        make_dir(&all)?;
        Self::open(store, id, repo, verb, of, all.join(sandbox_core::id::SandboxId::random()), lock)
    }

    fn open(
        store: &Store,
        id: &RepoId,
        repo: &Repo,
        verb: Verb,
        of: &str,
        undo: PathBuf,
        lock: FileLock,
    ) -> Result<Self, CliError> {
        sandbox_integrate::sweep(repo)?;
        let plan = of.split(' ').filter(|name| !name.is_empty()).fold(Plan::new(verb), Plan::of);
        let mut op = Journal::of_repo(store, id).start(plan)?;
        let (worktree, git_dir) = (repo.worktree().to_owned(), repo.gitdir().to_owned());
        let ids = [("worktree", &worktree), ("git-dir", &git_dir), ("undo", &undo)];
        stop("merge.begin")?;
        op.begin_durably("change", ids.map(|(key, path)| (key.to_owned(), path_id(path))).into())?;
        stop("merge.change")?;
        Ok(Self { repo: id.clone(), base: store.repo(id), worktree, git_dir, undo, verb, op, _lock: lock })
    }

    /// Where the former state goes: a directory that does not exist yet.
    pub fn undo(&self) -> &Path {
        &self.undo
    }

    /// The change was carried out, and from here on `undo` takes it back, not the next command; or it failed with
    /// everything put back. One that could not be put back stays open: the next command tries again.
    pub fn end<T>(mut self, result: Result<T, MergeError>, told: impl FnOnce(&T) -> String) -> Result<T, CliError> {
        match result {
            Ok(done) => {
                let undo = self.undo.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let (repo, worktree, git_dir) = (self.repo, self.worktree, self.git_dir);
                let deed = Deed::Tree { repo, worktree, git_dir, undo };
                stop("merge.log")?;
                Log::of(&self.base).add(&Operation::now(&self.verb.to_string(), told(&done), vec![deed]))?;
                stop("merge.done")?;
                self.op.done("change")?;
                stop("merge.end")?;
                self.op.end(End::Done);
                Ok(done)
            }
            Err(error @ MergeError::NotRestored { .. }) => Err(error.into()),
            Err(error) => {
                self.op.end(End::Failed);
                Err(error.into())
            }
        }
    }

    /// Takes a change back that was carried out, as the only one who changes this working tree. Cut off in
    /// between, the next command puts the rest back.
    pub fn take_back(
        context: &Context,
        store: &Store,
        id: &RepoId,
        repo: &Repo,
        undo: &Path,
    ) -> Result<Result<(), MergeError>, CliError> {
        let lock = lock(context, store, id)?;
        if let Err(refused) = sandbox_integrate::can_restore(repo, undo) {
            return Ok(Err(refused));
        }
        let mut changing = Self::open(store, id, repo, Verb::Undo, "", undo.to_owned(), lock)?;
        let outcome = sandbox_integrate::restore(repo, undo);
        if !matches!(outcome, Err(MergeError::NotRestored { .. })) {
            changing.op.done("change")?;
            changing.op.end(if outcome.is_ok() { End::Done } else { End::Failed });
        }
        Ok(outcome)
    }
}

/// The lock of a repository's working trees, with nothing left of a change that was cut off.
pub fn lock(context: &Context, store: &Store, id: &RepoId) -> Result<FileLock, CliError> {
    let path = store.repo(id).path().join("merge.lock");
    let lock = FileLock::exclusive_within(&path, PATIENCE)
        .map_err(CliError::io(format!("lock '{}'", path.display())))?
        .ok_or_else(|| SandboxError::Busy { holder: holder(&path) })?;
    let home = Home::Repo(id.clone());
    for found in recovery::mend(context, store, Which::Of(&home, recovery::CHANGES, PATIENCE), true)? {
        recovery::tell(&found);
        if let Err(error) = found.outcome {
            return Err(CliError::chain(error.as_ref()));
        }
    }
    Ok(lock)
}

fn stop(name: &'static str) -> Result<(), CliError> {
    fault::point(name).map_err(CliError::io("write the journal"))
}
