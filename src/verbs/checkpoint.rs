//! `checkpoint` and `restore`: states of a sandbox that it can go back to.

use super::list::print_json;
use super::{fetch, stop};
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::leave;
use crate::prepare::asks;
use crate::start::{refused, start};
use crate::text::{age, escape, size, table};
use sandbox_core::checkpoint::{self, Checkpoint, CheckpointError};
use sandbox_core::connection::ConnectionError;
use sandbox_core::fork::{Hold, Told};
use sandbox_core::ops::{Deed, Log, Operation};
use sandbox_core::sandbox::{Sandbox, SandboxError};
use sandbox_core::store::{Store, write_json};
use sandbox_core::work;
use sandbox_protocol::Message;
use serde::Serialize;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// Schema version 1.
#[derive(Serialize)]
struct Listing {
    version: u32,
    checkpoints: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    number: u32,
    label: Option<String>,
    /// Unix seconds.
    at: u64,
    age_seconds: u64,
    /// It is what a restore of this checkpoint replaced.
    before: Option<u32>,
    disk_bytes: u64,
}

pub fn run(context: &Context, args: &cli::Checkpoint) -> Outcome {
    let store = context.store()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    if args.list {
        return list(&sandbox, args.json);
    }
    store.writable()?;
    if let Some(wanted) = &args.remove {
        return remove(&sandbox, wanted, args.force);
    }
    let (made, told) = make(&store, &sandbox, args.label.as_deref())?;
    if args.json {
        print_json(&row(&sandbox, &made))?;
    }
    if !args.quiet {
        tell(&sandbox, &made, &told);
    }
    Ok(0)
}

