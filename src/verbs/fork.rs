//! `fork`: one more sandbox, from the state that another one is in now.

use super::spawn::{Launch, launch};
use super::stop;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::leave;
use crate::text::{count, escape, escape_bytes, size};
use sandbox_core::fork::{ForkError, Hold, Made, Request, Told, fork};
use sandbox_core::id::Name;
use sandbox_core::sandbox::{Sandbox, SandboxError};
use sandbox_core::space::is_full;
use sandbox_core::store::Store;
use sandbox_core::work;
use sandbox_protocol::{escape_bytes as protocol_bytes, unescape_bytes};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

/// Paths that are named of a longer list.
const NAMED: usize = 5;
/// How long another command that works on the stopped parent is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn run(context: &Context, args: &cli::Fork) -> Outcome {
    let wish = leave::wish(context, args.on_exit)?;
    let name = args.new.as_deref().map(Name::parse).transpose()?;
    let store = context.store()?;
    store.writable()?;
    let parent = context.sandbox(&store, &args.name)?;
    let git = context.git()?;
    let tip = |tree: Sandbox| Some((tree.tree, work::tip(git, &store, &tree).ok()??.to_string()));
    let tips = parent.trees().filter_map(tip).collect();
    let argv = args.command.iter().map(|arg| protocol_bytes(arg.as_bytes())).collect();
    let Made { sandbox, lock, told } = made(&store, &parent, Request { name, argv, tips })?;
    crate::presets::carry::retell(context, &sandbox);
    if !args.quiet {
        tell(&parent, &sandbox, &told);
    }
    let how = Launch {
        detach: args.detach,
        json: args.json,
        quiet: args.quiet,
        tty: args.tty,
        branch: args.branch.as_deref(),
        first: None,
        command: &args.command,
        cwd: &sandbox.record.cwd,
        wish,
        copy_out: &[],
        report: None,
    };
    launch(context, &store, &sandbox, lock, &how)
}

/// Forks one that runs or not; one that is just starting or ending is waited for.
fn made(store: &Store, parent: &Sandbox, request: Request) -> Result<Made, CliError> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(mut connection) = stop::live(parent)? {
            return Ok(fork(store, parent, Hold::Live(&mut connection), request)?);
        }
        match parent.take(Duration::from_millis(100)) {
            Ok(lock) => return Ok(fork(store, parent, Hold::Stopped(lock), request)?),
            Err(SandboxError::Running { .. } | SandboxError::Busy { .. }) if Instant::now() < until => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn tell(parent: &Sandbox, sandbox: &Sandbox, told: &Told) {
    let shown = |paths: &[String]| {
        let names: Vec<String> = paths.iter().take(NAMED).map(|path| escape_bytes(&unescape_bytes(path))).collect();
        let more = if paths.len() > NAMED { format!(", … ({} more)", paths.len() - NAMED) } else { String::new() };
        names.join(", ") + &more
    };
    let how = match told.frozen {
        Some(true) => ", frozen for it",
        Some(false) => ", not frozen",
        None => "",
    };
    eprintln!(
        "sandbox '{}'{}: as '{}' is now, {} copied ({}){how}",
        sandbox.name(),
        crate::wall::weak_words(&sandbox.record),
        parent.name(),
        count(told.files as usize, "file"),
        size(told.bytes),
    );
    if !told.unsettled.is_empty() {
        eprintln!("kept changing while it was copied: {}", shown(&told.unsettled));
    }
    if let Some(lock) = &told.locked {
        eprintln!("note: '{lock}' was copied too: a git command ran in '{}' and did not end", parent.name());
    }
    if !told.left_out.is_empty() {
        eprintln!("left out (a socket or device): {}", shown(&told.left_out));
    }
}

impl From<ForkError> for CliError {
    fn from(error: ForkError) -> Self {
        match error {
            ForkError::Prepare(error) => error.into(),
            ForkError::Store(error) => error.into(),
            ForkError::Sandbox(error) => error.into(),
            ForkError::Copy { ref name, ref source } => {
                let path = escape_bytes(source.path.as_os_str().as_bytes());
                let failure = Self::new(format!("cannot copy the sandbox '{name}': '{path}'"))
                    .cause(escape(&source.source.to_string()));
                match source.source.kind() {
                    _ if is_full(&source.source) => failure.hint(
                        "make room on the disk of the state directory, or `git config --global sandbox.stateDir DIR`; nothing is left half made",
                    ),
                    io::ErrorKind::PermissionDenied => {
                        failure.hint("it belongs to another user, or user namespaces are switched off; nothing is left half made")
                    }
                    _ => failure.hint("nothing is left half made"),
                }
            }
            ForkError::Whole { ref source, .. } if crate::view::is_full(source) => Self::chain(&error).hint(
                "make room on the disk of the state directory, or `git config --global sandbox.stateDir DIR`; nothing is left half made",
            ),
            ForkError::Whole { .. } => Self::chain(&error).hint("nothing is left half made"),
            ForkError::Unsettled { ref name, .. } => Self::chain(&error)
                .hint(format!("fork it again when git is at rest there, or after `git sandbox stop {name}`")),
            ForkError::Dropped { ref name } => {
                Self::chain(&error).hint(format!("`git sandbox trash restore {name}` brings it back"))
            }
            ForkError::Ended { .. } => Self::chain(&error).hint("fork it again: its files are where they were"),
        }
    }
}
