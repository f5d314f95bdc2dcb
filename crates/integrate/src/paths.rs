//! Looks at every touched path on the host, has it decided, and checks that the results fit together.

use crate::attributes::{Attributes, Rules};
use crate::captured::Captured;
use crate::decide::{Sides, decide};
use crate::eol::Action;
use crate::error::{Conflict, MergeError, Reason};
use crate::index::{Index, Staged};
use crate::inspect::tree_of;
use crate::local::Local;
use crate::objects::{Difference, Objects, checked, differences, entries, renames};
use crate::path::{Entry, Mode, RepoPath};
use crate::plan::{FileAction, IndexAction, MergeRequest, PathPlan, Why};
use crate::repo::Repo;
use crate::run::Answer;
use crate::sparse::Cone;
use crate::threeway::{GitLines, Merged, Side};
use crate::worktree::{State, Worktree};
use sandbox_git::Oid;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// What comes in.
pub(crate) struct Incoming {
    /// Paths in which HEAD and what it becomes differ.
    pub touched: Vec<Difference>,
    pub base: Option<Oid>,
    pub tip: Oid,
    pub head: Option<Oid>,
    /// A name of the tree that HEAD becomes.
    pub next: String,
}

/// What was read of the host before.
#[derive(Clone, Copy)]
pub(crate) struct Settings<'a> {
    pub rules: &'a Rules,
    /// Attributes now.
    pub now: &'a BTreeMap<RepoPath, Attributes>,
    /// Attributes after the merge, where they could differ.
    pub then: &'a BTreeMap<RepoPath, Attributes>,
    pub index: &'a Index,
}

/// What is known about the sandbox's uncommitted side.
#[derive(Clone, Copy)]
pub(crate) struct Inside<'a> {
    pub name: &'a str,
    pub captured: Option<&'a dyn Captured>,
    pub captured_index: Option<&'a std::path::Path>,
    pub left: Option<&'a BTreeSet<RepoPath>>,
}

impl<'a> Inside<'a> {
    fn of(request: &MergeRequest<'a>) -> Self {
        Self {
            name: request.name,
            captured: request.captured,
            captured_index: request.captured_index,
            left: request.left_inside,
        }
    }
}

type Planned = Result<Vec<PathPlan>, Vec<Conflict>>;

/// Looks, decides, checks.
pub(crate) struct Gatherer<'a, 'o, 'r> {
    pub objects: &'o mut Objects<'r>,
    pub settings: Settings<'a>,
    pub inside: Inside<'a>,
    pub tree: Worktree,
    pub cone: Option<Cone>,
    /// Paths in the sandbox's stashes, once they were asked for; `None` in it: they cannot be read.
    stashed: Option<Option<BTreeSet<RepoPath>>>,
    captured_index: Option<Option<Index>>,
}

impl<'a, 'o, 'r> Gatherer<'a, 'o, 'r> {
    pub fn new(
        objects: &'o mut Objects<'r>,
        request: &MergeRequest<'a>,
        settings: Settings<'a>,
    ) -> Result<Self, MergeError> {
        Self::with(objects, Inside::of(request), settings)
    }

    pub fn with(objects: &'o mut Objects<'r>, inside: Inside<'a>, settings: Settings<'a>) -> Result<Self, MergeError> {
        let repo = objects.repo();
        let tree = Worktree::open(repo.worktree()).map_err(MergeError::io("open", repo.worktree()))?;
        let cone = if settings.rules.sparse == Some(true) { Cone::read(repo)? } else { None };
        Ok(Self { objects, settings, inside, tree, cone, stashed: None, captured_index: None })
    }