/// Of one that runs or not; one that is just starting or ending is waited for.
fn make(store: &Store, sandbox: &Sandbox, label: Option<&str>) -> Result<(Checkpoint, Told), CliError> {
    let until = Instant::now() + sandbox.patience();
    loop {
        if let Some(mut connection) = stop::live(sandbox)? {
            return Ok(checkpoint::make(store, sandbox, Hold::Live(&mut connection), label)?);
        }
        match sandbox.take(Duration::from_millis(100)) {
            Ok(lock) => return Ok(checkpoint::make(store, sandbox, Hold::Stopped(lock), label)?),
            Err(SandboxError::Running { .. } | SandboxError::Busy { .. }) if Instant::now() < until => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn tell(sandbox: &Sandbox, made: &Checkpoint, told: &Told) {
    let how = match told.frozen {
        Some(true) => ", frozen for it",
        Some(false) => ", not frozen",
        None => "",
    };
    let name = sandbox.name();
    eprintln!("checkpoint {} of '{name}': {}{how}", words(made), super::fork::copied(told));
    super::fork::tell_copy(sandbox, told);
    eprintln!("hint: `git sandbox restore {name} {}` goes back to it", made.number);
}

/// Its number, and what it is called.
fn words(checkpoint: &Checkpoint) -> String {
    match (&checkpoint.label, checkpoint.before) {
        (Some(label), _) => format!("{} '{}'", checkpoint.number, escape(label)),
        (None, Some(before)) => format!("{} (before {before} was restored)", checkpoint.number),
        (None, None) => checkpoint.number.to_string(),
    }
}

fn seconds_since(at: u64) -> u64 {
    sandbox_sys::clock::unix_seconds().saturating_sub(at)
}

fn row(sandbox: &Sandbox, checkpoint: &Checkpoint) -> Row {
    Row {
        number: checkpoint.number,
        label: checkpoint.label.as_deref().map(escape),
        at: checkpoint.at,
        age_seconds: seconds_since(checkpoint.at),
        before: checkpoint.before,
        disk_bytes: work::disk_of(checkpoint::place(&sandbox.dir, checkpoint.number).path()),
    }
}

fn list(sandbox: &Sandbox, json: bool) -> Outcome {
    let rows: Vec<Row> = checkpoint::all(&sandbox.dir)?.iter().map(|checkpoint| row(sandbox, checkpoint)).collect();
    if json {
        print_json(&Listing { version: 1, checkpoints: rows })?;
        return Ok(0);
    }
    if rows.is_empty() {
        eprintln!("'{}' has no checkpoint", sandbox.name());
        return Ok(0);
    }
    let mut lines = vec![["CHECKPOINT", "AGE", "DISK", "LABEL"].map(str::to_owned).to_vec()];
    for row in rows {
        let label = match (row.label, row.before) {
            (Some(label), _) => label,
            (None, Some(before)) => format!("(before {before} was restored)"),
            (None, None) => "-".to_owned(),
        };
        lines.push(vec![row.number.to_string(), age(row.age_seconds), size(row.disk_bytes), label]);
    }
    print!("{}", table(&lines));
    Ok(0)
}

/// Nothing else may have what is in a checkpoint: it goes only when somebody says so.
fn remove(sandbox: &Sandbox, wanted: &str, force: bool) -> Outcome {
    let found = checkpoint::find(sandbox, wanted)?;
    if !force {
        let what = format!("checkpoint {} of '{}'", words(&found), sandbox.name());
        if !asks() {
            return Err(CliError::new(format!("cannot remove {what} without being asked"))
                .hint("nothing else may have what is in it: `--force` removes it")
                .status(1));
        }
        eprint!("remove {what}, for good? [y/N] ");
        let _ = io::stderr().flush();
        if !leave::yes(false) {
            eprintln!("kept");
            return Ok(1);
        }
    }
    checkpoint::remove(sandbox, found.number)?;
    eprintln!("removed checkpoint {} of '{}'", words(&found), sandbox.name());
    Ok(0)
}

pub fn restore(context: &Context, args: &cli::Restore) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    let wanted = checkpoint::find(&sandbox, &args.checkpoint)?;
    let before = go_back(context, &store, &sandbox, &wanted)?;
    log(&store, &sandbox, &wanted, before.number);
    Ok(0)
}

/// Ends what runs in it, brings home what it committed, puts it back, and starts it again if it ran.
pub fn go_back(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    wanted: &Checkpoint,
) -> Result<Checkpoint, CliError> {
    let name = sandbox.name();
    let ran = stop::stop(sandbox, Duration::from_secs(2))?;
    let lock = sandbox.take(sandbox.patience())?;
    // All that it committed until now; it is in the checkpoint in any case.
    if let Err(error) = fetch::bring_locked(context, store, sandbox, &lock) {
        eprintln!("note: not brought home before: {}", error.message);
    }
    let before = checkpoint::restore(store, sandbox, &lock, wanted)?;
    let mut status = sandbox.status()?;
    status.home = false;
    write_json(&sandbox.dir.status(), &status, false)?;
    eprintln!("restored '{name}' to checkpoint {}", words(wanted));
    eprintln!("hint: what it was until now is checkpoint {0}: `git sandbox restore {name} {0}`", before.number);
    // Its refs here are what it has now.
    match fetch::bring_all(context, store, sandbox, &lock) {
        Ok(told) => eprint!("{told}"),
        Err(error) => {
            eprintln!("note: its refs here are as they were, `git sandbox fetch {name}` brings them: {}", error.message)
        }
    }
    if ran {
        let mut connection = start(context, store, sandbox, lock, false)?;
        connection.ask(&Message::AskStatus, 1 << 20).map_err(|error| match error {
            ConnectionError::Refused(failure) => refused(&failure),
            error => error.into(),
        })?;
        eprintln!("'{name}' was stopped for it and runs again, idle: `git sandbox exec {name} -- CMD`");
    }
    Ok(before)
}

/// Notes it for `undo`; it is done already.
fn log(store: &Store, sandbox: &Sandbox, wanted: &Checkpoint, before: u32) {
    let told = format!("restored '{}' to checkpoint {}", sandbox.name(), wanted.number);
    let deed = Deed::Restored { sandbox: sandbox.record.id.clone(), before };
    let operation = Operation::now("restore", told, vec![deed]);
    for mount in sandbox.record.repos.iter().filter(|mount| mount.has_commits()) {
        let _ = Log::of(&store.repo(&mount.repo)).add(&operation);
    }
}

impl From<CheckpointError> for CliError {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Copy(error) => error.into(),
            CheckpointError::Sandbox(error) => error.into(),
            CheckpointError::Store(error) => error.into(),
            CheckpointError::Label { .. } => Self::chain(&error)
                .hint("a label is a line of at most 80 bytes, does not begin with '-', and is not only a number")
                .status(crate::error::USAGE),
            CheckpointError::Taken { ref name, .. } => Self::chain(&error)
                .hint(format!("`git sandbox checkpoint --list {name}` lists them; take another label")),
            CheckpointError::Nothing { ref name } => {
                Self::chain(&error).hint(format!("`git sandbox start {name}` starts it"))
            }
            CheckpointError::Unknown { ref name, ref known, .. } => {
                let failure = Self::chain(&error);
                match known.is_empty() {
                    true => failure.hint(format!("it has none: `git sandbox checkpoint {name}` makes one")),
                    false => failure.hint(format!("it has {}", known.join(", "))),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_started_has_nothing_to_go_back_to() {
        let told = CliError::from(CheckpointError::Nothing { name: "a".into() });
        assert_eq!(told.message, "'a' was never started: there is nothing to go back to");
        assert_eq!(told.hints, ["`git sandbox start a` starts it"]);
    }
}
