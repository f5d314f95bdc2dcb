//! From a request to a plan. Reads the host, writes objects (merged contents, a merge commit) and
//! nothing else.

use crate::attributes::{self, Attributes, Rules};
use crate::captured::Captured;
use crate::eol::Action;
use crate::error::{Conflict, Conflicts, MergeError};
use crate::index::{Index, Mark};
use crate::inspect::{relation, tree_of};
use crate::merger::Merger;
use crate::next::next_commit;
use crate::objects::{Difference, Objects, differences};
use crate::path::{Entry, RepoPath};
use crate::paths::{Gatherer, Incoming, Settings};
use crate::repo::{Head, Repo};
use crate::resolve::{Choices, Resolved};
use crate::review::{Finding, Grade, Range, attribute_commits, review};
use crate::worktree::State;
use sandbox_git::Oid;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How commits are brought over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Fast-forward if possible, else a merge commit.
    FastForward,
    /// Fast-forward or nothing.
    FastForwardOnly,
    /// Always a merge commit.
    NoFf,
    /// One ordinary commit with all that the sandbox changed.
    Squash,
    /// Its commits one by one on top of what is here, if no fast-forward is possible.
    Rebase,
}

/// Who makes a merge commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `user.name`
    pub name: String,
    /// `user.email`
    pub email: String,
    /// In a form that git reads (`@<seconds> +0000`); `None`: now.
    pub date: Option<String>,
}

/// What is asked for.
pub struct MergeRequest<'a> {
    /// The sandbox.
    pub name: &'a str,
    /// B: HEAD when it was spawned; `None` if that was unborn.
    pub base: Option<Oid>,
    /// T: its tip, with all objects in the host's database.
    pub tip: Oid,
    /// S: files as they were captured; `None` if they were exactly those of B.
    pub captured: Option<&'a dyn Captured>,
    /// The index as it was captured, if it is known.
    pub captured_index: Option<&'a Path>,
    /// Paths that differ inside between HEAD, index and working tree, untracked ones included: both
    /// names of a rename. `None`: not known, and what depends on it is refused.
    pub left_inside: Option<&'a BTreeSet<RepoPath>>,
    /// How.
    pub how: How,
    /// What the user has decided about conflicts of commits.
    pub choices: &'a Choices,
    /// The message of a merge or squash commit; `None`: made from names and subjects.
    pub message: Option<&'a str>,
    /// Who makes that commit.
    pub identity: &'a Identity,
}

/// What will be done.
#[derive(Clone, Debug, Serialize)]
pub struct MergePlan {
    /// The sandbox.
    pub name: String,
    /// What kind of change it is.
    pub what: What,
    /// How HEAD moves.
    pub head: HeadMove,
    /// The paths that are touched, in git's order.
    pub paths: Vec<PathPlan>,
    /// Conflicts that were resolved by what the user decided, now or before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resolved: Vec<Resolved>,
    /// Incoming paths that deserve a look.
    pub warnings: Vec<Finding>,
    /// The index that it was made from.
    #[serde(skip)]
    pub(crate) index: Mark,
    #[serde(skip)]
    pub(crate) identity: Identity,
    #[serde(skip)]
    pub(crate) rules: Rules,
}

impl MergePlan {
    /// Whether the user has all commits signed (`commit.gpgSign`).
    pub fn signs(&self) -> bool {
        self.rules.signs
    }

    /// Whether it has a commit that was made for it.
    pub fn makes_commits(&self) -> bool {
        !matches!(self.what, What::UpToDate | What::FastForward { .. })
    }
}

/// What kind of change it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum What {
    /// There is nothing to merge.
    UpToDate,
    /// HEAD moves to the tip.
    FastForward {
        /// Commits that it gains.
        commits: u64,
    },
    /// A merge commit.
    Merge {
        /// Commits of the sandbox alone.
        commits: u64,
        /// Commits of the host alone.
        behind: u64,
    },
    /// One ordinary commit.
    Squash {
        /// Commits of the sandbox that are in it.
        commits: u64,
    },
    /// Commits one by one on top.
    Rebase {
        /// How many.
        commits: u64,
    },
    /// Chosen commits one by one on top.
    Pick {
        /// How many.
        commits: u64,
    },
    /// Several sandboxes one after the other.
    Several {
        /// How many.
        sandboxes: u64,
    },
    /// Several sandboxes in one commit.
    Octopus {
        /// How many.
        sandboxes: u64,
    },
}

