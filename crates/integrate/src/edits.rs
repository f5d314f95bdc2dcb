//! A sandbox's uncommitted changes on the host: as uncommitted edits of the working tree, or as an
//! entry of the host's stash list.

use crate::apply::{Change, Merged};
use crate::attributes::{self, Rules};
use crate::captured::{Captured, Kind};
use crate::error::{Conflict, Conflicts, MergeError, Reason};
use crate::index::{Index, Mark};
use crate::inspect::tree_of;
use crate::next::commit_tree;
use crate::objects::{Difference, Objects, entries};
use crate::path::{Entry, Mode, RepoPath};
use crate::paths::{Gatherer, Inside, Settings};
use crate::plan::{FileAction, Identity, IndexAction, PathPlan, Why};
use crate::repo::{Repo, parse_oid};
use crate::review::{Finding, review};
use crate::threeway::merge;
use sandbox_git::Oid;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// One path as it is in the sandbox's working tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The path.
    pub path: RepoPath,
    /// Kind and content as they are inside; `None` if it was deleted there.
    pub after: Option<(Kind, Vec<u8>)>,
}

/// What is asked for: bring these paths over as uncommitted edits.
pub struct EditsRequest<'a> {
    /// The sandbox.
    pub name: &'a str,
    /// Paths that differ inside from the captured state, or from `since`.
    pub edits: &'a [Edit],
    /// What the changes start from: this commit (the sandbox's HEAD, when the host has merged it), or
    /// `None`: the captured state, so that what was committed inside comes along.
    pub since: Option<Oid>,
    /// S: files as they were captured.
    pub captured: Option<&'a dyn Captured>,
    /// B: HEAD when it was spawned; what S was if `captured` is `None`.
    pub base: Option<Oid>,
}

/// What will be done with the working tree. Index and HEAD stay as they are.
#[derive(Clone, Debug, Serialize)]
pub struct EditsPlan {
    /// The sandbox.
    pub name: String,
    /// The paths that change.
    pub paths: Vec<PathPlan>,
    /// What deserves a look.
    pub warnings: Vec<Finding>,
    #[serde(skip)]
    index: Mark,
}

/// Makes a plan for bringing uncommitted changes over: each path is merged from what the changes start
/// from, what the sandbox has, and what the host has.
pub fn plan_edits(repo: &Repo, request: &EditsRequest<'_>) -> Result<EditsPlan, MergeError> {
    let _working = repo.working();
    let index = Index::read(repo)?;
    let rules = Rules::read(repo)?;
    let now = attributes::read(repo, request.edits.iter().map(|edit| &edit.path))?;
    let then = BTreeMap::new();
    let mut objects = Objects::new(repo);
    let inside = Inside { name: request.name, captured: request.captured, captured_index: None, left: None };
    let settings = Settings { rules: &rules, now: &now, then: &then, index: &index };
    let start = entries_of(repo, request.since.or(request.base), request.edits)?;
    let commit = repo.head()?.commit;
    let head = entries_of(repo, commit, request.edits)?;

    let mut gatherer = Gatherer::with(&mut objects, inside, settings)?;
    let (mut plans, mut conflicts, mut locals) = (Vec::new(), Vec::new(), BTreeMap::new());
    let mut touched = Vec::new();
    for edit in request.edits {
        let path = &edit.path;
        let theirs = gatherer.received(path, edit.after.clone())?;
        let start = start.get(path).copied();
        let base = if request.since.is_some() { start } else { gatherer.captured(path, start)? };
        let local = match gatherer.local(path, head.get(path).copied(), theirs)? {
            Ok(local) => local,
            Err(reason) => {
                conflicts.push(Conflict { path: path.clone(), reason });
                continue;
            }
        };
        let ours = local.working;
        let merged = if local.sparse && ours != theirs {
            Err(Reason::DeletedHere)
        } else if theirs.is_none() && ours.is_some() && ours != base {
            Err(Reason::DeletedThere)
        } else {
            merge(&mut gatherer.lines(path), base, ours, theirs, false)?
        };
        match merged {
            Ok(merged) => {
                let (file, why) = match merged {
                    _ if merged == ours => (FileAction::Keep, Why::Already),
                    Some(entry) if ours == base => (FileAction::Write { entry }, Why::Unchanged),
                    Some(entry) => (FileAction::Write { entry }, Why::Merged),
                    None => (FileAction::Delete, Why::Unchanged),
                };
                if file != FileAction::Keep {
                    touched.push(Difference { path: path.clone(), old: base, new: theirs });
                    let (expected, eol) = (local.state.clone(), gatherer.action_then(path));
                    let (path, index) = (path.clone(), IndexAction::Keep);
                    plans.push(PathPlan { path, from: None, why, file, index, expected, eol });
                    locals.insert(&edit.path, local);
                }
            }
            Err(Reason::ChangedBoth) if base.is_none() => {
                conflicts.push(Conflict { path: path.clone(), reason: Reason::Untracked });
            }
            Err(reason) => conflicts.push(Conflict { path: path.clone(), reason }),
        }
    }
    plans.sort_by(|a, b| a.path.cmp(&b.path));
    if conflicts.is_empty() {
        conflicts = gatherer.check_shape(&plans, &locals)?;
    }
    if !conflicts.is_empty() {
        return Err(MergeError::Conflicts { name: request.name.to_owned(), conflicts: Conflicts(conflicts) });
    }
    for plan in &plans {
        if let FileAction::Write { entry } = plan.file {
            objects.store(entry.id)?;
        }
    }
    let warnings = review(&mut objects, &rules.listing, &touched, &tree_of(repo, commit))?;
    Ok(EditsPlan { name: request.name.to_owned(), paths: plans, warnings, index: index.mark() })
}

