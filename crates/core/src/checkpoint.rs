//! States that a sandbox can go back to: copies of what it had written at one instant, as `fork` makes them.
//!
//! ```text
//! sandboxes/<id>/checkpoints/lock
//!                            <n>/checkpoint.json     when, and what it is called; without it half-made
//!                            <n>/home, trees/…       as in the sandbox's own directory (of a virtual machine disk.img)
//!                            next/home, trees/…      what a restore is about to put in place
//!                            next/swap.json          it is whole: from here on the restore is carried out
//!
//!   checkpoint:  copy ─► checkpoint.json
//!   restore:     copy of <n> as next ─► swap.json ─► each part: its own to <m>, next's in its place ─► checkpoint.json of <m>
//! ```
//!
//! What a restore replaces is a checkpoint itself, by renames: nothing of it is copied, and nothing can be lost. A
//! restore that was cut before `swap.json` was there has changed nothing; after it, whoever takes the sandbox next
//! does the rest ([`settle`]) before anything runs in it. Checkpoints go where the sandbox goes: to the trash and
//! back. A fork has none.

use crate::fork::{ForkError, Hold, Told, copy_state};
use crate::journal::{End, Ids, Journal, Plan, Verb};
use crate::record::SandboxRecord;
use crate::sandbox::{Sandbox, SandboxError};
use crate::store::{SandboxDir, Store, StoreError, make_dir, read_json, write_json};
use sandbox_sys::fault;
use sandbox_sys::lock::FileLock;
use serde::{Deserialize, Serialize};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The version of `checkpoint.json`.
pub const VERSION: u32 = 1;
/// The longest label, in bytes.
pub const MAX_LABEL: usize = 80;
/// What a restore is about to put in place.
const NEXT: &str = "next";
/// How long another command that makes a checkpoint of the same sandbox is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// `checkpoints/<n>/checkpoint.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// [`VERSION`].
    pub version: u32,
    /// Its number, from 1, never given twice as long as it is there.
    pub number: u32,
    /// What its maker calls it. Not escaped.
    #[serde(default)]
    pub label: Option<String>,
    /// Unix seconds.
    pub at: u64,
    /// It is what a restore of this checkpoint replaced.
    #[serde(default)]
    pub before: Option<u32>,
}

/// `checkpoints/next/swap.json`: a restore is being carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Swap {
    /// What is restored.
    from: u32,
    /// The checkpoint that what is replaced becomes.
    before: u32,
    /// Unix seconds.
    at: u64,
}

/// Why there is no checkpoint, or nothing was restored. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The copy.
    #[error(transparent)]
    Copy(#[from] ForkError),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No label.
    #[error("'{label}' cannot be the name of a checkpoint")]
    Label {
        /// What was asked for, escaped.
        label: String,
    },
    /// There is another one of that label.
    #[error("'{name}' has a checkpoint '{label}' already")]
    Taken {
        /// The sandbox.
        name: String,
        /// The label.
        label: String,
    },
    /// It has not begun.
    #[error("'{name}' was never started: there is nothing to go back to")]
    Nothing {
        /// The sandbox.
        name: String,
    },
    /// There is none of that number or label.
    #[error("'{name}' has no checkpoint '{wanted}'")]
    Unknown {
        /// The sandbox.
        name: String,
        /// What was asked for, escaped.
        wanted: String,
        /// Those that there are.
        known: Vec<String>,
    },
}

type Result<T> = std::result::Result<T, CheckpointError>;

impl Checkpoint {
    /// As it is named: its label, else its number.
    pub fn name(&self) -> String {
        self.label.clone().unwrap_or_else(|| self.number.to_string())
    }
}

fn root(dir: &SandboxDir) -> PathBuf {
    dir.path().join("checkpoints")
}

/// Where a checkpoint is: laid out as a sandbox's own directory.
pub fn place(dir: &SandboxDir, number: u32) -> SandboxDir {
    SandboxDir::at(root(dir).join(number.to_string()))
}

fn record_of(place: &SandboxDir) -> PathBuf {
    place.path().join("checkpoint.json")
}

