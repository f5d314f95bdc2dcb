//! What a plan makes of the branch, for those who look at it before it is carried out.

use crate::error::MergeError;
use crate::inspect::tree_of;
use crate::repo::{Repo, parse_oid};
use sandbox_git::Oid;

/// The tree of a commit that a plan made; without a commit, the empty tree. Two results with the same tree have the
/// same files, whatever their commits say.
pub fn result_tree(repo: &Repo, commit: Option<Oid>) -> Result<Oid, MergeError> {
    parse_oid(&repo.pure().args(["rev-parse", "--verify", "--end-of-options", &tree_of(repo, commit)]).line()?)
}

/// A pack with all that a commit has and `known` has not, published or not.
pub fn result_pack(repo: &Repo, commit: Oid, known: Option<Oid>) -> Result<Vec<u8>, MergeError> {
    let mut revs = format!("{commit}\n");
    if let Some(known) = known {
        revs.push_str(&format!("^{known}\n"));
    }
    let args = ["pack-objects", "-q", "--revs", "--stdout", "--window=0", "--missing=allow-any"];
    Ok(repo.pure().args(args).stdin(revs).output()?.stdout)
}