fn entries_of(repo: &Repo, commit: Option<Oid>, edits: &[Edit]) -> Result<BTreeMap<RepoPath, Entry>, MergeError> {
    match commit {
        Some(commit) => entries(repo, &tree_of(repo, Some(commit)), edits.iter().map(|edit| &edit.path)),
        None => Ok(BTreeMap::new()),
    }
}

/// Applies a plan of edits: all files change or none. `undo` as in [`apply`](crate::apply).
pub fn apply_edits(repo: &Repo, plan: &EditsPlan, undo: &Path) -> Result<Merged, MergeError> {
    if plan.paths.is_empty() {
        return Ok(Merged { what: None, head: None, written: 0, deleted: 0, uncommitted: Vec::new(), undo: None });
    }
    Change { name: &plan.name, paths: &plan.paths, index: &plan.index, head: None }.apply(repo, undo)
}

impl Gatherer<'_, '_, '_> {
    /// A file of the sandbox's working tree as git would store it here.
    fn received(&mut self, path: &RepoPath, after: Option<(Kind, Vec<u8>)>) -> Result<Option<Entry>, MergeError> {
        Ok(match after {
            None => None,
            Some((Kind::Symlink, bytes)) => Some(Entry { mode: Mode::Symlink, id: self.objects.remember(bytes) }),
            Some((Kind::File { executable }, bytes)) => {
                let mode = if executable { Mode::Executable } else { Mode::File };
                Some(Entry { mode, id: self.store_form(path, bytes)? })
            }
        })
    }
}

/// What is asked for: keep these paths in the host's stash list.
pub struct StashRequest<'a> {
    /// The sandbox.
    pub name: &'a str,
    /// The commit that the changes are on: the sandbox's HEAD, with its objects in the host's database.
    pub commit: Oid,
    /// Its branch, for the message; `None`: detached.
    pub branch: Option<&'a str>,
    /// Paths that differ inside from that commit.
    pub edits: &'a [Edit],
    /// The stash's message.
    pub message: &'a str,
    /// Who makes it.
    pub identity: &'a Identity,
}

/// A stash commit that is in the host's database and not in its stash list yet.
pub struct Stash<'r> {
    repo: &'r Repo,
    commit: Oid,
    message: String,
    identity: Identity,
    _published: crate::publish::Published,
}

impl Stash<'_> {
    /// Puts it on top of the stash list.
    pub fn store(&self) -> Result<(), MergeError> {
        let git = self.repo.host().args(["stash", "store", "-m", &self.message, &self.commit.to_string()]);
        let git = git.env("GIT_COMMITTER_NAME", &self.identity.name);
        Ok(git.env("GIT_COMMITTER_EMAIL", &self.identity.email).run()?)
    }

    /// Takes it out of the stash list again, wherever it is there by now.
    pub fn take_back(&self) -> Result<(), MergeError> {
        let list = self.repo.host().args(["stash", "list", "--format=%H"]).output()?;
        let ours = self.commit.to_string();
        match String::from_utf8_lossy(&list.stdout).lines().position(|id| id == ours) {
            Some(n) => Ok(self.repo.host().args(["stash", "drop", "--quiet", &format!("stash@{{{n}}}")]).run()?),
            None => Ok(()),
        }
    }
}

