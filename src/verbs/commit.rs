//! `commit`: commits, inside, what is not committed there; for agents that never do.

use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::start::connect_or_start;
use crate::text::escape;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_protocol::{Exec, ExitStatus, escape_bytes};
use std::os::unix::ffi::OsStrExt;

pub fn run(context: &Context, args: &cli::Commit) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    if !all(context, &store, &sandbox, &args.message)? {
        eprintln!("nothing to commit in '{}'", sandbox.name());
        return Ok(1);
    }
    eprint!("{}", super::fetch::bring(context, &store, &sandbox)?);
    Ok(0)
}

/// Adds and commits; its own statuses tell how far it came.
const SCRIPT: &str = r#"git add --all || exit 101
git diff --cached --quiet && exit 100
git commit --quiet -m "$1" || exit 102"#;
/// There is nothing to commit.
const NOTHING: i32 = 100;
/// `git add` failed.
const NOT_ADDED: i32 = 101;

/// Commits everything that is not ignored; false when there is nothing in any of its
/// repositories. It happens inside, with
/// the hooks and the identity of the sandbox.
pub fn all(context: &Context, store: &Store, sandbox: &Sandbox, message: &str) -> Result<bool, CliError> {
    let mut committed = false;
    for tree in sandbox.trees().filter(|tree| tree.mount().has_commits()) {
        committed |= in_tree(context, store, &tree, message)?;
    }
    Ok(committed)
}

/// In one of its repositories.
fn in_tree(context: &Context, store: &Store, sandbox: &Sandbox, message: &str) -> Result<bool, CliError> {
    let mut connection = connect_or_start(context, store, sandbox)?;
    // One session: a sandbox that was started for it ends with it.
    let argv = ["sh", "-c", SCRIPT, "commit", message].map(|arg| escape_bytes(arg.as_bytes())).into();
    let cwd = escape_bytes(sandbox.mount().worktree.as_os_str().as_bytes());
    let (status, out, err) = connection.run(Exec { argv, cwd, ..Exec::default() }, b"", 1 << 20)?;
    let what = match status {
        ExitStatus::Code(0) => return Ok(true),
        ExitStatus::Code(NOTHING) => return Ok(false),
        ExitStatus::Code(NOT_ADDED) => "add --all",
        _ => "commit",
    };
    let text = [out, err].concat();
    let which = super::trees::of_which(sandbox);
    let mut failure = CliError::new(format!("`git {what}` failed inside '{}'{which}", sandbox.name()));
    for line in String::from_utf8_lossy(&text).lines().filter(|line| !line.trim().is_empty()).take(20) {
        failure = failure.cause(escape(line));
    }
    Err(failure.hint(format!("`git sandbox shell {}` opens a shell to look at it", sandbox.name())))
}

/// `sandbox.autoCommit`, git's words for yes and no.
pub fn automatic(context: &Context) -> Result<bool, CliError> {
    let Some(text) = context.setting("sandbox.autoCommit") else { return Ok(false) };
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" | "" => Ok(false),
        _ => Err(CliError::new(format!("'{}' is not a value of sandbox.autoCommit", escape(&text)))
            .hint("it is true or false")),
    }
}
