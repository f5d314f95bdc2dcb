//! Which command has to pass before something lands.
//!
//! ```text
//! --no-check > --check CMD > sandbox.check (the user's git configuration) > check of .sandbox.toml, if the user
//!                                                                           agrees, who is asked once per command
//! ```

use crate::context::Context;
use crate::error::CliError;
use crate::prepare::asks;
use crate::project::{FILE, Project};
use crate::text::{escape, parse_duration};
use sandbox_core::id::RepoId;
use sandbox_core::record::RepoRecord;
use sandbox_core::store::{Store, read_json, write_json};
use std::io::{self, Write};

/// The user's setting.
const SETTING: &str = "sandbox.check";
/// How long it may take.
const TIME: &str = "sandbox.checkTimeout";

/// What the command line says of it.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// `--check CMD`.
    pub command: Option<&'a str>,
    /// `--no-check`.
    pub none: bool,
    /// `--check-timeout TIME`.
    pub timeout: Option<&'a str>,
    /// `--jobs N`.
    pub jobs: Option<u32>,
    /// Nothing is asked and nothing remembered.
    pub dry_run: bool,
}

/// A command that has to pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// For `sh -c`.
    pub command: String,
    /// Seconds after which it has failed.
    pub seconds: Option<u64>,
    /// How many run at once.
    pub jobs: usize,
}

/// Chooses it; `None`: nothing has to pass.
pub fn wanted(
    context: &Context,
    store: &Store,
    repo: &RepoId,
    project: &Project,
    asked: Asked<'_>,
) -> Result<Option<Wanted>, CliError> {
    let seconds = time(context, asked.timeout)?.into_iter().chain(project.timeout).min();
    let jobs = asked.jobs.map_or_else(default_jobs, |jobs| jobs as usize);
    let chosen = match (asked.none, asked.command, context.setting(SETTING)) {
        (true, ..) => None,
        (_, Some(command), _) if command.trim().is_empty() => {
            return Err(CliError::usage("--check needs a command").hint("for example --check 'cargo test'"));
        }
        (_, Some(command), _) => Some(command.to_owned()),
        (.., Some(setting)) => Some(setting).filter(|setting| !setting.trim().is_empty()),
        _ => match &project.check {
            Some(command) if agreed(store, repo, command, asked.dry_run)? => Some(command.clone()),
            _ => None,
        },
    };
    Ok(chosen.map(|command| Wanted { command, seconds, jobs }))
}

/// Half of the processors, at least one: what is tested takes the others itself.
pub fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, |all| (all.get() / 2).clamp(1, 8))
}

/// The time that a check has: the flag's, else the setting's, else as long as it takes.
pub fn time(context: &Context, flag: Option<&str>) -> Result<Option<u64>, CliError> {
    let read = |text: &str| parse_duration(text).filter(|seconds| *seconds > 0);
    match (flag, context.setting(TIME)) {
        (Some(text), _) => read(text).map(Some).ok_or_else(|| {
            CliError::usage(format!("'{}' is not a time", escape(text))).hint("for example 90s, 10m, 2h")
        }),
        (None, Some(text)) => read(&text).map(Some).ok_or_else(|| {
            CliError::new(format!("'{}' is not a value of {TIME}", escape(&text)))
                .hint("it is a time such as 90s, 10m, 2h")
        }),
        (None, None) => Ok(None),
    }
}

/// Whether the user lets a command of `.sandbox.toml` run before merges. Asked once for each command; without a
/// terminal the answer is no, and nothing is remembered.
fn agreed(store: &Store, repo: &RepoId, command: &str, dry_run: bool) -> Result<bool, CliError> {
    let file = store.repo(repo).record();
    let record: Option<RepoRecord> = read_json(&file)?;
    match record.as_ref().and_then(|record| record.checks.get(command)) {
        Some(true) => return Ok(true),
        Some(false) => {
            eprintln!("not checked, as you said: '{FILE}' asks for `{}`", escape(command));
            return Ok(false);
        }
        None if !asks() || dry_run => {
            eprintln!("not checked: '{FILE}' asks for `{}`, and nobody agreed to that", escape(command));
            eprintln!("hint: `--check CMD` checks once, `git config {SETTING} CMD` always");
            return Ok(false);
        }
        None => {}
    }
    eprintln!("'{FILE}' asks for a check before a merge lands:");
    eprintln!("  {}", escape(command));
    eprint!("shall it run, in a sandbox, before each merge here? [y/N] ");
    let _ = io::stderr().flush();
    let yes = crate::leave::yes(false);
    if let Some(mut record) = record {
        record.checks.insert(command.to_owned(), yes);
        write_json(&file, &record, true)?;
    }
    match yes {
        true => eprintln!("remembered: `--no-check` merges without it; another command is asked anew"),
        false => eprintln!("remembered: `--check CMD` checks all the same"),
    }
    Ok(yes)
}
