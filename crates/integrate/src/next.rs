//! Which commit HEAD becomes: the tip, or a merge or squash commit made for it. Commits are merged as
//! trees in the scratch repository, by the merge attributes of the host only.

use crate::attributes::{self, MergeStyle, Rules};
use crate::error::{Conflict, MergeError, Reason};
use crate::inspect::{Relation, commits, merge_base, relation, tree_of};
use crate::objects::{checked, differences};
use crate::path::RepoPath;
use crate::plan::{How, Identity, MergeRequest, What, refused};
use crate::replay::{Replayed, replay};
use crate::repo::{Head, Repo, parse_oid};
use crate::run::{Answer, unexpected};
use sandbox_git::{Oid, printable};
use std::collections::{BTreeMap, BTreeSet};

/// What HEAD becomes.
pub(crate) struct Next {
    pub what: What,
    pub commit: Oid,
    /// A name of its tree.
    pub tree: String,
}

/// Finds or makes the commit that HEAD becomes; `None` if there is nothing to merge.
pub(crate) fn next_commit(
    repo: &Repo,
    request: &MergeRequest<'_>,
    head: &Head,
    rules: &Rules,
) -> Result<Option<Next>, MergeError> {
    let tip = request.tip;
    let name = || request.name.to_owned();
    let (ahead, behind) = match relation(repo, head.commit, tip)? {
        Relation::Contained => return Ok(None),
        Relation::FastForward { ahead } => (ahead, 0),
        Relation::Diverged { ahead, behind } => (ahead, behind),
        Relation::Unrelated => return Err(MergeError::Unrelated { name: name(), onto: head.short().to_owned() }),
    };
    let tip_tree = tree_of(repo, Some(tip));
    let fast_forward = Next { what: What::FastForward { commits: ahead }, commit: tip, tree: tip_tree.clone() };
    match (request.how, head.commit) {
        // There is nothing to merge with, and no parent for a commit.
        (_, None) => Ok(Some(fast_forward)),
        (How::FastForward | How::FastForwardOnly, _) if behind == 0 => Ok(Some(fast_forward)),
        (How::Rebase, Some(_)) if behind == 0 => Ok(Some(fast_forward)),
        (How::Rebase, Some(onto)) => {
            let range = format!("{onto}..{tip}");
            let args = ["rev-list", "--reverse", "--topo-order", "--no-merges", &range, "--"];
            let listed = repo.pure().args(args).output()?.stdout;
            let listed = String::from_utf8_lossy(&listed);
            let commits = listed.lines().map(parse_oid).collect::<Result<Vec<_>, _>>()?;
            match replay(repo, rules, onto, &commits, request.identity, false)? {
                Ok(replayed) if replayed.commits == 0 => Ok(None),
                Ok(Replayed { commit, commits }) => {
                    let tree = tree_of(repo, Some(commit));
                    Ok(Some(Next { what: What::Rebase { commits }, commit, tree }))
                }
                Err(stopped) => Err(refused(request, stopped.conflicts)),
            }
        }
        (How::FastForwardOnly, _) => {
            Err(MergeError::NotFastForward { name: name(), onto: head.short().to_owned(), behind })
        }
        (how, Some(onto)) => {
            let tree = if behind == 0 {
                parse_oid(&repo.pure().args(["rev-parse", &tip_tree]).line()?)?
            } else {
                merge_trees(repo, request, onto, rules)?
            };
            let squash = how == How::Squash;
            if squash && repo.pure().args(["rev-parse", &tree_of(repo, Some(onto))]).line()? == tree.to_string() {
                return Ok(None);
            }
            let parents = if squash { vec![onto] } else { vec![onto, tip] };
            let message = message(repo, request, head, onto)?;
            let commit = commit_tree(repo, &tree.to_string(), &parents, &message, request.identity)?;
            let what = if squash { What::Squash { commits: ahead } } else { What::Merge { commits: ahead, behind } };
            Ok(Some(Next { what, commit, tree: tree.to_string() }))
        }
    }
}

/// Merges two commits as `git merge` would, by the merge attributes of the host only.
fn merge_trees(repo: &Repo, request: &MergeRequest<'_>, onto: Oid, rules: &Rules) -> Result<Oid, MergeError> {
    merge_commits(repo, None, onto, request.tip, rules)?.map_err(|conflicts| refused(request, conflicts))
}

