//! Conflicts of commits that the user has decided before: a side that was asked for, or a resolution that git
//! recorded here (`rerere`).

use crate::edits::write_tree;
use crate::error::{Conflict, MergeError, Reason};
use crate::merger::{Merger, Unclean};
use crate::path::{Entry, RepoPath};
use crate::repo::Repo;
use crate::rerere;
use crate::run::Answer;
use sandbox_git::Oid;
use serde::Serialize;

/// A side of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// What is here.
    Ours,
    /// What the sandbox has.
    Theirs,
}

/// A side that wins where both changed the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which.
    pub side: Side,
    /// In this file, or below this directory; `None`: everywhere.
    pub path: Option<RepoPath>,
}

/// What the user has decided about conflicts of commits.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// Sides. The most exact path decides; of equal ones the last.
    pub sides: Vec<Choice>,
    /// Resolutions that git recorded (`rr-cache`) are not used, even if `rerere` is on.
    pub no_rerere: bool,
}

/// Nothing was decided.
pub static UNDECIDED: Choices = Choices { sides: Vec::new(), no_rerere: false };

impl Choices {
    /// The side that was asked for.
    fn side(&self, path: &RepoPath) -> Option<Side> {
        let fits = |choice: &&Choice| choice.path.as_ref().is_none_or(|of| of == path || path.is_below(of));
        let length = |choice: &&Choice| choice.path.as_ref().map_or(0, |path| path.as_bytes().len() + 1);
        self.sides.iter().filter(fits).max_by_key(length).map(|choice| choice.side)
    }
}

/// What decided a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// What is here won.
    Ours,
    /// What the sandbox has won.
    Theirs,
    /// As it was resolved before.
    Recorded,
}

/// A conflict that was resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resolved {
    /// The path.
    pub path: RepoPath,
    /// By what.
    pub by: By,
}

/// Kinds of conflicts in which what git has of both sides is what they are: in others it has put conflicts of
/// conflicts there, or names that neither side has.
const PLAIN: [&str; 4] =
    ["CONFLICT (contents)", "CONFLICT (binary)", "CONFLICT (modify/delete)", "CONFLICT (rename/delete)"];

/// A tree in which every conflict is resolved, and how; or what is left.
pub(crate) type Settled = Result<(Oid, Vec<Resolved>), Vec<Conflict>>;

/// Resolves what was decided. All of it, or nothing.
pub(crate) fn resolve(merger: &Merger<'_>, choices: &Choices, unclean: Unclean) -> Result<Settled, MergeError> {
    let repo = merger.repo();
    let mut recorded = match rerere::cache(repo, merger.rules()) {
        Some(cache) if !choices.no_rerere => rerere::known(repo, &cache, &unclean)?,
        _ if choices.sides.is_empty() => return Ok(Err(unclean.conflicts)),
        _ => Default::default(),
    };
    let (mut changes, mut resolved, mut left) = (Vec::new(), Vec::new(), Vec::new());
    for conflict in &unclean.conflicts {
        let path = &conflict.path;
        let stages = unclean.stages.get(path).copied().unwrap_or_default();
        let plain = unclean.kinds.get(path).is_some_and(|kinds| kinds.iter().all(|kind| PLAIN.contains(&&**kind)));
        let (entry, by) = match (choices.side(path).filter(|_| plain), recorded.remove(path)) {
            (Some(side), _) => {
                let by = if side == Side::Ours { By::Ours } else { By::Theirs };
                let text = !matches!(conflict.reason, Reason::Driver { .. });
                (take(repo, side, stages, text)?, by)
            }
            (None, Some(content)) => {
                let id = repo.write_blob(&content)?;
                (mode(Side::Ours, stages).map(|mode| Entry { mode, id }), By::Recorded)
            }
            (None, None) => {
                left.push(conflict.clone());
                continue;
            }
        };
        changes.push((path, entry));
        resolved.push(Resolved { path: path.clone(), by });
    }
    if !left.is_empty() {
        return Ok(Err(left));
    }
    // What goes makes room for what comes.
    changes.sort_by_key(|(_, entry)| entry.is_some());
    Ok(Ok((write_tree(repo, Some(&unclean.tree.to_string()), &changes)?, resolved)))
}

/// The mode of a merged file: what one side changed, else what the favoured side has.
fn mode(favoured: Side, [base, ours, theirs]: [Option<Entry>; 3]) -> Option<crate::Mode> {
    let (ours, theirs, base) = (ours.map(|e| e.mode), theirs.map(|e| e.mode), base.map(|e| e.mode));
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if Some(ours) == base => Some(theirs),
        (Some(ours), Some(theirs)) if Some(theirs) == base => Some(ours),
        (Some(ours), Some(theirs)) => Some(if favoured == Side::Ours { ours } else { theirs }),
        (ours, theirs) => ours.or(theirs),
    }
}

/// What a path becomes when one side wins. Of two texts only where they overlap, as `git merge -X` does; else the
/// whole of it.
fn take(repo: &Repo, side: Side, stages: [Option<Entry>; 3], text: bool) -> Result<Option<Entry>, MergeError> {
    let [base, ours, theirs] = stages;
    let whole = if side == Side::Ours { ours } else { theirs };
    let (Some(ours), Some(theirs)) = (ours, theirs) else { return Ok(whole) };
    if !text || !ours.mode.is_file() || !theirs.mode.is_file() || base.is_some_and(|base| !base.mode.is_file()) {
        return Ok(whole);
    }
    let read = |entry: Option<Entry>| -> Result<Vec<u8>, MergeError> {
        Ok(match entry {
            Some(entry) => repo.object(&entry.id.to_string())?.map(|(.., content)| content).unwrap_or_default(),
            None => Vec::new(),
        })
    };
    let contents = [read(Some(ours))?, read(base)?, read(Some(theirs))?];
    if contents.iter().any(|content| crate::threeway::is_binary(content)) {
        return Ok(whole);
    }
    let files = [repo.temp_file(&contents[0])?, repo.temp_file(&contents[1])?, repo.temp_file(&contents[2])?];
    let favour = if side == Side::Ours { "--ours" } else { "--theirs" };
    let mut git = repo.pure().args(["merge-file", "-p", "-q", favour]);
    if repo.merge_file_has_algorithm()? {
        // As the merge itself compared them.
        git = git.arg("--diff-algorithm=histogram");
    }
    let answer = Answer::of(git.args(files.iter().map(|file| file.path())))?;
    if answer.code() != Some(0) {
        return Err(answer.failed().into());
    }
    let id = repo.write_blob(&answer.stdout())?;
    Ok(mode(side, stages).map(|mode| Entry { mode, id }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_exact_path_decides() {
        let path = |text: &str| RepoPath::parse(text.as_bytes()).unwrap();
        let choice = |side, of: &str| Choice { side, path: (!of.is_empty()).then(|| path(of)) };
        let choices = |sides: &[(Side, &str)]| Choices {
            sides: sides.iter().map(|(side, of)| choice(*side, of)).collect(),
            no_rerere: false,
        };
        let all = choices(&[(Side::Ours, "src"), (Side::Theirs, ""), (Side::Theirs, "src/a.c")]);
        assert_eq!(all.side(&path("src/a.c")), Some(Side::Theirs));
        assert_eq!(all.side(&path("src/b.c")), Some(Side::Ours));
        assert_eq!(all.side(&path("src-b.c")), Some(Side::Theirs));
        assert_eq!(choices(&[(Side::Ours, "src")]).side(&path("lib")), None);
        assert_eq!(choices(&[(Side::Ours, ""), (Side::Theirs, "")]).side(&path("x")), Some(Side::Theirs));
    }
}
