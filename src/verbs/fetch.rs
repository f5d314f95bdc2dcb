//! `fetch` (`sync`), `push`: commits come home now.

use super::stop::chosen;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::inside;
use crate::start::refused;
use crate::text::escape_lines;
use sandbox_core::brought;
use sandbox_core::commit_back::{self, Brought};
use sandbox_core::connection::{Connection, ConnectionError};
use sandbox_core::launch::Mode;
use sandbox_core::sandbox::{Sandbox, State};
use sandbox_core::store::Store;
use sandbox_core::work;
use sandbox_protocol::Message;
use sandbox_sys::lock::FileLock;
use std::time::Duration;

pub fn run(context: &Context, args: &cli::Many) -> Outcome {
    if args.names.is_empty() && !args.all {
        return Err(CliError::usage("which sandbox?").hint("`git sandbox fetch NAME…`, or `--all` of this repository"));
    }
    let store = context.store()?;
    for sandbox in chosen(context, &store, &args.names, args.all)? {
        let told = bring(context, &store, &sandbox)?;
        if told.is_empty() {
            eprintln!("{}: nothing new", sandbox.name());
        } else {
            eprint!("{told}");
        }
    }
    Ok(0)
}

/// Brings home what a sandbox committed, whether it runs, was stopped or crashed; returns what
/// is to be told, one line per ref.
pub fn bring(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<String, CliError> {
    if let Some(mut connection) = super::stop::live(sandbox)? {
        return match connection.ask(&Message::CommitBack, 1 << 20) {
            Ok((_, told)) => Ok(escape_lines(&String::from_utf8_lossy(&told))),
            Err(ConnectionError::Refused(failure)) => {
                let mut error = refused(&failure);
                if let Err(why) = work::host(store, sandbox) {
                    error.hints.extend(CliError::from(why).hints);
                }
                Err(error)
            }
            // It stopped meanwhile.
            Err(ConnectionError::Closed) => stopped(context, store, sandbox),
            Err(error) => Err(error.into()),
        };
    }
    stopped(context, store, sandbox)
}

/// As [`bring`], for a verb that only shows: where a newer program keeps the state, it shows what came before.
pub fn bring_to_read(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<(), CliError> {
    if store.writable().is_err() && sandbox.state()? != State::Running {
        eprintln!("note: a newer git-sandbox keeps the state: what was not brought home by it is not shown");
        return Ok(());
    }
    bring(context, store, sandbox).map(drop)
}

/// Of one that does not run: a read-only helper over its directories answers instead of it.
fn stopped(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<String, CliError> {
    if !may_have_news(context, store, sandbox)? {
        return Ok(String::new());
    }
    // Before the lock, which is written to.
    store.writable()?;
    bring_locked(context, store, sandbox, &sandbox.take(sandbox.patience())?)
}

/// Something was written in a git directory of it, and that is not known to be home.
fn may_have_news(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<bool, CliError> {
    if !work::git_changed(store, sandbox)? {
        return Ok(false);
    }
    // What a newer program wrote down is not believed.
    Ok(store.writable().is_err() || !brought::is_home(context.git()?, store, sandbox))
}

/// As [`bring`], of a sandbox whose lock is held and that does not run.
pub fn bring_locked(context: &Context, store: &Store, sandbox: &Sandbox, lock: &FileLock) -> Result<String, CliError> {
    if !may_have_news(context, store, sandbox)? {
        return Ok(String::new());
    }
    store.writable()?;
    helper(context, store, sandbox, lock, |connection| {
        let brought = commit_back::commit_back(connection, context.git()?, store, sandbox)?;
        told(&brought)
    })
}

/// As [`bring_locked`], even if nothing seems to be written there: what is here may be ahead of it.
pub fn bring_all(context: &Context, store: &Store, sandbox: &Sandbox, lock: &FileLock) -> Result<String, CliError> {
    helper(context, store, sandbox, lock, |connection| {
        told(&commit_back::commit_back(connection, context.git()?, store, sandbox)?)
    })
}

/// Waits until this thread is the only one: a launch forks, and the threads that carried an earlier
/// conversation may still be ending.
fn alone() {
    for _ in 0..400 {
        if std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count) <= 1 {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Launches a helper over a sandbox that does not run, for as long as `act` needs it; nobody starts
/// the sandbox meanwhile.
pub fn with_helper<T>(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    act: impl FnOnce(&mut Connection) -> Result<T, CliError>,
) -> Result<T, CliError> {
    helper(context, store, sandbox, &sandbox.take(sandbox.patience())?, act)
}

/// As [`with_helper`], of one whose lock is held.
pub fn helper<T>(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    _lock: &FileLock,
    act: impl FnOnce(&mut Connection) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let spec = crate::vm::launch_spec(context, store, sandbox, Mode::Helper)?;
    let driver = super::spawn::driver(&sandbox.record.driver)?;
    alone();
    let mut machine = driver.launch(&spec)?;
    let control = machine.control().try_clone().map_err(CliError::io("use the control channel"))?;
    let result = Connection::new(control).map_err(CliError::from).and_then(|mut connection| act(&mut connection));
    machine.kill().map_err(CliError::io("end the helper"))?;
    result
}

/// What is said about commits that came home; a refused ref is an error after the good ones landed.
pub fn told(brought: &Brought) -> Result<String, CliError> {
    let mut text = String::new();
    for line in &brought.lines {
        text.push_str(&escape_lines(line));
        text.push('\n');
    }
    if brought.refused.is_empty() {
        return Ok(text);
    }
    eprint!("{text}");
    // One line: it is also what `git push host` shows inside.
    let each: Vec<String> = brought
        .refused
        .iter()
        .take(10)
        .map(|(name, why)| format!("'{}' ({})", crate::text::escape(name), crate::text::escape(why)))
        .collect();
    let more =
        if brought.refused.len() > 10 { format!(" and {} more", brought.refused.len() - 10) } else { String::new() };
    let error = CliError::new(format!("not brought home: {}{more}", each.join(", ")));
    Err(error.hint("the sandbox is kept; the other refs are here"))
}

/// `push [NAME]`: inside, asks the host; outside, the same as `fetch NAME`.
pub fn push(context: &Context, args: &cli::Push) -> Outcome {
    if inside::name().is_some() {
        return ask_host();
    }
    let Some(name) = &args.name else {
        return Err(CliError::usage("which sandbox?").hint("`git sandbox push NAME`, or `git sandbox push` inside one"));
    };
    run(context, &cli::Many { names: vec![name.clone()], all: false })
}

/// Inside: `git sandbox push`.
fn ask_host() -> Outcome {
    let mut connection = inside::connect()?;
    match connection.ask(&Message::CommitBack, 1 << 20) {
        Ok((_, told)) => {
            let told = escape_lines(&String::from_utf8_lossy(&told));
            eprint!("{}", if told.is_empty() { "the host has everything\n".to_owned() } else { told });
            Ok(0)
        }
        Err(ConnectionError::Refused(failure)) => Err(refused(&failure)),
        Err(error) => Err(error.into()),
    }
}

/// Inside: `git sandbox sync` is `git fetch host`.
pub fn inside(_args: &cli::Many) -> Outcome {
    let status = std::process::Command::new("git").args(["fetch", "host"]).status();
    match status {
        Ok(status) => Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(128)),
        Err(error) => Err(CliError::io("run `git fetch host`")(error)),
    }
}
