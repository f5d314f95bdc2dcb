//! What each refusal says: its object, the next step, its status, and that nothing is left half
//! made. The contract suite has the errors that depend on a driver; here are the others.
//!
//! ```text
//! usage    wrong arguments and values: 129, before anything is touched
//! settings of the user and of the repository
//! places   where a command is started, and what is there
//! names    of sandboxes that are not there, or are there twice
//! life     of a sandbox in the wrong state
//! agents   presets, logins, rules of the network, many at once
//! landing  merge, apply, branch, commit, drop, trash, cp
//! together several sandboxes, checks, checkpoints, undo
//! network  logs, events, and what a network may reach
//! inside   what is said in a sandbox
//! with     what cannot come along
//! meanwhile  what another command, a terminal or the machine is in the way of
//! ```

#[path = "errors/agents.rs"]
mod agents;
#[path = "errors/inside.rs"]
mod inside;
#[path = "errors/landing.rs"]
mod landing;
#[path = "errors/life.rs"]
mod life;
#[path = "errors/meanwhile.rs"]
mod meanwhile;
#[path = "errors/network.rs"]
mod network;
#[path = "errors/places.rs"]
mod places;
#[path = "errors/together.rs"]
mod together;
#[path = "errors/usage.rs"]
mod usage;
#[path = "errors/with.rs"]
mod with;

use sandbox_testkit::{Output, Repo, State, TestEnv};
use std::fs;

/// A plain repository at `home/src/repo`.
fn plain(env: &TestEnv) -> Repo<'_> {
    State::Plain.build(env, "repo")
}

/// `git sandbox spawn <args> -- sh -c <script>`.
#[track_caller]
fn spawn(repo: &Repo, args: &[&str], script: &str) -> Output {
    repo.sandbox(&[&["spawn"], args, &["--", "sh", "-c", script]].concat())
}

/// After a refusal there is no sandbox, no ref, no process, and nothing under `tmp`.
#[track_caller]
fn nothing_half_made(repo: &Repo) {
    let names = |dir: &str| {
        let entries = fs::read_dir(repo.env().state().join(dir)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("sandboxes"), [""; 0]);
    assert_eq!(names("tmp"), [""; 0]);
    assert_eq!(names("trash"), [""; 0]);
    assert_eq!(repo.git(&["for-each-ref", "refs/sandbox", "refs/sandbox-meta"]).stdout, "");
    assert!(repo.env().live_processes().is_empty());
}
