//! Several sandboxes at once: everything is computed in the object database, one merged onto the result
//! of the others, and the working tree, index and HEAD change once.
//!
//! ```text
//!   H ─► merge 1 ─► merge 2 ─► …  ─► N         one that conflicts is left out
//!   paths in which H and N differ:
//!     changed by one sandbox alone   judged by what that one knew of uncommitted changes
//!     changed by several             over H: nobody's knowledge is right for all of them
//!   a conflict with uncommitted work           its sandbox is left out, and all is computed again
//! ```

use crate::attributes::{self, Rules};
use crate::error::{Conflicts, MergeError};
use crate::index::Index;
use crate::inspect::{Commit, commits_of, merge_base, relation, tree_of};
use crate::lineage::Lineage;
use crate::merger::{Merger, changed_between};
use crate::next::{commit_tree, next_commit};
use crate::path::RepoPath;
use crate::plan::{Blocked, Group, HeadMove, How, MergePlan, MergeRequest, Planned, What, planned};
use crate::replay::replay;
use crate::repo::{Head, Repo, parse_oid};
use crate::resolve::Resolved;
use sandbox_git::Oid;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A plan for several sandboxes.
#[derive(Debug, Serialize)]
pub struct SeveralPlan {
    /// What will be done to the host; `None` if nothing is left to do.
    pub plan: Option<MergePlan>,
    /// What is merged, in this order.
    pub merged: Vec<Landed>,
    /// What is left out.
    #[serde(skip)]
    pub left_out: Vec<LeftOut>,
}

/// One sandbox of a plan.
#[derive(Clone, Debug, Serialize)]
pub struct Landed {
    /// The sandbox.
    pub name: String,
    /// How it comes in.
    pub what: What,
    #[serde(skip)]
    number: usize,
    #[serde(skip)]
    paths: BTreeSet<RepoPath>,
}

/// One that does not fit.
#[derive(Debug)]
pub struct LeftOut {
    /// The sandbox.
    pub name: String,
    /// Why.
    pub error: MergeError,
    /// Commits of the others, and of it, that changed the paths in question: at most three of each, the
    /// newest first.
    pub sides: (Vec<Commit>, Vec<Commit>),
}