    pub fn repo(&self) -> &'r Repo {
        self.objects.repo()
    }

    /// Plans all touched paths, or names those that stop the merge.
    pub fn plan(&mut self, incoming: &Incoming) -> Result<Planned, MergeError> {
        let mut conflicts = Vec::new();
        let mut locals = BTreeMap::new();
        for difference in &incoming.touched {
            match self.local(&difference.path, difference.old, difference.new)? {
                Ok(local) => drop(locals.insert(&difference.path, local)),
                Err(reason) => conflicts.push(Conflict { path: difference.path.clone(), reason }),
            }
        }
        if !conflicts.is_empty() {
            return Ok(Err(conflicts));
        }

        let dirty = |difference: &&Difference| {
            let known = [difference.old, difference.new];
            !known.contains(&locals[&difference.path].working) || !known.contains(&self.staged(&difference.path))
        };
        let dirty: Vec<_> = incoming.touched.iter().filter(dirty).collect();
        let followed = self.follow_renames(incoming, &dirty, &locals)?;
        let dirty: BTreeSet<_> = dirty.into_iter().map(|difference| &difference.path).collect();
        let committed = Committed::read(self.repo(), incoming, &dirty, &followed)?;

        let mut plans = Vec::new();
        for difference in &incoming.touched {
            let path = &difference.path;
            let planned = if followed.iter().any(|(from, _)| *from == path) {
                Ok(self.followed_source(path, &locals[path]))
            } else {
                let from = followed.iter().find(|(_, to)| *to == path).map(|(from, _)| *from);
                let source = from.and_then(|from| incoming.touched.iter().find(|d| d.path == *from));
                self.plan_path(difference, source, &locals, &committed)?
            };
            match planned {
                Ok(plan) => plans.push(plan),
                Err(reason) => conflicts.push(Conflict { path: path.clone(), reason }),
            }
        }
        if conflicts.is_empty() {
            conflicts = self.check_shape(&plans, &locals)?;
        }
        Ok(if conflicts.is_empty() { Ok(plans) } else { Err(conflicts) })
    }

    /// How the lines of a path are merged: by the host's attributes.
    pub fn lines(&mut self, path: &RepoPath) -> GitLines<'_, 'r> {
        let style = self.settings.rules.merge_style(&self.attributes(path));
        GitLines { objects: self.objects, style }
    }

    /// Pairs (from, to) of files with uncommitted changes that the incoming commits renamed.
    fn follow_renames<'i>(
        &self,
        incoming: &'i Incoming,
        dirty: &[&'i Difference],
        locals: &BTreeMap<&RepoPath, Local>,
    ) -> Result<Vec<(&'i RepoPath, &'i RepoPath)>, MergeError> {
        let is_source = |difference: &&&Difference| {
            difference.new.is_none() && locals[&difference.path].working.is_some_and(|entry| entry.mode.is_file())
        };
        let sources: Vec<_> = dirty.iter().filter(is_source).collect();
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        let known = renames(self.repo(), &tree_of(self.repo(), incoming.head), &incoming.next)?;
        let mut pairs: Vec<(&RepoPath, &RepoPath)> = Vec::new();
        for source in sources {
            let named = known.iter().find(|(from, _)| *from == source.path).map(|(_, to)| to);
            let working = locals[&source.path].working.map(|entry| entry.id);
            let to = incoming.touched.iter().find(|to| {
                let same = named == Some(&to.path) || (named.is_none() && to.new.map(|entry| entry.id) == working);
                let free =
                    to.old.is_none() && locals[&to.path].state == State::Absent && self.entry(&to.path).is_none();
                same && free && pairs.iter().all(|(_, taken)| *taken != &to.path)
            });
            pairs.extend(to.map(|to| (&source.path, &to.path)));
        }
        Ok(pairs)
    }

    fn plan_path(
        &mut self,
        difference: &Difference,
        source: Option<&Difference>,
        locals: &BTreeMap<&RepoPath, Local>,
        committed: &Committed,
    ) -> Result<Merged<PathPlan>, MergeError> {
        let path = &difference.path;
        // What is uncommitted of a renamed file is at its old path.
        let here = source.unwrap_or(difference);
        let local = &locals[&here.path];
        let mut sides = Sides {
            head: here.old,
            next: difference.new,
            working: local.working,
            index: self.staged(&here.path),
            ..Sides::default()
        };
        let known = [sides.head, sides.next];
        if !known.contains(&sides.working) || !known.contains(&sides.index) {
            sides.base = committed.base(&here.path, here.old);
            sides.tip = committed.tip(path, difference.new);
            sides.captured = self.captured(&here.path, sides.base)?;
            sides.captured_index = self.captured_index(&here.path)?;
        }
        let left = self.left_inside(&[path, &here.path])?;
        let decision = match decide(&mut self.lines(path), &sides, &mut || Ok(left))? {
            Ok(decision) => decision,
            Err(reason) => return Ok(Err(reason)),
        };
        let moved = source.is_some();
        let (file, why) = if local.sparse {
            (FileAction::Keep, Why::Sparse)
        } else {
            (file_action(decision.working, local.working, moved, &local.state), decision.why)
        };
        if let FileAction::Write { entry } = file
            && entry.mode.is_file()
            && !local.is_raw
            && let Some(by) = self.conversion(path, b"", Some(entry))?
        {
            return Ok(Err(Reason::Conversion { by }));
        }
        let index = index_action(decision.index, self.entry(path), local.sparse);
        let expected = if moved { State::Absent } else { local.state.clone() };
        let from = source.map(|source| source.path.clone());
        Ok(Ok(PathPlan { path: path.clone(), from, why, file, index, expected, eol: self.action_then(path) }))
    }

    /// The old path of a file whose uncommitted changes move with it.
    fn followed_source(&self, path: &RepoPath, local: &Local) -> PathPlan {
        PathPlan {
            path: path.clone(),
            from: None,
            why: Why::Merged,
            file: FileAction::Delete,
            index: if self.entry(path).is_some() { IndexAction::Remove } else { IndexAction::Keep },
            expected: local.state.clone(),
            eol: Action::Binary,
        }
    }

    /// Whether an uncommitted change of one of the paths is left inside, in its tree or its stash.
    fn left_inside(&mut self, paths: &[&RepoPath]) -> Result<Option<bool>, MergeError> {
        let Some(left) = self.inside.left else { return Ok(None) };
        if paths.iter().any(|path| left.contains(path)) {
            return Ok(Some(true));
        }
        if self.stashed.is_none() {
            self.stashed = Some(stashed_paths(self.repo(), self.inside.name)?);
        }
        let stashed = self.stashed.as_ref().and_then(Option::as_ref);
        Ok(stashed.map(|stashed| paths.iter().any(|path| stashed.contains(path))))
    }

    fn captured_index(&mut self, path: &RepoPath) -> Result<Option<Side>, MergeError> {
        let Some(file) = self.inside.captured_index else { return Ok(None) };
        if self.captured_index.is_none() {
            self.captured_index = Some(Index::read_file(self.repo(), file).ok());
        }
        let index = self.captured_index.as_ref().and_then(Option::as_ref);
        Ok(index.map(|index| index.entries.get(path).filter(|s| !s.intent_to_add).map(|s| s.entry)))
    }

    /// Checks what no path shows alone: files where directories have to be, and the other way round.
    pub fn check_shape(
        &self,
        plans: &[PathPlan],
        locals: &BTreeMap<&RepoPath, Local>,
    ) -> Result<Vec<Conflict>, MergeError> {
        let gone: BTreeSet<_> =
            plans.iter().filter(|plan| plan.file == FileAction::Delete).map(|plan| &plan.path).collect();
        let unstaged: BTreeSet<_> =
            plans.iter().filter(|plan| plan.index == IndexAction::Remove).map(|plan| &plan.path).collect();
        let mut conflicts = Vec::new();
        for plan in plans {
            let local = &locals[&plan.path];
            let reason = if matches!(plan.file, FileAction::Write { .. } | FileAction::MakeDir) {
                match &local.under {
                    Some(under) if !gone.contains(under) => Some(Reason::NotDirectory { at: under.clone() }),
                    _ if local.state == State::Directory && plan.file != FileAction::MakeDir => {
                        let holds = self.left_in(&plan.path, &gone);
                        let holds = holds.map_err(MergeError::io("list", plan.path.as_path()))?;
                        holds.map(|holds| Reason::Directory { holds })
                    }
                    _ => None,
                }
            } else {
                None
            };
            let staged = || {
                let index = self.settings.index;
                let stays = |other: &RepoPath| index.entries.contains_key(other) && !unstaged.contains(other);
                matches!(plan.index, IndexAction::Set { .. })
                    && (plan.path.ancestors().any(|dir| stays(&dir)) || index.below(&plan.path).any(stays))
            };
            let reason = reason.or_else(|| staged().then_some(Reason::Staged));
            conflicts.extend(reason.map(|reason| Conflict { path: plan.path.clone(), reason }));
        }
        Ok(conflicts)
    }

    /// A file below a directory that the merge does not remove.
    fn left_in(&self, dir: &RepoPath, gone: &BTreeSet<&RepoPath>) -> io::Result<Option<RepoPath>> {
        let mut todo = vec![dir.clone()];
        while let Some(dir) = todo.pop() {
            for (path, is_dir) in self.tree.list(&dir)? {
                if path == dir {
                    // A name that no tree can have, such as a repository's own `.git`.
                    return Ok(Some(path));
                }
                if is_dir {
                    todo.push(path);
                } else if !gone.contains(&path) {
                    return Ok(Some(path));
                }
            }
        }
        Ok(None)
    }
}

