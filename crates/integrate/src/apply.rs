//! Doing what a plan says, or putting everything back.
//!
//! ```text
//!   index.lock taken ─► host as the plan saw it? ─► new index made ─► old state saved in <undo>
//!     ─► new contents staged ─► HEAD's move prepared (ref locks held)
//!     ─► files change places with the staged ones, one rename each        ┐ an error puts back what
//!     ─► index.lock becomes the index ─► HEAD moves                       ┘ was done, in reverse
//! ```
//!
//! A file is exchanged, not overwritten, and what came out is compared with what was looked at: a change
//! in the last moment is put back and reported. After the last check nothing is written but names.

use crate::eol;
use crate::error::MergeError;
use crate::index::{Index, IndexLock, Update, changed_copy};
use crate::objects::Objects;
use crate::path::{Mode, RepoPath};
use crate::plan::{FileAction, HeadMove, Identity, IndexAction, MergePlan, PathPlan, What, Why};
use crate::refs::Transaction;
use crate::repo::Repo;
use crate::undo::{Context, Saver, Staging, note_lock};
use crate::worktree::{Found, Identity as FileIdentity, Move, State, Worktree};
use serde::Serialize;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Merged {
    /// What kind of change it was; `None` for uncommitted edits.
    pub what: Option<What>,
    /// How HEAD moved.
    pub head: Option<HeadMove>,
    /// Files written.
    pub written: usize,
    /// Files removed.
    pub deleted: usize,
    /// Touched paths that still have uncommitted changes.
    pub uncommitted: Vec<RepoPath>,
    /// Where the former state is, for [`restore`](crate::restore); `None` if nothing was written.
    pub undo: Option<PathBuf>,
}

/// Applies a plan: working tree, index and HEAD change together or not at all. `undo` is a directory
/// that does not exist yet, on a disk that survives a crash; it keeps the former state.
pub fn apply(repo: &Repo, plan: &MergePlan, undo: &Path) -> Result<Merged, MergeError> {
    if plan.what == What::UpToDate {
        let head = Some(plan.head.clone());
        return Ok(Merged { what: Some(plan.what), head, written: 0, deleted: 0, uncommitted: Vec::new(), undo: None });
    }
    let change = Change {
        name: &plan.name,
        paths: &plan.paths,
        index_digest: &plan.index_digest,
        head: Some((&plan.head, &plan.identity, reflog(plan))),
    };
    let mut merged = change.apply(repo, undo)?;
    merged.what = Some(plan.what);
    Ok(merged)
}

fn reflog(plan: &MergePlan) -> String {
    let how = match plan.what {
        What::UpToDate | What::FastForward { .. } => "Fast-forward",
        What::Merge { .. } => "Merge commit",
        What::Squash { .. } => "Squash commit",
    };
    format!("merge sandbox/{}: {how}", plan.name)
}

/// A change of the host: what merges and edits have in common.
pub(crate) struct Change<'a> {
    pub name: &'a str,
    pub paths: &'a [PathPlan],
    /// Digest of what the index said when the plan was made.
    pub index_digest: &'a str,
    /// HEAD's move, who makes it, and what the reflog says.
    pub head: Option<(&'a HeadMove, &'a Identity, String)>,
}