fn stop(name: &'static str, path: &Path) -> std::result::Result<(), StoreError> {
    fault::point(name).map_err(StoreError::io("write", path))
}

/// All of a sandbox, the oldest first.
pub fn all(dir: &SandboxDir) -> std::result::Result<Vec<Checkpoint>, StoreError> {
    let root = root(dir);
    let entries = match fs::read_dir(&root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(StoreError::Io { action: "list", path: root, source }),
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StoreError::io("list", &root))?;
        let number = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if let Some(number) = number {
            all.extend(read_json::<Checkpoint>(&record_of(&place(dir, number)))?);
        }
    }
    all.sort_by_key(|checkpoint| checkpoint.number);
    Ok(all)
}

/// Finds one by its number or its label.
pub fn find(sandbox: &Sandbox, wanted: &str) -> Result<Checkpoint> {
    let all = all(&sandbox.dir)?;
    let is = |checkpoint: &&Checkpoint| {
        checkpoint.label.as_deref() == Some(wanted) || checkpoint.number.to_string() == wanted
    };
    all.iter().find(is).cloned().ok_or_else(|| CheckpointError::Unknown {
        name: sandbox.name().to_owned(),
        wanted: sandbox_git::printable(wanted.as_bytes()),
        known: all.iter().map(|checkpoint| sandbox_git::printable(checkpoint.name().as_bytes())).collect(),
    })
}

/// A label is text for people, and never taken for a number.
fn check_label(sandbox: &Sandbox, label: &str) -> Result<()> {
    let bad = label.trim() != label
        || label.is_empty()
        || label.len() > MAX_LABEL
        || label.starts_with('-')
        || label.bytes().all(|byte| byte.is_ascii_digit())
        || label.chars().any(char::is_control);
    if bad {
        return Err(CheckpointError::Label { label: sandbox_git::printable(label.as_bytes()) });
    }
    match all(&sandbox.dir)?.iter().any(|checkpoint| checkpoint.label.as_deref() == Some(label)) {
        true => Err(CheckpointError::Taken { name: sandbox.name().to_owned(), label: label.to_owned() }),
        false => Ok(()),
    }
}

/// The lock of a sandbox's checkpoints, with nothing left that is half-made.
fn lock(sandbox: &Sandbox) -> Result<FileLock> {
    let root = root(&sandbox.dir);
    make_dir(&root)?;
    let path = root.join("lock");
    let lock = FileLock::exclusive_within(&path, PATIENCE).map_err(StoreError::io("lock", &path))?;
    let lock = lock.ok_or_else(|| SandboxError::Busy { holder: sandbox_sys::lock::holder(&path) })?;
    sweep(&sandbox.dir)?;
    Ok(lock)
}

