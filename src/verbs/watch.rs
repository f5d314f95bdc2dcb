//! `watch`: the watcher of the work tree here, and git's own use of it.

use super::list::print_json;
use crate::cli;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::plumbing::watch::HOOK;
use crate::text::{count, escape};
use sandbox_core::id::RepoId;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::{Store, make_dir};
use sandbox_core::watch::Place;
use sandbox_sys::lock::FileLock;
use sandbox_watch::{Status, limits};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a watcher may take to tell about itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long all directories of a tree may take to be watched.
const START: Duration = Duration::from_secs(120);

/// `sandbox.watch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A watcher that runs is asked.
    Auto,
    /// A spawn starts one.
    Always,
    /// None is asked.
    Never,
}

/// Reads `sandbox.watch`.
pub fn wish(context: &Context) -> Result<Wish, CliError> {
    match context.setting("sandbox.watch").as_deref() {
        None | Some("auto") => Ok(Wish::Auto),
        Some("always") => Ok(Wish::Always),
        Some("never") => Ok(Wish::Never),
        Some(other) => Err(CliError::new(format!("'{}' is not a value of sandbox.watch", escape(other)))
            .hint("it is auto, always or never")),
    }
}

#[derive(Serialize)]
struct Report {
    version: u32,
    worktree: PathBuf,
    running: bool,
    ready: bool,
    pid: Option<u32>,
    directories: u64,
    linked_files: u64,
    questions: u64,
    doubts: u64,
    /// Why there was doubt, last.
    doubt: String,
    /// Git asks it.
    fsmonitor: bool,
}

pub fn run(context: &Context, args: &cli::Watch) -> Outcome {
    let repo = context.repo()?;
    let top = repo.worktree()?.to_owned();
    let store = context.store()?;
    let id = match repo.known_id(&store)? {
        Some(id) => id,
        None if args.stop || args.status => return none(context, &top, args),
        None => {
            store.writable()?;
            repo.repo_id(&store)?
        }
    };
    let place = Place::new(&store.repo(&id), &top);
    if args.status {
        return status(context, &place, &top, args.json);
    }
    if args.stop {
        let unset = unset_fsmonitor(context, &top)?;
        let stopped = place.stop(PATIENCE).map_err(CliError::io("end the watcher"))?;
        eprintln!("{}", if stopped { "stopped" } else { "no watcher runs" });
        if unset {
            eprintln!("core.fsmonitor is unset again");
        }
        return Ok(if stopped || unset { 0 } else { 1 });
    }
    store.writable()?;
    if args.fsmonitor {
        set_fsmonitor(context, &place, &top)?;
    }
    if args.foreground {
        crate::plumbing::watch::watch(&store, &id, &top, None, &mut || eprintln!("watching '{}'", top.display()))?;
        return Ok(0);
    }
    let status = match place.status(PATIENCE) {
        Some(status) if status.ready => status,
        _ => begin(context, &store, &id, &place, &top)?,
    };
    eprintln!("watching '{}': {}", top.display(), watched(&status));
    Ok(0)
}

fn watched(status: &Status) -> String {
    let mut text = if status.dirs == 1 { "1 directory".to_owned() } else { format!("{} directories", status.dirs) };
    if status.files > 0 {
        text.push_str(&format!(", {} with several names", count(status.files as usize, "file")));
    }
    text
}

