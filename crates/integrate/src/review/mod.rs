//! What of a change deserves a look before it is landed: what runs by itself, or on the next routine
//! command, or hides something from who reads it. A list to `look here first`, not a judgement.
//!
//! ```text
//!   differences of two trees ─┐
//!   contents, within caps     ├─► Review ─► Vec<Finding>      pure: no process, no file
//!   directories around them   │             (path, why, what would run, when)
//!   Host: settings, hooks     ┘
//! ```
//!
//! What is dangerous depends on the host: a filter that an incoming `.gitattributes` selects runs only
//! if the user has configured it, a script is a hook only if `core.hooksPath` or a hook leads there.
//! So [`Host`] is the effective configuration, as git resolves it. Nothing here is ever read from
//! what came from inside: a change cannot say that it need not be looked at.

mod attributes;
mod cargo;
mod collide;
mod gather;
mod host;
mod locks;
mod modules;
mod npm;
mod paths;
mod text;

pub(crate) use gather::{Range, attribute_commits, review};
pub use gather::{review_between, review_commits, review_edits};
pub use host::{HookFile, Host};

use crate::path::{Entry, Mode, RepoPath};
use sandbox_git::{Oid, printable};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// How soon it could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// When building or testing, or it makes the change hard to read.
    Amber,
    /// Without a further decision, or on the next routine command.
    Red,
}

/// Something to look at. All text is as it was written: escape it before it meets a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How soon it could run.
    pub grade: Grade,
    /// The path.
    pub path: RepoPath,
    /// Why.
    pub why: String,
    /// The command that would run, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs: Option<String>,
    /// When it would run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// It is so by the configuration of this host: its git would run or obey what comes in.
    pub by_host: bool,
    /// The newest of the incoming commits that changed the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<Oid>,
}

impl Finding {
    fn new(grade: Grade, path: &RepoPath, why: impl Into<String>) -> Self {
        Self { grade, path: path.clone(), why: why.into(), runs: None, when: None, by_host: false, commit: None }
    }

    fn red(path: &RepoPath, why: impl Into<String>) -> Self {
        Self::new(Grade::Red, path, why)
    }

    fn amber(path: &RepoPath, why: impl Into<String>) -> Self {
        Self::new(Grade::Amber, path, why)
    }

    fn runs(mut self, command: impl Into<String>) -> Self {
        /// Longer commands are cut: it is a hint where to look, the diff has the whole.
        const SHOWN: usize = 160;
        let command: String = command.into();
        let cut: String = command.chars().take(SHOWN).collect();
        self.runs = Some(if cut.len() < command.len() { format!("{cut}…") } else { cut });
        self
    }

    fn by_host(mut self) -> Self {
        self.by_host = true;
        self
    }

    fn when(mut self, when: impl Into<String>) -> Self {
        self.when = Some(when.into());
        self
    }
}

/// What a path has on one side.
#[derive(Clone, Debug)]
pub struct Side {
    /// Mode and id.
    pub entry: Entry,
    /// What is in it.
    pub content: Content,
}

impl Side {
    fn bytes(&self) -> Option<&[u8]> {
        match &self.content {
            Content::Read(bytes) if self.entry.mode.is_file() => Some(bytes),
            _ => None,
        }
    }
}

/// The content of a blob, as far as it is looked into.
#[derive(Clone, Debug)]
pub enum Content {
    /// All of it.
    Read(Rc<[u8]>),
    /// More than is looked into: its size in bytes.
    Large(u64),
    /// Not read: a submodule, an object that is not here, or the caps of one review were reached.
    Unread,
}

/// A path that differs. Of one that is removed `new` is `None`.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The path.
    pub path: RepoPath,
    /// What it was.
    pub old: Option<Side>,
    /// What it becomes.
    pub new: Option<Side>,
}

/// What the directories around the changed paths hold afterwards: names, and whether each is a directory.
pub type Directories = BTreeMap<Vec<u8>, Vec<(Vec<u8>, bool)>>;

/// Everything that is looked at.
pub struct Review<'a> {
    /// The change.
    pub changes: &'a [Changed],
    /// Directories of paths that are new, by their path; empty at the top.
    pub directories: &'a Directories,
    /// New paths that the host's ignore rules hide from `git status`.
    pub ignored: &'a BTreeSet<RepoPath>,
    /// The host's configuration.
    pub host: &'a Host,
}