impl Change<'_> {
    pub fn apply(&self, repo: &Repo, undo: &Path) -> Result<Merged, MergeError> {
        let result = self.try_apply(repo, undo);
        if let Err(error) = &result
            && !matches!(error, MergeError::NotRestored { .. })
        {
            // Everything is as it was: there is nothing to take back.
            let _ = fs::remove_dir_all(undo);
        }
        result
    }

    fn try_apply(&self, repo: &Repo, undo: &Path) -> Result<Merged, MergeError> {
        fs::create_dir_all(undo).map_err(MergeError::io("create", undo))?;
        let mut lock = IndexLock::take(repo)?;
        note_lock(undo, lock.path()).map_err(MergeError::io("write", undo))?;
        self.check_unchanged(repo)?;
        let tree = Worktree::open(repo.worktree()).map_err(MergeError::io("open", repo.worktree()))?;
        let mut saver = Saver::begin(repo, undo)?;

        // The new index first: git may look at files for it, and they must be the host's own.
        let updates: Vec<_> = self.paths.iter().filter_map(update).collect();
        let mut index_after = self.index_digest.to_owned();
        if !updates.is_empty() {
            let new = undo.join("index.new");
            changed_copy(repo, &updates, &new)?;
            index_after = Index::read_file(repo, &new)?.digest;
            lock.fill(&new, false)?;
        }

        let staging = Staging::new(repo, &tree).map_err(MergeError::io("create a directory in", repo.gitdir()))?;
        staging.note(undo).map_err(MergeError::io("write", undo))?;
        let mut objects = Objects::new(repo);
        let mut steps = Vec::new();
        for (n, plan) in self.paths.iter().enumerate().filter(|(_, plan)| plan.file != FileAction::Keep) {
            let found = tree.look(&plan.path).map_err(MergeError::io("read", plan.path.as_path()))?;
            if found.state() != plan.expected {
                return Err(MergeError::Changed { what: format!("'{}'", plan.path) });
            }
            let seen = if let Found::File(seen) = &found { Some(seen.stat) } else { None };
            let after = stage(&staging, &mut objects, n, plan, seen)?;
            saver.add(&plan.path, &found, after)?;
            steps.push(Step { n, plan, seen });
        }
        let head = self.head.as_ref().map(|(step, ..)| *step);
        saver.finish(&Context { name: self.name, head, index_before: self.index_digest, index_after: &index_after })?;
        let transaction = match &self.head {
            Some((step, identity, message)) => Some(Transaction::prepare(repo, step, message, Some(identity))?),
            None => None,
        };
        // The branch is locked now, but HEAD could have been switched before.
        if let Some(step) = head
            && repo.head()?.reference != step.reference
        {
            return Err(MergeError::Changed { what: "HEAD".into() });
        }

        let mut work = Work { tree: &tree, staging: &staging, done: Vec::new() };
        let outcome = work.all(&steps).and_then(|()| finish(repo, undo, lock, !updates.is_empty(), transaction, head));
        if let Err(error) = outcome {
            return match work.put_back() {
                Ok(()) => Err(error),
                Err(source) => {
                    // What could not be put back must not go with the staging directory.
                    staging.keep();
                    Err(MergeError::NotRestored { undo: undo.to_owned(), source })
                }
            };
        }
        let count = |wanted: fn(&FileAction) -> bool| self.paths.iter().filter(|plan| wanted(&plan.file)).count();
        let is_uncommitted = |plan: &&PathPlan| matches!(plan.why, Why::Merged) && plan.file != FileAction::Delete;
        Ok(Merged {
            what: None,
            head: head.cloned(),
            written: count(|file| matches!(file, FileAction::Write { .. })),
            deleted: count(|file| *file == FileAction::Delete),
            uncommitted: self.paths.iter().filter(is_uncommitted).map(|plan| plan.path.clone()).collect(),
            undo: Some(undo.to_owned()),
        })
    }

    fn check_unchanged(&self, repo: &Repo) -> Result<(), MergeError> {
        if let Some(operation) = repo.operation() {
            return Err(MergeError::InProgress { operation, worktree: repo.worktree().to_owned() });
        }
        if Index::read(repo)?.digest != self.index_digest {
            return Err(MergeError::Changed { what: "the index".into() });
        }
        if let Some((step, ..)) = &self.head {
            let head = repo.head()?;
            if head.reference != step.reference || head.commit != step.old {
                return Err(MergeError::Changed { what: "HEAD".into() });
            }
        }
        Ok(())
    }
}

fn update(plan: &PathPlan) -> Option<Update<'_>> {
    match plan.index {
        IndexAction::Keep => None,
        IndexAction::Remove => Some(Update { path: &plan.path, entry: None, skip_worktree: false }),
        IndexAction::Set { entry, skip_worktree } => {
            Some(Update { path: &plan.path, entry: Some(entry), skip_worktree })
        }
    }
}

/// Puts the index in place and moves HEAD. If HEAD cannot move, the index is put back.
fn finish(
    repo: &Repo,
    undo: &Path,
    lock: IndexLock,
    index_changes: bool,
    transaction: Option<Transaction>,
    head: Option<&HeadMove>,
) -> Result<(), MergeError> {
    let index = repo.index().to_owned();
    let put_back = undo.join("index");
    if index_changes {
        lock.commit().map_err(MergeError::io("write", &index))?;
    } else {
        drop(lock);
    }
    let Some(transaction) = transaction else { return Ok(()) };
    let Err(error) = transaction.commit() else { return Ok(()) };
    // Its answer may have been lost after the deed.
    if let (Some(step), Ok(now)) = (head, repo.head())
        && now.commit == Some(step.new)
        && now.reference == step.reference
    {
        return Ok(());
    }
    if index_changes {
        let back = || -> Result<(), MergeError> {
            let mut lock = IndexLock::take(repo)?;
            if put_back.exists() {
                lock.fill(&put_back, true)?;
                lock.commit().map_err(MergeError::io("write", &index))
            } else {
                lock.remove_index().map_err(MergeError::io("remove", &index))
            }
        };
        if let Err(error) = back() {
            return Err(MergeError::NotRestored { undo: undo.to_owned(), source: io::Error::other(error) });
        }
    }
    Err(error)
}

