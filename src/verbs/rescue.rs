//! `rescue`: what is not committed in a sandbox becomes a commit in the vault, now.

use super::{fetch, stop};
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::text::{age, count, escape, parse_duration};
use sandbox_core::connection::Connection;
use sandbox_core::kept::Rescue;
use sandbox_core::record::RESCUE_EVERY;
use sandbox_core::rescue::{self, Effort};
use sandbox_core::sandbox::{Sandbox, State};
use sandbox_core::store::Store;
use sandbox_sys::lock::FileLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long it may take when somebody waits for it.
const TIME: Duration = Duration::from_secs(120);

/// `sandbox.rescueEvery`: seconds, or a number with `s`, `m`, `h` or `d`.
pub fn every(context: &Context) -> Result<u64, CliError> {
    let Some(text) = context.setting("sandbox.rescueEvery") else { return Ok(RESCUE_EVERY) };
    parse_duration(text.trim()).ok_or_else(|| {
        CliError::new(format!("'{}' is not a value of sandbox.rescueEvery", escape(&text)))
            .hint("it is a time, for example 5m; 0 rescues only at the end of a command and of the sandbox")
    })
}

pub fn run(context: &Context, args: &cli::Rescue) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    let name = sandbox.name();
    let outcomes = now(context, &store, &sandbox)?;
    if outcomes.iter().all(|outcome| *outcome == rescue::Outcome::Clean) {
        eprintln!("nothing is uncommitted in '{name}'");
    }
    for outcome in &outcomes {
        match outcome {
            rescue::Outcome::Clean => {}
            rescue::Outcome::Same(rescue) => {
                eprintln!("nothing has changed since '{name}' was rescued: {}", words(rescue));
            }
            rescue::Outcome::Made(rescue) => eprintln!("rescued {}", words(rescue)),
        }
        for line in outcome.rescue().iter().flat_map(|rescue| &rescue.left_out) {
            eprintln!("warning: not in it: {}", escape(line));
        }
    }
    Ok(0)
}

/// Of one that runs, or by a helper of one that does not.
pub fn now(context: &Context, store: &Store, sandbox: &Sandbox) -> Result<Vec<rescue::Outcome>, CliError> {
    let made = |connection: &mut Connection, effort: Effort| {
        rescue::run_all(connection, context.git()?, store, sandbox, effort).map_err(|error| failed(sandbox, &error))
    };
    if sandbox.state()? == State::Running
        && let Some(mut connection) = stop::live(sandbox)?
    {
        return made(&mut connection, Effort::live(TIME));
    }
    fetch::with_helper(context, store, sandbox, |connection| made(connection, Effort::helper(TIME)))
}

/// Of one that does not run and whose lock is held.
pub fn locked(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    lock: &FileLock,
) -> Result<Vec<rescue::Outcome>, CliError> {
    fetch::helper(context, store, sandbox, lock, |connection| {
        rescue::run_all(connection, context.git()?, store, sandbox, Effort::helper(TIME))
            .map_err(|error| failed(sandbox, &error))
    })
}

fn failed(sandbox: &Sandbox, error: &rescue::RescueError) -> CliError {
    let mut failure = CliError::new(format!("cannot rescue what is not committed in '{}'", sandbox.name())).status(1);
    let chain = CliError::chain(error);
    for cause in std::iter::once(chain.message).chain(chain.causes) {
        failure = failure.cause(cause);
    }
    failure.hint(format!("its files stay where they are: `git sandbox show {}`", sandbox.name()))
}

/// `5 files (3 min ago)`.
pub fn words(rescue: &Rescue) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(0);
    let files = count(usize::try_from(rescue.files).unwrap_or(usize::MAX), "file");
    let files = if rescue.files == 0 { "a changed index".to_owned() } else { files };
    format!("{files} ({} ago)", age(now.saturating_sub(rescue.at)))
}