/// B and T of the paths where they matter.
struct Committed {
    base: Option<BTreeMap<RepoPath, Entry>>,
    tip: Option<BTreeMap<RepoPath, Entry>>,
}

impl Committed {
    fn read(
        repo: &Repo,
        incoming: &Incoming,
        dirty: &BTreeSet<&RepoPath>,
        followed: &[(&RepoPath, &RepoPath)],
    ) -> Result<Self, MergeError> {
        let tip_tree = tree_of(repo, Some(incoming.tip));
        if dirty.is_empty() {
            return Ok(Self { base: None, tip: None });
        }
        let paths: BTreeSet<_> = dirty.iter().copied().chain(followed.iter().map(|(_, to)| *to)).collect();
        let base = if incoming.base == incoming.head {
            None
        } else {
            Some(match incoming.base {
                Some(base) => entries(repo, &tree_of(repo, Some(base)), paths.iter().copied())?,
                None => BTreeMap::new(),
            })
        };
        let same = incoming.next == tip_tree;
        let tip = if same { None } else { Some(entries(repo, &tip_tree, paths.iter().copied())?) };
        Ok(Self { base, tip })
    }

    fn base(&self, path: &RepoPath, head: Side) -> Side {
        self.base.as_ref().map_or(head, |base| base.get(path).copied())
    }

