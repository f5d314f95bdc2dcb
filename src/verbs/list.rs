//! `list`: what there is, one line each.

use crate::cli;
use crate::context::Context;
use crate::damaged::{self, Damaged};
use crate::error::{CliError, Outcome};
use crate::text::{age, escape, size, table, tilde};
use sandbox_core::id::RepoId;
use sandbox_core::launch::{Network, TreeView};
use sandbox_core::record::Snapshot;
use sandbox_core::sandbox::{Sandbox, State};
use sandbox_core::store::Store;
use sandbox_core::work;
use sandbox_protocol::ExitStatus;
use sandbox_protocol::event::{Frozen, FrozenBy};
use sandbox_sys::clock::unix_seconds;
use serde::Serialize;
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// One sandbox as `list --json` and `show --json` tell it. Schema version 1.
#[derive(Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub id: String,
    pub state: &'static str,
    pub driver: String,
    /// How its tree is put together: `overlay` or `copy`.
    pub view: TreeView,
    /// The repository's work tree on the host.
    pub worktree: PathBuf,
    /// `URL@REF` of what it was made from, where that has no work tree on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
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
    /// The signal that ended it, without `SIG`.
    pub signal: Option<String>,
    /// The branch that was checked out at the spawn.
    pub branch: Option<String>,
    /// Commits that it made and that this repository has.
    pub commits_ahead: usize,
    /// The branch cannot fast-forward to them.
    pub rewritten: bool,
    /// Files that differ from the captured state and from what was committed.
    pub uncommitted: usize,
    /// It writes to a disk of its guest's, and was not asked since: `uncommitted` is what was known before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub uncommitted_unknown: bool,
    /// Bytes of its own on disk.
    pub disk_bytes: u64,
    /// Bytes that it may write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_limit: Option<u64>,
    /// Everything inside stands still, for want of room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
    /// Bytes of memory of its processes.
    pub memory_bytes: u64,
    /// Seconds since the last output of the main command (or its start).
    pub silent_seconds: Option<u64>,
    /// Different hosts and ports that the network refused since the last start.
    pub blocked: usize,
    /// Layers of the wall that it may lack (`--allow-weak`).
    pub allow_weak: Vec<String>,
    /// Programs inside may make sandboxes of their own.
    pub nested: bool,
    /// Sandboxes (or `HEAD`) that its commits do not merge with; only `list` tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collides: Option<Vec<String>>,
    /// States that it can go back to (`checkpoint --list`).
    pub checkpoints: usize,
    /// What came along with `--with`: `worktree`, `branch` and what follows it are of the main repository.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<Along>,
}

/// A further repository or directory of a sandbox.
#[derive(Debug, Serialize)]
pub struct Along {
    /// Where it is, outside and inside.
    pub worktree: PathBuf,
    /// It is no repository.
    pub directory: bool,
    pub read_only: bool,
    /// The branch that was checked out at the spawn.
    pub branch: Option<String>,
    /// Commits that the sandbox made in it.
    pub commits_ahead: usize,
    pub rewritten: bool,
    /// Files that differ from the captured state and from what was committed.
    pub uncommitted: usize,
}

#[derive(Serialize)]
struct Listing {
    version: u32,
    sandboxes: Vec<Row>,
    /// Those whose record cannot be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    damaged: Vec<Damaged>,
}

