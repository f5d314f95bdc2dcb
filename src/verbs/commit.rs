//! `commit`: commits, inside, what is not committed there; for agents that never do.

use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::start::connect_or_start;
use crate::text::escape_lines;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::Store;
use sandbox_protocol::{Exec, ExitStatus, escape_bytes};
use std::os::unix::ffi::OsStrExt;

pub fn run(context: &Context, args: &cli::Commit) -> Outcome {
    let store = context.store()?;
    store.writable()?;
    let sandbox = context.sandbox(&store, &args.name)?;
    if !all(context, &store, &sandbox, &args.message)? {
        eprintln!("nothing to commit in '{}'", sandbox.name());
        return Ok(1);
    }
    eprint!("{}", super::fetch::bring(context, &store, &sandbox)?);
    Ok(0)
}

/// Commits everything that is not ignored; false when there is nothing. It happens inside, with
/// the hooks and the identity of the sandbox.
pub fn all(context: &Context, store: &Store, sandbox: &Sandbox, message: &str) -> Result<bool, CliError> {
    let mut connection = connect_or_start(context, store, sandbox)?;
    let mut git = |args: &[&str]| -> Result<(ExitStatus, String), CliError> {
        let mut argv = vec!["git".to_owned()];
        argv.extend(args.iter().map(|arg| escape_bytes(arg.as_bytes())));
        let cwd = escape_bytes(sandbox.record.repos[0].worktree.as_os_str().as_bytes());
        let exec = Exec { argv, cwd, ..Exec::default() };
        let (status, out, err) = connection.run(exec, b"", 1 << 20)?;
        let text = [out, err].concat();
        Ok((status, String::from_utf8_lossy(&text).into_owned()))
    };
    let done = |what: &str, (status, text): (ExitStatus, String)| match status {
        ExitStatus::Code(0) => Ok(text),
        _ => Err(CliError::new(format!("`git {what}` failed inside '{}'", sandbox.name()))
            .cause(escape_lines(text.trim_end()))
            .hint(format!("`git sandbox shell {}` to look at it", sandbox.name()))),
    };
    done("add", git(&["add", "--all"])?)?;
    if let (ExitStatus::Code(0), _) = git(&["diff", "--cached", "--quiet"])? {
        return Ok(false);
    }
    done("commit", git(&["commit", "--quiet", "-m", message])?)?;
    Ok(true)
}

/// The message of `sandbox.autoCommit`: what ran, and the last lines of what it said.
pub fn automatic_message(sandbox: &Sandbox) -> String {
    let command = sandbox.record.argv.join(" ");
    let subject = if command.is_empty() { format!("Work of sandbox '{}'", sandbox.name()) } else { command };
    let subject: String = crate::text::escape(&subject).chars().take(72).collect();
    let tail = sandbox_supervisor::RingLog::tail(&sandbox.dir.log(), 4096).unwrap_or_default();
    let text = crate::text::escape_lines(&String::from_utf8_lossy(&tail).replace("\r\n", "\n"));
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(10)..];
    if last.is_empty() { subject } else { format!("{subject}\n\n{}\n", last.join("\n")) }
}
