//! `git-remote-sandbox`: git's remote helper for `sandbox::…`.
//!
//! On the host, `git fetch sandbox::NAME` first brings the sandbox's commits home (landing and
//! all checks), then lets git fetch them from a throw-away repository that holds only their refs:
//! a sandbox's own upload-pack never speaks to the user's repository.
//!
//! Inside, `sandbox::host` is the host: fetching is served by the supervisor from what was granted,
//! pushing is a request for commit-back.

use crate::context::Context;
use crate::error::CliError;
use crate::inside;
use crate::start::refused;
use crate::text::escape_lines;
use crate::verbs::fetch;
use sandbox_core::connection::ConnectionError;
use sandbox_core::launch::INSIDE;
use sandbox_core::served;
use sandbox_core::view::serve_command;
use sandbox_protocol::{ExitStatus, Message};
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, ExitCode};

pub fn run(args: &[OsString]) -> ExitCode {
    let url = args.get(1).or(args.first()).map(|url| url.to_string_lossy()).unwrap_or_default();
    let target = url.trim_start_matches("sandbox::").trim_start_matches("//").trim_end_matches('/').to_owned();
    let result = if inside::name().is_some() { inside_helper(&target) } else { host_helper(&target) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.print();
            ExitCode::from(error.status)
        }
    }
}

/// The helper of remotes that cannot be reached without a network.
pub fn offline(args: &[OsString]) -> ExitCode {
    let remote = args.first().map(|name| name.to_string_lossy()).unwrap_or_default();
    let name = inside::name().unwrap_or_default();
    CliError::new(format!(
        "no network in sandbox '{}': cannot reach '{}'",
        crate::text::escape(&name),
        crate::text::escape(&remote)
    ))
    .hint("git push host brings your commits to the host")
    .hint("git fetch host brings newer commits of the host")
    .print();
    ExitCode::from(128)
}

/// What stands for ssh where only the proxy leads out of the sandbox: it passes on TLS and plain
/// HTTP to hosts that are allowed, and nothing else.
pub fn no_ssh(args: &[OsString]) -> ExitCode {
    // `ssh [-o …] [-p PORT] [user@]host command`: the host is the first word that is no option's.
    let mut words = args.iter().map(|word| word.to_string_lossy());
    let mut host = String::new();
    while let Some(word) = words.next() {
        match word.as_ref() {
            "-o" | "-p" | "-l" | "-i" | "-F" | "-J" => drop(words.next()),
            option if option.starts_with('-') => {}
            other => {
                host = other.to_owned();
                break;
            }
        }
    }
    let (name, host) = (crate::text::escape(&inside::name().unwrap_or_default()), crate::text::escape(&host));
    let bare = host.rsplit('@').next().unwrap_or_default();
    CliError::new(format!("no ssh in sandbox '{name}': cannot reach '{host}'"))
        .hint(format!("an https URL works when its host is allowed: on the host, `git sandbox allow {name} {bare}`"))
        .hint("git push host brings your commits to the host")
        .print();
    ExitCode::from(255)
}

fn reply(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::io("answer git"))
}

