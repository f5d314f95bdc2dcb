//! `run --best-of N --check CMD`: several attempts at one task, each in a sandbox of its own; the check says which are
//! good, and the smallest of those is the best.
//!
//! ```text
//! spawn ×N ─► wait for all ─► fetch ─► check each, in a copy of its sandbox ─► rank ─► keep
//! ```
//!
//! A check runs in a copy, so that nothing of it is in what is merged.

mod rank;

use super::list::print_json;
use super::{conflicts, drop, fetch, merge, spawn, stop, wait};
use crate::check::command::{Asked, Wanted, wanted};
use crate::check::kept;
use crate::check::runner::Runner;
use crate::check::task::{Outcome as Ended, Task};
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::project::Project;
use crate::signals::Interrupt;
use crate::text::{age, count, escape, table};
use rank::{Attempt, Size, ranked};
use sandbox_core::check::CheckBox;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_core::work;
use sandbox_git::Oid;
use sandbox_integrate::diffstat_between;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// One attempt, as it is told. Schema version 1.
#[derive(Serialize)]
struct Row {
    rank: usize,
    name: String,
    /// The check passed.
    passed: bool,
    /// Status of the attempt's own command.
    exit_status: i32,
    /// Status of the check; none when it took too long.
    check_status: Option<i32>,
    check_seconds: f64,
    timed_out: bool,
    #[serde(flatten)]
    size: Size,
    commits: usize,
    uncommitted: usize,
    /// Output of a check that failed.
    log: Option<PathBuf>,
    /// It is still there, not in the trash.
    kept: bool,
    #[serde(skip)]
    sandbox: Sandbox,
}

#[derive(Serialize)]
struct Listing<'a> {
    version: u32,
    check: &'a str,
    best: Option<&'a str>,
    attempts: &'a [Row],
}

pub fn run(context: &Context, args: &cli::Run) -> Outcome {
    let store = context.store()?;
    let wanted = check(context, &store, args)?;
    let spawn = cli::Spawn { count: Some(args.best_of), detach: true, ..args.spawn.clone() };
    let made = match spawn::make(context, &store, &spawn)? {
        spawn::Asked::Made(made) => made,
        spawn::Asked::Shown => return Ok(0),
    };
    let cwd = made.first().map(|(sandbox, _)| sandbox.record.cwd.clone()).unwrap_or_default();
    let launch = spawn::Launch {
        detach: true,
        json: false,
        quiet: spawn.quiet,
        tty: spawn.tty,
        branch: spawn.branch.as_deref(),
        first: None,
        command: &spawn.command,
        cwd: &cwd,
        wish: cli::OnExit::Keep,
        copy_out: &[],
        report: None,
    };
    let total = made.len();
    let asked = Arc::new(AtomicBool::new(false));
    let listening = Interrupt::listen(&asked);
    let (started, failed) = spawn::start_many(context, &store, made, &launch);
    if let Some(error) = spawn::not_started(failed, total) {
        if started.is_empty() {
            return Err(error);
        }
        error.print();
    }
    let statuses = wait_for(&started, &asked, spawn.quiet)?;
    for sandbox in &started {
        fetch::bring(context, &store, sandbox)?;
    }
    let checked = check_all(context, &store, &started, &wanted, &asked, spawn.quiet);
    // A terminal's interrupt reaches the git processes too.
    let checked = checked.map_err(|error| match asked.load(Ordering::SeqCst) {
        true => CliError::new("interrupted: nothing was dropped, and nothing of the checks is left").status(130),
        false => error,
    })?;
    let mut rows = rows(context, &store, started, &statuses, checked)?;
    drop_others(context, &store, &mut rows, args.keep)?;
    std::mem::drop(listening);
    let best = rows.first().filter(|row| row.good()).map(|row| row.name.clone());
    if args.spawn.json {
        print_json(&Listing { version: 1, check: &wanted.command, best: best.as_deref(), attempts: &rows })?;
    } else {
        print!("{}", text(&rows));
    }
    tell(&rows, best.as_deref());
    Ok(best.is_none().into())
}

impl Row {
    fn good(&self) -> bool {
        self.attempt().good()
    }

    fn attempt(&self) -> Attempt {
        Attempt { passed: self.passed, size: self.size }
    }
}

