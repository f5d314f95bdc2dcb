//! What the user's hooks see of a plan before it is carried out: its index, its objects, its message.

use crate::error::MergeError;
use crate::inspect::tree_of;
use crate::plan::MergePlan;
use crate::repo::Repo;
use crate::run::unexpected;
use sandbox_git::Oid;
use std::path::PathBuf;

/// Writes an index of the tree that HEAD becomes; returns it, and a directory with the objects that are not
/// the host's yet. Both last as long as `repo`.
pub fn landing_index(repo: &Repo, plan: &MergePlan) -> Result<(PathBuf, PathBuf), MergeError> {
    let index = repo.temp_path("landing.index");
    let tree = tree_of(repo, Some(plan.head.new));
    repo.pure().args(["read-tree", &tree]).env("GIT_INDEX_FILE", &index).run()?;
    Ok((index, repo.own_objects().to_owned()))
}

/// Returns the message of a commit as it was written; bytes that are not UTF-8 are replaced.
pub fn message_of(repo: &Repo, commit: Oid) -> Result<String, MergeError> {
    let text = repo.pure().args(["cat-file", "commit", &commit.to_string()]).output()?.stdout;
    let text = String::from_utf8_lossy(&text);
    match text.split_once("\n\n") {
        Some((_, message)) => Ok(message.to_owned()),
        None => Err(unexpected("git cat-file", text.as_bytes()).into()),
    }
}
