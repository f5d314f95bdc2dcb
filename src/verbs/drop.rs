//! `drop`: removes a sandbox once the host has its work.

use super::gc::kept_words;
use super::{fetch, rescue, stop};
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{count, escape_bytes, size};
use sandbox_core::checkpoint;
use sandbox_core::commit_back;
use sandbox_core::connection::ConnectionError;
use sandbox_core::id::SandboxId;
use sandbox_core::journal::{Operation, Verb, recover};
use sandbox_core::ops::{self, Deed, Log};
use sandbox_core::sandbox::{Sandbox, SandboxError, State};
use sandbox_core::store::Store;
use sandbox_core::trash::Contents;
use sandbox_core::work::{self, Unsaved};
use sandbox_core::{kept, removal, trash};
use sandbox_protocol::Message;
use sandbox_sys::lock::FileLock;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

/// Whether work that the host has not got stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// It does.
    No,
    /// It goes to the trash.
    Trash,
}

pub fn run(context: &Context, args: &cli::Drop) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    let force = if args.force { Force::Trash } else { Force::No };
    let mut refused = 0;
    // What an earlier drop was about to do is done now: there is nothing left to do.
    let finished = context.dropped.borrow().clone();
    let names: Vec<String> = args.names.iter().filter(|name| !finished.contains(name)).cloned().collect();
    if names.is_empty() && !args.names.is_empty() {
        return Ok(0);
    }
    let mut names = names;
    names.retain(|name| {
        let left = context.leaving.borrow().contains(name) && dropped_by_another(context, &store, name);
        if left {
            eprintln!("'{name}' was dropped by another command meanwhile");
        }
        !left
    });
    if names.is_empty() && !args.names.is_empty() {
        return Ok(0);
    }
    for sandbox in stop::chosen(context, &store, &names, args.all || args.merged)? {
        if args.merged && !args.names.iter().any(|name| name == sandbox.name()) && !merged(context, &store, &sandbox)? {
            continue;
        }
        match drop_one(context, &store, &sandbox, force) {
            Ok(told) => eprintln!("{told}"),
            // With several, one that is kept must not keep the others.
            Err(error) if args.all || args.names.len() > 1 => {
                error.print();
                refused += 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(if refused > 0 { 1 } else { 0 })
}

/// Waits until another command's drop of a sandbox is over: it is gone, or has come back. One that takes too long is
/// left to the lock of the sandbox.
fn dropped_by_another(context: &Context, store: &Store, name: &str) -> bool {
    let until = Instant::now() + Duration::from_secs(15);
    loop {
        let of_it = |operation: &Operation| operation.verb == Verb::Drop && operation.of.iter().any(|of| of == name);
        let under_way = recover::under_way(store).iter().any(of_it);
        if context.sandbox(store, name).is_ok() {
            return false;
        }
        if !under_way {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// It made commits, and all that it has is here.
fn merged(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<bool, CliError> {
    if sandbox.state()? == State::Running && busy(sandbox)? {
        return Ok(false);
    }
    fetch::bring(context, store, sandbox)?;
    crate::picture::fresh(context, store, sandbox)?;
    Ok(work::nothing_left(context.git()?, store, sandbox)?)
}

/// A user's command runs in it now.
fn busy(sandbox: &Sandbox) -> Result<bool, CliError> {
    let Some(mut connection) = stop::live(sandbox)? else { return Ok(false) };
    match connection.ask(&Message::AskStatus, 1 << 20) {
        Ok((Message::Status(status), _)) => Ok(!status.sessions.is_empty()),
        // It has just ended.
        Ok(_) | Err(ConnectionError::Closed) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Drops one and returns what is to be told, or says what would be lost.
pub fn drop_one(context: &Context, store: &Store, sandbox: &Sandbox, force: Force) -> Result<String, CliError> {
    let told = gone(context, store, sandbox, force)?;
    super::mirror::forget_session(context, sandbox);
    Ok(told)
}

fn gone(context: &Context, store: &Store, sandbox: &Sandbox, force: Force) -> Result<String, CliError> {
    let name = sandbox.name();
    if sandbox.state()? == State::Running {
        if force == Force::No && busy(sandbox)? {
            return Err(CliError::new(format!("cannot drop '{name}': a command runs in it"))
                .hint(format!(
                    "`git sandbox stop {name}` ends it; `--force` does both and keeps everything in the trash"
                ))
                .status(1));
        }
        stop::stop(sandbox, Duration::from_secs(2))?;
    }
    // From here on nobody starts it: what is found out below stays true until it is gone.
    let lock = match sandbox.take(sandbox.patience()) {
        // It was there when this command began.
        Err(SandboxError::Unknown { .. }) => return Ok(format!("'{name}' was dropped by another command meanwhile")),
        lock => lock?,
    };
    let brought = fetch::bring_locked(context, store, sandbox, &lock);
    if force == Force::No {
        brought?;
    }
    // Nor does anybody take away what the host is found to have: another drop, a merge that was cut off, an `undo`.
    let _here = match crate::changing::lock_all(context, store, sandbox) {
        Ok(locks) => Some(locks),
        // Everything is kept: whatever goes on there.
        Err(_) if force == Force::Trash => None,
        Err(error) => return Err(error),
    };
    if force == Force::No {
        crate::picture::fresh_locked(context, store, sandbox, &lock)?;
    }
    let unsaved = match work::unsaved(context.git()?, store, sandbox) {
        Ok(unsaved) => unsaved,
        // The host repository is gone: nothing of it is there, whatever it was.
        Err(_) if force == Force::Trash => Unsaved::unknown(),
        Err(error) => return Err(error.into()),
    };
    if force == Force::No && !unsaved.is_empty() {
        return Err(refusal(sandbox, &unsaved, &kept_words(context)));
    }
    let checkpoints = checkpoint::all(&sandbox.dir)?.len();
    if unsaved.is_empty() && checkpoints == 0 {
        // Before: one that is killed on its way has relied on what an `undo` could take away.
        log(store, sandbox, "dropped", |sandbox| Deed::Deleted { sandbox });
        removal::drop_saved(context.git()?, store, sandbox, lock)?;
        return Ok(format!("dropped '{name}'{}", ignored_words(&unsaved)));
    }
    let git = context.git()?;
    let mut contents = Contents::of(&unsaved);
    contents.not_kept = into_vault(context, store, sandbox, &lock).err().map(|error| {
        let causes = error.causes.iter().map(|cause| format!(": {cause}"));
        format!("{}{}", error.message, causes.collect::<String>())
    });
    let not_kept = contents.not_kept.clone();
    let discarded = trash::discard(store, sandbox, Some(contents), lock, |there| {
        log(store, there, "dropped into the trash", |sandbox| Deed::Trashed { sandbox });
        commit_back::remove_refs_if_there(git, store, there)
    })?;
    let only = not_kept.map(|why| format!("\nwarning: only its directory has everything: {why}")).unwrap_or_default();
    let left = discarded.refs_left.map(|error| {
        let error = CliError::from(error);
        let causes: String = error.causes.iter().map(|cause| format!(": {cause}")).collect();
        format!(
            "\nwarning: its refs are still here, and its name is not free: {}{causes}; the next command tries again",
            error.message
        )
    });
    let left = left.unwrap_or_default();
    let with = match checkpoints {
        0 => String::new(),
        n => format!(", with its {}", count(n, "checkpoint")),
    };
    Ok(format!(
        "dropped '{name}' into the trash{with}{only}{left}\nhint: `git sandbox trash restore {name}` brings it back {}",
        kept_words(context)
    ))
}

/// Notes it for `undo`. On a full disk it is how room is made: a note that cannot be written is no failure, and the
/// trash tells the same. What was noted and then did not come about is no operation ([`ops::Operation::came_about`]).
fn log(store: &Store, sandbox: &Sandbox, what: &str, deed: impl Fn(SandboxId) -> Deed) {
    let told = format!("{what}: '{}'", sandbox.name());
    let operation = ops::Operation::now("drop", told, vec![deed(sandbox.record.id.clone())]);
    // Wherever `undo` is asked.
    for mount in sandbox.record.repos.iter().filter(|mount| mount.has_commits()) {
        let _ = Log::of(&store.repo(&mount.repo)).add(&operation);
    }
}

/// Puts a copy of its commits and of what is not committed into the vault. The directory goes to the trash whether
/// that works or not, as it is: a full disk or what is in it must not be in the way.
fn into_vault(context: &Context, store: &Store, sandbox: &Sandbox, lock: &FileLock) -> Result<(), CliError> {
    let rescued = rescue::locked(context, store, sandbox, lock);
    for tree in sandbox.trees().filter(|tree| tree.mount().has_commits()) {
        kept::into_trash(context.git()?, store, &tree).map_err(|error| CliError::chain(&error))?;
    }
    rescued.map(drop)
}

fn ignored_words(unsaved: &Unsaved) -> String {
    match unsaved.ignored.first() {
        None => String::new(),
        Some(first) => format!(
            " (also lost: {}, {}, e.g. {})",
            count(unsaved.ignored.len(), "ignored file"),
            size(unsaved.ignored_bytes),
            escape_bytes(&first.path)
        ),
    }
}

fn refusal(sandbox: &Sandbox, unsaved: &Unsaved, kept: &str) -> CliError {
    let name = sandbox.name();
    let mut error = CliError::new(format!("cannot drop '{name}': the host has not got everything")).status(1);
    let in_directory =
        |change: &&work::ChangedFile| unsaved.directories.iter().any(|dir| change.as_path().starts_with(dir));
    let of_directories = unsaved.files.iter().filter(in_directory).count();
    if unsaved.commits > 0 {
        error = error.cause(format!(
            "{} only at refs/sandbox/{name}: no branch or tag here contains them",
            count(unsaved.commits, "commit")
        ));
    }
    for other in &unsaved.elsewhere {
        error = error.cause(crate::text::escape(other));
    }
    if !unsaved.files.is_empty() {
        let shown: Vec<String> =
            unsaved.files.iter().take(3).map(|change| format!("'{}'", escape_bytes(&change.path))).collect();
        let more = if unsaved.files.len() > 3 { ", …" } else { "" };
        error =
            error.cause(format!("{} not committed: {}{more}", count(unsaved.files.len(), "file"), shown.join(", ")));
    }
    if unsaved.commits > 0 {
        error =
            error.hint(format!("`git sandbox merge {name}` or `git sandbox branch {name} BRANCH` takes the commits"));
    }
    for directory in &unsaved.directories {
        let shown = escape_bytes(directory.as_os_str().as_bytes());
        error = error.hint(format!("`git sandbox cp {name}:{shown}/FILE .` takes files of '{shown}'"));
    }
    if unsaved.files.len() > of_directories {
        error = error.hint(format!(
            "`git sandbox apply {name}` takes the files, `git sandbox commit {name} -m MSG` commits them"
        ));
    }
    error.hint(format!("`git sandbox drop --force {name}` moves it to the trash {kept}"))
}