/// How HEAD moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeadMove {
    /// The ref that HEAD names; `None` when detached.
    pub reference: Option<String>,
    /// Its commit now; `None` when unborn.
    pub old: Option<Oid>,
    /// Its commit then.
    pub new: Oid,
}

/// What happens to one path.
#[derive(Clone, Debug, Serialize)]
pub struct PathPlan {
    /// The path.
    pub path: RepoPath,
    /// Where uncommitted changes come from that follow a rename.
    pub from: Option<RepoPath>,
    /// Why it is so.
    pub why: Why,
    /// What happens to the file.
    pub file: FileAction,
    /// What happens to its index entry.
    pub index: IndexAction,
    /// What the file must be when it is written.
    #[serde(skip)]
    pub(crate) expected: State,
    /// Line ends that it is written with.
    #[serde(skip)]
    pub(crate) eol: Action,
}

/// What happens to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum FileAction {
    /// Nothing.
    Keep,
    /// It gets this content.
    Write {
        /// Mode and id of the content.
        entry: Entry,
    },
    /// It is removed.
    Delete,
    /// An empty directory is made for a submodule.
    MakeDir,
    /// The directory of a submodule is removed if it is empty.
    RemoveDir,
}

/// What happens to an index entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum IndexAction {
    /// Nothing.
    Keep,
    /// It becomes this.
    Set {
        /// Mode and id of the content.
        entry: Entry,
        /// It stays outside the sparse checkout.
        skip_worktree: bool,
    },
    /// It is removed.
    Remove,
}

/// Why a path becomes what it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It had no uncommitted change.
    Unchanged,
    /// The working tree has the result already.
    Already,
    /// The sandbox went on from the uncommitted changes; they are in its commits.
    Continued,
    /// Uncommitted changes are kept beside what the sandbox changed.
    Merged,
    /// It is outside the sparse checkout.
    Sparse,
}

/// Makes a plan for bringing a sandbox's commits to where HEAD is.
pub fn plan(repo: &Repo, request: &MergeRequest<'_>) -> Result<MergePlan, MergeError> {
    if let Some(operation) = repo.operation() {
        return Err(MergeError::InProgress { operation, worktree: repo.worktree().to_owned() });
    }
    attributes::forget(repo);
    let index = Index::read(repo)?;
    if let Some(path) = index.unmerged {
        return Err(MergeError::Unmerged { path });
    }
    let head = repo.head()?;
    let rules = Rules::read(repo)?;
    let _working = repo.working();
    let mut merger = Merger::new(repo, &rules, head.commit);
    let relation = relation(repo, head.commit, request.tip)?;
    let Some(next) = next_commit(&mut merger, request, &head, relation)? else {
        let new = head.commit.unwrap_or(request.tip);
        return Ok(MergePlan {
            name: request.name.to_owned(),
            what: What::UpToDate,
            head: HeadMove { reference: head.reference, old: head.commit, new },
            paths: Vec::new(),
            resolved: Vec::new(),
            warnings: Vec::new(),
            index: index.mark(),
            identity: request.identity.clone(),
            rules: rules.clone(),
        });
    };

    let Planned { paths, warnings } =
        planned(repo, &rules, &index, &head, &next.tree.to_string(), &[Group { paths: None, request }])?
            .map_err(|(_, conflicts)| refused(request, conflicts))?;
    Ok(MergePlan {
        name: request.name.to_owned(),
        what: next.what,
        head: HeadMove { reference: head.reference, old: head.commit, new: next.commit },
        paths,
        resolved: next.resolved,
        warnings,
        index: index.mark(),
        identity: request.identity.clone(),
        rules: rules.clone(),
    })
}

/// Paths whose uncommitted changes are judged by what one sandbox knew of them.
pub(crate) struct Group<'a> {
    /// `None`: all.
    pub paths: Option<BTreeSet<RepoPath>>,
    pub request: &'a MergeRequest<'a>,
}

