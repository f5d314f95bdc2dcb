//! `__commit-back DIR`: brings a running sandbox's commits home. Standard input is a connection to
//! its supervisor; each ref that moved is a line on standard output.
//!
//! `__commit-back DIR --auto-commit ARG…`: the command ARG… has ended, and before the last commits come home
//! what it left uncommitted is committed inside (`sandbox.autoCommit`), and recorded on the mirror (`sandbox.record`).

use super::argument;
use super::supervise::{open, records};
use crate::error::CliError;
use crate::verbs::fetch::told;
use sandbox_core::auto_commit;
use sandbox_core::commit_back::commit_back;
use sandbox_core::connection::Connection;
use sandbox_core::mirror_record;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::read_json;
use sandbox_git::{Git, HostEnv};
use sandbox_protocol::unescape_bytes;
use sandbox_supervisor::RingLog;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Bytes of the log that its last lines are looked for in.
const TAIL: u64 = 64 << 10;

pub fn run(args: &[OsString]) -> Result<(), CliError> {
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(CliError::io("take over the connection"))?;
    let null = std::fs::File::open("/dev/null").map_err(CliError::io("open '/dev/null'"))?;
    rustix::stdio::dup2_stdin(&null).map_err(|e| CliError::io("close standard input")(e.into()))?;
    let (store, dir) = open(Path::new(argument(args, 0, "the sandbox's directory")?))?;
    let record = read_json(&dir.record())?.ok_or_else(|| CliError::new("the sandbox is half-made"))?;
    let sandbox = Sandbox::new(dir, record);
    let git = Git::new(HostEnv::from_vars(std::env::vars_os()))?;
    let mut connection = Connection::new(UnixStream::from(socket))?;
    let mut brought = commit_back(&mut connection, &git, &store, &sandbox);
    // What was committed must be home before.
    if brought.is_ok() && args.get(1).is_some_and(|arg| arg == "--auto-commit") {
        let outcome = match sandbox.record.auto_commit {
            true => {
                let message = auto_commit::message(sandbox.name(), &command(&sandbox, &args[2..]), &tail(&sandbox));
                // A failure is an outcome too: what came home is told all the same, and it is not tried again and again.
                auto_commit::run(&mut connection, &git, &store, &sandbox, &message)
                    .unwrap_or_else(|error| auto_commit::Outcome::failed(&error))
            }
            false => auto_commit::Outcome::default(),
        };
        if let Some(mirror) = sandbox.record.mirror.as_ref().filter(|_| records(&sandbox.record)) {
            mirror_record::run(&mut connection, &sandbox, mirror)?;
        }
        auto_commit::done(&sandbox, &outcome)?;
        if outcome.committed() {
            // What came home before it was made is told with it.
            let before = brought.map(|brought| brought.lines).unwrap_or_default();
            brought = commit_back(&mut connection, &git, &store, &sandbox);
            if let Ok(brought) = &mut brought {
                brought.lines.splice(0..0, before);
            }
        }
    }
    print!("{}", told(&brought?)?);
    Ok(())
}

/// The command in the subject; a shell that was not asked for by name is only that.
fn command(sandbox: &Sandbox, argv: &[OsString]) -> Vec<u8> {
    let shell = argv.first().is_some_and(|program| *program == *sandbox.record.user.shell);
    if sandbox.record.argv.is_empty() && shell {
        return Vec::new();
    }
    let words: Vec<Vec<u8>> = argv.iter().map(|arg| unescape_bytes(&arg.to_string_lossy())).collect();
    words.join(&b' ')
}

/// The last whole lines of the command's log.
fn tail(sandbox: &Sandbox) -> Vec<u8> {
    let tail = RingLog::tail(&sandbox.dir.log(), TAIL).unwrap_or_default();
    if (tail.len() as u64) < TAIL {
        return tail;
    }
    let start = tail.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    tail[start..].to_vec()
}