/// Puts the new content of a path into the staging directory; returns what the path will be.
fn stage(
    staging: &Staging,
    objects: &mut Objects<'_>,
    n: usize,
    plan: &PathPlan,
    seen: Option<FileIdentity>,
) -> Result<State, MergeError> {
    let entry = match plan.file {
        FileAction::Write { entry } => entry,
        FileAction::MakeDir => return Ok(State::Directory),
        FileAction::Keep => return Ok(plan.expected.clone()),
        FileAction::Delete | FileAction::RemoveDir => return Ok(State::Absent),
    };
    let stored = objects.read(entry.id)?;
    let symlink = entry.mode == Mode::Symlink;
    let converted = if symlink { None } else { eol::to_worktree(&stored, plan.eol) };
    let bytes = converted.as_deref().unwrap_or(&stored);
    let executable = entry.mode == Mode::Executable;
    // Permissions that the user gave a file stay, as far as git has no say in them.
    let is_file = |seen: &FileIdentity| seen.mode & 0o170_000 == 0o100_000;
    let kept = seen.filter(is_file).map(|seen| match executable {
        true => seen.mode & 0o777 | (seen.mode & 0o444) >> 2,
        false => seen.mode & 0o666,
    });
    let put = || {
        staging.put(&new_name(n), symlink, bytes, kept.unwrap_or(0), seen.map(|seen| seen.owner))?;
        if executable && kept.is_none() { staging.make_executable(&new_name(n)) } else { Ok(()) }
    };
    put().map_err(MergeError::io("write", plan.path.as_path()))?;
    Ok(State::of(symlink, executable, bytes))
}

fn new_name(n: usize) -> String {
    format!("new.{n}")
}

fn old_name(n: usize) -> String {
    format!("old.{n}")
}

/// One path that changes in the working tree.
struct Step<'a> {
    n: usize,
    plan: &'a PathPlan,
    seen: Option<FileIdentity>,
}

/// What was done, to be taken back in reverse.
enum Done {
    Out { path: RepoPath, n: usize },
    In { path: RepoPath, n: usize, ours: FileIdentity },
    Exchanged { path: RepoPath, n: usize, ours: FileIdentity },
    MadeDir { dir: RepoPath },
    RemovedDir { dir: RepoPath, mode: u32 },
}

struct Work<'a> {
    tree: &'a Worktree,
    staging: &'a Staging,
    done: Vec<Done>,
}