/// The command that each attempt has to pass.
fn check(context: &Context, store: &Store, args: &cli::Run) -> Result<Wanted, CliError> {
    let repo = context.repo()?;
    let asked = Asked {
        command: args.check.as_deref(),
        none: false,
        timeout: args.check_timeout.as_deref(),
        jobs: args.jobs,
        dry_run: args.spawn.dry_run,
    };
    // What `.sandbox.toml` asks for is for merges: only the user says what is good.
    let project = Project { check: None, ..Project::read(repo.worktree()?)? };
    wanted(context, store, &repo.repo_id(store)?, &project, asked).transpose().unwrap_or_else(|| {
        Err(CliError::usage("--best-of needs a check to tell which is best")
            .hint("`--check CMD`, or `git config sandbox.check CMD`"))
    })
}

/// Waits until all have ended; their statuses. Interrupted, all are stopped and kept.
fn wait_for(started: &[Sandbox], asked: &AtomicBool, quiet: bool) -> Result<Vec<i32>, CliError> {
    let mut statuses: Vec<Option<i32>> = vec![None; started.len()];
    while statuses.iter().any(Option::is_none) {
        if asked.load(Ordering::SeqCst) {
            for sandbox in started {
                stop::stop(sandbox, Duration::from_secs(2))?;
            }
            let names: Vec<&str> = started.iter().map(Sandbox::name).collect();
            return Err(CliError::new("interrupted: what runs was stopped, and nothing was checked")
                .hint(format!("everything is kept in '{}'", names.join("', '")))
                .status(130));
        }
        for (sandbox, status) in started.iter().zip(&mut statuses).filter(|(_, status)| status.is_none()) {
            if let Some(ended) = wait::ended(sandbox)? {
                *status = Some(ended.status.into());
                if !quiet {
                    eprintln!("'{}' has ended with status {}", sandbox.name(), ended.status);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    Ok(statuses.into_iter().flatten().collect())
}

/// Checks each, in a copy.
fn check_all(
    context: &Context,
    store: &Store,
    started: &[Sandbox],
    wanted: &Wanted,
    asked: &Arc<AtomicBool>,
    quiet: bool,
) -> Result<Vec<(Ended, Vec<u8>)>, CliError> {
    let mut runner: Runner<usize> = Runner::new(asked);
    let mut ended: Vec<Option<(Ended, Vec<u8>)>> = started.iter().map(|_| None).collect();
    let mut next = 0;
    while ended.iter().any(Option::is_none) {
        while next < started.len() && runner.len() < wanted.jobs {
            let sandbox = &started[next];
            let lock = sandbox.take(Duration::from_secs(60))?;
            let place = CheckBox::copy_of(store, sandbox, lock)?;
            let task = Task {
                driver: sandbox.record.driver.clone(),
                command: wanted.command.clone(),
                cwd: sandbox.at(0).mount().worktree.clone(),
                commit: None,
                seconds: wanted.seconds,
            };
            runner.start(context, store, next, place, &task, b"")?;
            next += 1;
        }
        let finished = runner.finished()?;
        if !quiet {
            eprintln!(
                "'{}': `{}`: {}",
                started[finished.key].name(),
                escape(&wanted.command),
                finished.outcome.words()
            );
        }
        ended[finished.key] = Some((finished.outcome, finished.output));
    }
    Ok(ended.into_iter().flatten().collect())
}

/// All attempts, the best first.
fn rows(
    context: &Context,
    store: &Store,
    started: Vec<Sandbox>,
    statuses: &[i32],
    checked: Vec<(Ended, Vec<u8>)>,
) -> Result<Vec<Row>, CliError> {
    let mut rows = Vec::new();
    for ((sandbox, status), (ended, output)) in started.into_iter().zip(statuses).zip(checked) {
        let (mut size, mut commits, mut uncommitted) = (Size::default(), 0, 0);
        crate::picture::fresh(context, store, &sandbox)?;
        for tree in sandbox.trees().filter(|tree| tree.mount().has_commits()) {
            let of = size_of(context, store, &tree)?;
            size = Size { lines: size.lines + of.lines, files: size.files + of.files };
            commits += work::commits_on_host(context.git()?, store, &tree)?.ahead;
            uncommitted += work::uncommitted_now(context.git()?, store, &tree)?.files.len();
        }
        let passed = ended.passed();
        let log = match passed {
            true => None,
            false => Some(kept::keep(store, &sandbox.mount().repo, sandbox.name(), &output)?),
        };
        rows.push(Row {
            rank: 0,
            name: sandbox.name().to_owned(),
            passed,
            exit_status: *status,
            check_status: ended.status,
            check_seconds: ended.seconds,
            timed_out: ended.timed_out,
            size,
            commits,
            uncommitted,
            log,
            kept: true,
            sandbox,
        });
    }
    let order = ranked(&rows.iter().map(Row::attempt).collect::<Vec<_>>());
    let mut rows: Vec<Option<Row>> = rows.into_iter().map(Some).collect();
    let in_order = order.into_iter().enumerate();
    Ok(in_order.filter_map(|(rank, n)| Some(Row { rank: rank + 1, ..rows[n].take()? })).collect())
}

/// How much a tree changed since the spawn, committed or not.
fn size_of(context: &Context, store: &Store, tree: &Sandbox) -> Result<Size, CliError> {
    let repo = merge::open(context, store, tree)?;
    let snapshot = tree.snapshot(store)?;
    let base = snapshot.git.base.as_deref().and_then(Oid::parse);
    let Some(now) = conflicts::commit_of(context, store, tree, &repo, true)? else { return Ok(Size::default()) };
    let stat = match base {
        Some(base) => diffstat_between(&repo, base, now)?,
        None => sandbox_integrate::diffstat(&repo, None, now)?,
    };
    Ok(Size { lines: stat.added() + stat.deleted(), files: stat.files.len() as u64 })
}

/// Moves to the trash what is not to be kept, telling each; without a good one all are kept.
fn drop_others(context: &Context, store: &Store, rows: &mut [Row], keep: cli::Keep) -> Result<(), CliError> {
    let stays = |n: usize, row: &Row| match keep {
        cli::Keep::All => true,
        cli::Keep::Passing => row.good(),
        cli::Keep::Best => n == 0,
    };
    if keep != cli::Keep::All && !rows.first().is_some_and(Row::good) {
        eprintln!("none passes: all are kept");
        return Ok(());
    }
    for (n, row) in rows.iter_mut().enumerate() {
        if !stays(n, row) {
            eprintln!("{}", drop::drop_one(context, store, &row.sandbox, drop::Force::Trash)?);
            row.kept = false;
        }
    }
    Ok(())
}

fn text(rows: &[Row]) -> String {
    let mut lines = vec![["RANK", "NAME", "CHECK", "CHANGED", "COMMAND"].map(str::to_owned).to_vec()];
    for row in rows {
        let changed = match row.size.files as usize {
            0 => "nothing".to_owned(),
            files => format!("{} in {}", count(row.size.lines as usize, "line"), count(files, "file")),
        };
        let check = match (row.passed, row.timed_out, row.check_status) {
            (true, ..) => format!("passed {}", age(row.check_seconds.round() as u64)),
            (_, true, _) => "timed out".to_owned(),
            (.., Some(status)) => format!("failed ({status})"),
            (.., None) => "failed".to_owned(),
        };
        let command = format!("status {}", row.exit_status);
        lines.push(vec![row.rank.to_string(), row.name.clone(), check, changed, command]);
    }
    table(&lines)
}

fn tell(rows: &[Row], best: Option<&str>) {
    let (Some(name), Some(row)) = (best, rows.first()) else {
        eprintln!("none of them passes with a change");
        for row in rows {
            if let Some(log) = &row.log {
                eprintln!("hint: what the check printed in '{}' is in '{}'", row.name, escape(&log.to_string_lossy()));
            }
        }
        return;
    };
    if row.commits > 0 {
        eprintln!("hint: `git sandbox merge {name}` takes the best, `git sandbox diff {name}` shows it");
    }
    if row.uncommitted > 0 {
        eprintln!(
            "hint: {} not committed in it: `git sandbox apply {name}` brings {}",
            if row.uncommitted == 1 { "1 file is".to_owned() } else { format!("{} files are", row.uncommitted) },
            if row.commits > 0 { "all of it as edits" } else { "that" },
        );
    }
}
