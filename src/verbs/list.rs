//! `list`: what there is, one line each.

use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{age, escape, size, table, tilde};
use sandbox_core::sandbox::{Sandbox, State};
use sandbox_core::store::Store;
use sandbox_core::work;
use serde::Serialize;
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// One sandbox as `list --json` and `show --json` tell it. Schema version 1.
#[derive(Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub id: String,
    pub state: &'static str,
    pub driver: String,
    /// The repository's work tree on the host.
    pub worktree: PathBuf,
    /// Unix seconds.
    pub created: u64,
    pub age_seconds: u64,
    /// The main command; empty for an idle sandbox or a shell.
    pub command: Vec<String>,
    /// The status of the main command, once it has ended.
    pub exit_status: Option<i32>,
    /// Unix seconds at which it ended.
    pub exited: Option<u64>,
    pub timed_out: bool,
    /// The branch that was checked out at the spawn.
    pub branch: Option<String>,
    /// Commits that it made and that this repository has.
    pub commits_ahead: usize,
    /// The branch cannot fast-forward to them.
    pub rewritten: bool,
    /// Files that differ from the captured state and from what was committed.
    pub uncommitted: usize,
    /// Bytes of its own on disk.
    pub disk_bytes: u64,
    /// Bytes of memory of its processes.
    pub memory_bytes: u64,
    /// Seconds since the last output of the main command.
    pub silent_seconds: Option<u64>,
}

#[derive(Serialize)]
struct Listing {
    version: u32,
    sandboxes: Vec<Row>,
}

pub fn run(context: &Context, args: &cli::List) -> Outcome {
    let store = context.store()?;
    let everywhere = args.all || context.maybe_repo().is_none();
    let sandboxes = if everywhere {
        Sandbox::all(&store, None)?
    } else {
        match context.repo_id(&store)? {
            Some(repo) => Sandbox::all(&store, Some(&repo))?,
            None => Vec::new(),
        }
    };
    let memory = memory_by_namespace();
    let rows: Vec<Row> =
        sandboxes.iter().map(|sandbox| row(context, &store, sandbox, &memory)).collect::<Result<_, _>>()?;
    if args.json {
        print_json(&Listing { version: 1, sandboxes: rows })?;
        return Ok(0);
    }
    if rows.is_empty() {
        eprintln!("no sandboxes{}", if everywhere { "" } else { " of this repository" });
        eprintln!("hint: `git sandbox spawn` makes one");
        return Ok(0);
    }
    let mut lines = vec![
        ["NAME", "STATE", "AGE", "BRANCH", "COMMITS", "UNCOMMITTED", "DISK", "MEMORY", "COMMAND"]
            .map(str::to_owned)
            .to_vec(),
    ];
    if everywhere {
        lines[0].insert(1, "REPOSITORY".into());
    }
    for row in &rows {
        let mut cells = vec![
            row.name.clone(),
            state_words(row),
            age(row.age_seconds),
            row.branch.as_deref().map_or("-".into(), escape),
            if row.commits_ahead == 0 {
                "-".into()
            } else {
                format!("{}{}", row.commits_ahead, if row.rewritten { " rewritten" } else { "" })
            },
            if row.uncommitted == 0 { "-".into() } else { row.uncommitted.to_string() },
            size(row.disk_bytes),
            if row.memory_bytes == 0 { "-".into() } else { size(row.memory_bytes) },
            command_words(row),
        ];
        if everywhere {
            cells.insert(1, tilde(&row.worktree, &context.home));
        }
        lines.push(cells);
    }
    print!("{}", table(&lines));
    Ok(0)
}

/// Prints a value as JSON, with a line break at its end.
pub fn print_json<T: Serialize>(value: &T) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::new("cannot write JSON").cause(error.to_string()))?;
    println!("{text}");
    Ok(())
}

/// `running, silent 4m`, `exited 1 3m ago`, `stopped`, …
pub fn state_words(row: &Row) -> String {
    let now = now();
    match (row.state, row.exit_status, row.exited) {
        ("running", None, _) => match row.silent_seconds {
            Some(silent) if silent >= 60 => format!("running, silent {}", age(silent)),
            _ => "running".into(),
        },
        ("running", Some(_), _) => "running".into(),
        ("stopped", Some(_), Some(at)) if row.timed_out => format!("timed out {} ago", age(now.saturating_sub(at))),
        ("stopped", Some(status), Some(at)) => format!("exited {status} {} ago", age(now.saturating_sub(at))),
        (state, ..) => state.to_owned(),
    }
}

fn command_words(row: &Row) -> String {
    let text = escape(&row.command.join(" "));
    if text.chars().count() > 40 { text.chars().take(39).chain(['…']).collect() } else { text }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(0)
}

/// Gathers everything about one sandbox. What cannot be known (the host repository is gone) is zero.
pub fn row(context: &Context, store: &Store, sandbox: &Sandbox, memory: &HashMap<u64, u64>) -> Result<Row, CliError> {
    let status = sandbox.status()?;
    let state = sandbox.state_of(&status);
    let record = &sandbox.record;
    let snapshot = sandbox.snapshot(store, 0).ok();
    let commits = work::commits_on_host(context.git()?, store, sandbox).unwrap_or_default();
    let uncommitted = work::uncommitted_now(context.git()?, store, sandbox).map(|left| left.files.len()).unwrap_or(0);
    let silent = (state == State::Running && status.exited.is_none() && !record.argv.is_empty())
        .then(|| std::fs::metadata(sandbox.dir.log()).ok())
        .flatten()
        .map(|meta| now().saturating_sub(meta.mtime() as u64));
    Ok(Row {
        name: sandbox.name().to_owned(),
        id: record.id.to_string(),
        state: state.as_str(),
        driver: record.driver.clone(),
        worktree: record.repos.first().map(|mount| mount.worktree.clone()).unwrap_or_default(),
        created: record.created,
        age_seconds: now().saturating_sub(record.created),
        command: record.argv.clone(),
        exit_status: status.exited.map(|(exit, _)| if status.timed_out { 124 } else { exit.shell() }),
        exited: status.exited.map(|(_, at)| at),
        timed_out: status.timed_out,
        branch: snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.git.branch.as_ref())
            .map(|branch| branch.strip_prefix("refs/heads/").unwrap_or(branch).to_owned()),
        commits_ahead: commits.ahead,
        rewritten: commits.rewritten,
        uncommitted,
        disk_bytes: work::disk(sandbox),
        memory_bytes: status
            .init
            .as_ref()
            .filter(|_| state == State::Running)
            .and_then(|init| namespace_of(init.pid))
            .and_then(|ns| memory.get(&ns))
            .copied()
            .unwrap_or(0),
        silent_seconds: silent,
    })
}

/// Bytes of resident memory of all processes, by pid namespace (its inode). Processes that we may not look at are left out.
pub fn memory_by_namespace() -> HashMap<u64, u64> {
    let mut sums = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Some(namespace) = namespace_of(pid) else { continue };
        let pages = std::fs::read_to_string(format!("/proc/{pid}/statm"))
            .ok()
            .and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok())
            .unwrap_or(0);
        *sums.entry(namespace).or_insert(0) += pages * rustix::param::page_size() as u64;
    }
    sums
}

/// The pid namespace that a process's children are in; for the sandbox's first process (not
/// dumpable, so not readable for an ordinary user) that of its parent's view.
fn namespace_of(pid: u32) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/pid")).ok().map(|meta| meta.ino())
}