/// Makes a plan for several sandboxes, in the order of the requests. With `octopus` they become one
/// commit.
pub fn plan_several(repo: &Repo, requests: &[MergeRequest<'_>], octopus: bool) -> Result<SeveralPlan, MergeError> {
    let Some(first) = requests.first() else {
        return Ok(SeveralPlan { plan: None, merged: Vec::new(), left_out: Vec::new() });
    };
    let (head, index, rules) = start(repo)?;
    let _working = repo.working();
    let mut merger = Merger::new(repo, &rules, head.commit);
    if requests.iter().any(|request| request.how != How::Rebase) {
        merger.know(requests.iter().map(|request| request.tip))?;
    }
    let tips: Vec<Oid> = head.commit.into_iter().chain(requests.iter().map(|request| request.tip)).collect();
    // Only where there is something that they can stand to.
    let lineage = if head.commit.is_some() { Some(Lineage::read(repo, &tips, spawned_from(requests))?) } else { None };
    let mut left_out: Vec<LeftOut> = Vec::new();
    loop {
        let out: Vec<String> = left_out.iter().map(|left| left.name.clone()).collect();
        let fits = |(_, request): &(usize, &MergeRequest<'_>)| !out.iter().any(|name| name == request.name);
        let Chain { now, merged, resolved, refused } =
            chain(&mut merger, requests.iter().enumerate().filter(fits), &head, lineage.as_ref())?;
        let landed: Vec<&Landed> = merged.iter().filter(|landed| landed.what != What::UpToDate).collect();
        let (Some(now), false) = (now, landed.is_empty()) else {
            left_out.extend(refused);
            return Ok(SeveralPlan { plan: None, merged, left_out });
        };
        let shared = shared(&landed);
        let alone = |landed: &&Landed| MergeRequest { ..copy(&requests[landed.number]) };
        let own: Vec<MergeRequest<'_>> = landed.iter().map(alone).collect();
        let nobody = nobody(first, head.commit, now);
        let mut groups: Vec<Group<'_>> = landed
            .iter()
            .zip(&own)
            .map(|(landed, request)| {
                let paths = landed.paths.iter().filter(|path| !shared.contains(*path)).cloned().collect();
                Group { paths: Some(paths), request }
            })
            .collect();
        groups.push(Group { paths: Some(shared), request: &nobody });
        match planned(repo, &rules, &index, &head, &tree_of(repo, Some(now)), &groups)? {
            Ok(Planned { paths, warnings }) => {
                let names: Vec<&str> = landed.iter().map(|landed| landed.name.as_str()).collect();
                let sandboxes = names.len() as u64;
                let (what, new) = match (octopus, head.commit) {
                    (true, Some(onto)) => {
                        let tips: Vec<Oid> = own.iter().map(|request| request.tip).collect();
                        (What::Octopus { sandboxes }, octopus_commit(repo, first, &head, onto, now, &names, &tips)?)
                    }
                    _ if sandboxes == 1 => (landed[0].what, now),
                    _ => (What::Several { sandboxes }, now),
                };
                let plan = MergePlan {
                    name: names.join(" "),
                    what,
                    head: HeadMove { reference: head.reference, old: head.commit, new },
                    paths,
                    resolved,
                    warnings,
                    index: index.mark(),
                    identity: first.identity.clone(),
                    rules: rules.clone(),
                };
                left_out.extend(refused);
                return Ok(SeveralPlan { plan: Some(plan), merged, left_out });
            }
            Err(blocked) => left_out.push(blamed(&landed, blocked)),
        }
    }
}

/// Picks commits of a sandbox, the oldest first, onto HEAD. `request` names the sandbox; how its
/// uncommitted work stood does not matter. `note`: with a line that names the original.
pub fn plan_pick(
    repo: &Repo,
    request: &MergeRequest<'_>,
    commits: &[Oid],
    note: bool,
) -> Result<Option<MergePlan>, MergeError> {
    let (head, index, rules) = start(repo)?;
    let Some(onto) = head.commit else {
        return Err(MergeError::Unborn { name: request.name.to_owned(), branch: head.short().to_owned() });
    };
    let _working = repo.working();
    let replayed = match replay(&mut Merger::new(repo, &rules, head.commit), onto, commits, request, note)? {
        Ok(replayed) => replayed,
        Err(stopped) => {
            return Err(MergeError::PickConflicts {
                name: request.name.to_owned(),
                commit: stopped.at,
                conflicts: Conflicts(stopped.conflicts),
            });
        }
    };
    if replayed.commits == 0 {
        return Ok(None);
    }
    let nobody = nobody(request, head.commit, replayed.commit);
    let groups = [Group { paths: None, request: &nobody }];
    let next = tree_of(repo, Some(replayed.commit));
    let conflicts = |(_, conflicts): Blocked| crate::plan::refused(request, conflicts);
    let Planned { paths, warnings } = planned(repo, &rules, &index, &head, &next, &groups)?.map_err(conflicts)?;
    Ok(Some(MergePlan {
        name: request.name.to_owned(),
        what: What::Pick { commits: replayed.commits },
        head: HeadMove { reference: head.reference, old: head.commit, new: replayed.commit },
        paths,
        resolved: replayed.resolved,
        warnings,
        index: index.mark(),
        identity: request.identity.clone(),
        rules: rules.clone(),
    }))
}

/// What must hold before anything is planned, and what every plan reads.
fn start(repo: &Repo) -> Result<(Head, Index, Rules), MergeError> {
    if let Some(operation) = repo.operation() {
        return Err(MergeError::InProgress { operation, worktree: repo.worktree().to_owned() });
    }
    attributes::forget(repo);
    let mut index = Index::read(repo)?;
    if let Some(path) = index.unmerged.take() {
        return Err(MergeError::Unmerged { path });
    }
    Ok((repo.head()?, index, Rules::read(repo)?))
}

/// The commit that all of them were spawned from, if it is one.
fn spawned_from(requests: &[MergeRequest<'_>]) -> Option<Oid> {
    let base = requests.first()?.base?;
    requests.iter().all(|request| request.base == Some(base)).then_some(base)
}

fn copy<'a>(request: &MergeRequest<'a>) -> MergeRequest<'a> {
    MergeRequest { ..*request }
}

/// A request that knows of no capture: uncommitted changes are merged over HEAD.
fn nobody<'a>(request: &MergeRequest<'a>, head: Option<Oid>, next: Oid) -> MergeRequest<'a> {
    MergeRequest { base: head, tip: next, captured: None, captured_index: None, left_inside: None, ..*request }
}

/// What came of merging one after the other.
struct Chain {
    now: Option<Oid>,
    merged: Vec<Landed>,
    resolved: Vec<Resolved>,
    refused: Vec<LeftOut>,
}

