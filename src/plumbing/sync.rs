//! `__sync STATE REPO SNAPSHOT`: what follows a launch on a snapshot that is new, in the background.
//!
//! Everything that the sandbox stands on goes to the disk for good: up to the launch nothing could be
//! lost; from now on a power cut must not take the layers from under files that were fsynced inside. Then a
//! stack that has become deep or heavy is folded, for the spawns to come.

use super::argument;
use crate::error::CliError;
use sandbox_core::id::{RepoId, SnapshotId};
use sandbox_core::launch::TreeView;
use sandbox_core::record::Snapshot;
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::{Store, keep_copy, make_dir, read_json, write_whole};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// `repos/<id>/synced/<snapshot>`: an empty file.
fn mark(store: &Store, repo: &RepoId, snapshot: &SnapshotId) -> PathBuf {
    store.repo(repo).path().join("synced").join(snapshot)
}

/// How long the sync of a sandbox's record waits for the end of a command that somebody waits for. Most that are
/// over sooner leave nothing, and the sandbox goes with them; two syncs take longer than all the rest of such a run.
/// Until then the record is no less safe than what is written inside: its writing has begun (`writeback::begin`), so
/// that any sync of a file inside takes it along.
const DELAY: Duration = Duration::from_millis(200);

/// The record of a sandbox on its way to the disk. Dropped, it waits until it is there, if the sandbox is: a command
/// that ends has said that it exists.
pub struct Syncing {
    sandbox: Sandbox,
    /// Dropped, the thread goes on at once; a message ends it.
    thread: Option<(Sender<()>, JoinHandle<bool>)>,
    done: bool,
}

impl Syncing {
    fn start(sandbox: &Sandbox, delay: Duration) -> Self {
        let own = sandbox.clone();
        let (stop, told) = channel();
        let work = move || match told.recv_timeout(delay) {
            Ok(()) => false,
            Err(_) => sync_own(&own).is_ok(),
        };
        // A failure costs durability over a power cut, not the start.
        let thread = std::thread::Builder::new().name("sync".into()).spawn(work).ok();
        Self { sandbox: sandbox.clone(), thread: thread.map(|thread| (stop, thread)), done: false }
    }

    /// Ends the thread: a process with threads does not fork. What it has not done is done at the end.
    pub fn pause(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            let _ = stop.send(());
            self.done = thread.join().unwrap_or(false);
        }
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            self.done = thread.join().unwrap_or(false);
        }
        if !self.done && self.sandbox.dir.record().exists() {
            let _ = sync_own(&self.sandbox);
        }
    }
}

/// Puts what was made for one sandbox on the disk: its record, and the whole file system when files were copied
/// for it alone (a fork, a full copy).
fn sync_own(sandbox: &Sandbox) -> std::io::Result<()> {
    let dir = File::open(sandbox.dir.path())?;
    // `repair` makes a damaged one whole from it.
    let _ = keep_copy(&sandbox.dir.record());
    if for_it_alone(sandbox) {
        return Ok(rustix::fs::syncfs(&dir)?);
    }
    File::open(sandbox.dir.record())?.sync_all()?;
    dir.sync_all()
}

/// Files were copied for this sandbox alone.
fn for_it_alone(sandbox: &Sandbox) -> bool {
    sandbox.record.view == TreeView::Copy || sandbox.record.forked.is_some()
}

/// Starts in the background what follows a launch: this, unless the snapshot is on the disk already, and
/// the daily `gc`. `waits`: for a command that is about to run in it.
#[must_use]
pub fn start(program: &Path, store: &Store, sandbox: &Sandbox, waits: bool) -> Syncing {
    let delay = if waits && !for_it_alone(sandbox) { DELAY } else { Duration::ZERO };
    let syncing = Syncing::start(sandbox, delay);
    crate::verbs::gc::start_auto(program, store);
    for mount in &sandbox.record.repos {
        start_for(program, store, &mount.repo, &mount.snapshot);
    }
    syncing
}

/// The same for one snapshot.
pub fn start_for(program: &Path, store: &Store, repo: &RepoId, snapshot: &SnapshotId) {
    if mark(store, repo, snapshot).exists() {
        return;
    }
    // A failure costs durability over a power cut, not the start.
    let _ = Command::new(program)
        .arg("__sync")
        .args([store.root().as_os_str(), repo.as_str().as_ref(), snapshot.as_str().as_ref()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
}

pub fn run(args: &[OsString]) -> Result<(), CliError> {
    let _ = rustix::process::setsid();
    let store = Store::open(Path::new(argument(args, 0, "the state directory")?))?;
    let text = |n, what: &str| argument(args, n, what).map(|arg| arg.to_string_lossy().into_owned());
    let repo = RepoId::parse(&text(1, "the repository's id")?);
    let snapshot = SnapshotId::parse(&text(2, "the snapshot's id")?);
    let (Some(repo), Some(snapshot)) = (repo, snapshot) else { return Err(CliError::usage("that is no id")) };
    sandbox_capture::sync(store.root()).map_err(|error| CliError::chain(&error))?;
    let mark = mark(&store, &repo, &snapshot);
    make_dir(mark.parent().unwrap_or(store.root()))?;
    keep_copy(&store.repo(&repo).snapshot(&snapshot))?;
    write_whole(&mark, b"", false)?;
    if let Some(snapshot) = read_json::<Snapshot>(&store.repo(&repo).snapshot(&snapshot))? {
        sandbox_core::fold::fold(&store, &repo, &snapshot.worktree).map_err(|error| CliError::chain(&error))?;
    }
    Ok(())
}