impl Work<'_> {
    fn all(&mut self, steps: &[Step<'_>]) -> Result<(), MergeError> {
        // Removals first: a directory can take the place of a file, and a file that of a directory.
        for step in steps.iter().rev() {
            self.step(step, |work| match step.plan.file {
                FileAction::Delete => work.delete(step),
                FileAction::RemoveDir => work.remove_dir(&step.plan.path).map(|_| true),
                _ => Ok(true),
            })?;
        }
        for step in steps {
            self.step(step, |work| match step.plan.file {
                FileAction::Write { .. } => work.write(step),
                FileAction::MakeDir => work.make_dir(&step.plan.path).map(|()| true),
                _ => Ok(true),
            })?;
        }
        // As git does: a directory goes with its last file.
        fault::point().map_err(MergeError::io("write", Path::new(".")))?;
        for step in steps.iter().rev().filter(|step| step.plan.file == FileAction::Delete) {
            for dir in step.plan.path.ancestors() {
                match self.remove_dir(&dir).map_err(MergeError::io("remove", dir.as_path()))? {
                    true => {}
                    false => break,
                }
            }
        }
        Ok(())
    }

    /// Does one thing; false means that the file is not the one that was looked at.
    fn step(&mut self, step: &Step<'_>, work: impl FnOnce(&mut Self) -> io::Result<bool>) -> Result<(), MergeError> {
        fault::point()
            .and_then(|()| work(self))
            .map_err(MergeError::io("write", step.plan.path.as_path()))?
            .then_some(())
            .ok_or_else(|| MergeError::Changed { what: format!("'{}'", step.plan.path) })
    }

    fn delete(&mut self, step: &Step<'_>) -> io::Result<bool> {
        let (path, name) = (&step.plan.path, old_name(step.n));
        match self.tree.rename(path, self.staging.fd(), &name, Move::Out) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        }
        if Some(self.staging.identity(&name)?) != step.seen {
            self.tree.rename(path, self.staging.fd(), &name, Move::In)?;
            return Ok(false);
        }
        self.done.push(Done::Out { path: path.clone(), n: step.n });
        Ok(true)
    }

    fn write(&mut self, step: &Step<'_>) -> io::Result<bool> {
        let (path, name) = (&step.plan.path, new_name(step.n));
        let ours = self.staging.identity(&name)?;
        match step.plan.expected {
            State::File { .. } | State::Symlink { .. } => {
                match self.tree.rename(path, self.staging.fd(), &name, Move::Exchange) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                    other => other?,
                }
                if Some(self.staging.identity(&name)?) != step.seen {
                    self.tree.rename(path, self.staging.fd(), &name, Move::Exchange)?;
                    return Ok(false);
                }
                self.done.push(Done::Exchanged { path: path.clone(), n: step.n, ours });
            }
            _ => {
                if step.plan.expected == State::Directory {
                    self.remove_empty(path)?;
                }
                let mut made = Vec::new();
                let parents = self.tree.make_parents(path, &mut made);
                self.done.extend(made.into_iter().map(|dir| Done::MadeDir { dir }));
                parents?;
                match self.tree.rename(path, self.staging.fd(), &name, Move::In) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
                    other => other?,
                }
                self.done.push(Done::In { path: path.clone(), n: step.n, ours });
            }
        }
        Ok(true)
    }

    fn make_dir(&mut self, dir: &RepoPath) -> io::Result<()> {
        let mut made = Vec::new();
        let parents = self.tree.make_parents(dir, &mut made);
        self.done.extend(made.into_iter().map(|dir| Done::MadeDir { dir }));
        parents?;
        if self.tree.make_dir(dir)? {
            self.done.push(Done::MadeDir { dir: dir.clone() });
        }
        Ok(())
    }

    /// Removes a directory if it is empty.
    fn remove_dir(&mut self, dir: &RepoPath) -> io::Result<bool> {
        let removed = self.tree.remove_dir(dir)?;
        self.done.extend(removed.map(|mode| Done::RemovedDir { dir: dir.clone(), mode }));
        Ok(removed.is_some())
    }

    /// Removes a directory whose files are gone, with the empty ones in it.
    fn remove_empty(&mut self, dir: &RepoPath) -> io::Result<()> {
        for (path, is_dir) in self.tree.list(dir)? {
            if is_dir && path != *dir {
                self.remove_empty(&path)?;
            }
        }
        self.remove_dir(dir).map(drop)
    }

    fn put_back(&mut self) -> io::Result<()> {
        let fd = self.staging.fd();
        while let Some(done) = self.done.pop() {
            match done {
                Done::Out { path, n } => self.tree.rename(&path, fd, &old_name(n), Move::In)?,
                Done::In { path, n, ours } => {
                    self.check_ours(&path, ours)?;
                    self.tree.rename(&path, fd, &new_name(n), Move::Out)?;
                }
                Done::Exchanged { path, n, ours } => {
                    self.check_ours(&path, ours)?;
                    self.tree.rename(&path, fd, &new_name(n), Move::Exchange)?;
                }
                Done::MadeDir { dir } => drop(self.tree.remove_dir(&dir)?),
                Done::RemovedDir { dir, mode } => {
                    if self.tree.make_dir(&dir)? {
                        self.tree.set_dir_mode(&dir, mode)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What somebody wrote after us must not be taken away.
    fn check_ours(&self, path: &RepoPath, ours: FileIdentity) -> io::Result<()> {
        if self.tree.identity(path)? == Some(ours) {
            return Ok(());
        }
        Err(io::Error::other(format!("'{path}' changed meanwhile")))
    }
}

/// Failures that a test asks for, at the steps of [`Work::all`].
pub(crate) mod fault {
    use std::io;

    /// What happens at a step.
    #[cfg(test)]
    #[derive(Clone, Copy)]
    pub enum Fault {
        Fail,
        Crash,
    }

    #[cfg(test)]
    thread_local! {
        pub static AFTER: std::cell::Cell<Option<(usize, Fault)>> = const { std::cell::Cell::new(None) };
    }

    #[cfg(not(test))]
    pub fn point() -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    pub fn point() -> io::Result<()> {
        AFTER.with(|after| match after.get() {
            Some((0, Fault::Fail)) => Err(io::Error::other("a failure that was asked for")),
            Some((0, Fault::Crash)) => std::process::abort(),
            Some((n, fault)) => {
                after.set(Some((n - 1, fault)));
                Ok(())
            }
            None => Ok(()),
        })
    }
}