/// Merges `theirs` into `ours` by the merge attributes of the host only, over their merge base or over
/// the one that is named (`Some(None)`: over nothing). Returns the tree, or what conflicts.
pub(crate) fn merge_commits(
    repo: &Repo,
    base: Option<Option<Oid>>,
    ours: Oid,
    theirs: Oid,
    rules: &Rules,
) -> Result<Result<Oid, Vec<Conflict>>, MergeError> {
    let over = match base {
        Some(base) => base,
        None => merge_base(repo, ours, theirs)?,
    };
    let drivers = set_merge_attributes(repo, over, ours, theirs, rules)?;
    let mut git = repo.pure().args(["merge-tree", "--write-tree", "-z", "--messages"]);
    git = match base {
        None => git.args([ours, theirs].map(|commit| commit.to_string())),
        Some(base) => {
            // A commit without parents stands for the base: `--merge-base` has to be a commit.
            let bare = |commit: Option<Oid>, parents: &[Oid]| {
                let tree = repo.pure().args(["rev-parse", &tree_of(repo, commit)]).line()?;
                let who = Identity { name: "base".into(), email: String::new(), date: Some("@0 +0000".into()) };
                commit_tree(repo, &tree, parents, "base", &who)
            };
            if repo.merge_tree_has_base()? {
                let base = match base {
                    Some(base) => base,
                    None => bare(None, &[])?,
                };
                git.arg(format!("--merge-base={base}")).args([ours, theirs].map(|commit| commit.to_string()))
            } else {
                let base = bare(base, &[])?;
                let sides = [bare(Some(ours), &[base])?, bare(Some(theirs), &[base])?];
                git.args(sides.map(|commit| commit.to_string()))
            }
        }
    };
    let answer = Answer::of(git);
    repo.set_pure_attributes(b"")?;
    let answer = answer?;
    let code = answer.code();
    if !matches!(code, Some(0 | 1)) {
        return Err(answer.failed().into());
    }
    let output = answer.stdout();
    let merged = MergeTree::parse(&output).ok_or_else(|| unexpected("git merge-tree", &output))?;
    if code == Some(0) {
        return Ok(Ok(merged.tree));
    }
    let mut conflicts = Vec::new();
    for (path, message) in merged.conflicts {
        let path = checked(&path)?;
        let reason = match drivers.get(&path) {
            Some(driver) => Reason::Driver { driver: driver.clone() },
            None => Reason::Commits { message },
        };
        conflicts.push(Conflict { path, reason });
    }
    if conflicts.is_empty() {
        return Err(unexpected("git merge-tree", &output).into());
    }
    Ok(Err(conflicts))
}

/// Gives the scratch repository the host's merge attributes for paths that both sides changed.
/// Returns those that a driver of the user would have to merge; they conflict instead.
fn set_merge_attributes(
    repo: &Repo,
    over: Option<Oid>,
    ours: Oid,
    theirs: Oid,
    rules: &Rules,
) -> Result<BTreeMap<RepoPath, String>, MergeError> {
    let base = tree_of(repo, over);
    let names = |commit: Oid| -> Result<BTreeSet<RepoPath>, MergeError> {
        let all = differences(repo, &base, &tree_of(repo, Some(commit)))?;
        Ok(all.into_iter().map(|difference| difference.path).collect())
    };
    let (here, there) = (names(ours)?, names(theirs)?);
    let both: BTreeSet<RepoPath> = here.intersection(&there).cloned().collect();
    let (lines, drivers) = attribute_lines(repo, rules, &both)?;
    repo.set_pure_attributes(&lines)?;
    Ok(drivers)
}

/// Returns the lines of an attributes file that have paths merged as the host would, and those paths that
/// a driver of the user would have to merge.
pub(crate) fn attribute_lines(
    repo: &Repo,
    rules: &Rules,
    paths: &BTreeSet<RepoPath>,
) -> Result<(Vec<u8>, BTreeMap<RepoPath, String>), MergeError> {
    let (mut lines, mut drivers) = (Vec::new(), BTreeMap::new());
    for (path, attributes) in &attributes::read(repo, paths)? {
        let attribute = match rules.merge_style(attributes) {
            MergeStyle::Text => continue,
            MergeStyle::Union => " merge=union\n",
            MergeStyle::Binary => " -merge\n",
            MergeStyle::Driver(driver) => {
                drivers.insert(path.clone(), printable(driver.as_bytes()));
                " -merge\n"
            }
        };
        lines.extend(attribute_pattern(path));
        lines.extend_from_slice(attribute.as_bytes());
    }
    Ok((lines, drivers))
}