/// Starts a watcher and waits until it watches everything.
fn begin(context: &Context, store: &Store, id: &RepoId, place: &Place, top: &Path) -> Result<Status, CliError> {
    let mut child = spawn(context, store, id, place, top, false)?;
    let until = Instant::now() + START;
    loop {
        let ended = child.try_wait().map_err(CliError::io("wait for the watcher"))?;
        match place.status(PATIENCE) {
            Some(status) if status.ready => return Ok(status),
            Some(status) if !status.why.is_empty() => {
                let _ = place.stop(PATIENCE);
                return Err(refused(top, &status.why));
            }
            // Another one that watches it begins as we do: its answer is as good.
            _ if ended.is_some() && !FileLock::is_held(&place.lock()) => {
                let said = std::fs::read_to_string(place.log()).unwrap_or_default();
                let first = said.lines().next().unwrap_or("it ended at once").trim_start_matches("error: ");
                return Err(refused(top, first));
            }
            _ if Instant::now() > until => {
                return Err(refused(top, "it takes too long to look at all directories"));
            }
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn refused(top: &Path, why: &str) -> CliError {
    let error = CliError::new(format!("cannot watch '{}'", top.display())).cause(escape(why));
    // The names of both limits and their values are in the reason.
    let limit = why.rsplit_once(": '").and_then(|(_, limit)| limit.split_once("' is "));
    if let Some((name, value)) = limit.filter(|(name, _)| name.contains("inotify")) {
        let more = value.parse::<u64>().unwrap_or(0).saturating_mul(4).max(1024);
        return error.hint(format!(
            "`sudo sysctl {name}={more}` raises the limit; without a watcher a spawn looks at every file"
        ));
    }
    error.hint("a spawn works without a watcher too: it looks at every file")
}

fn spawn(
    context: &Context,
    store: &Store,
    id: &RepoId,
    place: &Place,
    top: &Path,
    idle: bool,
) -> Result<Child, CliError> {
    make_dir(place.dir())?;
    let log = std::fs::File::create(place.log()).map_err(CliError::io(format!("write '{}'", place.log().display())))?;
    let mut command = Command::new(&context.program);
    command.arg("__watch").arg(store.root()).arg(id.to_string()).arg(top);
    if idle {
        command.arg("--idle");
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(log));
    command.spawn().map_err(CliError::io("start the watcher"))
}

/// Starts a watcher after a spawn, if each is to have one and there is none. What goes wrong costs time and not
/// the sandbox: the watcher's log says it.
pub fn start_always(context: &Context, store: &Store, sandbox: &Sandbox) {
    let mount = sandbox.mount();
    let place = Place::new(&store.repo(&mount.repo), &mount.worktree);
    if wish(context).is_ok_and(|wish| wish == Wish::Always) && !FileLock::is_held(&place.lock()) {
        let _ = spawn(context, store, &mount.repo, &place, &mount.worktree, true);
    }
}

/// One line for `doctor`: whether one runs here, and the kernel's limits.
pub fn tell(context: &Context) -> String {
    let (instances, watches, _) = limits();
    let limits = format!("{instances} of them and {watches} directories in all are allowed to each user");
    let place = || {
        let repo = context.maybe_repo()?;
        let store = context.store().ok()?;
        Some(Place::new(&store.repo(&repo.known_id(&store).ok()??), repo.top()?))
    };
    match place().and_then(|place| place.status(PATIENCE)) {
        Some(status) => format!("{} watched here; {limits}", watched(&status)),
        None => format!("none runs here; {limits}"),
    }
}

fn none(context: &Context, top: &Path, args: &cli::Watch) -> Outcome {
    if args.json {
        print_json(&report(context, top, None)?)?;
    } else {
        eprintln!("no watcher runs");
    }
    Ok(1)
}

fn report(context: &Context, top: &Path, status: Option<Status>) -> Result<Report, CliError> {
    let running = status.is_some();
    let status = status.unwrap_or_default();
    Ok(Report {
        version: 1,
        worktree: top.to_owned(),
        running,
        ready: status.ready,
        pid: running.then_some(status.pid),
        directories: status.dirs,
        linked_files: status.files,
        questions: status.questions,
        doubts: status.doubts,
        doubt: status.why,
        fsmonitor: fsmonitor(context, top)?.is_some_and(|value| is_ours(&value)),
    })
}

fn status(context: &Context, place: &Place, top: &Path, json: bool) -> Outcome {
    let status = place.status(PATIENCE);
    let running = status.is_some();
    if json {
        print_json(&report(context, top, status)?)?;
    } else if let Some(status) = status {
        println!("watching '{}' (process {}): {}", top.display(), status.pid, watched(&status));
        println!("{}, {} with doubt", count(status.questions as usize, "question"), status.doubts);
        if !status.ready {
            println!("not ready: it looks at the directories first");
        }
        if !status.why.is_empty() {
            println!("last doubt: {}", escape(&status.why));
        }
        if fsmonitor(context, top)?.is_some_and(|value| is_ours(&value)) {
            println!("git asks it (core.fsmonitor)");
        }
    } else {
        println!("no watcher runs");
    }
    Ok(if running { 0 } else { 1 })
}

/// `core.fsmonitor` of this repository alone.
fn fsmonitor(context: &Context, top: &Path) -> Result<Option<String>, CliError> {
    let git = context.git()?.user(top).args(["config", "--local", "--get", "core.fsmonitor"]);
    let (status, out) = git.try_output()?;
    Ok(status.success().then(|| String::from_utf8_lossy(&out.stdout).trim_end_matches('\n').to_owned()))
}

fn is_ours(value: &str) -> bool {
    value.contains(&format!(" {HOOK} "))
}

/// Lets git ask the watcher, unless the user has chosen something else.
fn set_fsmonitor(context: &Context, place: &Place, top: &Path) -> Result<(), CliError> {
    let (found, out) = context.git()?.user(top).args(["config", "--get", "core.fsmonitor"]).try_output()?;
    let value = String::from_utf8_lossy(&out.stdout).trim_end_matches('\n').to_owned();
    if found.success() && !is_ours(&value) && !matches!(value.as_str(), "false" | "no" | "off" | "0" | "") {
        return Err(CliError::new(format!("core.fsmonitor is '{}' already", escape(&value))).hint(
            "it stays as it is; `git config --unset core.fsmonitor` takes it away, if you want this one instead",
        ));
    }
    // Git hands it to a shell, with the version and its token behind.
    let quote = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let hook = format!(
        "{} {HOOK} {} {}",
        quote(&context.program.to_string_lossy()),
        quote(&place.dir().to_string_lossy()),
        place.socket()
    );
    context.git()?.user(top).args(["config", "--local", "core.fsmonitor", &hook]).output()?;
    eprintln!("git asks the watcher now: core.fsmonitor is set for this repository");
    Ok(())
}

/// Takes away what [`set_fsmonitor`] set, and nothing else.
pub fn unset_fsmonitor(context: &Context, top: &Path) -> Result<bool, CliError> {
    if !fsmonitor(context, top)?.is_some_and(|value| is_ours(&value)) {
        return Ok(false);
    }
    context.git()?.user(top).args(["config", "--local", "--unset", "core.fsmonitor"]).output()?;
    Ok(true)
}
