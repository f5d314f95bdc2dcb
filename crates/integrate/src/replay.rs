//! Putting commits on top of another one, one by one: rebase and cherry-pick, in the object database.

use crate::attributes::Rules;
use crate::error::{Conflict, MergeError};
use crate::next::{commit_as, merge_commits};
use crate::plan::Identity;
use crate::repo::{Repo, parse_oid};
use crate::run::unexpected;
use sandbox_git::Oid;

/// What came of it.
pub(crate) struct Replayed {
    /// The last commit.
    pub commit: Oid,
    /// Commits that were put on top.
    pub commits: u64,
}

/// Where it stopped.
pub(crate) struct Stopped {
    pub at: Oid,
    pub conflicts: Vec<Conflict>,
}

/// One commit as it is put on top of another.
struct Original {
    id: Oid,
    parents: Vec<Oid>,
    author: Identity,
    message: String,
}

/// Puts `commits`, the oldest first, on top of `onto`. Author and message stay; a commit that changes
/// nothing there is left out. `note` adds a line that names the original, as `git cherry-pick -x`.
pub(crate) fn replay(
    repo: &Repo,
    rules: &Rules,
    onto: Oid,
    commits: &[Oid],
    committer: &Identity,
    note: bool,
) -> Result<Result<Replayed, Stopped>, MergeError> {
    let (mut now, mut made) = (onto, 0);
    for original in originals(repo, commits)? {
        let base = original.parents.first().copied();
        let tree = match merge_commits(repo, Some(base), now, original.id, rules)? {
            Ok(tree) => tree.to_string(),
            Err(conflicts) => return Ok(Err(Stopped { at: original.id, conflicts })),
        };
        if repo.pure().args(["rev-parse", &format!("{now}^{{tree}}")]).line()? == tree {
            continue;
        }
        let mut message = original.message.trim_end().to_owned();
        if note {
            message += &format!("\n\n(cherry picked from commit {})", original.id);
        }
        now = commit_as(repo, &tree, &[now], &message, &original.author, committer)?;
        made += 1;
    }
    Ok(Ok(Replayed { commit: now, commits: made }))
}

/// Reads commits in the order in which they are named.
fn originals(repo: &Repo, commits: &[Oid]) -> Result<Vec<Original>, MergeError> {
    let mut all = Vec::new();
    for id in commits {
        let args = ["log", "-1", "--no-show-signature", "--no-mailmap", "--no-notes", "--date=raw"];
        let format = "--format=%P%x00%an%x00%ae%x00%ad%x00%B";
        let output = repo.pure().args(args).args([format, &id.to_string(), "--"]).output()?.stdout;
        let text = String::from_utf8_lossy(&output);
        let bad = || unexpected("git log", &output);
        let mut fields = text.splitn(5, '\0');
        let mut field = || fields.next().ok_or_else(bad);
        let parents = field()?.split_whitespace().map(parse_oid).collect::<Result<_, _>>()?;
        let (name, email, date) = (field()?.to_owned(), field()?.to_owned(), field()?);
        let author = Identity { name, email, date: Some(format!("@{date}")) };
        all.push(Original { id: *id, parents, author, message: field()?.to_owned() });
    }
    Ok(all)
}
