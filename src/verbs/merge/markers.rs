//! `merge --markers`: a merge that conflicts is left in progress here, with conflict markers in the files, as
//! `git merge` leaves it. The user's own git does it, without hooks, once what comes in was told.

use super::{count_are, not_merged};
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{count, escape_bytes};
use crate::verbs::list::print_json;
use crate::verbs::review;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_core::work;
use sandbox_integrate::{MergeError, Repo};
use serde::Serialize;
use std::path::Path;

/// Schema version 1: a merge that is in progress in the working tree.
#[derive(Serialize)]
struct Left<'a> {
    version: u32,
    name: &'a str,
    in_progress: bool,
    conflicts: Vec<String>,
}

/// Leaves the merge of a tree in progress. `refused` is why it cannot be done whole; anything but a conflict of
/// commits is returned as it is.
pub fn leave(
    context: &Context,
    store: &Store,
    args: &cli::Merge,
    tree: &Sandbox,
    repo: &Repo,
    refused: MergeError,
) -> Outcome {
    let of_commits =
        matches!(&refused, MergeError::Conflicts { conflicts, .. } if super::inside::of_commits(conflicts));
    let tip = work::tip(context.git()?, store, tree)?;
    let (true, Some(tip)) = (of_commits, tip) else {
        return Err(not_merged(context, store, tree, repo, refused, args.json)?);
    };
    let (name, here) = (tree.name(), repo.worktree());
    clean(context, here)?;
    let mut findings = review::of_commits(context, store, tree)?;
    review::tell(context, &mut findings)?;
    if !review::agreed(context, &findings, ("merge --markers", name), args.yes)? {
        return Err(review::declined());
    }
    let message = args.message.clone().unwrap_or_else(|| format!("Merge sandbox '{name}'"));
    let merge = context.git()?.user(here).config("core.hooksPath=/dev/null");
    // Whatever git can do by itself is not committed either: one thing to look at.
    let merge = merge.args(["merge", "--no-ff", "--no-commit", "--no-verify", "-m", &message, &tip.to_string()]);
    let (status, output) = merge.try_output()?;
    let began = repo.gitdir().join("MERGE_HEAD").exists();
    if !began {
        let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
        return Err(CliError::new(format!(
            "git did not begin the merge of '{name}' (status {})",
            status.code().unwrap_or(-1)
        ))
        .cause(escape_bytes(said.trim_ascii()))
        .hint(format!("nothing was written; `git sandbox merge --into-sandbox {name}` resolves it elsewhere")));
    }
    let paths = context.git()?.user(here).args(["diff", "--name-only", "--diff-filter=U", "-z"]).output()?.stdout;
    let paths: Vec<&[u8]> = paths.split(|byte| *byte == 0).filter(|path| !path.is_empty()).collect();
    if args.json {
        let conflicts = paths.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
        print_json(&Left { version: 1, name, in_progress: true, conflicts })?;
    }
    eprintln!("the merge of '{name}' is in progress here: {} with conflicts", count(paths.len(), "file"));
    for path in paths {
        eprintln!("  {}", escape_bytes(path));
    }
    eprintln!("hint: resolve them, `git add` each and `git commit`; `git merge --abort` takes the merge back");
    Ok(1)
}

/// What is uncommitted in tracked files would be mixed with the merge, and `git merge --abort` could not tell them apart.
fn clean(context: &Context, here: &Path) -> Result<(), CliError> {
    let status = context.git()?.user(here).args(["status", "--porcelain", "-z", "--untracked-files=no"]).output()?;
    let files = status.stdout.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()).count();
    if files == 0 {
        return Ok(());
    }
    Err(CliError::new(format!(
        "{} not committed here: a merge with conflict markers would mix with it",
        count_are(files)
    ))
    .hint("nothing was written; commit it or `git stash` it first"))
}
