//! Changing the files of the working tree: each by one rename that can be taken back.

use crate::eol;
use crate::error::MergeError;
use crate::objects::Objects;
use crate::path::{Mode, RepoPath};
use crate::plan::{FileAction, PathPlan};
use crate::undo::Staging;
use crate::worktree::{Identity as FileIdentity, Move, State, Worktree};
use std::io;
use std::path::Path;

/// Puts the new content of a path into the staging directory; returns what the path will be.
pub(crate) fn stage(
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
pub(crate) struct Step<'a> {
    /// Its number among all paths: names of staged files are made of it.
    pub n: usize,
    pub plan: &'a PathPlan,
    /// The file that was looked at.
    pub seen: Option<FileIdentity>,
}

/// What was done, to be taken back in reverse.
enum Done {
    Out { path: RepoPath, n: usize },
    In { path: RepoPath, n: usize, ours: FileIdentity },
    Exchanged { path: RepoPath, n: usize, ours: FileIdentity },
    MadeDir { dir: RepoPath },
    RemovedDir { dir: RepoPath, mode: u32 },
}

/// The files of one merge, while they change.
pub(crate) struct Work<'a> {
    tree: &'a Worktree,
    staging: &'a Staging,
    done: Vec<Done>,
}

impl<'a> Work<'a> {
    pub fn new(tree: &'a Worktree, staging: &'a Staging) -> Self {
        Self { tree, staging, done: Vec::new() }
    }

    /// Changes all files, or fails at one of them.
    pub fn all(&mut self, steps: &[Step<'_>]) -> Result<(), MergeError> {
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

    /// Takes back what was done, the last first.
    pub fn put_back(&mut self) -> io::Result<()> {
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
        sandbox_sys::fault::point("merge.step")
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