pub fn run(context: &Context, args: &cli::List) -> Outcome {
    let store = context.store()?;
    let everywhere = args.all || context.maybe_repo().is_none();
    let repo = if everywhere { None } else { context.repo_id(&store)? };
    let (sandboxes, damaged) = if everywhere || repo.is_some() {
        (Sandbox::all(&store, repo.as_ref())?, damaged::warn_sandboxes(&store, repo.as_ref())?)
    } else {
        (Vec::new(), Vec::new())
    };
    let memory = memory_by_namespace();
    let mut rows: Vec<Row> =
        sandboxes.iter().map(|sandbox| row(context, &store, sandbox, &memory)).collect::<Result<_, _>>()?;
    mark(context, &store, &sandboxes, &mut rows);
    if args.json {
        print_json(&Listing { version: 1, sandboxes: rows, damaged: damaged.iter().map(Damaged::from).collect() })?;
        return Ok(0);
    }
    if rows.is_empty() && !damaged.is_empty() {
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
    // A column that says the same in each line is none.
    let drivers = rows.iter().any(|row| row.driver != rows[0].driver);
    if drivers {
        lines[0].insert(2, "DRIVER".into());
    }
    if everywhere {
        lines[0].insert(1, "REPOSITORY".into());
    }
    // Those that came here with another repository say with which.
    let along = !everywhere && sandboxes.iter().any(|sandbox| sandbox.tree != 0);
    if along {
        lines[0].insert(1, "OF".into());
    }
    let collides = rows.iter().any(|row| row.collides.as_ref().is_some_and(|with| !with.is_empty()));
    if collides {
        let at = lines[0].iter().position(|title| title == "UNCOMMITTED").unwrap_or(0);
        lines[0].insert(at, "COLLIDES WITH".into());
    }
    for (row, sandbox) in rows.iter().zip(&sandboxes) {
        let mut cells = vec![
            row.name.clone(),
            state_words(row),
            age(row.age_seconds),
            row.branch.as_deref().map_or("-".into(), escape),
            cell(
                commits_words(row.commits_ahead, row.rewritten),
                row.with.iter().map(|along| (along, commits_words(along.commits_ahead, along.rewritten))),
            ),
            cell(uncommitted_words(row), row.with.iter().map(|along| (along, number(along.uncommitted)))),
            size(row.disk_bytes),
            if row.memory_bytes == 0 { "-".into() } else { size(row.memory_bytes) },
            command_words(row),
        ];
        if collides {
            cells.insert(5, row.collides.as_deref().map_or("-".into(), collides_words));
        }
        if drivers {
            cells.insert(2, escape(&row.driver));
        }
        if everywhere {
            cells.insert(1, place(row, context));
        }
        if along {
            cells.insert(1, if sandbox.tree == 0 { "-".into() } else { tilde(&row.worktree, &context.home) });
        }
        lines.push(cells);
    }
    print!("{}", table(&lines));
    Ok(0)
}

/// Marks those that collide. What cannot be compared has no mark.
fn mark(context: &Context, store: &Store, sandboxes: &[Sandbox], rows: &mut [Row]) {
    let mut repos: Vec<&RepoId> = sandboxes.iter().map(|sandbox| &sandbox.mount().repo).collect();
    repos.sort();
    repos.dedup();
    for repo in repos {
        let of = sandboxes.iter().filter(|sandbox| sandbox.mount().repo == *repo && sandbox.mount().has_commits());
        let of: Vec<Sandbox> = of.cloned().collect();
        let Ok(mut marks) = super::conflicts::marks(context, store, &of) else { continue };
        for (row, sandbox) in rows.iter_mut().zip(sandboxes).filter(|(_, sandbox)| sandbox.mount().repo == *repo) {
            row.collides = Some(marks.remove(sandbox.name()).unwrap_or_default());
        }
    }
}

/// `a, HEAD`, and of many `a, b and 3 more`.
fn collides_words(with: &[String]) -> String {
    match with {
        [] => "-".into(),
        [first, second, rest @ ..] if rest.len() > 1 => format!("{first}, {second} and {} more", rest.len()),
        all => all.join(", "),
    }
}

fn number(n: usize) -> Option<String> {
    (n > 0).then(|| n.to_string())
}

fn uncommitted_words(row: &Row) -> Option<String> {
    if row.uncommitted_unknown { Some("?".into()) } else { number(row.uncommitted) }
}

fn commits_words(ahead: usize, rewritten: bool) -> Option<String> {
    number(ahead).map(|n| if rewritten { format!("{n} rewritten") } else { n })
}

/// `2`, `-`, and of a sandbox with further trees `2, lib: 1`.
fn cell<'a>(main: Option<String>, others: impl Iterator<Item = (&'a Along, Option<String>)>) -> String {
    let name = |along: &Along| escape(&along.worktree.file_name().unwrap_or_default().to_string_lossy());
    let others = others.filter_map(|(along, words)| Some(format!("{}: {}", name(along), words?)));
    let all: Vec<String> = main.into_iter().chain(others).collect();
    if all.is_empty() { "-".into() } else { all.join(", ") }
}

/// Prints a value as JSON, with a line break at its end.
pub fn print_json<T: Serialize>(value: &T) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::new("cannot write JSON").cause(error.to_string()))?;
    println!("{}", crate::text::escape_json(&text));
    Ok(())
}

/// `running, silent 4m`, `exited 1 3m ago`, `killed (TERM) 2m ago`, `timed out 5m ago`, `stopped`, …;
/// behind it `, blocked 3` when the network refused something.
pub fn state_words(row: &Row) -> String {
    words_at(row, unix_seconds())
}