/// Makes a stash entry of a sandbox's uncommitted changes: [`Stash::store`] puts it into the host's list. The
/// working tree is not touched. Files that the commit does not have are its untracked files.
pub fn stash<'r>(repo: &'r Repo, request: &StashRequest<'_>) -> Result<Stash<'r>, MergeError> {
    let _working = repo.working();
    let rules = Rules::read(repo)?;
    let now = attributes::read(repo, request.edits.iter().map(|edit| &edit.path))?;
    let (then, index) = (BTreeMap::new(), Index::default());
    let mut objects = Objects::new(repo);
    let inside = Inside { name: request.name, captured: None, captured_index: None, left: None };
    let settings = Settings { rules: &rules, now: &now, then: &then, index: &index };
    let known = entries_of(repo, Some(request.commit), request.edits)?;
    let (mut tracked, mut untracked) = (Vec::new(), Vec::new());
    let mut gatherer = Gatherer::with(&mut objects, inside, settings)?;
    for edit in request.edits {
        let after = gatherer.received(&edit.path, edit.after.clone())?;
        if let Some(entry) = after {
            gatherer.objects.store(entry.id)?;
        }
        let list = if known.contains_key(&edit.path) { &mut tracked } else { &mut untracked };
        list.push((&edit.path, after));
    }

    let commit = request.commit;
    let base = tree_of(repo, Some(commit));
    let branch = request.branch.unwrap_or("(no branch)");
    let on = |what: &str| format!("{what} on {branch}: {} {}", commit.short(), request.message);
    let index_commit = commit_tree(repo, repo.commit(commit)?.tree, &[commit], &on("index"), request.identity)?;
    let mut parents = vec![commit, index_commit];
    if !untracked.is_empty() {
        let tree = write_tree(repo, None, &untracked)?;
        parents.push(commit_tree(repo, tree, &[], &on("untracked files"), request.identity)?);
    }
    let tree = write_tree(repo, Some(&base), &tracked)?;
    let message = format!("On {branch}: {}", request.message);
    let commit = commit_tree(repo, tree, &parents, &message, request.identity)?;
    let published = crate::publish::publish(repo)?;
    Ok(Stash { repo, commit, message, identity: request.identity.clone(), _published: published })
}

/// Returns a commit on `commit` (`None`: on nothing) that has these edits. The working tree is not touched.
pub fn with_edits(repo: &Repo, commit: Option<Oid>, edits: &[Edit], identity: &Identity) -> Result<Oid, MergeError> {
    let _working = repo.working();
    let rules = Rules::read(repo)?;
    let now = attributes::read(repo, edits.iter().map(|edit| &edit.path))?;
    let (then, index) = (BTreeMap::new(), Index::default());
    let mut objects = Objects::new(repo);
    let inside = Inside { name: "", captured: None, captured_index: None, left: None };
    let settings = Settings { rules: &rules, now: &now, then: &then, index: &index };
    let mut gatherer = Gatherer::with(&mut objects, inside, settings)?;
    let mut changes = Vec::new();
    for edit in edits {
        let after = gatherer.received(&edit.path, edit.after.clone())?;
        if let Some(entry) = after {
            gatherer.objects.store(entry.id)?;
        }
        changes.push((&edit.path, after));
    }
    // A file makes room for a directory of its name, and the other way round.
    changes.sort_by_key(|(_, after)| after.is_some());
    let base = commit.map(|commit| tree_of(repo, Some(commit)));
    let tree = write_tree(repo, base.as_deref(), &changes)?;
    let parents: Vec<Oid> = commit.into_iter().collect();
    commit_tree(repo, tree, &parents, "uncommitted work", identity)
}

/// Writes a tree: `base` with some paths changed.
pub(crate) fn write_tree(
    repo: &Repo,
    base: Option<&str>,
    changes: &[(&RepoPath, Option<Entry>)],
) -> Result<Oid, MergeError> {
    let index = repo.temp_path("tree.index");
    let _ = std::fs::remove_file(&index);
    let git = || repo.pure().env("GIT_INDEX_FILE", &index);
    match base {
        Some(base) => git().args(["read-tree", base]).run()?,
        None => git().args(["read-tree", "--empty"]).run()?,
    }
    let mut input = Vec::new();
    let null = Oid::null(repo.format());
    for (path, entry) in changes {
        let head = match entry {
            Some(entry) => format!("{} {}\t", entry.mode.as_str(), entry.id),
            None => format!("0 {null}\t"),
        };
        input.extend_from_slice(head.as_bytes());
        input.extend_from_slice(path.as_bytes());
        input.push(0);
    }
    if !input.is_empty() {
        git().args(["update-index", "-z", "--index-info"]).stdin(input).run()?;
    }
    parse_oid(&git().args(["write-tree"]).line()?)
}

impl EditsPlan {
    /// Returns what will be done, a line for each path.
    pub fn describe(&self) -> String {
        let mut out = format!("apply the uncommitted changes of '{}'\n", self.name);
        if self.paths.is_empty() {
            return format!("nothing to apply: the working tree has all of '{}'\n", self.name);
        }
        for path in &self.paths {
            path.describe(&mut out);
        }
        out
    }
}
