//! The room `integrate`: brings a sandbox's commits into the host's working tree.
//!
//! What will be done is a value first ([`MergePlan`], [`EditsPlan`]); making it writes objects and
//! nothing else. [`apply`] then does it, or puts everything back.
//!
//! ```text
//!        B ── commit at the spawn        S ── the tree as it was captured (B + uncommitted changes)
//!       / \
//!      H   T ── tip of the sandbox       W, I ── working tree and index of the host, now
//!       \ /
//!        N ── what HEAD becomes
//!
//!   paths with H = N       not touched: neither the file nor its index entry
//!   W = H                  W becomes N
//!   W = N already          W stays, the index becomes N: clean
//!   else                   three-way merge of W and N over
//!                            S (on top of H)  if T was built on S for this path
//!                            H                otherwise
//!   any conflict           nothing is written at all
//! ```
//!
//! **No program is run for what a sandbox sent.** Trees are compared and merged in a bare scratch
//! repository without configuration, hooks or attributes that only borrows the host's objects. Line
//! ends are converted here as git would ([`eol`]), by the attributes that the host has before the
//! merge. A path whose attributes select a configured filter (LFS, git-crypt), `ident` with `$Id`, or
//! a `working-tree-encoding` is written only where the host's file is byte for byte the stored object
//! (so no conversion is in use there); otherwise the merge is refused, naming path and filter.
#![forbid(unsafe_code)]

mod apply;
mod attributes;
mod captured;
mod database;
mod decide;
mod describe;
mod edits;
pub mod eol;
mod error;
mod finish;
mod hooked;
mod index;
mod inspect;
mod lineage;
mod local;
mod matrix;
mod merger;
mod next;
mod objects;
mod path;
mod paths;
mod plan;
mod publish;
pub mod queue;
mod refs;
mod replay;
mod repo;
mod rerere;
mod resolve;
mod result;
pub mod review;
mod rewrite;
mod run;
mod several;
mod sparse;
mod threeway;
mod undo;
mod work;
mod worktree;

pub use apply::{Merged, apply};
pub use captured::{Captured, CapturedFile, Kind, Layers};
pub use edits::{Edit, EditsPlan, EditsRequest, Stash, StashRequest, apply_edits, plan_edits, stash, with_edits};
pub use error::{Conflict, Conflicts, MergeError, Reason};
pub use finish::{Draft, Editor, Signing, finish_commits};
pub use hooked::{landing_index, message_of};
pub use inspect::{
    Commit, DiffStat, FileStat, Form, Relation, commits, diffstat, diffstat_between, patch, patch_between, relation,
    status_paths,
};
pub use matrix::{Cache, Matrix, Pair, best_order, matrix};
pub use path::{Entry, Mode, RepoPath};
pub use plan::{FileAction, HeadMove, How, Identity, IndexAction, MergePlan, MergeRequest, PathPlan, What, Why, plan};
pub use publish::sweep;
pub use repo::{Operation, Repo};
pub use rerere::learn;
pub use resolve::{By, Choice, Choices, Resolved, Side, UNDECIDED};
pub use result::{result_pack, result_tree};
pub use review::{Finding, Grade};
pub use rewrite::{Became, Counterpart, GraphCommit, GraphLine, former, graph, range_diff, range_diff_text, rewritten};
pub use several::{Landed, LeftOut, SeveralPlan, plan_pick, plan_several, sides};
pub use undo::{Standing, can_restore, restore, settle, standing};

#[cfg(test)]
mod tests;
