//! `stop` and `start`.

use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::event_words::limit as limit_words;
use crate::start::{exec_request, refused, start as start_supervisor, wait_started};
use crate::text::{parse_duration, size};
use sandbox_core::connection::{Connection, ConnectionError};
use sandbox_core::sandbox::{Sandbox, SandboxError, State};
use sandbox_core::store::{Store, write_json};
use sandbox_protocol::Message;
use sandbox_protocol::event::Happened;
use std::time::Duration;

/// The longest that the end of a sandbox takes: what it committed is brought home first.
const ENDING: Duration = Duration::from_secs(60);

pub fn run(context: &Context, args: &cli::Stop) -> Outcome {
    let store = context.store()?;
    let grace = parse_duration(&args.grace).ok_or_else(|| {
        CliError::usage(format!("'{}' is not a time", crate::text::escape(&args.grace))).hint("for example 2s")
    })?;
    let sandboxes = chosen(context, &store, &args.names, args.all)?;
    for sandbox in &sandboxes {
        if stop(sandbox, Duration::from_secs(grace))? {
            eprintln!("stopped '{}': its files stay; `git sandbox start {}` goes on", sandbox.name(), sandbox.name());
            bring_rest(context, &store, sandbox);
        } else if !args.all {
            eprintln!("'{}' was not running", sandbox.name());
        }
    }
    Ok(0)
}

/// The named sandboxes, or all of this repository.
pub fn chosen(context: &Context, store: &Store, names: &[String], all: bool) -> Result<Vec<Sandbox>, CliError> {
    if all {
        context.repo()?;
        return match context.repo_id(store)? {
            Some(repo) => {
                crate::damaged::warn_sandboxes(store, Some(&repo))?;
                Ok(Sandbox::all(store, Some(&repo))?)
            }
            None => Ok(Vec::new()),
        };
    }
    names.iter().map(|name| context.sandbox(store, name)).collect()
}

/// A connection to one that runs; `None` when it does not, after waiting for one that is just ending.
pub fn live(sandbox: &Sandbox) -> Result<Option<Connection>, CliError> {
    if sandbox.state()? != State::Running {
        return Ok(None);
    }
    match sandbox.connect() {
        Ok(connection) => Ok(Some(connection)),
        Err(SandboxError::NotRunning { .. }) => {
            drop(sandbox.take(ENDING)?);
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Stops one, importing first; returns when its last process is gone. False when it did not run.
pub fn stop(sandbox: &Sandbox, grace: Duration) -> Result<bool, CliError> {
    if sandbox.state()? != State::Running {
        return Ok(false);
    }
    let Some(mut connection) = live(sandbox)? else { return Ok(false) };
    match connection.ask(&Message::Stop { grace_ms: grace.as_millis() as u64 }, 1 << 20) {
        Ok(_) | Err(ConnectionError::Closed) => {}
        Err(ConnectionError::Refused(failure)) => return Err(refused(&failure)),
        Err(error) => return Err(error.into()),
    }
    // Gone means that the lock can be had and no process of it is left.
    drop(sandbox.take(sandbox.patience())?);
    Ok(true)
}

/// Brings home what was not at the end: for a stop, whoever is inside has only a few seconds. It stays in the
/// sandbox where that cannot be, so this is never an error.
pub fn bring_rest(context: &Context, store: &Store, sandbox: &Sandbox) {
    if sandbox.status().is_ok_and(|status| status.home) {
        return;
    }
    match super::fetch::bring(context, store, sandbox) {
        Ok(told) => eprint!("{told}"),
        Err(error) => {
            let name = sandbox.name();
            eprintln!(
                "note: commits of '{name}' stay in it, `git sandbox fetch {name}` brings them: {}",
                error.message
            );
        }
    }
}

pub fn start(context: &Context, args: &cli::Start) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    let mut sandbox = context.sandbox(&store, &args.name)?;
    let disk = args.disk.as_deref().map(super::spawn::disk_limit).transpose()?;
    if let Some(disk) = disk {
        sandbox.record.limits.disk = disk;
        write_json(&sandbox.dir.record(), &sandbox.record, true)?;
    }
    if sandbox.state()? == State::Running {
        if args.command.is_empty() && (disk.is_some() || sandbox.status()?.frozen.is_some()) {
            return go_on(&sandbox, disk);
        }
        return Err(SandboxError::Running { name: sandbox.name().to_owned() }.into());
    }
    let lock = sandbox.take(sandbox.patience())?;
    let once = !args.command.is_empty();
    let mut connection = start_supervisor(context, &store, &sandbox, lock, once)?;
    if once {
        let stream = connection.open();
        let request = exec_request(&args.command, &super::exec::workdir(context, &sandbox, None), false, true);
        connection.send(stream, &Message::Exec(request))?;
        if let Err(error) = wait_started(&mut connection, stream) {
            // Started for nothing: it is over when this returns.
            drop(connection);
            drop(sandbox.take(sandbox.patience()));
            return Err(error);
        }
        connection.send(stream, &Message::CloseStdin)?;
    } else {
        let (answer, _) = connection.ask(&Message::AskStatus, 1 << 20).map_err(|error| match error {
            ConnectionError::Refused(failure) => refused(&failure),
            error => error.into(),
        })?;
        debug_assert!(matches!(answer, Message::Status(_)));
    }
    eprintln!("started '{}'", sandbox.name());
    Ok(0)
}

/// Lets one go on that is frozen for want of room; with `disk` it may write so much from now on.
fn go_on(sandbox: &Sandbox, disk: Option<Option<u64>>) -> Outcome {
    let frozen = sandbox.status()?.frozen;
    let answer = sandbox.connect()?.ask(&Message::GoOn { disk: disk.map(|disk| disk.unwrap_or(0)) }, 1 << 20);
    let name = sandbox.name();
    match disk {
        Some(Some(bytes)) => eprintln!("'{name}' may write {}", size(bytes)),
        Some(None) => eprintln!("'{name}' may write as much as there is room for"),
        None => {}
    }
    match answer {
        Ok(_) if frozen.is_some() => eprintln!("'{name}' goes on"),
        Ok(_) => {}
        Err(ConnectionError::Refused(failure)) => {
            // The supervisor says that it is; its status says why, with the numbers.
            let why = sandbox.status()?.frozen.and_then(|frozen| limit_words(name, &Happened::Frozen(frozen)));
            return Err(match why.as_deref().and_then(|words| words.split_once(" — ")) {
                Some((message, hint)) => CliError::new(message).hint(hint),
                None => refused(&failure),
            });
        }
        Err(error) => return Err(error.into()),
    }
    Ok(0)
}
