//! Doing what a plan says, or putting everything back.
//!
//! ```text
//!   index.lock taken ─► host as the plan saw it? ─► new objects published ─► new index made ─► old state saved in <undo>
//!     ─► new contents staged ─► HEAD's move prepared (ref locks held)
//!     ─► files change places with the staged ones, one rename each        ┐ an error puts back what
//!     ─► index.lock becomes the index ─► HEAD moves                       ┘ was done, in reverse
//! ```
//!
//! A file is exchanged, not overwritten, and what came out is compared with what was looked at: a change
//! in the last moment is put back and reported. After the last check nothing is written but names.

use crate::error::MergeError;
use crate::index::{IndexLock, Mark, Update, changed_copy};
use crate::objects::Objects;
use crate::path::RepoPath;
use crate::plan::{FileAction, HeadMove, Identity, IndexAction, MergePlan, PathPlan, What, Why};
use crate::publish::publish;
use crate::refs::Transaction;
use crate::repo::Repo;
use crate::undo::{Context, Saver, Staging, take_lock};
use crate::work::{Step, Work, stage};
use crate::worktree::{Found, Worktree};
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
        index: &plan.index,
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
        What::Rebase { .. } => "Rebase",
        What::Pick { .. } => return format!("pick sandbox/{}", plan.name),
        What::Several { .. } | What::Octopus { .. } => return format!("merge sandboxes {}", plan.name),
    };
    format!("merge sandbox/{}: {how}", plan.name)
}

/// A change of the host: what merges and edits have in common.
pub(crate) struct Change<'a> {
    pub name: &'a str,
    pub paths: &'a [PathPlan],
    /// The index that the plan was made from.
    pub index: &'a Mark,
    /// HEAD's move, who makes it, and what the reflog says.
    pub head: Option<(&'a HeadMove, &'a Identity, String)>,
}

impl Change<'_> {
    pub fn apply(&self, repo: &Repo, undo: &Path) -> Result<Merged, MergeError> {
        let _working = repo.working();
        // Nobody's former state is written over, and what is removed after a failure is ours.
        if let Some(parent) = undo.parent() {
            fs::create_dir_all(parent).map_err(MergeError::io("create", parent))?;
        }
        fs::create_dir(undo).map_err(MergeError::io("create", undo))?;
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
        let mut lock = take_lock(repo, undo)?;
        stop("merge.locked", undo)?;
        self.check_unchanged(repo)?;
        // Until HEAD names them.
        let _published = publish(repo)?;
        let tree = Worktree::open(repo.worktree()).map_err(MergeError::io("open", repo.worktree()))?;
        let mut saver = Saver::begin(repo, undo)?;

        // The new index first: git may look at files for it, and they must be the host's own.
        let updates: Vec<_> = self.paths.iter().filter_map(update).collect();
        if !updates.is_empty() {
            let new = undo.join("index.new");
            changed_copy(repo, &updates, &new)?;
            lock.fill(&new, false)?;
        }

        let staging =
            Staging::new(repo, &tree, undo).map_err(MergeError::io("create a directory in", repo.gitdir()))?;
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
        stop("merge.staged", undo)?;
        saver.finish(&Context { name: self.name, head, index: &self.index.digest })?;
        stop("merge.saved", undo)?;
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

        let mut work = Work::new(&tree, &staging);
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
        if !self.index.holds(repo)? {
            return Err(MergeError::Changed { what: "the index".into() });
        }
        if let Some((step, ..)) = &self.head {
            if let Some(operation) = repo.operation() {
                return Err(MergeError::InProgress { operation, worktree: repo.worktree().to_owned() });
            }
            let head = repo.head()?;
            if head.reference != step.reference || head.commit != step.old {
                return Err(MergeError::Changed { what: "HEAD".into() });
            }
        }
        Ok(())
    }
}

/// A point at which a test may stop us.
pub(crate) fn stop(name: &'static str, at: &Path) -> Result<(), MergeError> {
    sandbox_sys::fault::point(name).map_err(MergeError::io("write", at))
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
    stop("merge.index", undo)?;
    if index_changes {
        lock.commit().map_err(MergeError::io("write", &index))?;
    } else {
        drop(lock);
    }
    let Some(transaction) = transaction else { return Ok(()) };
    let moved = stop("merge.head", undo).and_then(|()| transaction.commit());
    let Err(error) = moved else { return Ok(()) };
    // Its answer may have been lost after the deed.
    if let (Some(step), Ok(now)) = (head, repo.head())
        && now.commit == Some(step.new)
        && now.reference == step.reference
    {
        return Ok(());
    }
    if index_changes {
        let back = || -> Result<(), MergeError> {
            let mut lock = take_lock(repo, undo)?;
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