/// A line's start in an attributes file that matches exactly one path.
fn attribute_pattern(path: &RepoPath) -> Vec<u8> {
    let mut out = b"\"/".to_vec();
    for byte in path.as_bytes() {
        match byte {
            b'*' | b'?' | b'[' => out.extend([b'\\', b'\\', *byte]),
            b'\\' => out.extend(b"\\\\\\\\"),
            b'"' => out.extend(b"\\\""),
            0..=31 | 127 => out.extend(format!("\\{byte:03o}").into_bytes()),
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
    out
}

/// What `git merge-tree -z` prints.
struct MergeTree {
    tree: Oid,
    /// Path and what is said about it.
    conflicts: BTreeMap<Vec<u8>, String>,
}

impl MergeTree {
    /// `tree \0 (mode id stage \t path \0)* \0 (count \0 path… \0 kind \0 message \0)*`
    fn parse(output: &[u8]) -> Option<Self> {
        let mut fields = output.split(|b| *b == 0);
        let tree = Oid::parse(fields.next()?)?;
        let mut conflicts = BTreeMap::new();
        for record in fields.by_ref().take_while(|record| !record.is_empty()) {
            let tab = record.iter().position(|b| *b == b'\t')?;
            conflicts.insert(record[tab + 1..].to_vec(), "both sides changed it".to_owned());
        }
        while let Some(count) = fields.next().filter(|count| !count.is_empty()) {
            let count: usize = std::str::from_utf8(count).ok()?.parse().ok()?;
            let paths: Vec<_> = (0..count).map(|_| fields.next()).collect::<Option<_>>()?;
            let (kind, message) = (fields.next()?, fields.next()?);
            if kind.starts_with(b"CONFLICT") {
                let text = String::from_utf8_lossy(message);
                let text = text.trim().split_once("): ").map_or(text.trim(), |(_, text)| text);
                for path in paths {
                    conflicts.insert(path.to_vec(), printable(text.as_bytes()));
                }
            }
        }
        Some(Self { tree, conflicts })
    }
}

/// Makes a commit object.
pub(crate) fn commit_tree(
    repo: &Repo,
    tree: &str,
    parents: &[Oid],
    message: &str,
    identity: &Identity,
) -> Result<Oid, MergeError> {
    commit_as(repo, tree, parents, message, identity, identity)
}

/// The same, of somebody else's work.
pub(crate) fn commit_as(
    repo: &Repo,
    tree: &str,
    parents: &[Oid],
    message: &str,
    author: &Identity,
    committer: &Identity,
) -> Result<Oid, MergeError> {
    let mut git = repo.pure().args(["commit-tree", tree]);
    for parent in parents {
        git = git.arg("-p").arg(parent.to_string());
    }
    for (role, who) in [("AUTHOR", author), ("COMMITTER", committer)] {
        git = git.env(format!("GIT_{role}_NAME"), &who.name).env(format!("GIT_{role}_EMAIL"), &who.email);
        if let Some(date) = &who.date {
            git = git.env(format!("GIT_{role}_DATE"), date);
        }
    }
    parse_oid(&git.args(["-F", "-"]).stdin(format!("{}\n", message.trim_end())).line()?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_line_matches_its_path_only() {
        let pattern = |text: &[u8]| String::from_utf8(attribute_pattern(&RepoPath::parse(text).unwrap())).unwrap();
        assert_eq!(pattern(b"a b"), r#""/a b""#);
        assert_eq!(pattern(b"a*\n"), r#""/a\\*\012""#);
        assert_eq!(pattern(br#"a\""#), r#""/a\\\\\"""#);
    }

    #[test]
    fn conflicts_have_the_words_of_git() {
        let id = "d3a0ac4db630f50359a9722e6ae403db088a6538";
        let text = format!(
            "{id}\x00100644 {id} 1\ta\x00100644 {id} 2\ta\x00\x001\x00a\x00Auto-merging\x00Auto-merging a\n\x001\x00a\x00CONFLICT (contents)\x00CONFLICT (content): Merge conflict in a\n\x00"
        );
        let merged = MergeTree::parse(text.as_bytes()).unwrap();
        assert_eq!(
            merged.conflicts.into_iter().collect::<Vec<_>>(),
            [(b"a".to_vec(), "Merge conflict in a".to_owned())]
        );
    }
}
