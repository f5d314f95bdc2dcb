//! Why a merge was refused or failed. Unless said otherwise, nothing was written.

use crate::path::RepoPath;
use crate::repo::Operation;
use sandbox_git::{GitError, printable};
use serde::Serialize;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a merge was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// At least one path cannot be brought over without losing something.
    #[error("cannot merge '{name}'")]
    Conflicts {
        /// The sandbox.
        name: String,
        /// Which paths, and why.
        #[source]
        conflicts: Conflicts,
    },
    /// A commit cannot be put on top of what is here.
    #[error("cannot pick {} of '{name}'", commit.short())]
    PickConflicts {
        /// The sandbox.
        name: String,
        /// Its commit.
        commit: sandbox_git::Oid,
        /// Which paths, and why.
        #[source]
        conflicts: Conflicts,
    },
    /// There is no commit to put anything on top of.
    #[error("'{branch}' has no commit yet")]
    Unborn {
        /// The sandbox.
        name: String,
        /// The host's branch.
        branch: String,
    },
    /// Only a fast-forward was asked for.
    #[error("cannot fast-forward to '{name}': '{onto}' has {behind} commit{s} that it has not", s = if *behind == 1 { "" } else { "s" })]
    NotFastForward {
        /// The sandbox.
        name: String,
        /// The host's branch.
        onto: String,
        /// Commits of the host alone.
        behind: u64,
    },
    /// The two histories have nothing in common.
    #[error("'{name}' and '{onto}' have no commit in common")]
    Unrelated {
        /// The sandbox.
        name: String,
        /// The host's branch.
        onto: String,
    },
    /// The host is in the middle of something.
    #[error("a {} is in progress in '{worktree}'", operation.command(), worktree = worktree.display())]
    InProgress {
        /// What.
        operation: Operation,
        /// Where.
        worktree: PathBuf,
    },
    /// The index has unmerged entries.
    #[error("'{path}' has an unresolved conflict in the index")]
    Unmerged {
        /// The first of them.
        path: RepoPath,
    },
    /// A commit cannot be signed.
    #[error("cannot sign the commit")]
    NotSigned {
        /// What git or the program for signatures said, safe to print.
        #[source]
        said: Said,
    },
    /// A lock of git is held by another process. It is never removed.
    #[error("'{path}' exists: another git process seems to be at work here", path = path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// What the plan was made from is not so any more.
    #[error("{what} changed meanwhile")]
    Changed {
        /// `'path'`, `the index` or `HEAD`.
        what: String,
    },
    /// A sandbox's tree has a name that no tree may have.
    #[error("'{path}' is not a path that may be written")]
    BadPath {
        /// The name, safe to print.
        path: String,
    },
    /// Files could neither be brought over nor put back: what was is in `undo`.
    #[error("cannot put everything back as it was; the former state is in '{undo}'", undo = undo.display())]
    NotRestored {
        /// The directory with the former state.
        undo: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The saved state cannot be put back, since something changed after the merge.
    #[error("{what} changed since the merge")]
    ChangedSince {
        /// `'path'`, `the index` or `HEAD`.
        what: String,
    },
    /// A file of ours does not parse.
    #[error("'{path}' is damaged", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and how.
        source: serde_json::Error,
    },
    /// Git failed.
    #[error(transparent)]
    Git(#[from] GitError),
    /// A file could not be read or written.
    #[error("cannot {action} '{path}'", path = path.display())]
    Io {
        /// `read`, `write`, `create`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A program's own words, safe to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said(pub String);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Said {}

impl MergeError {
    /// Wraps an I/O error with what was done to which file.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// The next step, for the line `hint:`.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Conflicts { name, conflicts } if conflicts.are_of_commits() => Some(format!(
                "nothing was written; `git sandbox merge --into-sandbox {name}` opens a sandbox to resolve it, \
                 `--markers` begins the merge here with conflict markers, `--resolve ours` (or `theirs`, `theirs:PATH`) \
                 takes a side, `git sandbox branch {name} BRANCH` keeps the commits on a branch of their own"
            )),
            Self::Conflicts { name, .. } => Some(format!(
                "nothing was written; commit or stash the files named and merge again, bring the changes as \
                 uncommitted edits with `git sandbox apply {name}`, or keep the commits on a branch of their own with \
                 `git sandbox branch {name} BRANCH`"
            )),
            Self::PickConflicts { name, .. } => Some(format!(
                "nothing was written; `--resolve theirs` takes the sandbox's side where both changed the same, `git \
                 sandbox merge {name}` takes all of its commits, `git sandbox branch {name} \
                 BRANCH` keeps them on a branch of their own"
            )),
            Self::Unborn { name, .. } => Some(format!("`git sandbox merge {name}` takes all of its commits")),
            Self::NotFastForward { name, .. } => Some(format!(
                "`git sandbox merge {name}` makes a merge commit; `git sandbox branch {name} BRANCH` keeps the commits \
                 on a branch of their own"
            )),
            Self::Unrelated { name, .. } => Some(format!(
                "`git sandbox branch {name} BRANCH` keeps the commits on a branch of their own; \
                 `git sandbox apply {name}` brings the changes as uncommitted edits"
            )),
            Self::InProgress { operation: Operation::Bisect, .. } => Some("`git bisect reset` ends it".into()),
            Self::InProgress { operation, .. } => {
                let command = operation.command();
                Some(format!("finish it with `git {command} --continue`, or leave it with `git {command} --abort`"))
            }
            Self::NotSigned { .. } => Some(
                "nothing was written; `git config user.signingKey` names the key, `--no-sign` merges without a signature"
                    .into(),
            ),
            Self::Unmerged { .. } => Some("resolve it, then `git add` it".into()),
            Self::Locked { path } => {
                Some(format!("if no git process is running here any more, remove '{}'", printable_path(path)))
            }
            Self::Changed { .. } => Some("nothing was written; run the command again".into()),
            _ => None,
        }
    }
}

