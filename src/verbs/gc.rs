//! `gc`: removes from the store what nothing stands on. The plan is a value and is shown first.

use super::list::print_json;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{count, escape, parse_size, size};
use sandbox_core::prune::{Keep, PrunePlan};
use sandbox_core::store::{Store, write_whole};
use sandbox_core::trash::KEEP_DAYS;
use sandbox_core::{prune, removal};
use serde::Serialize;
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

/// `sandbox.cacheSize`: a size, a part of the file system in percent, or `none` for any size.
fn cache(context: &Context, store: &Store) -> Result<u64, CliError> {
    let tenth = prune::default_cache(store);
    let Some(text) = context.setting("sandbox.cacheSize") else { return Ok(tenth) };
    let percent = |text: &str| text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    let size = match text.strip_suffix('%') {
        _ if text == "none" => Some(u64::MAX),
        Some(part) => percent(part).map(|percent: f64| (tenth as f64 * percent / 10.0) as u64),
        None => parse_size(&text),
    };
    size.ok_or_else(|| {
        CliError::new(format!("'{}' is not a value of sandbox.cacheSize", escape(&text)))
            .hint("it is a size such as 20g, a part of the file system such as 5%, or none")
    })
}

/// `sandbox.trashExpiry`: days that a dropped sandbox is kept; `None`: it does not go by itself.
pub fn trash_days(context: &Context) -> Result<Option<u64>, CliError> {
    let Some(text) = context.setting("sandbox.trashExpiry") else { return Ok(Some(KEEP_DAYS)) };
    let days = match text.as_str() {
        "never" => Some(None),
        text => text.strip_suffix('d').unwrap_or(text).parse::<u64>().ok().filter(|days| *days > 0).map(Some),
    };
    days.ok_or_else(|| {
        CliError::new(format!("'{}' is not a value of sandbox.trashExpiry", escape(&text)))
            .hint("it is a number of days such as 30 or 90d, or never; `git sandbox trash empty` does it now")
    })
}

/// For how long a dropped sandbox is kept, in words. A setting that is none is told by `gc`.
pub fn kept_words(context: &Context) -> String {
    match trash_days(context).unwrap_or(Some(KEEP_DAYS)) {
        Some(1) => "for a day".into(),
        Some(days) => format!("for {days} days"),
        None => "until `git sandbox trash empty`".into(),
    }
}

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    dry_run: bool,
    remove: Vec<Removed<'a>>,
    remove_bytes: u64,
    /// What stays for the next spawns, and how much that may be.
    idle_bytes: u64,
    cache_bytes: u64,
    /// Days that a dropped sandbox is kept; null: it does not go by itself.
    trash_expiry_days: Option<u64>,
    /// Dropped sandboxes that stay.
    trash: Vec<Waiting<'a>>,
    /// Records that cannot be read: as long as there is one, what it may stand on stays.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    unread: &'a [PathBuf],
}

#[derive(Serialize)]
struct Waiting<'a> {
    name: &'a str,
    id: &'a str,
    /// The least days until it goes.
    days_left: Option<u64>,
}

#[derive(Serialize)]
struct Removed<'a> {
    kind: &'a str,
    what: &'a str,
    path: &'a Path,
    bytes: u64,
}

/// Prints the plan, before anything is done.
fn show(plan: &PrunePlan, keep: Keep, args: &cli::Gc) -> Result<(), CliError> {
    // Marks and the like are no news.
    let items = plan.items.iter().filter(|item| item.bytes > 0);
    if args.json {
        return print_json(&Report {
            version: 1,
            dry_run: args.dry_run,
            remove: items
                .map(|item| Removed { kind: item.kind, what: &item.what, path: &item.path, bytes: item.bytes })
                .collect(),
            remove_bytes: plan.bytes(),
            idle_bytes: plan.idle,
            cache_bytes: keep.cache,
            trash_expiry_days: keep.trash_days,
            trash: plan
                .trash
                .iter()
                .map(|one| Waiting { name: &one.name, id: one.id.as_str(), days_left: one.days_left })
                .collect(),
            unread: &plan.unread,
        });
    }
    for item in items {
        let verb = if args.dry_run { "would remove" } else { "remove" };
        println!("{verb} {} ({})", escape(&item.what), size(item.bytes));
    }
    Ok(())
}

pub fn run(context: &Context, args: &cli::Gc) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    if args.auto && age(&stamp(&store)).is_some_and(|age| age < DAY) {
        removal::sweep(&store, PATIENCE)?;
        return Ok(0);
    }
    let keep = Keep { cache: cache(context, &store)?, trash_days: trash_days(context)? };
    let plan = prune::plan(&store, keep)?;
    if let [first, more @ ..] = &plan.unread[..] {
        let others = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        eprintln!(
            "warning: no layer and no pack is removed, since '{}'{others} cannot be read; `git sandbox repair` tells the next step",
            escape(&first.to_string_lossy())
        );
    }
    show(&plan, keep, args)?;
    if args.dry_run {
        if !args.json {
            match plan.bytes() {
                0 => eprintln!("there is nothing to remove"),
                bytes => eprintln!("{} would be free", size(bytes)),
            }
            if plan.idle > 0 {
                let most = if keep.cache == u64::MAX { "any size".to_owned() } else { size(keep.cache) };
                eprintln!("kept for the next spawns: {} of at most {most} (sandbox.cacheSize)", size(plan.idle));
            }
            if !plan.trash.is_empty() {
                let next = match plan.trash.iter().filter_map(|one| one.days_left).min() {
                    Some(days) => {
                        format!("the next one goes in {}", count(usize::try_from(days).unwrap_or(usize::MAX), "day"))
                    }
                    None => "none goes by itself".to_owned(),
                };
                eprintln!(
                    "kept in the trash: {}, {next} (sandbox.trashExpiry)",
                    super::trash::dropped(plan.trash.len())
                );
            }
        }
        return Ok(0);
    }
    let swept = removal::sweep(&store, PATIENCE)?;
    prune::apply(&store, &plan)?;
    write_whole(&stamp(&store), b"", false)?;
    if args.json {
        return Ok(0);
    }
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
