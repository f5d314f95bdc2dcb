//! Moving HEAD: one transaction that is held ready while files are written.

use crate::error::MergeError;
use crate::plan::{HeadMove, Identity};
use crate::repo::Repo;
use crate::run::{Talk, unexpected};
use sandbox_git::Oid;
use std::path::PathBuf;

/// A move of HEAD whose locks are held and whose old value was checked. Dropped, it is given up.
pub(crate) struct Transaction {
    talk: Talk,
    /// Where names change: the git directory of HEAD and the common one, with the branch.
    moved: [(PathBuf, String); 2],
}

impl Transaction {
    /// Locks HEAD and its branch. A null `new` deletes the branch (HEAD is unborn again). With the
    /// `identity` of who merges, ORIG_HEAD is set as `git merge` does.
    pub fn prepare(
        repo: &Repo,
        step: &HeadMove,
        message: &str,
        identity: Option<&Identity>,
    ) -> Result<Self, MergeError> {
        // Not by default: XFS gives a file its name before its bytes are there, and a torn branch names nothing.
        let mut git = repo.host().config("core.fsync=committed,reference");
        git = git.args(["update-ref", "-m", message, "--stdin"]);
        if let Some(who) = identity {
            git = git.env("GIT_COMMITTER_NAME", &who.name).env("GIT_COMMITTER_EMAIL", &who.email);
        }
        let mut talk = Talk::start(git)?;
        let null = Oid::null(repo.format());
        let old = step.old.unwrap_or(null);
        let mut text = String::from("start\n");
        if step.new.is_null() {
            let name = step.reference.as_deref().unwrap_or("HEAD");
            text += &format!("delete {name} {old}\n");
        } else {
            // By name and not through HEAD, so that a branch that was switched meanwhile is not moved.
            let name = step.reference.as_deref().unwrap_or("HEAD");
            text += &format!("update {name} {} {old}\n", step.new);
        }
        if let (Some(old), Some(_)) = (step.old, identity) {
            text += &format!("update ORIG_HEAD {old}\n");
        }
        text += "prepare\n";
        talk.send(text.as_bytes())?;
        let name = step.reference.clone().unwrap_or_else(|| "HEAD".into());
        let moved = [(repo.gitdir().to_owned(), "HEAD".into()), (repo.common_dir().to_owned(), name)];
        let mut this = Self { talk, moved };
        this.expect("start: ok")?;
        this.expect("prepare: ok")?;
        Ok(this)
    }

    fn expect(&mut self, line: &str) -> Result<(), MergeError> {
        let said = self.talk.line()?;
        if said == line { Ok(()) } else { Err(unexpected("git update-ref", said.as_bytes()).into()) }
    }

    /// Moves HEAD.
    pub fn commit(mut self) -> Result<(), MergeError> {
        self.talk.send(b"commit\n")?;
        self.expect("commit: ok")?;
        let [(gitdir, head), (common, branch)] = &self.moved;
        // It has moved, and is told so whatever the disk says to this.
        if gitdir == common {
            let _ = sandbox_sys::writeback::names(gitdir, [head.as_bytes(), branch.as_bytes()]);
        } else {
            let _ = sandbox_sys::writeback::names(gitdir, [head.as_bytes()]);
            let _ = sandbox_sys::writeback::names(common, [branch.as_bytes()]);
        }
        Ok(())
    }
}