/// Removes what is half-made. The caller holds the lock.
fn sweep(dir: &SandboxDir) -> std::result::Result<usize, StoreError> {
    let root = root(dir);
    if root.join(NEXT).join("swap.json").exists() {
        return Ok(0);
    }
    let mut swept = 0;
    for entry in fs::read_dir(&root).map_err(StoreError::io("list", &root))? {
        let path = entry.map_err(StoreError::io("list", &root))?.path();
        if path.is_dir() && !path.join("checkpoint.json").exists() {
            sandbox_capture::remove_tree(&path).map_err(StoreError::io("delete", &path))?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// The number of the next one. Numbers go on, whatever was removed.
fn next_number(dir: &SandboxDir) -> std::result::Result<u32, StoreError> {
    let last = root(dir).join("last");
    let written = fs::read_to_string(&last).ok().and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(0);
    let number = all(dir)?.last().map_or(0, |checkpoint| checkpoint.number).max(written) + 1;
    crate::store::write_whole(&last, format!("{number}\n").as_bytes(), false)?;
    Ok(number)
}

/// A directory that goes unless it is finished.
struct Half(Option<PathBuf>);

impl Drop for Half {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let _ = sandbox_capture::remove_tree(&path);
        }
    }
}

/// Makes a checkpoint of a sandbox, which runs or whose lock is held.
pub fn make(store: &Store, sandbox: &Sandbox, hold: Hold<'_>, label: Option<&str>) -> Result<(Checkpoint, Told)> {
    if sandbox.record.guest_disk && !sandbox.dir.disk().exists() {
        return Err(CheckpointError::Nothing { name: sandbox.name().to_owned() });
    }
    if let Some(label) = label {
        check_label(sandbox, label)?;
    }
    let _lock = lock(sandbox)?;
    let number = next_number(&sandbox.dir)?;
    let place = place(&sandbox.dir, number);
    let journal = Journal::of_sandbox(store, &sandbox.record.id);
    let mut op = journal.start(Plan::new(Verb::Checkpoint).of(sandbox.name()))?;
    op.begin("copy", Ids::from([("made".to_owned(), number.to_string())]))?;
    let mut half = Half(Some(place.path().to_owned()));
    let made = || -> Result<(Checkpoint, Told)> {
        make_dir(place.path())?;
        stop("checkpoint.copy", place.path())?;
        let told = copy_state(store, sandbox, &place, hold)?;
        stop("checkpoint.record", place.path())?;
        let label = label.map(str::to_owned);
        let checkpoint =
            Checkpoint { version: VERSION, number, label, at: sandbox_sys::clock::unix_seconds(), before: None };
        write_json(&record_of(&place), &checkpoint, true)?;
        Ok((checkpoint, told))
    };
    match made() {
        Ok(made) => {
            half.0 = None;
            stop("checkpoint.done", place.path())?;
            op.done("copy")?;
            op.end(End::Done);
            Ok(made)
        }
        Err(error) => {
            drop(half);
            op.end(End::Failed);
            Err(error)
        }
    }
}

/// Removes a checkpoint. Whether anything else has what is in it is for the caller to know.
pub fn remove(sandbox: &Sandbox, number: u32) -> Result<()> {
    let _lock = lock(sandbox)?;
    let place = place(&sandbox.dir, number);
    let record = record_of(&place);
    // Without its record it is half-made: whatever happens, the rest goes with the next look.
    fs::remove_file(&record).map_err(StoreError::io("delete", &record))?;
    sandbox_capture::remove_tree(place.path()).map_err(StoreError::io("delete", place.path()))?;
    Ok(())
}

/// Puts a sandbox, whose lock is held and that does not run, back to a checkpoint. Returns the checkpoint that has
/// what it was until now.
pub fn restore(store: &Store, sandbox: &Sandbox, held: &FileLock, checkpoint: &Checkpoint) -> Result<Checkpoint> {
    let _ = held;
    let _lock = lock(sandbox)?;
    let root = root(&sandbox.dir);
    let before = next_number(&sandbox.dir)?;
    let next = SandboxDir::at(root.join(NEXT));
    let journal = Journal::of_sandbox(store, &sandbox.record.id);
    let mut op = journal.start(Plan::new(Verb::Restore).of(sandbox.name()))?;
    op.begin("restore", Ids::from([("made".to_owned(), before.to_string())]))?;
    let mut half = Half(Some(next.path().to_owned()));
    let prepared = || -> Result<()> {
        make_dir(next.path())?;
        stop("restore.copy", next.path())?;
        // A checkpoint is laid out as a sandbox is, and nothing writes to it.
        let from = Sandbox::new(place(&sandbox.dir, checkpoint.number), sandbox.record.clone());
        copy_state(store, &from, &next, Hold::Still)?;
        make_dir(place(&sandbox.dir, before).path())?;
        stop("restore.swap", next.path())?;
        let swap = Swap { from: checkpoint.number, before, at: sandbox_sys::clock::unix_seconds() };
        Ok(write_json(&next.path().join("swap.json"), &swap, true)?)
    };
    if let Err(error) = prepared() {
        drop(half);
        let _ = sweep(&sandbox.dir);
        op.end(End::Failed);
        return Err(error);
    }
    half.0 = None;
    settle(&sandbox.dir, &sandbox.record)?;
    op.done("restore")?;
    op.end(End::Done);
    Ok(read_json(&record_of(&place(&sandbox.dir, before)))?.unwrap_or(Checkpoint {
        version: VERSION,
        number: before,
        label: None,
        at: sandbox_sys::clock::unix_seconds(),
        before: Some(checkpoint.number),
    }))
}

/// Carries out a restore that was cut after it was decided; true if there was one. The caller holds the sandbox's
/// lock, and nothing runs in it. It can be done again.
pub fn settle(dir: &SandboxDir, record: &SandboxRecord) -> std::result::Result<bool, StoreError> {
    let next = SandboxDir::at(root(dir).join(NEXT));
    let Some(swap) = read_json::<Swap>(&next.path().join("swap.json"))? else { return Ok(false) };
    let before = place(dir, swap.before);
    make_dir(before.path())?;
    let mut parts = vec![(dir.home(), before.home(), next.home()), (dir.disk(), before.disk(), next.disk())];
    for n in (0..record.repos.len()).filter(|n| record.has_upper(*n)) {
        parts.push((dir.upper(n), before.upper(n), next.upper(n)));
        parts.push((dir.manifest(n), before.manifest(n), next.manifest(n)));
    }
    let there = |path: &Path| path.symlink_metadata().is_ok();
    for (own, before, next) in &parts {
        // Moved already, or a part that this view has not.
        if !there(next) {
            continue;
        }
        if let (Some(above), false) = (before.parent(), there(before)) {
            make_dir(above)?;
        }
        if there(own) && !there(before) {
            stop("restore.away", own)?;
            move_dir(own, before)?;
        }
        stop("restore.in", own)?;
        move_dir(next, own)?;
    }
    for path in [dir.path(), before.path()] {
        let sync = || fs::File::open(path)?.sync_all();
        sync().map_err(StoreError::io("sync", path))?;
    }
    stop("restore.record", before.path())?;
    let (number, at) = (swap.before, swap.at);
    let checkpoint = Checkpoint { version: VERSION, number, label: None, at, before: Some(swap.from) };
    write_json(&record_of(&before), &checkpoint, true)?;
    stop("restore.done", next.path())?;
    // Its record goes first: what is left of it then is half-made.
    let swap = next.path().join("swap.json");
    fs::remove_file(&swap).map_err(StoreError::io("delete", &swap))?;
    sandbox_capture::remove_tree(next.path()).map_err(StoreError::io("delete", next.path()))?;
    Ok(true)
}

/// Renames. A directory that its owner may not write to cannot be moved into another one, so it may for a moment.
fn move_dir(from: &Path, to: &Path) -> std::result::Result<(), StoreError> {
    let failed = |source| StoreError::Io { action: "move", path: from.to_owned(), source };
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let mode = fs::symlink_metadata(from).map_err(failed)?.permissions().mode();
            fs::set_permissions(from, Permissions::from_mode(mode | 0o700)).map_err(failed)?;
            let moved = fs::rename(from, to);
            let now = if moved.is_ok() { to } else { from };
            fs::set_permissions(now, Permissions::from_mode(mode)).map_err(failed)?;
            moved.map_err(failed)
        }
        other => other.map_err(failed),
    }
}

/// Whether a restore of a sandbox was decided and is not carried out.
pub fn is_cut(dir: &SandboxDir) -> bool {
    root(dir).join(NEXT).join("swap.json").exists()
}

/// Whether the checkpoint of this number is whole, or a restore that makes it was decided.
pub fn is_made(dir: &SandboxDir, number: Option<&str>) -> bool {
    let number = number.and_then(|number| number.parse::<u32>().ok());
    is_cut(dir) || number.is_some_and(|number| record_of(&place(dir, number)).exists())
}

/// Carries out or removes what a killed command left.
pub fn mend(store: &Store, id: &crate::id::SandboxId) -> Result<()> {
    let Some(sandbox) = Sandbox::load(store, id)? else { return Ok(()) };
    if is_cut(&sandbox.dir) {
        // Whoever takes it carries it out.
        drop(sandbox.take(PATIENCE)?);
    }
    if root(&sandbox.dir).is_dir() {
        drop(lock(&sandbox)?);
    }
    Ok(())
}