/// Reads one command of git at a time, byte by byte: what follows `connect` belongs to another reader.
fn line() -> Option<String> {
    let mut bytes = Vec::new();
    let mut byte = [0u8; 1];
    loop {
        match rustix::io::read(io::stdin(), &mut byte) {
            Ok(0) => return None,
            Ok(_) if byte[0] == b'\n' => return String::from_utf8(bytes).ok(),
            Ok(_) => bytes.push(byte[0]),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
        if bytes.len() > 8192 {
            return None;
        }
    }
}

fn host_helper(name: &str) -> Result<(), CliError> {
    while let Some(command) = line() {
        match command.as_str() {
            "capabilities" => reply("connect\n\n")?,
            "connect git-upload-pack" => return serve_brought(name),
            _ if command.starts_with("connect ") => {
                return Err(CliError::new("a sandbox cannot be pushed to")
                    .hint("inside it, `git fetch host` brings newer commits of the host"));
            }
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// Brings home, then serves exactly the sandbox's refs to the git that asked.
fn serve_brought(name: &str) -> Result<(), CliError> {
    let context = Context::new(None)?;
    let store = context.store()?;
    let sandbox = sandbox_core::sandbox::Sandbox::find(&store, context.repo_id(&store)?.as_ref(), name)?;
    fetch::bring(&context, &store, &sandbox)?;
    let served = served::for_host(context.git()?, &store, &sandbox)?;
    reply("\n")?;
    Ok(serve_command(context.git()?, served.path()).pass_through()?)
}

fn inside_helper(target: &str) -> Result<(), CliError> {
    if target != "host" {
        return Err(CliError::new(format!(
            "inside a sandbox there is only 'sandbox::host', not 'sandbox::{}'",
            crate::text::escape(target)
        )));
    }
    while let Some(command) = line() {
        match command.as_str() {
            "capabilities" => reply("connect\npush\n\n")?,
            "connect git-upload-pack" => return fetch_host(),
            // Pushing is not receive-pack: a request for commit-back, by the `push` command.
            _ if command.starts_with("connect ") => reply("fallback\n")?,
            "list for-push" | "list" => reply("\n")?,
            _ if command.starts_with("push ") => push_host(command)?,
            "" => return Ok(()),
            other => return Err(CliError::new(format!("unknown request '{}' of git", crate::text::escape(other)))),
        }
    }
    Ok(())
}

fn fetch_host() -> Result<(), CliError> {
    let mut connection = inside::connect()?;
    reply("\n")?;
    let protocol = std::env::var("GIT_PROTOCOL").ok();
    let request = Message::ServeHost { repo: tree_here(), protocol };
    relay_standard(&mut connection, request)
}

/// The number of the tree whose repository git was called for: git names its directory to a helper.
fn tree_here() -> u32 {
    let trees = std::fs::read_to_string(format!("{INSIDE}/trees")).unwrap_or_default();
    let gitdir = std::env::var_os("GIT_DIR").unwrap_or_else(|| ".".into());
    let Ok(here) = std::fs::canonicalize(gitdir) else { return 0 };
    trees.lines().position(|tree| here.starts_with(tree)).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

/// Relays standard input and output over a stream until the other side ends it. Plain reads and
/// writes: nothing may wait in a buffer while the peer waits for it.
fn relay_standard(connection: &mut sandbox_core::connection::Connection, request: Message) -> Result<(), CliError> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(CliError::io("make a socket pair"))?;
    let input = ours.try_clone().map_err(CliError::io("duplicate a socket"))?;
    let output = ours;
    std::thread::spawn(move || {
        pump(io::stdin().as_fd(), input.as_fd());
        let _ = input.shutdown(Shutdown::Write);
    });
    let printer = std::thread::spawn(move || pump(output.as_fd(), io::stdout().as_fd()));
    let ended = connection.relay_request(&request, &theirs);
    let _ = theirs.shutdown(Shutdown::Both);
    drop(theirs);
    let _ = printer.join();
    // The thread that reads standard input ends with the process.
    match ended {
        Ok((ExitStatus::Code(0), _)) => Ok(()),
        Ok(_) => Err(CliError::new("the host could not serve its refs")),
        Err(ConnectionError::Refused(failure)) => Err(refused(&failure)),
        Err(error) => Err(error.into()),
    }
}

/// The branch that `HEAD` is on, by its full name.
fn current_branch() -> Option<String> {
    let out = Command::new("git").args(["symbolic-ref", "--quiet", "HEAD"]).output().ok()?;
    String::from_utf8(out.stdout).ok().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Copies until the end of `from`, or until nobody reads `to`.
fn pump(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    let mut bytes = [0u8; 32 * 1024];
    loop {
        let n = match rustix::io::read(from, &mut bytes) {
            Ok(0) => return,
            Ok(n) => n,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        };
        let mut rest = &bytes[..n];
        while !rest.is_empty() {
            match rustix::io::write(to, rest) {
                Ok(n) => rest = &rest[n..],
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// One batch of `push SRC:DST` lines: one commit-back, one status per ref.
fn push_host(first: String) -> Result<(), CliError> {
    let mut targets = Vec::new();
    let current = current_branch();
    let mut command = Some(first);
    while let Some(text) = command.filter(|text| !text.is_empty()) {
        if let Some((source, target)) = text.trim_start_matches("push ").trim_start_matches('+').split_once(':') {
            targets.push((source.to_owned(), target.to_owned()));
        }
        command = line();
    }
    let mut connection = inside::connect()?;
    let answer = connection.ask(&Message::CommitBack, 1 << 20);
    let failure = match answer {
        Ok((_, told)) => {
            let told = escape_lines(&String::from_utf8_lossy(&told));
            eprint!("{}", if told.is_empty() { "the host has everything\n".into() } else { told });
            None
        }
        Err(ConnectionError::Refused(failure)) => Some(failure.message),
        Err(error) => Some(error.to_string()),
    };
    for (source, target) in targets {
        match &failure {
            _ if source.is_empty() => {
                reply(&format!("error {target} the host's refs cannot be deleted from inside\n"))?
            }
            // Commits land below refs/sandbox: no other target exists, and none is pretended.
            _ if source != target && !(source == "HEAD" && current.as_ref() == Some(&target)) => {
                reply(&format!(
                    "error {target} commits come home under the sandbox's own name: push the branch itself\n"
                ))?;
            }
            None => reply(&format!("ok {target}\n"))?,
            Some(why) => reply(&format!("error {target} {}\n", crate::text::escape(why)))?,
        }
    }
    reply("\n")
}
