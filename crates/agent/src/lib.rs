//! The agent: our process inside a sandbox. PID 1 there, the same program in every driver.
//!
//! ```text
//!            control channel (fd 3)
//!                  │
//!   ┌─ PID 1 ──────┴───────────────────────────────┐
//!   │ one poll loop (`server`)                     │
//!   │   sessions     pty or three pipes, credits   │──SCM_RIGHTS──► nursery ──► session leaders
//!   │   relay        /run/git-sandbox/agent.sock   │                (their parent is PID 1)
//!   │   reaping      of everything that is orphaned│
//!   │ two threads (`rename`)                       │◄──notifications of rename*── every session
//!   └──┬───────────────────────────────────────────┘
//!      └─► helper: the rename of one directory that overlayfs refuses
//! ```
//!
//! PID 1 is never dumpable, has the base filter and at most CAP_SYS_PTRACE of its own user
//! namespace. The *nursery* has no capability and the session filter, loaded once; everything that
//! a user runs descends from it. When the nursery is killed from inside (`kill -9 -1`), PID 1 makes
//! a new one. When the control channel closes, PID 1 ends and the kernel ends everything else.
#![forbid(unsafe_code)]

mod nursery;
mod picture;
mod refs;
mod relay;
mod rename;
mod repo_state;
mod rescue;
mod server;
mod session;
mod start;
mod wire;

pub use picture::{PictureError, picture};
pub use repo_state::{RepoStateError, repo_state};
pub use rescue::{RescueError, rescue};

use std::process::ExitCode;

/// Runs the agent until its control channel closes or it was told to shut down. What went wrong
/// before the first session is sent as `Error` on stream 0: there is no terminal to print to.
pub fn run() -> ExitCode {
    start::start_or_report().map_or(ExitCode::FAILURE, server::Server::run)
}
