//! Running a command on something before it lands: on the result of a merge (`merge --check`), on what each of
//! several sandboxes made (`run --best-of --check`).
//!
//! ```text
//! command ─ which command: the flag, the user's setting, what the repository asks for
//! fresh   ─ a sandbox of the host's captured tree, for one command
//! runner  ─ several of them at once: each is a process of ours (`__check`) that ends with us
//! task    ─ what that process is told, and what it answers
//! egress  ─ what lets it out, where there are rules for that
//! kept    ─ the output of a check that failed
//! ```
//!
//! Nothing of it has a name: no verb sees it, and when this process is gone, so is all of it.

pub mod command;
pub mod egress;
pub mod fresh;
pub mod kept;
pub mod runner;
pub mod task;
