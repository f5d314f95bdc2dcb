//! `rescue`: what is not committed in a sandbox becomes a commit in the vault, now.

use super::{fetch, stop};
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{age, count, escape, parse_duration, size};
use sandbox_core::connection::Connection;
use sandbox_core::copy_out;
use sandbox_core::kept::Rescue;
use sandbox_core::landing::bundle;
use sandbox_core::record::RESCUE_EVERY;
use sandbox_core::rescue::{self, Effort};
use sandbox_core::sandbox::{Sandbox, State};
use sandbox_core::store::Store;
use sandbox_sys::clock::unix_seconds;
use sandbox_sys::lock::FileLock;
use std::path::Path;
use std::time::Duration;

/// How long it may take when somebody waits for it.
const TIME: Duration = Duration::from_secs(120);

/// `sandbox.rescueEvery`: seconds, or a number with `s`, `m`, `h` or `d`.
pub fn every(context: &Context) -> Result<u64, CliError> {
    let Some(text) = context.setting("sandbox.rescueEvery") else { return Ok(RESCUE_EVERY) };
    parse_duration(text.trim()).ok_or_else(|| {
        CliError::new(format!("'{}' is not a value of sandbox.rescueEvery", escape(&text)))
            .hint("it is a time, for example 5m; 0 rescues only at the end of a command and of the sandbox")
    })
}

pub fn run(context: &Context, args: &cli::Rescue) -> Outcome {
    let store = context.store()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    if let Some(dir) = &args.to {
        return export(context, &sandbox, dir);
    }
    store.writable()?;
    let name = sandbox.name();
    let outcomes = now(context, &store, &sandbox)?;
    if outcomes.iter().all(|outcome| *outcome == rescue::Outcome::Clean) {
        eprintln!("nothing is uncommitted in '{name}'");
    }
    for outcome in &outcomes {
        match outcome {
            rescue::Outcome::Clean => {}
            rescue::Outcome::Same(rescue) => {
                eprintln!("nothing has changed since '{name}' was rescued: {}", words(rescue));
            }
            rescue::Outcome::Made(rescue) => eprintln!("rescued {}", words(rescue)),
        }
        for line in outcome.rescue().iter().flat_map(|rescue| &rescue.left_out) {
            eprintln!("warning: not in it: {}", escape(line));
        }
    }
    Ok(0)
}

/// Copies what is only its own: `files`, or `files-<n>` of its other trees, and a bundle of each repository's
/// commits. Reads no layer and no repository of the host. Status 1 when something was left out.
fn export(context: &Context, sandbox: &Sandbox, dir: &Path) -> Outcome {
    let shown = escape(&dir.to_string_lossy());
    std::fs::create_dir(dir).map_err(|error| {
        CliError::new(format!("cannot create '{shown}'"))
            .cause(error.to_string())
            .hint("it must be a new directory, in one that exists")
    })?;
    let dir = &std::path::absolute(dir).map_err(CliError::io(format!("find '{shown}'")))?;
    let whole: Vec<(usize, &Path)> = sandbox.trees().map(|tree| (tree.tree, Path::new(""))).collect();
    crate::picture::fresh_with(context, &context.store()?, sandbox, &whole)?;
    let numbered = |stem: &str, n: usize| if n == 0 { stem.to_owned() } else { format!("{stem}-{n}") };
    let mut complete = true;
    for tree in sandbox.trees() {
        let copied = copy_out::copy_changes(&tree, &dir.join(numbered("files", tree.tree)))?;
        for (path, why) in copied.skipped.iter().filter(|(path, _)| path != ".git") {
            complete = false;
            eprintln!("skipped '{}': {why}", escape(path));
        }
        if copied.skipped.iter().any(|(path, _)| path != ".git") {
            eprintln!("hint: what was skipped is still below '{}'", escape(&tree.upper().to_string_lossy()));
        }
        let of = escape(&tree.mount().worktree.to_string_lossy());
        eprintln!("copied {} of '{of}', {}", count(copied.files, "changed file"), size(copied.bytes));
    }
    let landings = sandbox.dir.path().join("landing");
    let mut names: Vec<_> = std::fs::read_dir(&landings).into_iter().flatten().flatten().collect();
    names.sort_by_key(std::fs::DirEntry::file_name);
    for (n, landing) in names.iter().enumerate() {
        let file = dir.join(format!("{}.bundle", numbered("commits", n)));
        match bundle(context.git()?, &landing.path(), &file) {
            Ok(true) => eprintln!("commits: '{}'", escape(&file.to_string_lossy())),
            Ok(false) => {}
            // What they stand on is gone.
            Err(error) => {
                complete = false;
                let failed = CliError::chain(&error);
                eprintln!(
                    "warning: its commits cannot be bundled: {}",
                    failed.causes.last().unwrap_or(&failed.message)
                );
            }
        }
    }
    let git = escape(&sandbox.upper().join(".git").to_string_lossy());
    eprintln!("hint: its own git directory is '{git}': look at it before any git reads its configuration");
    Ok(if complete { 0 } else { 1 })
}

/// Of one that runs, or by a helper of one that does not.
pub fn now(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<Vec<rescue::Outcome>, CliError> {
    let made = |connection: &mut Connection, effort: Effort| {
        rescue::run_all(connection, context.git()?, store, sandbox, effort).map_err(|error| failed(sandbox, &error))
    };
    if sandbox.state()? == State::Running
        && let Some(mut connection) = stop::live(sandbox)?
    {
        return made(&mut connection, Effort::live(TIME));
    }
    fetch::with_helper(context, store, sandbox, |connection| made(connection, Effort::helper(TIME)))
}

/// Of one that does not run and whose lock is held.
pub fn locked(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    lock: &FileLock,
) -> Result<Vec<rescue::Outcome>, CliError> {
    fetch::helper(context, store, sandbox, lock, |connection| {
        rescue::run_all(connection, context.git()?, store, sandbox, Effort::helper(TIME))
            .map_err(|error| failed(sandbox, &error))
    })
}

fn failed(sandbox: &Sandbox, error: &rescue::RescueError) -> CliError {
    let mut failure = CliError::new(format!("cannot rescue what is not committed in '{}'", sandbox.name())).status(1);
    let chain = CliError::chain(error);
    for cause in std::iter::once(chain.message).chain(chain.causes) {
        failure = failure.cause(cause);
    }
    failure.hint(format!("its files stay where they are: `git sandbox show {}`", sandbox.name()))
}

/// `5 files (3 min ago)`.
pub fn words(rescue: &Rescue) -> String {
    words_of(rescue.files, rescue.at)
}

/// The same of so many files, rescued at this time (Unix seconds).
pub fn words_of(files: u64, at: u64) -> String {
    let now = unix_seconds();
    let words = count(usize::try_from(files).unwrap_or(usize::MAX), "file");
    let words = if files == 0 { "a changed index".to_owned() } else { words };
    format!("{words} ({} ago)", age(now.saturating_sub(at)))
}