fn words_at(row: &Row, now: u64) -> String {
    let ended = row.exited.map(|at| {
        let how = match (row.timed_out, &row.signal, row.exit_status) {
            (true, ..) => "timed out".to_owned(),
            (false, Some(signal), _) => format!("killed ({signal})"),
            (false, None, status) => format!("exited {}", status.unwrap_or_default()),
        };
        format!("{how} {} ago", age(now.saturating_sub(at)))
    });
    let mut words = match (row.state, ended) {
        ("running", None) => match row.silent_seconds {
            Some(silent) if silent >= 60 => format!("running, silent {}", age(silent)),
            _ => "running".into(),
        },
        ("running", Some(ended)) => format!("running, {ended}"),
        ("stopped", Some(ended)) => ended,
        (state, _) => state.to_owned(),
    };
    if let Some(frozen) = &row.frozen {
        words.push_str(match frozen.why {
            FrozenBy::DiskFull => ", frozen (disk full)",
            FrozenBy::NoInodes => ", frozen (no inodes left)",
            FrozenBy::Limit | FrozenBy::Unknown => ", frozen (disk limit)",
        });
    } else if row.disk_limit.is_some_and(|limit| row.disk_bytes >= limit / 5 * 4) {
        words.push_str(", near its disk limit");
    }
    if row.blocked > 0 {
        words.push_str(&format!(", blocked {}", row.blocked));
    }
    if !row.allow_weak.is_empty() {
        words.push_str(&format!(", may lack {}", escape(&row.allow_weak.join(", "))));
    }
    words
}

/// A signal as people write it.
fn signal_words(signal: i32) -> String {
    match signal_hook::low_level::signal_name(signal) {
        Some(name) => name.trim_start_matches("SIG").to_owned(),
        None => signal.to_string(),
    }
}

fn command_words(row: &Row) -> String {
    let text = escape(&row.command.join(" "));
    if text.chars().count() > 40 { text.chars().take(39).chain(['…']).collect() } else { text }
}

/// Gathers everything about one sandbox. What cannot be known (the host repository is gone) is zero.
pub fn row(context: &Context, store: &Store, sandbox: &Sandbox, memory: &HashMap<u64, u64>) -> Result<Row, CliError> {
    let sandbox = &sandbox.at(0);
    let status = sandbox.status()?;
    let state = sandbox.state_of(&status);
    let record = &sandbox.record;
    let with = sandbox.trees().skip(1).map(|tree| along(context, store, &tree)).collect::<Result<_, CliError>>()?;
    let snapshot = sandbox.snapshot(store).ok();
    let commits = work::commits_on_host(context.git()?, store, sandbox).unwrap_or_default();
    crate::picture::fresh_if_it_runs(context, store, sandbox);
    let uncommitted = work::uncommitted_now(context.git()?, store, sandbox).map(|left| left.files.len()).unwrap_or(0);
    let uncommitted_unknown = !sandbox_core::picture::is_fresh(sandbox, &[]).unwrap_or(false);
    let silent = (state == State::Running && status.exited.is_none() && !record.argv.is_empty()).then(|| {
        // The log may be of an earlier run, or there is none yet.
        let wrote = std::fs::metadata(sandbox.dir.log()).map_or(0, |meta| meta.mtime().max(0) as u64);
        unix_seconds().saturating_sub(wrote.max(status.started.unwrap_or(record.created)))
    });
    Ok(Row {
        name: sandbox.name().to_owned(),
        id: record.id.to_string(),
        state: state.as_str(),
        driver: record.driver.clone(),
        view: record.view,
        worktree: record.repos.first().map(|mount| mount.worktree.clone()).unwrap_or_default(),
        upstream: record.upstream.clone(),
        created: record.created,
        age_seconds: unix_seconds().saturating_sub(record.created),
        command: record.argv.clone(),
        exit_status: status.exited.map(|(exit, _)| if status.timed_out { 124 } else { exit.shell() }),
        exited: status.exited.map(|(_, at)| at),
        timed_out: status.timed_out,
        signal: match status.exited {
            Some((ExitStatus::Signal(signal), _)) => Some(signal_words(signal)),
            _ => None,
        },
        branch: snapshot.as_ref().and_then(branch_of),
        commits_ahead: commits.ahead,
        rewritten: commits.rewritten,
        uncommitted,
        uncommitted_unknown,
        disk_bytes: work::disk(sandbox),
        disk_limit: record.limits.disk,
        frozen: status.frozen.filter(|_| state == State::Running),
        memory_bytes: status
            .init
            .as_ref()
            .filter(|_| state == State::Running)
            .and_then(|init| namespace_of(init.pid))
            .and_then(|ns| memory.get(&ns))
            .copied()
            .unwrap_or(0),
        silent_seconds: silent,
        blocked: match record.network {
            Network::Allow => super::events::blocked(&sandbox.dir),
            Network::None | Network::Host => 0,
        },
        allow_weak: record.allow_weak.clone(),
        nested: record.nested,
        collides: None,
        // A record that cannot be read is told by who asks for them.
        checkpoints: sandbox_core::checkpoint::all(&sandbox.dir).map_or(0, |all| all.len()),
        with,
    })
}