/// What a plan has of paths.
pub(crate) struct Planned {
    pub paths: Vec<PathPlan>,
    pub warnings: Vec<Finding>,
}

/// The number of a group, and what is in its way.
pub(crate) type Blocked = (usize, Vec<Conflict>);

/// Plans all paths in which HEAD and `next` differ.
pub(crate) fn planned(
    repo: &Repo,
    rules: &Rules,
    index: &Index,
    head: &Head,
    next: &str,
    groups: &[Group<'_>],
) -> Result<Result<Planned, Blocked>, MergeError> {
    let touched = differences(repo, &tree_of(repo, head.commit), next)?;
    let now = attributes::known(repo, touched.iter().map(|difference| &difference.path))?;
    let then = attributes_then(repo, next, &touched)?;
    let mut objects = Objects::new(repo);
    let mut warnings = review(&mut objects, &rules.listing, &touched, next)?;
    warnings.extend(selected(rules, &now, &then, &warnings));
    let tips = groups.iter().map(|group| group.request.tip).collect();
    attribute_commits(repo, &Range { without: head.commit.into_iter().collect(), tips }, &mut warnings);
    let mut paths = Vec::new();
    for (n, group) in groups.iter().enumerate() {
        let of = |difference: &&Difference| group.paths.as_ref().is_none_or(|paths| paths.contains(&difference.path));
        let request = group.request;
        let incoming = Incoming {
            touched: touched.iter().filter(of).cloned().collect(),
            base: request.base,
            tip: request.tip,
            head: head.commit,
            next: next.to_owned(),
        };
        let settings = Settings { rules, now: &now, then: &then, index };
        match Gatherer::new(&mut objects, request, settings)?.plan(&incoming)? {
            Ok(planned) => paths.extend(planned),
            Err(conflicts) => return Ok(Err((n, conflicts))),
        }
    }
    paths.sort_by(|a, b| a.path.cmp(&b.path));
    for path in &paths {
        // What was merged here must be an object before the working tree or the index can have it.
        if let FileAction::Write { entry } = path.file {
            objects.store(entry.id)?;
        }
        if let IndexAction::Set { entry, .. } = path.index {
            objects.store(entry.id)?;
        }
    }
    Ok(Ok(Planned { paths, warnings }))
}

pub(crate) fn refused(request: &MergeRequest<'_>, conflicts: Vec<Conflict>) -> MergeError {
    MergeError::Conflicts { name: request.name.to_owned(), conflicts: Conflicts(conflicts) }
}

/// The attributes as they will be, if the merge changes any attributes file.
fn attributes_then(
    repo: &Repo,
    tree: &str,
    touched: &[Difference],
) -> Result<BTreeMap<RepoPath, Attributes>, MergeError> {
    if touched.iter().all(|difference| difference.path.name() != b".gitattributes") {
        return Ok(BTreeMap::new());
    }
    attributes::read_in_tree(repo, tree, touched.iter().map(|difference| &difference.path))
}

/// Programs of the user that paths would be handled by from then on, where no line of an attributes file tells it
/// already: by a macro of the host's.
fn selected(
    rules: &Rules,
    now: &BTreeMap<RepoPath, Attributes>,
    then: &BTreeMap<RepoPath, Attributes>,
    told: &[Finding],
) -> Vec<Finding> {
    let mut by_driver: BTreeMap<String, Vec<&RepoPath>> = BTreeMap::new();
    for (path, then) in then {
        for driver in now.get(path).map(|now| rules.newly_selected(now, then)).unwrap_or_default() {
            by_driver.entry(driver).or_default().push(path);
        }
    }
    by_driver.retain(|driver, _| !told.iter().any(|finding| finding.why.contains(&format!("your {driver}"))));
    let finding = |(driver, paths): (String, Vec<&RepoPath>)| Finding {
        grade: Grade::Red,
        path: paths[0].clone(),
        why: match paths.len() {
            1 => format!("would from then on be handled by your {driver}, by its attributes there"),
            n => {
                format!("and {} more would from then on be handled by your {driver}, by their attributes there", n - 1)
            }
        },
        runs: None,
        when: None,
        by_host: true,
        commit: None,
    };
    by_driver.into_iter().map(finding).collect()
}
