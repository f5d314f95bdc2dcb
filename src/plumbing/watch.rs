//! `__watch STATE REPO TOP [--idle]`: the watcher of one work tree. `__fsmonitor DIR SOCKET VERSION TOKEN`: git's
//! hook, which asks it.

use super::argument;
use crate::error::CliError;
use sandbox_core::id::RepoId;
use sandbox_core::sandbox::{Sandbox, State};
use sandbox_core::store::{Store, make_dir};
use sandbox_core::watch::Place;
use sandbox_sys::lock::FileLock;
use sandbox_watch::{Answer, Config, Kind, Mark, Root, Serve, Token, Watcher, serve};
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The role that git calls.
pub const HOOK: &str = "__fsmonitor";

/// A watcher that a spawn started ends after this time without a question and a live sandbox.
const IDLE: Duration = Duration::from_secs(3600);

/// How long git waits for the hook's answer.
const PATIENCE: Duration = Duration::from_secs(1);

pub fn run(args: &[OsString]) -> Result<(), CliError> {
    let store = Store::open(Path::new(argument(args, 0, "the state directory")?))?;
    let repo = argument(args, 1, "the repository's id")?.to_str().and_then(RepoId::parse);
    let repo = repo.ok_or_else(|| CliError::usage("that is not the id of a repository"))?;
    let top = PathBuf::from(argument(args, 2, "the work tree")?);
    // Nothing of the caller's: not its terminal, its directory, nor a pipe that somebody reads to its end.
    let _ = rustix::process::setsid();
    sandbox_sys::fork::close_from(3, None).map_err(CliError::io("close inherited descriptors"))?;
    let idle = args.iter().any(|arg| arg == "--idle").then_some(IDLE);
    watch(&store, &repo, &top, idle, &mut || ())
}

/// Watches until the end; `ready` hears when all directories are watched. Nothing happens if another process does.
pub fn watch(
    store: &Store,
    repo: &RepoId,
    top: &Path,
    idle: Option<Duration>,
    ready: &mut dyn FnMut(),
) -> Result<(), CliError> {
    let place = Place::new(&store.repo(repo), top);
    make_dir(place.dir())?;
    let lock = FileLock::try_exclusive(&place.lock()).map_err(CliError::io("lock the watcher's place"))?;
    let Some(_lock) = lock else {
        return Err(CliError::new(format!("'{}' is watched already", top.display()))
            .hint("`git sandbox watch --status` tells about the watcher"));
    };
    let stop = terminate()?;
    let config = Config { exclude: vec![store.root().to_owned()], ..Config::new(top.to_owned()) };
    let mut watcher = Watcher::new(config).map_err(|error| CliError::chain(&error))?;
    ready();
    let mut needed = || {
        let sandboxes = Sandbox::all(store, Some(repo)).unwrap_or_default();
        sandboxes.iter().any(|sandbox| {
            sandbox.record.repos.iter().any(|mount| mount.worktree == top)
                && sandbox.state().is_ok_and(|state| state == State::Running)
        })
    };
    let socket = place.socket();
    let asked = Serve { dir: place.dir(), name: &socket, stop: Some(stop.as_fd()), idle, needed: &mut needed };
    serve(&mut watcher, asked).map_err(CliError::io("listen"))
}

/// The signals that end it, as a descriptor; a closed terminal is none of them.
fn terminate() -> Result<OwnedFd, CliError> {
    let register = || -> io::Result<UnixStream> {
        let (read, write) = UnixStream::pair()?;
        for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
            signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
        }
        Ok(read)
    };
    Ok(register().map_err(CliError::io("watch for signals"))?.into())
}

/// Answers git (githooks(5), `fsmonitor-watchman`, version 2): a token, then paths, each ended by NUL. When there is
/// no watcher that answers, the status says so, and git looks at every file. Not a word more: nothing is wrong
/// then, and git would show it with each of its commands, twice, since it asks in version 1 next.
pub fn hook(args: &[OsString]) -> ExitCode {
    match answer_hook(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn answer_hook(args: &[OsString]) -> Result<(), CliError> {
    let place = (Path::new(argument(args, 0, "the watcher's directory")?), argument(args, 1, "its socket")?);
    let (version, token) = (argument(args, 2, "the version")?, argument(args, 3, "the token")?);
    if version != "2" {
        return Err(CliError::new("git asks in a version of the protocol that is not 2").hint("git 2.26 or newer does"));
    }
    let since = token.to_str().and_then(Token::parse);
    let socket = place.1.to_str().unwrap_or_default();
    let answer =
        sandbox_watch::ask(place.0, socket, since.as_ref(), PATIENCE).map_err(CliError::io("ask the watcher"))?;
    // Linked work trees share the configuration, and a copied repository brings it and its index's token along: git
    // calls the hook in the work tree that it asks about.
    if let Answer::Since { root, .. } = &answer
        && Root::of(Path::new(".")).map_err(CliError::io("look at the work tree"))? != *root
    {
        return Err(CliError::new("the watcher watches another work tree"));
    }
    let Some(out) = answer_git(&answer) else { return Err(CliError::new("the watcher cannot answer now")) };
    io::stdout().write_all(&out).map_err(CliError::io("write"))
}

/// `None` when there is nothing to tell git: it shall look at every file.
fn answer_git(answer: &Answer) -> Option<Vec<u8>> {
    let (token, marks) = match answer {
        Answer::Since { token, marks, .. } => (token, Some(marks)),
        Answer::All { token, .. } => (token.as_ref()?, None),
    };
    let mut out = token.to_string().into_bytes();
    out.push(0);
    let mut paths = Vec::new();
    for mark in marks.into_iter().flatten() {
        match mark {
            // The top directory's own attributes are nothing to git.
            Mark::Path(path, _) if path.is_empty() => {}
            Mark::Path(path, kind) => {
                paths.extend([path.as_slice(), b"\0"].concat());
                if *kind == Kind::Subtree {
                    paths.extend([path.as_slice(), b"/\0"].concat());
                }
            }
            // Which names it has is not known.
            Mark::Inode(_) => return Some([out.as_slice(), b"/\0"].concat()),
        }
    }
    if marks.is_none() {
        paths = b"/\0".to_vec();
    }
    out.extend(paths);
    Some(out)
}
