//! Sandboxes as values and as state on disk. Knows no terminal, no `$HOME`, no driver.
//!
//! ```text
//! capture ─► stack ─► launch ─► work ─► commit-back ─► integrate ─► drop
//! ```
#![forbid(unsafe_code)]

pub mod assemble;
pub mod auto_commit;
pub mod brought;
pub mod check;
pub mod checkpoint;
pub mod commit_back;
pub mod connection;
pub mod copy_out;
pub mod days;
pub mod directory;
pub mod driver;
pub mod fold;
pub mod fork;
pub mod gitdir;
pub mod host_repo;
pub mod host_view;
pub mod id;
pub mod journal;
pub mod kept;
pub mod landing;
pub mod launch;
pub mod made_inside;
pub mod mirror_record;
pub mod names;
pub mod ops;
pub mod orphan;
pub mod picture;
pub mod prepare;
pub mod prune;
mod pulse;
pub mod record;
pub mod removal;
pub mod repair;
pub mod rescue;
pub mod sandbox;
pub mod served;
pub mod space;
pub mod store;
mod sum;
pub mod trash;
pub mod tree_view;
pub mod units;
pub mod view;
pub mod watch;
pub mod whole;
pub mod work;