impl Review<'_> {
    /// Returns what deserves a look: red before amber, then by path.
    pub fn findings(&self) -> Vec<Finding> {
        let mut all = Vec::new();
        for change in self.changes {
            self.one(change, &mut all);
        }
        collide::look(self, &mut all);
        // What is red needs no second line that says less.
        all.sort_by(|a, b| b.grade.cmp(&a.grade).then_with(|| a.path.cmp(&b.path)));
        all.dedup_by(|a, b| a.path == b.path && a.why == b.why && a.runs == b.runs);
        all
    }

    fn one(&self, change: &Changed, all: &mut Vec<Finding>) {
        let path = &change.path;
        let Some(new) = &change.new else {
            if path.name() == b".gitattributes" {
                attributes::look(change, self.host, all);
            }
            return;
        };
        let is_hook = self.host.look(change, all);
        paths::look(path, is_hook, all);
        mode(change, new, all);
        text::name(path, all);
        match &new.content {
            Content::Read(bytes) if new.entry.mode == Mode::Symlink => symlink(path, bytes, all),
            Content::Large(size) if *size > LARGE => {
                all.push(Finding::amber(path, format!("is large: {} MiB", size >> 20)));
            }
            Content::Large(_) => all.push(Finding::amber(path, "is too large to be looked into")),
            Content::Read(bytes) if new.entry.mode.is_file() => self.content(change, bytes, all),
            _ => {}
        }
        if self.ignored.contains(path) {
            all.push(Finding::amber(path, "is new although your ignore rules hide it"));
        }
    }

    fn content(&self, change: &Changed, new: &[u8], all: &mut Vec<Finding>) {
        let path = &change.path;
        let old = change.old.as_ref().and_then(Side::bytes);
        match path.name().to_ascii_lowercase().as_slice() {
            b".gitattributes" => attributes::look(change, self.host, all),
            b".gitmodules" => modules::look(path, old, new, self.host, all),
            b"package.json" => npm::look(path, old, new, all),
            b"cargo.toml" => cargo::look(path, old, new, all),
            _ => {}
        }
        locks::look(path, old, new, all);
        text::look(change, old, new, all);
    }
}

/// Files over this many bytes are named.
pub(crate) const LARGE: u64 = 5_000_000;

fn mode(change: &Changed, new: &Side, all: &mut Vec<Finding>) {
    let path = &change.path;
    match (change.old.as_ref().map(|old| old.entry), new.entry.mode) {
        (Some(old), Mode::Executable) if old.mode == Mode::Executable => {}
        (_, Mode::Executable) => all.push(Finding::amber(path, "becomes executable")),
        (Some(old), Mode::Gitlink) if old.mode == Mode::Gitlink => all.push(
            Finding::amber(path, format!("moves a submodule to {}", new.entry.id.short()))
                .when("at the next `git submodule update`"),
        ),
        (_, Mode::Gitlink) => all.push(Finding::amber(path, "is a new submodule")),
        _ => {}
    }
}

fn symlink(path: &RepoPath, target: &[u8], all: &mut Vec<Finding>) {
    let shown = printable(&target[..target.len().min(200)]);
    all.push(match leads(path, target) {
        Leads::Out => Finding::red(path, format!("is a symlink that leads out of the tree, to '{shown}'")),
        Leads::Git => Finding::red(path, format!("is a symlink into a git directory, to '{shown}'")),
        Leads::Inside => Finding::amber(path, format!("is a symlink to '{shown}'")),
    });
}

enum Leads {
    Inside,
    Out,
    Git,
}

/// Where a symlink's target leads: absolute or above the top is out.
fn leads(path: &RepoPath, target: &[u8]) -> Leads {
    let mut depth = path.ancestors().count();
    if target.starts_with(b"/") {
        return Leads::Out;
    }
    let mut found = Leads::Inside;
    for name in target.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." if depth == 0 => return Leads::Out,
            b".." => depth -= 1,
            name => {
                if name.eq_ignore_ascii_case(b".git") {
                    found = Leads::Git;
                }
                depth += 1;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests;
