//! The host tree becomes immutable layers: scan, manifest, delta, copy.
//!
//! Knows paths and files. Does not know git (an entry named `.git` is a boundary that is reported and
//! not entered; what is tracked or ignored is asked through predicates), nor the store's records
//! (layers have ids that are directory names).
//!
//! ```text
//!  host tree ── scan ── differences ── plan ── layer + manifest        capture()
//!                 ▲                                  │
//!                 └──────── compares with ───────────┘
//!  upper directory + manifest ── what a sandbox changed                changes()
//!  stack of layers ── one ordinary directory                           whole()
//!  any tree ── gone                                                    remove_tree()
//! ```
//!
//! | module | is for |
//! |---|---|
//! | `request` | what is asked and answered |
//! | `scan` | the parallel comparison with the manifest |
//! | `watched` | scanning only what a watcher names |
//! | `rules`, `secrets`, `limit` | what is left out |
//! | `layer` | copies, whiteouts, hard links; rounds; what a layer is put upon |
//! | `fold` | shortening a stack without a capture |
//! | `manifest` | the format, reading, building |
//! | `changes` | reading an upper directory, which may be hostile |
//! | `twin` | copying trees that may be hostile or written to, exactly |
//! | `whole` | a stack of layers as one ordinary directory |
//! | `remove` | deleting trees that may be hostile |

#![forbid(unsafe_code)]

mod capture;
mod changes;
mod describe;
mod estimate;
mod fold;
mod layer;
mod limit;
mod manifest;
mod paths;
mod reflink;
mod remove;
mod request;
mod rules;
mod scan;
mod secrets;
mod stat;
mod twin;
mod watched;
mod whole;

pub use capture::{capture, sync};
pub use changes::{Change, ChangeKind, ChangesError, changes, repositories, whole_changes};
pub use describe::describe;
pub use fold::{FOLD_AT, FoldPlan, FoldRequest, StackWeight, fold, plan as plan_fold, weigh};
pub use manifest::{CopyStat, Entry, MANIFEST, Manifest, ManifestError, Reason, TREE, Walk};
pub use reflink::shares_blocks;
pub use remove::remove_tree;
pub use request::{
    ANNOUNCED, CaptureError, CaptureRequest, Captured, Decision, Estimate, LeftOut, Limit, MAX_STACK, Progress,
    Rebased, Secrets, Stats,
};
pub use stat::{Kind, Stat, Time};
pub use twin::{Twin, TwinError, Twinned};
pub use watched::{Seen, Watch};
pub use whole::{Whole, WholeError, WholeRequest, restated, whole};
