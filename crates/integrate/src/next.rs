//! Which commit HEAD becomes: the tip, or a merge or squash commit made for it.

use crate::database::Stored;
use crate::error::MergeError;
use crate::inspect::{Relation, commits};
use crate::merger::{Merger, Over};
use crate::plan::{How, Identity, MergeRequest, What, refused};
use crate::replay::{Replayed, replay};
use crate::repo::{Head, Repo, parse_oid};
use crate::resolve::{Resolved, resolve};
use sandbox_git::{Oid, printable};

/// What HEAD becomes.
pub(crate) struct Next {
    pub what: What,
    pub commit: Oid,
    pub tree: Oid,
    /// Conflicts that were resolved for it.
    pub resolved: Vec<Resolved>,
}

/// Finds or makes the commit that HEAD becomes; `None` if there is nothing to merge. `relation` is how the tip
/// stands to where HEAD is.
pub(crate) fn next_commit(
    merger: &mut Merger<'_>,
    request: &MergeRequest<'_>,
    head: &Head,
    relation: Relation,
) -> Result<Option<Next>, MergeError> {
    let repo = merger.repo();
    let tip = request.tip;
    let name = || request.name.to_owned();
    let (ahead, behind) = match relation {
        Relation::Contained => return Ok(None),
        Relation::FastForward { ahead } => (ahead, 0),
        Relation::Diverged { ahead, behind } => (ahead, behind),
        Relation::Unrelated => return Err(MergeError::Unrelated { name: name(), onto: head.short().to_owned() }),
    };
    let tip_tree = repo.commit(tip)?.tree;
    let made = |what, commit, tree, resolved| Ok(Some(Next { what, commit, tree, resolved }));
    let fast_forward = || made(What::FastForward { commits: ahead }, tip, tip_tree, Vec::new());
    match (request.how, head.commit) {
        // There is nothing to merge with, and no parent for a commit.
        (_, None) => fast_forward(),
        (How::FastForward | How::FastForwardOnly, _) if behind == 0 => fast_forward(),
        (How::Rebase, Some(_)) if behind == 0 => fast_forward(),
        (How::Rebase, Some(onto)) => {
            let range = format!("{onto}..{tip}");
            let args = ["rev-list", "--reverse", "--topo-order", "--no-merges", &range, "--"];
            let listed = repo.pure().args(args).output()?.stdout;
            let listed = String::from_utf8_lossy(&listed);
            let commits = listed.lines().map(parse_oid).collect::<Result<Vec<_>, _>>()?;
            match replay(merger, onto, &commits, request, false)? {
                Ok(replayed) if replayed.commits == 0 => Ok(None),
                Ok(Replayed { commit, commits, resolved }) => {
                    made(What::Rebase { commits }, commit, repo.commit(commit)?.tree, resolved)
                }
                Err(stopped) => Err(refused(request, stopped.conflicts)),
            }
        }
        (How::FastForwardOnly, _) => {
            Err(MergeError::NotFastForward { name: name(), onto: head.short().to_owned(), behind })
        }
        (how, Some(onto)) => {
            let (tree, resolved) = if behind == 0 { (tip_tree, Vec::new()) } else { merged(merger, request, onto)? };
            let squash = how == How::Squash;
            if squash && repo.commit(onto)?.tree == tree {
                return Ok(None);
            }
            let parents = if squash { vec![onto] } else { vec![onto, tip] };
            let message = message(repo, request, head, onto)?;
            let commit = commit_tree(repo, tree, &parents, &message, request.identity)?;
            let what = if squash { What::Squash { commits: ahead } } else { What::Merge { commits: ahead, behind } };
            made(what, commit, tree, resolved)
        }
    }
}

/// Merges the tip into `onto` as `git merge` would.
fn merged(merger: &mut Merger<'_>, request: &MergeRequest<'_>, onto: Oid) -> Result<(Oid, Vec<Resolved>), MergeError> {
    merger.know([request.tip])?;
    match merger.merge(Over::Found, onto, request.tip)? {
        Ok(tree) => Ok((tree, Vec::new())),
        Err(unclean) => resolve(merger, request.choices, unclean)?.map_err(|conflicts| refused(request, conflicts)),
    }
}

/// Makes a commit object.
pub(crate) fn commit_tree(
    repo: &Repo,
    tree: Oid,
    parents: &[Oid],
    message: &str,
    identity: &Identity,
) -> Result<Oid, MergeError> {
    repo.write_commit(&Stored::new(tree, parents, message, identity.line(), identity))
}

fn message(repo: &Repo, request: &MergeRequest<'_>, head: &Head, onto: Oid) -> Result<String, MergeError> {
    if let Some(message) = request.message {
        return Ok(message.to_owned());
    }
    let name = request.name;
    if request.how != How::Squash {
        return Ok(match head.short() {
            "HEAD" | "main" | "master" => format!("Merge sandbox '{name}'"),
            branch => format!("Merge sandbox '{name}' into {branch}"),
        });
    }
    let commits = commits(repo, Some(onto), request.tip, Some(200))?;
    Ok(match &commits[..] {
        [only] => format!("{}\n\n{}", only.subject, only.body),
        many => {
            let lines: Vec<_> =
                many.iter().rev().map(|commit| format!("* {}", printable(commit.subject.as_bytes()))).collect();
            format!("Squash sandbox '{name}'\n\n{}", lines.join("\n"))
        }
    })
}