    fn tip(&self, path: &RepoPath, next: Side) -> Side {
        self.tip.as_ref().map_or(next, |tip| tip.get(path).copied())
    }
}

fn file_action(becomes: Side, working: Side, moved: bool, state: &State) -> FileAction {
    let is_link = |side: Side| side.is_some_and(|entry| entry.mode == Mode::Gitlink);
    if is_link(becomes) {
        return if *state == State::Absent { FileAction::MakeDir } else { FileAction::Keep };
    }
    if is_link(working) {
        return if *state == State::Directory { FileAction::RemoveDir } else { FileAction::Keep };
    }
    match becomes {
        _ if becomes == working && !moved => FileAction::Keep,
        Some(entry) => FileAction::Write { entry },
        None => FileAction::Delete,
    }
}

fn index_action(becomes: Side, now: Option<&Staged>, sparse: bool) -> IndexAction {
    match (becomes, now) {
        (Some(entry), Some(staged)) if staged.entry == entry && !staged.intent_to_add => IndexAction::Keep,
        (Some(entry), _) => IndexAction::Set { entry, skip_worktree: sparse },
        (None, Some(_)) => IndexAction::Remove,
        (None, None) => IndexAction::Keep,
    }
}

/// Paths in the sandbox's stashes, as they were imported; `None` if one cannot be read.
fn stashed_paths(repo: &Repo, name: &str) -> Result<Option<BTreeSet<RepoPath>>, MergeError> {
    let prefix = format!("refs/sandbox-meta/{name}/stash/");
    let listing = repo.host().args(["for-each-ref", "--format=%(objectname)", &prefix]).output()?.stdout;
    let mut paths = BTreeSet::new();
    for id in String::from_utf8_lossy(&listing).lines() {
        let Ok(changed) = differences(repo, &format!("{id}^1"), id) else { return Ok(None) };
        let Ok(staged) = differences(repo, &format!("{id}^1"), &format!("{id}^2")) else { return Ok(None) };
        paths.extend(changed.into_iter().chain(staged).map(|difference| difference.path));
        let untracked = format!("{id}^3^{{tree}}");
        let answer = Answer::of(repo.pure().args(["ls-tree", "-r", "-z", "--name-only", &untracked]))?;
        if answer.code() == Some(0) {
            for path in answer.stdout().split(|b| *b == 0).filter(|path| !path.is_empty()) {
                paths.insert(checked(path)?);
            }
        }
    }
    Ok(Some(paths))
}
