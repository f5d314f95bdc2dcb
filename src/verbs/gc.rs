//! `gc`: removes from the store what nothing stands on. The plan is a value and is shown first.

use crate::cli;
use crate::context::Context;
use crate::error::Outcome;
use crate::text::{count, size};
use sandbox_core::store::{Store, write_whole};
use sandbox_core::{prune, removal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);

/// A half-made thing of this age was most likely left by a command that is dead.
const LEFT: Duration = Duration::from_secs(600);

/// How long a capture that is under way is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Its modification time is that of the last run.
fn stamp(store: &Store) -> PathBuf {
    store.root().join("last-gc")
}

fn age(path: &Path) -> Option<Duration> {
    SystemTime::now().duration_since(std::fs::metadata(path).and_then(|meta| meta.modified()).ok()?).ok()
}

/// Starts `gc --auto` in the background when the last run was more than a day ago, or when a command
/// that was interrupted has left something. A store that is new has nothing to remove.
pub fn start_auto(program: &Path, store: &Store) {
    let Some(last) = age(&stamp(store)) else {
        // A full disk or a clock that went back costs a run, not the start.
        let _ = write_whole(&stamp(store), b"", false);
        return;
    };
    let left = || {
        let entries = std::fs::read_dir(store.tmp()).into_iter().flatten().flatten();
        // What a sweep would leave alone must not start one with each spawn.
        let swept = entries.filter(|entry| removal::is_swept(&entry.file_name().to_string_lossy()));
        swept.filter_map(|entry| age(&entry.path())).any(|age| age > LEFT)
    };
    if last < DAY && !left() {
        return;
    }
    let _ = Command::new(program)
        .args(["gc", "--auto"])
        .env("GIT_SANDBOX_STATE", store.root())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
}

pub fn run(context: &Context, args: &cli::Gc) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    if args.auto && age(&stamp(&store)).is_some_and(|age| age < DAY) {
        removal::sweep(&store, PATIENCE)?;
        return Ok(0);
    }
    let plan = prune::plan(&store)?;
    // Marks and the like are no news.
    for item in plan.items.iter().filter(|item| item.bytes > 0) {
        println!("{} {} ({})", if args.dry_run { "would remove" } else { "remove" }, item.what, size(item.bytes));
    }
    if args.dry_run {
        match plan.bytes() {
            0 => eprintln!("there is nothing to remove"),
            bytes => eprintln!("{} would be free", size(bytes)),
        }
        return Ok(0);
    }
    let swept = removal::sweep(&store, PATIENCE)?;
    prune::apply(&store, &plan)?;
    write_whole(&stamp(&store), b"", false)?;
    match (plan.bytes(), swept) {
        (0, 0) => eprintln!("there was nothing to remove"),
        (bytes, 0) => eprintln!("freed {}", size(bytes)),
        (bytes, swept) => {
            let left = count(swept, "thing");
            eprintln!("freed {}, and removed {left} that an interrupted command left", size(bytes));
        }
    }
    Ok(0)
}