fn branch_of(snapshot: &Snapshot) -> Option<String> {
    snapshot.git.branch.as_ref().map(|branch| branch.strip_prefix("refs/heads/").unwrap_or(branch).to_owned())
}

fn along(context: &Context, store: &Store, tree: &Sandbox) -> Result<Along, CliError> {
    let git = context.git()?;
    let commits = work::commits_on_host(git, store, tree).unwrap_or_default();
    let mount = tree.mount();
    Ok(Along {
        worktree: mount.worktree.clone(),
        directory: mount.directory,
        read_only: mount.read_only,
        branch: tree.snapshot(store).ok().as_ref().and_then(branch_of),
        commits_ahead: commits.ahead,
        rewritten: commits.rewritten,
        uncommitted: work::uncommitted_now(git, store, tree).map(|left| left.files.len()).unwrap_or(0),
    })
}

/// Where its repository is, as it is told.
pub fn place(row: &Row, context: &Context) -> String {
    row.upstream.as_deref().map_or_else(|| tilde(&row.worktree, &context.home), escape)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_and_who_ended_how() {
        let row = |state: &'static str| Row {
            name: "a".into(),
            id: String::new(),
            state,
            driver: "namespace".into(),
            view: TreeView::Overlay,
            worktree: PathBuf::new(),
            upstream: None,
            created: 0,
            age_seconds: 0,
            command: Vec::new(),
            exit_status: None,
            exited: None,
            timed_out: false,
            signal: None,
            branch: None,
            commits_ahead: 0,
            rewritten: false,
            uncommitted: 0,
            uncommitted_unknown: false,
            disk_bytes: 0,
            disk_limit: None,
            frozen: None,
            memory_bytes: 0,
            silent_seconds: None,
            blocked: 0,
            allow_weak: Vec::new(),
            nested: false,
            collides: None,
            checkpoints: 0,
            with: Vec::new(),
        };
        let says = |row: Row| words_at(&row, 1000);
        let ended = |state, status, signal: Option<&str>, timed_out| Row {
            exit_status: Some(status),
            exited: Some(880),
            signal: signal.map(str::to_owned),
            timed_out,
            ..row(state)
        };
        assert_eq!(says(row("running")), "running");
        let left =
            |uncommitted_unknown| uncommitted_words(&Row { uncommitted: 2, uncommitted_unknown, ..row("stopped") });
        assert_eq!((left(false).as_deref(), left(true).as_deref()), (Some("2"), Some("?")));
        assert_eq!(says(Row { silent_seconds: Some(59), ..row("running") }), "running");
        assert_eq!(says(Row { silent_seconds: Some(250), ..row("running") }), "running, silent 4m");
        assert_eq!(says(ended("running", 1, None, false)), "running, exited 1 2m ago");
        assert_eq!(says(ended("stopped", 0, None, false)), "exited 0 2m ago");
        assert_eq!(says(ended("stopped", 143, Some("TERM"), false)), "killed (TERM) 2m ago");
        assert_eq!(says(ended("stopped", 124, Some("KILL"), true)), "timed out 2m ago");
        assert_eq!(says(ended("stopped (crashed)", 0, None, false)), "stopped (crashed)");
        let weak = Row { allow_weak: vec!["seccomp".into()], ..row("running") };
        assert_eq!(says(weak), "running, may lack seccomp");
        assert_eq!(says(Row { disk_bytes: 79, disk_limit: Some(100), ..row("stopped") }), "stopped");
        assert_eq!(
            says(Row { disk_bytes: 80, disk_limit: Some(100), ..row("running") }),
            "running, near its disk limit"
        );
        let frozen = |why| Row { frozen: Some(Frozen { why, have: 1, bound: 2 }), ..row("running") };
        assert_eq!(says(frozen(FrozenBy::DiskFull)), "running, frozen (disk full)");
        assert_eq!(says(frozen(FrozenBy::NoInodes)), "running, frozen (no inodes left)");
        assert_eq!(says(frozen(FrozenBy::Limit)), "running, frozen (disk limit)");
        assert_eq!(says(Row { blocked: 3, ..row("running") }), "running, blocked 3");
        let names = |n: usize| ["a", "b", "c", "d"][..n].iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let collides = [0, 1, 3, 4].map(|n| collides_words(&names(n)));
        assert_eq!(collides, ["-", "a", "a, b, c", "a, b and 2 more"]);
        assert_eq!([signal_words(15), signal_words(9), signal_words(64)], ["TERM", "KILL", "64"]);
    }
}
