//! `exec`, `shell`, `attach`: sessions in a sandbox that exists.

use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::start::{connect_or_start, exec_request, refused, shell_batch, shell_command, started};
use crate::terminal::{Ended, Input, features, interactive, relay, tell};
use crate::text::escape;
use sandbox_core::connection::{Connection, ConnectionError};
use sandbox_core::sandbox::{Sandbox, State};
use sandbox_core::store::Store;
use sandbox_protocol::{Exec, FailureKind, Message};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a sandbox that is on its way to its end is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of past output that `attach` shows.
const REPLAY: u64 = 64 * 1024;

pub fn run(context: &Context, args: &cli::Exec) -> Outcome {
    let store = context.store()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    let mut request =
        exec_request(&args.command, &workdir(context, &sandbox, args.workdir.as_deref()), args.tty, false);
    request.env = variables(context, &args.env)?.into_iter().map(|(name, value)| (name, Some(value))).collect();
    let input = if args.tty { Input::Terminal } else { Input::Pipe };
    session(context, &store, &sandbox, request, input)
}

pub fn shell(context: &Context, args: &cli::Shell) -> Outcome {
    let store = context.store()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    let tty = interactive();
    let shell = &sandbox.record.user.shell;
    let command = if tty { shell_command(shell) } else { shell_batch(shell) };
    let request = exec_request(&command, &workdir(context, &sandbox, args.workdir.as_deref()), tty, false);
    session(context, &store, &sandbox, request, if tty { Input::Terminal } else { Input::Pipe })
}

fn session(context: &Context, store: &Store, sandbox: &Sandbox, request: Exec, input: Input) -> Outcome {
    let (mut connection, stream) = begin(context, store, sandbox, &request)?;
    let ended = relay(&mut connection, stream, input, false, false, sandbox.name())?;
    if matches!(ended, Ended::Interrupted) {
        // Others may be at work in it: only this command ends.
        connection.send(stream, &Message::Signal { signal: 9 })?;
        tell(&format!("interrupted: its command was killed; `git sandbox stop {}` ends the sandbox", sandbox.name()));
        return Ok(130);
    }
    status(sandbox, ended)
}

/// Starts a session. A sandbox that another command's end is stopping at this moment is started again; nothing
/// was read from the standard input until then.
fn begin(context: &Context, store: &Store, sandbox: &Sandbox, request: &Exec) -> Result<(Connection, u32), CliError> {
    let until = Instant::now() + PATIENCE.max(sandbox.patience());
    loop {
        let mut connection = connect_or_start(context, store, sandbox)?;
        let stream = connection.open();
        connection.send(stream, &Message::Exec(request.clone()))?;
        match started(&mut connection, stream) {
            Ok(Ok(())) => return Ok((connection, stream)),
            Ok(Err(failure)) if failure.kind == FailureKind::Stopping && Instant::now() < until => {}
            Ok(Err(failure)) => return Err(refused(&failure)),
            Err(ConnectionError::Closed) if Instant::now() < until && sandbox.state()? != State::Running => {}
            Err(error) => return Err(error.into()),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn attach(context: &Context, args: &cli::One) -> Outcome {
    let store = context.store()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    let mut connection = sandbox.connect_with(&features())?;
    match attach_to(&mut connection, sandbox.name())? {
        Ended::Refused(failure) if failure.kind == FailureKind::NotFound => {
            Err(CliError::new(format!("no command was started in '{}'", sandbox.name()))
                .hint(format!("`git sandbox shell {}` opens a shell in it", sandbox.name())))
        }
        Ended::Interrupted => {
            drop(connection);
            interrupted(context, &store, &sandbox)
        }
        ended => status(&sandbox, ended),
    }
}

/// Stops a sandbox whose command was interrupted twice; nothing of it is given up.
pub fn interrupted(context: &Context, store: &Store, sandbox: &Sandbox) -> Outcome {
    let name = sandbox.name();
    super::stop::stop(sandbox, Duration::ZERO)?;
    super::stop::bring_rest(context, store, sandbox);
    tell(&format!("interrupted: '{name}' was stopped, its files stay; `git sandbox start {name}` goes on"));
    Ok(130)
}

/// Joins the main session, and has a full-screen program draw itself.
fn attach_to(connection: &mut Connection, name: &str) -> Result<Ended, CliError> {
    let stream = connection.open();
    connection.send(stream, &Message::Attach { session: 0, replay: REPLAY })?;
    let tty = interactive();
    if tty {
        eprintln!("attached: Ctrl-P Ctrl-Q leaves it running");
    }
    relay(connection, stream, if tty { Input::Terminal } else { Input::None }, true, tty, name)
}

/// What the end of a relayed session means for our own status.
pub fn status(sandbox: &Sandbox, ended: Ended) -> Outcome {
    match ended {
        Ended::Exited(status) => Ok(u8::try_from(status.shell()).unwrap_or(255)),
        Ended::Detached => {
            tell(&format!("detached: `git sandbox attach {}` joins it again", sandbox.name()));
            Ok(0)
        }
        Ended::Refused(failure) => Err(refused(&failure)),
        Ended::Interrupted => Ok(130),
        Ended::Closed => Err(CliError::new(format!("the sandbox '{}' has stopped", sandbox.name()))
            .hint(format!("`git sandbox show {}` tells how", sandbox.name()))),
    }
}

/// The caller's own directory when that is in one of the sandbox's trees, else the main tree.
pub fn workdir(context: &Context, sandbox: &Sandbox, asked: Option<&Path>) -> PathBuf {
    let top = sandbox.record.repos.first().map_or_else(|| PathBuf::from("/"), |mount| mount.worktree.clone());
    match asked {
        Some(dir) => top.join(dir),
        None if sandbox.record.repos.iter().any(|mount| context.cwd.starts_with(&mount.worktree)) => {
            context.cwd.clone()
        }
        None => top,
    }
}

/// Reads `--env NAME[=VALUE]`.
pub fn variables(context: &Context, asked: &[String]) -> Result<Vec<(String, String)>, CliError> {
    asked
        .iter()
        .map(|entry| {
            let (name, value) = match entry.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => {
                    let value = context.vars.get(entry.as_str()).cloned().ok_or_else(|| {
                        CliError::usage(format!("the variable '{entry}' is not set here"))
                            .hint(format!("`--env {entry}=VALUE` gives it a value"))
                    })?;
                    (entry.as_str(), value)
                }
            };
            let valid =
                !name.is_empty() && !name.contains(['\0', ' ']) && !name.starts_with(|c: char| c.is_ascii_digit());
            if valid {
                Ok((name.to_owned(), value))
            } else {
                Err(CliError::usage(format!("'{}' is not a variable's name", escape(name)))
                    .hint("`--env NAME=VALUE`, where NAME has no space and does not start with a digit"))
            }
        })
        .collect()
}