fn printable_path(path: &std::path::Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    printable(path.as_os_str().as_bytes())
}

/// One path that stops a merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// The path.
    pub path: RepoPath,
    /// Why.
    pub reason: Reason,
}

/// Why a path stops a merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reason {
    /// Uncommitted changes here and the sandbox's changes overlap.
    ChangedBoth,
    /// The same with a file that cannot be merged by lines.
    Binary,
    /// It is a file on one side and a symlink or submodule on the other.
    TypeChanged,
    /// Deleted here (uncommitted), changed there.
    DeletedHere,
    /// Changed here (uncommitted), deleted there.
    DeletedThere,
    /// An untracked file is here, another content is there.
    Untracked,
    /// What is staged and what the sandbox changed overlap.
    Staged,
    /// A directory with files that are not part of the merge is where a file should be.
    Directory {
        /// One of those files.
        holds: RepoPath,
    },
    /// A file is where a directory should be.
    NotDirectory {
        /// The file.
        at: RepoPath,
    },
    /// Something that is neither file, symlink nor directory is there.
    Special,
    /// The content would have to go through a program or a conversion that a merge does not run.
    Conversion {
        /// `filter 'lfs'`, `working-tree-encoding 'utf-16'`, `ident`.
        by: String,
    },
    /// The commits themselves conflict.
    Commits {
        /// What git says about it.
        message: String,
    },
    /// A merge driver of the user's configuration would have to merge it.
    Driver {
        /// Its name.
        driver: String,
    },
    /// The repository has symlinks switched off.
    NoSymlinks,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ChangedBoth => f.write_str("changed here since the sandbox was spawned, and there too"),
            Self::Binary => f.write_str("is binary, and changed here and there"),
            Self::TypeChanged => f.write_str("is of another kind here than there"),
            Self::DeletedHere => f.write_str("is deleted here and changed there"),
            Self::DeletedThere => f.write_str("has uncommitted changes here and is deleted there"),
            Self::Untracked => f.write_str("is untracked here and has another content there"),
            Self::Staged => f.write_str("has staged changes that overlap with those there"),
            Self::Directory { holds } => write!(f, "is a directory here, with '{holds}' in it, and a file there"),
            Self::NotDirectory { at } => write!(f, "cannot be written below '{at}', which is not a directory here"),
            Self::Special => f.write_str("is neither a file nor a symlink here"),
            Self::Conversion { by } => write!(f, "is converted by {by}, which is not run on what a sandbox made"),
            Self::Commits { message } => write!(f, "conflicts in the commits: {message}"),
            Self::Driver { driver } => write!(
                f,
                "changed on both sides and is merged by driver '{driver}', which is not run on what a sandbox made"
            ),
            Self::NoSymlinks => f.write_str("is a symlink, and core.symlinks is off here"),
        }
    }
}

/// All paths that stop a merge, never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Conflicts(pub Vec<Conflict>);

impl Conflicts {
    /// Whether the commits conflict: nothing that is uncommitted is in the way.
    pub fn are_of_commits(&self) -> bool {
        self.0.iter().all(|conflict| matches!(conflict.reason, Reason::Commits { .. } | Reason::Driver { .. }))
    }
}

/// How many conflicts are printed in one message.
const SHOWN: usize = 20;

impl fmt::Display for Conflicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, conflict) in self.0.iter().take(SHOWN).enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "'{}' {}", conflict.path, conflict.reason)?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for Conflicts {}
