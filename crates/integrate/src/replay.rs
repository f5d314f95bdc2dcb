//! Putting commits on top of another one, one by one: rebase and cherry-pick, in the object database.

use crate::database::Stored;
use crate::error::{Conflict, MergeError};
use crate::merger::{Merger, Over};
use crate::plan::MergeRequest;
use crate::repo::Repo;
use crate::resolve::{Resolved, resolve};
use crate::run::unexpected;
use sandbox_git::Oid;

/// What came of it.
pub(crate) struct Replayed {
    /// The last commit.
    pub commit: Oid,
    /// Commits that were put on top.
    pub commits: u64,
    /// Conflicts that were resolved on the way.
    pub resolved: Vec<Resolved>,
}

/// Where it stopped.
pub(crate) struct Stopped {
    pub at: Oid,
    pub conflicts: Vec<Conflict>,
}

/// Puts `commits`, the oldest first, on top of `onto`. Author and message stay; a commit that changes
/// nothing there is left out. `note` adds a line that names the original, as `git cherry-pick -x`.
pub(crate) fn replay(
    merger: &mut Merger<'_>,
    onto: Oid,
    commits: &[Oid],
    request: &MergeRequest<'_>,
    note: bool,
) -> Result<Result<Replayed, Stopped>, MergeError> {
    let repo = merger.repo();
    merger.know(commits.iter().copied())?;
    let mut now = (onto, repo.commit(onto)?.tree);
    let (mut made, mut resolved) = (0, Vec::new());
    for id in commits.iter().copied() {
        let original = original(repo, id)?;
        let base = original.parents.first().copied();
        let tree = match merger.merge(Over::This(base), now.0, id)? {
            Ok(tree) => tree,
            Err(unclean) => match resolve(merger, request.choices, unclean)? {
                Ok((tree, more)) => {
                    resolved.extend(more);
                    tree
                }
                Err(conflicts) => return Ok(Err(Stopped { at: id, conflicts })),
            },
        };
        if now.1 == tree {
            continue;
        }
        let mut message = original.text().trim_end().to_owned();
        if note {
            message += &format!("\n\n(cherry picked from commit {id})");
        }
        let commit = Stored::new(tree, &[now.0], &message, original.author, request.identity);
        now = (repo.write_commit(&commit)?, tree);
        made += 1;
    }
    Ok(Ok(Replayed { commit: now.0, commits: made, resolved }))
}

/// Reads a commit, its text in UTF-8.
fn original(repo: &Repo, id: Oid) -> Result<Stored, MergeError> {
    let stored = repo.commit(id)?;
    if !stored.encoded {
        return Ok(stored);
    }
    let args = ["log", "-1", "--no-show-signature", "--no-mailmap", "--no-notes", "--encoding=UTF-8", "--date=raw"];
    let format = "--format=%an <%ae> %ad%x00%B";
    let output = repo.pure().args(args).args([format, &id.to_string(), "--"]).output()?.stdout;
    let (author, message) = output
        .iter()
        .position(|b| *b == 0)
        .map(|at| output.split_at(at))
        .ok_or_else(|| unexpected("git log", &output))?;
    Ok(Stored { author: author.to_vec(), message: message[1..].to_vec(), encoded: false, ..stored })
}
