//! A change of the host's working tree: by one command at a time, with a way back.
//!
//! ```text
//! repos/<id>/merge.lock        held while a working tree is changed
//! repos/<id>/undo/<random>/    the former state, until `gc` takes it after 30 days
//! repos/<id>/undo/<random>.all of a change of several repositories: all were changed; until it is there,
//!                              none was, and whoever comes next finishes what was carried out in all, or takes
//!                              all of them back
//! repos/<id>/journal           `change` names both sides: where, and what there was
//! ```
//!
//! The locks of several repositories are taken in the order of their ids.

use crate::context::Context;
use crate::error::CliError;
use crate::recovery;
use crate::text::escape_bytes;
use sandbox_core::id::{RepoId, SandboxId};
use sandbox_core::journal::recover::Which;
use sandbox_core::journal::{End, Home, Journal, Op, Plan, Verb, path_id};
use sandbox_core::ops::{Deed, Log, Operation};
use sandbox_core::sandbox::{Sandbox, SandboxError};
use sandbox_core::store::{RepoDir, Store, make_dir, write_whole};
use sandbox_integrate::{EditsPlan, MergeError, MergePlan, Merged, Repo};
use sandbox_sys::fault;
use sandbox_sys::lock::{FileLock, holder};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long another command's change of a working tree is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A change that has begun. Dropped before its end, the next command takes back what is there of it; past HEAD's
/// move it writes down what was done.
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
        Self::begin_in(context, store, id, repo, (verb, of), None)
    }

    /// The same as part of a change of several repositories, which is over when the mark `all` is there.
    fn begin_in(
        context: &Context,
        store: &Store,
        id: &RepoId,
        repo: &Repo,
        (verb, of): (Verb, &str),
        all: Option<&Path>,
    ) -> Result<Self, CliError> {
        let lock = lock(context, store, id)?;
        Self::open(store, id, repo, (verb, of), new_undo(store, id)?, all, lock)
    }

    fn open(
        store: &Store,
        id: &RepoId,
        repo: &Repo,
        (verb, of): (Verb, &str),
        undo: PathBuf,
        all: Option<&Path>,
        lock: FileLock,
    ) -> Result<Self, CliError> {
        sandbox_integrate::sweep(repo)?;
        let plan = of.split(' ').filter(|name| !name.is_empty()).fold(Plan::new(verb), Plan::of);
        let mut op = Journal::of_repo(store, id).start(plan)?;
        let (worktree, git_dir) = (repo.worktree().to_owned(), repo.gitdir().to_owned());
        let ids = [("worktree", &*worktree), ("git-dir", &*git_dir), ("undo", &*undo)];
        let ids = ids.into_iter().chain(all.map(|all| ("all", all)));
        stop("merge.begin")?;
        op.begin_durably("change", ids.map(|(key, path)| (key.to_owned(), path_id(path))).collect())?;
        stop("merge.change")?;
        Ok(Self { repo: id.clone(), base: store.repo(id), worktree, git_dir, undo, verb, op, _lock: lock })
    }

    /// Where the former state goes: a directory that does not exist yet.
    pub fn undo(&self) -> &Path {
        &self.undo
    }

    /// The change was carried out, and from here on `undo` takes it back, not the next command; or it failed with
    /// everything put back. One that could not be put back stays open: the next command tries again.
    fn end<T>(mut self, result: Result<T, MergeError>, part: &Part<'_>) -> Result<T, CliError> {
        match result {
            Ok(done) => {
                let deed = self.deed();
                stop("merge.log")?;
                let operation = Operation::now(&self.verb.to_string(), part.told.clone(), vec![deed]);
                Log::of(&self.base).add(&operation.of(&part.of))?;
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

    fn deed(&self) -> Deed {
        let undo = self.undo.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (repo, worktree, git_dir) = (self.repo.clone(), self.worktree.clone(), self.git_dir.clone());
        Deed::Tree { repo, worktree, git_dir, undo }
    }

    /// Takes a change back that was carried out, as the only one who changes this working tree, if it `may` be
    /// then. Cut off in between, the next command puts the rest back.
    pub fn take_back(
        context: &Context,
        store: &Store,
        id: &RepoId,
        repo: &Repo,
        undo: &Path,
        may: impl FnOnce() -> Result<(), CliError>,
    ) -> Result<Result<(), MergeError>, CliError> {
        let lock = lock(context, store, id)?;
        may()?;
        if let Err(refused) = sandbox_integrate::can_restore(repo, undo) {
            return Ok(Err(refused));
        }
        let mut changing = Self::open(store, id, repo, (Verb::Undo, ""), undo.to_owned(), None, lock)?;
        let outcome = sandbox_integrate::restore(repo, undo);
        if !matches!(outcome, Err(MergeError::NotRestored { .. })) {
            changing.op.done("change")?;
            changing.op.end(if outcome.is_ok() { End::Done } else { End::Failed });
        }
        Ok(outcome)
    }
}

/// What is done to one working tree.
pub enum Work<'a> {
    /// Commits come in.
    Merge(&'a MergePlan),
    /// Files change.
    Edits(&'a EditsPlan),
}

/// The change of one repository, of several that are carried out together.
pub struct Part<'a> {
    /// The sandbox, looked at from the tree of this repository.
    pub tree: &'a Sandbox,
    /// The repository.
    pub repo: &'a Repo,
    /// What is done.
    pub work: Work<'a>,
    /// The same in words, for the operation log.
    pub told: String,
    /// Whose work it is.
    pub of: Vec<SandboxId>,
}

impl Part<'_> {
    fn apply(&self, undo: &Path) -> Result<Merged, MergeError> {
        match self.work {
            Work::Merge(plan) => sandbox_integrate::apply(self.repo, plan, undo),
            Work::Edits(plan) => sandbox_integrate::apply_edits(self.repo, plan, undo),
        }
    }

    fn id(&self) -> &RepoId {
        &self.tree.mount().repo
    }

    fn place(&self) -> String {
        escape_bytes(self.repo.worktree().as_os_str().as_bytes())
    }
}

/// Carries out all parts, or none, whatever happens in between; returns what was done, in their order.
pub fn carry_out(
    context: &Context,
    store: &Store,
    verb: Verb,
    of: &str,
    parts: &[Part<'_>],
) -> Result<Vec<Merged>, CliError> {
    if let [part] = parts {
        let changing = Changing::begin(context, store, part.id(), part.repo, verb, of)?;
        let result = part.apply(changing.undo());
        return Ok(vec![changing.end(result, part)?]);
    }
    let Some(first) = parts.first() else { return Ok(Vec::new()) };
    let all = new_undo(store, first.id())?.with_extension("all");
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|n| parts[*n].id());
    let mut begun: Vec<(usize, Changing)> = Vec::new();
    for n in order {
        let part = &parts[n];
        match Changing::begin_in(context, store, part.id(), part.repo, (verb, of), Some(&all)) {
            Ok(changing) => begun.push((n, changing)),
            Err(error) => {
                begun.into_iter().for_each(|(_, changing)| changing.op.end(End::Failed));
                return Err(error.cause(format!("in '{}'; nothing was written", part.place())));
            }
        }
    }
    begun.sort_by_key(|(n, _)| *n);
    let mut changes: Vec<Changing> = begun.into_iter().map(|(_, changing)| changing).collect();
    let mut done = Vec::new();
    for (n, part) in parts.iter().enumerate() {
        match part.apply(changes[n].undo()) {
            Ok(merged) => done.push(merged),
            Err(error) => {
                let whole = !matches!(error, MergeError::NotRestored { .. });
                let failed = CliError::from(error).cause(format!("in '{}'; the others are as they were", part.place()));
                // In reverse. What cannot be taken back now stays open: the next command tries again.
                for (part, changing) in parts[..n].iter().zip(&changes).rev() {
                    sandbox_integrate::restore(part.repo, &changing.undo)
                        .map_err(|error| CliError::from(error).cause(format!("in '{}'", part.place())))?;
                }
                if whole {
                    changes.into_iter().for_each(|changing| changing.op.end(End::Failed));
                }
                return Err(failed);
            }
        }
    }
    // The same operation in the log of each repository, wherever `undo` is asked.
    let told: Vec<String> = parts.iter().map(|part| format!("{}: {}", part.place(), part.told)).collect();
    let deeds = changes.iter().map(Changing::deed).collect();
    let operation = Operation::now(&verb.to_string(), told.join("; "), deeds);
    let operation = operation.of(parts.iter().flat_map(|part| &part.of));
    stop("merge.log")?;
    for changing in &changes {
        Log::of(&changing.base).add(&operation)?;
    }
    stop("merge.all")?;
    write_whole(&all, b"", true)?;
    stop("merge.done")?;
    for changing in &mut changes {
        changing.op.done("change")?;
    }
    stop("merge.end")?;
    changes.into_iter().for_each(|changing| changing.op.end(End::Done));
    Ok(done)
}

/// Where the former state of a repository goes: a directory that does not exist yet.
fn new_undo(store: &Store, id: &RepoId) -> Result<PathBuf, CliError> {
    let all = store.repo(id).path().join("undo");
    make_dir(&all)?;
    Ok(all.join(sandbox_core::id::SandboxId::random()))
}

/// The locks of the working trees of all repositories of a sandbox, in the order of their ids: as long as they
/// are held, nothing that is there comes or goes by our hand, and nothing of it is half done.
pub fn lock_all(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<Vec<FileLock>, CliError> {
    let mounts = sandbox.record.repos.iter().filter(|mount| mount.has_commits());
    let ids: std::collections::BTreeSet<&RepoId> = mounts.map(|mount| &mount.repo).collect();
    ids.into_iter().map(|id| lock(context, store, id)).collect()
}

/// The lock of a repository's working trees, with nothing left of a change that was cut off.
pub fn lock(context: &Context, store: &Store, id: &RepoId) -> Result<FileLock, CliError> {
    let path = store.repo(id).path().join("merge.lock");
    let lock = FileLock::exclusive_within(&path, PATIENCE)
        .map_err(CliError::io(format!("lock '{}'", path.display())))?
        .ok_or_else(|| SandboxError::Busy { holder: holder(&path) })?;
    let home = Home::Repo(id.clone());
    for found in recovery::mend(context, store, Which::Of(&home, recovery::CHANGES, PATIENCE), true)? {
        if let Err(error) = found.outcome {
            let refused = CliError::chain(error.as_ref());
            return Err(match recovery::hint(error.as_ref()) {
                Some(hint) => {
                    let message =
                        format!("a '{}' of '{}' comes first", found.recovery.verb, found.recovery.of.join("', '"));
                    CliError { message, causes: vec![refused.message], ..refused }.hint(hint)
                }
                None => refused,
            });
        }
        recovery::tell(&found);
    }
    Ok(lock)
}

fn stop(name: &'static str) -> Result<(), CliError> {
    fault::point(name).map_err(CliError::io("write the journal"))
}