/// Merges one after the other; what does not fit is left out.
fn chain<'a, 'r: 'a>(
    merger: &mut Merger<'_>,
    requests: impl Iterator<Item = (usize, &'a MergeRequest<'r>)>,
    head: &Head,
    lineage: Option<&Lineage>,
) -> Result<Chain, MergeError> {
    let repo = merger.repo();
    let mut at = Head { reference: head.reference.clone(), commit: head.commit };
    let mut chain = Chain { now: None, merged: Vec::new(), resolved: Vec::new(), refused: Vec::new() };
    // Numbers of the tips that are in what was made so far (0: HEAD), and commits that no tip has.
    let (mut have, mut made) = (vec![0], 0);
    let mut steps = Vec::new();
    for (number, request) in requests {
        let name = request.name.to_owned();
        let relation = match lineage {
            Some(lineage) => lineage.relation(&have, made, number + 1),
            None => relation(repo, at.commit, request.tip)?,
        };
        match next_commit(merger, request, &at, relation) {
            Ok(None) => chain.merged.push(Landed { name, what: What::UpToDate, number, paths: BTreeSet::new() }),
            Ok(Some(next)) => {
                match next.what {
                    What::Merge { .. } => {
                        have.push(number + 1);
                        made += 1;
                    }
                    What::Squash { .. } => made += 1,
                    What::Rebase { commits } => made += commits,
                    _ => have.push(number + 1),
                }
                steps.push((chain.merged.len(), repo.tree(at.commit)?, next.tree));
                chain.merged.push(Landed { name, what: next.what, number, paths: BTreeSet::new() });
                chain.resolved.extend(next.resolved);
                at.commit = Some(next.commit);
            }
            Err(
                error @ (MergeError::Conflicts { .. }
                | MergeError::NotFastForward { .. }
                | MergeError::Unrelated { .. }),
            ) => {
                let sides = match (&error, at.commit) {
                    (MergeError::Conflicts { conflicts, .. }, Some(onto)) => sides(repo, onto, request.tip, conflicts)?,
                    _ => Default::default(),
                };
                chain.refused.push(LeftOut { name, error, sides });
            }
            Err(error) => return Err(error),
        }
    }
    let pairs: Vec<(Oid, Oid)> = steps.iter().map(|(_, old, new)| (*old, *new)).collect();
    for ((at, ..), paths) in steps.iter().zip(changed_between(repo, &pairs)?) {
        chain.merged[*at].paths = paths;
    }
    chain.now = at.commit;
    Ok(chain)
}

/// Returns the commits of both sides that changed conflicting paths: at most three of each, the newest first.
pub fn sides(
    repo: &Repo,
    onto: Oid,
    tip: Oid,
    conflicts: &Conflicts,
) -> Result<(Vec<Commit>, Vec<Commit>), MergeError> {
    let Some(base) = merge_base(repo, onto, tip)? else { return Ok(Default::default()) };
    let paths: Vec<&RepoPath> = conflicts.0.iter().take(100).map(|conflict| &conflict.path).collect();
    Ok((commits_of(repo, base, onto, &paths, 3)?, commits_of(repo, base, tip, &paths, 3)?))
}

/// Paths that more than one changed, and those that are above or below such a path.
fn shared(landed: &[&Landed]) -> BTreeSet<RepoPath> {
    let mut times: BTreeMap<&RepoPath, usize> = BTreeMap::new();
    for path in landed.iter().flat_map(|landed| &landed.paths) {
        *times.entry(path).or_default() += 1;
    }
    let mut shared: BTreeSet<RepoPath> =
        times.iter().filter(|(_, times)| **times > 1).map(|(path, _)| (*path).clone()).collect();
    let dirs: BTreeSet<RepoPath> = times.keys().flat_map(|path| path.ancestors()).collect();
    let near = |path: &RepoPath| dirs.contains(path) || path.ancestors().any(|dir| times.contains_key(&dir));
    shared.extend(times.keys().filter(|path| near(path)).map(|path| (*path).clone()));
    shared
}

/// Whom a conflict with uncommitted work is put down to: the one whose paths they are; of shared ones,
/// the last that changed one of them.
fn blamed(landed: &[&Landed], (group, conflicts): Blocked) -> LeftOut {
    let hit = |landed: &&&Landed| conflicts.iter().any(|conflict| landed.paths.contains(&conflict.path));
    let at = landed.get(group).or_else(|| landed.iter().rev().find(hit)).or(landed.last());
    let name = at.map_or(String::new(), |landed| landed.name.clone());
    let error = MergeError::Conflicts { name: name.clone(), conflicts: Conflicts(conflicts) };
    LeftOut { name, error, sides: Default::default() }
}

fn octopus_commit(
    repo: &Repo,
    request: &MergeRequest<'_>,
    head: &Head,
    onto: Oid,
    merged: Oid,
    names: &[&str],
    tips: &[Oid],
) -> Result<Oid, MergeError> {
    let independent = repo.pure().args(["merge-base", "--independent"]).args(tips.iter().map(Oid::to_string));
    let independent = independent.output()?.stdout;
    let mut parents = vec![onto];
    for line in String::from_utf8_lossy(&independent).lines() {
        parents.push(parse_oid(line)?);
    }
    // In the order in which they were merged.
    parents[1..].sort_by_key(|parent| tips.iter().position(|tip| tip == parent));
    let tree = repo.commit(merged)?.tree;
    let message = match (request.message, head.short()) {
        (Some(message), _) => message.to_owned(),
        (None, branch) => {
            let quoted: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
            let (last, rest) =
                quoted.split_last().map_or((String::new(), &[][..]), |(last, rest)| (last.clone(), rest));
            let list = if rest.is_empty() { last } else { format!("{} and {last}", rest.join(", ")) };
            match branch {
                "HEAD" | "main" | "master" => format!("Merge sandboxes {list}"),
                branch => format!("Merge sandboxes {list} into {branch}"),
            }
        }
    };
    commit_tree(repo, tree, &parents, &message, request.identity)
}
