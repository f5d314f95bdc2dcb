//! `exec`, `shell`, `attach`: sessions in a sandbox that exists.

use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::start::{connect_or_start, exec_request, refused, shell_batch, shell_command};
use crate::terminal::{Ended, Input, interactive, relay};
use crate::text::escape;
use sandbox_core::connection::Connection;
use sandbox_core::sandbox::Sandbox;
use sandbox_protocol::{EVENTS, Exec, FailureKind, Message};
use std::path::{Path, PathBuf};

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

fn session(
    context: &Context,
    store: &sandbox_core::store::Store,
    sandbox: &Sandbox,
    request: Exec,
    input: Input,
) -> Outcome {
    let mut connection = connect_or_start(context, store, sandbox)?;
    let stream = connection.open();
    connection.send(stream, &Message::Exec(request))?;
    let ended = relay(&mut connection, stream, input, false, sandbox.name())?;
    status(sandbox, ended)
}

pub fn attach(context: &Context, args: &cli::One) -> Outcome {
    let store = context.store()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    let mut connection = sandbox.connect_with(&[EVENTS])?;
    match attach_to(&mut connection, sandbox.name())? {
        Ended::Refused(failure) if failure.kind == FailureKind::NotFound => {
            Err(CliError::new(format!("no command was started in '{}'", sandbox.name()))
                .hint(format!("`git sandbox shell {}` opens a shell in it", sandbox.name())))
        }
        ended => status(&sandbox, ended),
    }
}

/// Joins the main session; a new window size makes full-screen programs redraw.
fn attach_to(connection: &mut Connection, name: &str) -> Result<Ended, CliError> {
    let stream = connection.open();
    connection.send(stream, &Message::Attach { session: 0, replay: REPLAY })?;
    let tty = interactive();
    if tty {
        let size = crate::terminal::window();
        let nudged = sandbox_protocol::WindowSize { rows: size.rows, cols: size.cols.saturating_sub(1).max(1) };
        connection.send(stream, &Message::Resize(nudged))?;
        connection.send(stream, &Message::Resize(size))?;
        eprintln!("attached: Ctrl-P Ctrl-Q leaves it running");
    }
    relay(connection, stream, if tty { Input::Terminal } else { Input::None }, true, name)
}

/// What the end of a relayed session means for our own status.
pub fn status(sandbox: &Sandbox, ended: Ended) -> Outcome {
    match ended {
        Ended::Exited(status) => Ok(u8::try_from(status.shell()).unwrap_or(255)),
        Ended::Detached => {
            eprintln!("detached: `git sandbox attach {}` joins it again", sandbox.name());
            Ok(0)
        }
        Ended::Refused(failure) => Err(refused(&failure)),
        Ended::Interrupted => {
            eprintln!("interrupted: '{}' goes on; `git sandbox stop {}` ends it", sandbox.name(), sandbox.name());
            Ok(130)
        }
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
